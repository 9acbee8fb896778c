"""Skill execution inside one environment: running chunks of actions and scoring a skill.

Imports no torch: this module runs in environment worker processes, while planning stays in the main process.
"""

from __future__ import annotations

import math
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space, create_empty_array, iterate

from didi_gym.core.observations import step_seconds_of
from didi_gym.wrappers.rewards import Reward, RewardRule

UNIT_WRAPPERS = ("NormalizeObservation", "RescaleObservation", "TransformObservation")
_ANSWERS = {"reset": "(observation, info)", "step": "(observation, reward, terminated, truncated, info)"}
_UNPACKED = "values to unpack"  # in Python's words for a tuple of another length
TerminateFn = Callable[[Any, np.ndarray, int], bool]

SKILL_KEYS = frozenset(
    {
        "skill_length",
        "skill_return",
        "skill_interrupted",
        "skill_over",
        "skill_error",
        "skill_achieved_goals",
        "skill_rewards",
        "skill_infos",
    }
)
"""The keys that skill execution adds to an environment's info."""


class LowLevelInfos(tuple[dict[str, Any], ...]):
    """The infos of a skill's low-level steps, never changed: copying an info, as SB3 does at each step, copies none."""

    def __deepcopy__(self, memo: dict[int, Any]) -> LowLevelInfos:
        return self


class SkillExecutor(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Runs chunks of low-level actions inside one environment and reports once per skill.

    Unlike `SkillActionWrapper` it holds no policy: whoever steps it sends the actions. So it can live in a worker
    process while one controller serves many environments. An action is a Dict of

    - `actions`: an array of shape `(replan_every, *action shape)`; for Discrete(n) low-level actions
      `(replan_every, n)`, one-hot (of other numbers the largest counts);
    - `n`: how many of them to run;
    - `duration`: low-level steps of the skill that begins here; 0 goes on with the running one;
    - `last`: whether these complete the skill;
    - `skill`: z `(skill_dim,)`, only with a `terminate_fn`, which gets it.

    A skill stops after its duration, where `terminate_fn` says so, or where the episode ends: from then on actions do
    nothing, and reward, terminated and truncated are reported by the step with `last=1`, as is the info described in
    `finish`. Steps with `last=0` report reward 0, no end, and only `skill_over` in their info.

    Args:
        env: an environment with a Box or Discrete action space.
        skill_duration: the most low-level steps k of a skill; where None, with `until_done`, those of the
            environment's time limit.
        replan_every: the most actions in one step; `skill_duration` where None.
        reward, discount: see `RewardRule`.
        until_done: skills last until the episode ends, so that its end is no interruption.
        terminate_fn: `(observation, skill, steps) -> bool`, asked after each low-level step whether the skill ends
            here; `steps` counts those of this skill. It ends the skill, not the episode.
        skill_dim: numbers in a skill, needed with `terminate_fn`.
        report_errors: give errors of the environment to the main process, as `skill_error` (what, traceback) in an
            otherwise empty info, for workers whose errors would be lost.
    """

    def __init__(
        self,
        env: gym.Env,
        *,
        skill_duration: int | None = None,
        replan_every: int | None = None,
        reward: Reward = "sum",
        discount: float = 1.0,
        until_done: bool = False,
        terminate_fn: TerminateFn | None = None,
        skill_dim: int | None = None,
        report_errors: bool = False,
    ) -> None:
        require_one(env, "SkillExecutor")
        if skill_duration is None:
            skill_duration = _time_limit(env, until_done)
        replan_every = skill_duration if replan_every is None else replan_every
        gym.utils.RecordConstructorArgs.__init__(
            self,
            _disable_deepcopy=True,
            skill_duration=skill_duration,
            replan_every=replan_every,
            reward=reward,
            discount=discount,
            until_done=until_done,
            terminate_fn=terminate_fn,
            skill_dim=skill_dim,
            report_errors=report_errors,
        )
        gym.Wrapper.__init__(self, env)
        refuse_inside(env)
        if skill_duration < 1 or replan_every < 1:
            raise ValueError(
                f"skill_duration and replan_every must be at least 1, got {skill_duration} and {replan_every}"
            )
        if terminate_fn is not None and skill_dim is None:
            raise ValueError("terminate_fn gets the skill: pass skill_dim=, the numbers in a skill")
        self.skill_duration = skill_duration
        self.reward_rule = RewardRule(reward, discount)
        self.low_level_steps = 0
        """Low-level steps taken since construction."""
        self.observation: Any = None
        """The latest observation: what the next chunk is planned from."""
        self._until_done, self._terminate_fn, self._report_errors = until_done, terminate_fn, report_errors
        self._low_level_space = env.action_space
        self._goal_space = _goal_space(env)
        self._terminated = self._truncated = False
        self._needs_reset = True
        self._last_info: dict[str, Any] = {}
        self._skill: np.ndarray | None = None
        self._forget_skill()
        vectors = action_vectors(env.action_space)
        shape = (replan_every, *vectors.shape)
        low, high = (np.broadcast_to(bound, shape) for bound in (vectors.low, vectors.high))
        discrete = isinstance(env.action_space, spaces.Discrete)
        parts: dict[str, spaces.Space] = {
            "actions": spaces.MultiBinary(shape) if discrete else spaces.Box(low, high, dtype=vectors.dtype),
            "n": spaces.Discrete(replan_every + 1),
            "duration": spaces.Discrete(skill_duration + 1),
            "last": spaces.Discrete(2),
        }
        if skill_dim is not None and terminate_fn is not None:
            parts["skill"] = spaces.Box(-np.inf, np.inf, (skill_dim,), np.float32)
        self._action_shape = vectors.shape
        self.action_space = spaces.Dict(parts)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        refuse_outer_time_limit(self)
        try:
            answer = self.env.reset(seed=seed, options=options)
            if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict)):
                raise old_api(self.env, "reset", answer)
            self.observation, info = answer
        except Exception as error:
            return self._nothing_but(error)
        self._terminated = self._truncated = self._needs_reset = False
        self._forget_skill()
        return self.observation, info

    def step(self, action: dict[str, Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        try:
            if action["duration"]:
                self.begin(int(action["duration"]), action.get("skill"))
            self.run(action["actions"][: int(action["n"])])
            if action["last"]:
                return self.finish()
        except Exception as error:
            observation, info = self._nothing_but(error)
            return observation, 0.0, False, False, info
        return self.observation, 0.0, False, False, {"skill_over": self.over}

    def begin(self, duration: int, skill: np.ndarray | None = None) -> None:
        """Begin a skill of `duration` low-level steps, at most `skill_duration`; `skill` is for `terminate_fn`."""
        if self._needs_reset:
            raise gym.error.ResetNeeded("no episode is running: call reset() before the first skill and after an end")
        if not 1 <= duration <= self.skill_duration:
            raise ValueError(f"a skill lasts 1..{self.skill_duration} low-level steps here, got {duration}")
        self._forget_skill()
        self._duration, self._skill = duration, skill

    def run(self, actions: np.ndarray) -> bool:
        """Continue the skill with `actions` `(n, *action shape)`, moved into their space, until it is over.

        Returns:
            Whether the skill is over.
        """
        if actions.shape[1:] != self._action_shape:
            raise ValueError(f"low-level actions must have shape (n, *{self._action_shape}), got {actions.shape}")
        if self.over:
            return True
        rewards, goals, step = self._rewards, self._goals, self.env.step
        for action in to_actions(actions[: self._duration - len(rewards)], self._low_level_space):
            try:
                answer = step(action)
            except ValueError as error:
                if _UNPACKED not in str(error):
                    raise
                raise old_api(self.env, "step", str(error)) from error  # a TimeLimit inside has met four values
            if len(answer) != 5:
                raise old_api(self.env, "step", answer)
            self.observation, reward, terminated, truncated, self._last_info = answer
            if goals is not None:
                goals[len(rewards)] = self.observation["achieved_goal"]
                self._infos.append(self._last_info)
            rewards.append(reward if type(reward) is float else one_number(reward, self.env))
            self.low_level_steps += 1
            if terminated or truncated:
                self._terminated, self._truncated = bool(terminated), bool(truncated)
                break
            if self._terminate_fn is not None:
                assert self._skill is not None  # whoever begins a skill gives it
                self._stopped = bool(self._terminate_fn(self.observation, self._skill, len(rewards)))
                if self._stopped:
                    break
        return self.over

    def finish(self) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """End the skill and report it.

        Returns:
            observation, reward, terminated, truncated and the info of the last low-level step, with

            - `skill_length` (numpy integer): low-level steps taken;
            - `skill_return` (numpy float): their undiscounted sum of rewards;
            - `skill_interrupted` (bool): it ended before its duration, with the episode (unless it was meant to last
              until then) or because `terminate_fn` said so;
            - in goal environments, `skill_achieved_goals` `(k, *goal shape)` and `skill_infos`, the k
              low-level infos, both filled up with the last one, and `skill_rewards` `(k,)`, filled up with zeros.

            A skill without a single step (a vector environment's reset step) reports reward 0 and no info.
        """
        length, reward, info = len(self._rewards), 0.0, {}
        if length:
            if clash := SKILL_KEYS & self._last_info.keys():
                raise ValueError(f"the environment's info already has {sorted(clash)}; rename these keys in a wrapper")
            rewards = np.zeros(self.skill_duration)
            rewards[:length] = self._rewards
            reward = self.reward_rule.total(rewards[:length])
            info = {
                **self._last_info,
                "skill_length": np.int64(length),  # numpy's numbers, since TorchRL takes no others from an info
                "skill_return": np.float64(sum(self._rewards)),
                "skill_interrupted": length < self._duration and not (self._until_done and self.ended),
            }
            if self._goals is not None:
                self._goals[length:] = self._goals[length - 1]
                info["skill_achieved_goals"] = self._goals
                info["skill_rewards"] = rewards
                info["skill_infos"] = LowLevelInfos(self._infos + self._infos[-1:] * (self.skill_duration - length))
        self._needs_reset = self._needs_reset or self.ended
        self._forget_skill()
        return self.observation, reward, self._terminated, self._truncated, info

    @property
    def ended(self) -> bool:
        """Whether the episode has ended, inside this skill or before it."""
        return self._terminated or self._truncated

    @property
    def over(self) -> bool:
        """Whether no skill is running, or the running one takes no more actions."""
        return len(self._rewards) >= self._duration or self._terminated or self._truncated or self._stopped

    def goal_rewards(
        self,
        achieved_goals: np.ndarray,
        desired_goals: np.ndarray,
        infos: Sequence[Sequence[dict[str, Any]]] | None = None,
    ) -> np.ndarray:
        """The base environment's reward at every low-level step of n skills, had the goals been others.

        Args:
            achieved_goals: `(n, k, *goal shape)`, as in `skill_achieved_goals`.
            desired_goals: `(n, *goal shape)`.
            infos: `skill_infos` of each skill; empty infos where None.

        Returns:
            `(n, k)` float64.

        Raises:
            ValueError: no goal environment, or one whose `compute_reward` takes no batch.
        """
        if self._goal_space is None:
            raise ValueError(f"hindsight rewards cannot be computed in {env_name(self.env)}: {_no_goals(self.env)}")
        n, k = achieved_goals.shape[:2]
        achieved = achieved_goals.reshape(n * k, *achieved_goals.shape[2:])
        desired = np.repeat(desired_goals, k, axis=0)
        steps = [{}] * (n * k) if infos is None else [info for skill in infos for info in skill]
        rewards = np.asarray(self.env.get_wrapper_attr("compute_reward")(achieved, desired, steps), dtype=np.float64)
        if rewards.size != n * k:
            raise ValueError(
                f"compute_reward of {env_name(self.env)} must take many goals at once: for goals of shape "
                f"{achieved.shape} expected rewards of shape ({n * k},), got {rewards.shape}; compute along the last "
                "axis, as in np.linalg.norm(achieved_goal - desired_goal, axis=-1)"
            )
        return rewards.reshape(n, k)

    def ends_at(self, goal: np.ndarray) -> bool | None:
        """Whether an episode ends where a goal `(*goal shape)` is achieved; None where the environment does not say.

        It says so by `compute_terminated`, as the goal environments of gymnasium-robotics do.
        """
        if not self.env.has_wrapper_attr("compute_terminated"):
            return None
        try:
            return bool(self.env.get_wrapper_attr("compute_terminated")(goal, goal, {}))
        except Exception:  # it may ask for more than goals
            return None

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> Any:
        """The reward of one skill, or of n, for another desired goal: scored as in `step`, at every low-level step.

        Args:
            achieved_goal: `(*goal shape)` or `(n, *goal shape)`, unused: what counts is what was achieved on the way.
            desired_goal: `(*goal shape)` or `(n, *goal shape)`.
            info: the info of the skill, or n of them. Where it is None, or one info that no skill has written, the
                answer is the environment's own: the reward of one low-level step that leads to `achieved_goal`.

        Returns:
            A float, or `(n,)`.

        Raises:
            ValueError: n infos of which one has no `skill_achieved_goals`, or see `goal_rewards`.
        """
        if info is None or (isinstance(info, dict) and "skill_achieved_goals" not in info):
            return self.env.get_wrapper_attr("compute_reward")(achieved_goal, desired_goal, info)
        desired = np.asarray(desired_goal)
        many = self._goal_space is None or desired.ndim > len(self._goal_space.shape)
        infos: Sequence[dict[str, Any]] = [info] * (len(desired) if many else 1) if isinstance(info, dict) else info
        if not all("skill_achieved_goals" in item for item in infos):
            raise ValueError(
                "the reward of a skill depends on the goals achieved on the way: expected 'skill_achieved_goals' in "
                "every info, got an info without; use didi_gym.sb3.SkillHerReplayBuffer, or "
                "HerReplayBuffer(copy_info_dict=True)"
            )
        achieved = np.stack([item["skill_achieved_goals"] for item in infos])
        lengths = np.array([item["skill_length"] for item in infos])
        steps = [item["skill_infos"] for item in infos] if all("skill_infos" in item for item in infos) else None
        rewards = self.goal_rewards(achieved, desired if many else desired[None], steps)
        totals = self.reward_rule.totals(rewards, lengths)
        return totals if many else float(totals[0])

    @property
    def step_seconds(self) -> float | None:
        """Simulated time of one low-level step, where the environment, or the one that it holds, tells it."""
        return step_seconds_of(self.env, inside=True)

    @property
    def observation_wrappers(self) -> tuple[str, ...]:
        """Which of Gymnasium's wrappers that give observations other units are inside."""
        layer, found = self.env, set()
        while isinstance(layer, gym.Wrapper):
            found.add(type(layer).__name__)
            layer = layer.env
        return tuple(name for name in UNIT_WRAPPERS if name in found)

    @property
    def env_name(self) -> str:
        """What messages call the environment."""
        return env_name(self.env)

    def _nothing_but(self, error: Exception) -> tuple[Any, dict[str, Any]]:
        """Some observation, and the info that reports an error with its traceback; the error itself unless asked to."""
        if not self._report_errors:
            raise error
        nothing = create_empty_array(self.observation_space, n=1, fn=np.zeros)
        report = f"{type(error).__name__}: {error}", traceback.format_exc()
        return next(iter(iterate(batch_space(self.observation_space, 1), nothing))), {"skill_error": report}

    def _forget_skill(self) -> None:
        self._duration, self._stopped = 0, False
        self._skill = None
        self._rewards: list[float] = []
        goal = self._goal_space
        self._goals: np.ndarray | None = (
            None if goal is None else np.empty((self.skill_duration, *goal.shape), goal.dtype)
        )
        self._infos: list[dict[str, Any]] = []
        self._last_info = {}


class PlainSteps(gym.Wrapper):
    """Sees to it that a step is five values and its reward one number: for wrappers that can take nothing else."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        answer = self.env.step(action)
        if len(answer) != 5:
            raise old_api(self.env, "step", answer)
        observation, reward, terminated, truncated, info = answer
        return observation, one_number(reward, self.env), terminated, truncated, info


def one_number(reward: Any, env: gym.Env) -> float:
    """A reward that came as another kind of number, or as an array of one."""
    numbers = np.asarray(reward, dtype=np.float64)
    if numbers.size != 1 or reward is None:
        came = "None" if reward is None else f"{numbers.size}, of shape {numbers.shape}"
        raise ValueError(
            f"a reward must be one number, and {env_name(env)} gave {came}: make them one in a "
            "gymnasium.RewardWrapper inside, e.g. by their weighted sum"
        )
    return float(numbers.reshape(()))


class OldInterface(gym.error.Error, TypeError):
    """An environment answers as those of the older gym did."""


def old_api(env: gym.Env, method: Literal["reset", "step"], answer: Any) -> OldInterface:
    """The error for what a method returned, or for what another wrapper said of it, where that is not Gymnasium's."""
    came = f"{len(answer)} values" if isinstance(answer, tuple) else type(answer).__name__
    return OldInterface(
        f"{method} of {env_name(env)} must return {_ANSWERS[method]} as gymnasium.Env says, got "
        f"{answer if isinstance(answer, str) else came}, perhaps from an environment written for the older gym: change "
        "its methods, or wrap it with the package shimmy"
    )


def action_vectors(space: spaces.Space) -> spaces.Box:
    """The box in which a policy's action vectors for this action space lie: itself, or [0, 1]^n for Discrete(n).

    Raises:
        ValueError: another kind of space.
    """
    if isinstance(space, spaces.Box):
        if not np.issubdtype(space.dtype, np.floating):
            raise ValueError(
                f"skills act in numbers between the bounds, and a Box of {space.dtype} holds only whole ones, to which "
                f"they would be cut off: got {space}; give the environment a Discrete action space, or a Box of "
                "float32 that it rounds itself"
            )
        return space
    if isinstance(space, spaces.Discrete):
        return spaces.Box(0.0, 1.0, (int(space.n),), np.float32)
    raise ValueError(f"skills run in environments with a Box or Discrete action space, got {space}")


def to_actions(vectors: np.ndarray, space: spaces.Space) -> np.ndarray:
    """Action vectors `(n, ...)` as low-level actions: clipped into a Box, or the index of the largest number."""
    if isinstance(space, spaces.Discrete):
        return to_discrete(vectors, space)
    assert isinstance(space, spaces.Box)
    return np.clip(vectors, space.low, space.high).astype(space.dtype, copy=False)


def to_discrete(vectors: np.ndarray, space: spaces.Discrete) -> np.ndarray:
    """Discrete actions `(...)` named by vectors `(..., n)`: the index of the largest number."""
    return space.start + vectors.argmax(axis=-1)


def _goal_space(env: gym.Env) -> spaces.Box | None:
    return None if _no_goals(env) else env.observation_space["achieved_goal"]  # type: ignore[index]


def _no_goals(env: gym.Env) -> str | None:
    """Why the achieved goals of an environment are not recorded; None where they are."""
    space = env.observation_space
    if not isinstance(space, spaces.Dict) or not {"achieved_goal", "desired_goal"} <= set(space.spaces):
        return f"expected a Dict observation with achieved_goal and desired_goal, got {space}"
    if not isinstance(space["achieved_goal"], spaces.Box):
        kind = type(space["achieved_goal"]).__name__
        return f"expected goals in a Box, got {kind}; write them as a Box in an ObservationWrapper inside"
    return None if env.has_wrapper_attr("compute_reward") else "it has no method compute_reward"


def _time_limit(env: gym.Env, until_done: bool) -> int:
    limit = env.spec.max_episode_steps if until_done and env.spec is not None else None
    if limit is None:
        raise ValueError(
            "how long may a skill last? Pass skill_duration=, or until_done=True for an environment with a time limit "
            "(gymnasium.make(..., max_episode_steps=n), or gymnasium.wrappers.TimeLimit)"
        )
    return limit


def require_one(env: Any, wrapper: str) -> None:
    """Raise TypeError where an environment is no `gymnasium.Env`, or many in one."""
    base = env.unwrapped if isinstance(env, gym.Wrapper) else env
    if isinstance(base, VectorEnv) or not isinstance(base, gym.Env):  # EnvPool's are both
        raise TypeError(
            f"{wrapper} wraps one gymnasium.Env, got {type(base).__name__}; for vector environments use "
            "didi_gym.make_vec or didi_gym.sb3.make_vec_env, which make them by id, and for one that was written "
            "for the older gym the package shimmy"
        )


def env_name(env: gym.Env | VectorEnv) -> str:
    """What messages call an environment: its id, or its class where it has none."""
    base = env.unwrapped
    return base.spec.id if base.spec is not None else type(base).__name__


def refuse_inside(env: gym.Env | VectorEnv) -> None:
    """Raise ValueError where a wrapper inside runs skills already, or gives the policy numbers it does not know."""
    layer = env
    while isinstance(layer, (gym.Wrapper, VectorWrapper)):
        if isinstance(layer, gym.Wrapper) and hasattr(layer, "skill_duration"):
            raise ValueError(f"the environment already runs skills: found {type(layer).__name__} inside; wrap it once")
        if isinstance(layer, (gym.wrappers.NormalizeObservation, gym.wrappers.vector.NormalizeObservation)):
            raise ValueError(
                "the skill policy reads observations in the environment's own units, and a NormalizeObservation inside "
                "changes these by statistics that move as it runs: put it around the skills, "
                "NormalizeObservation(SkillActionWrapper(env, ...))"
            )
        layer = layer.env


def refuse_outer_time_limit(env: gym.Wrapper) -> None:
    """Raise ValueError where a TimeLimit that counts skills is around `env` and calls its `reset`.

    A TimeAwareObservation around it, which counts them too, is warned of.
    """
    for layer in wrappers_around(env):
        if isinstance(layer, gym.wrappers.TimeLimit) and layer._elapsed_steps != -math.inf:
            raise ValueError(
                "a TimeLimit around a skill-action environment counts skills, not low-level steps, and ends "
                "episodes unseen by a Monitor inside; put it inside: SkillActionWrapper(TimeLimit(env, n), ...) or "
                "didi_gym.make(env_id, policy, max_episode_steps=n)"
            )
        if isinstance(layer, gym.wrappers.TimeAwareObservation):
            warnings.warn(
                "a TimeAwareObservation around a skill-action environment shows the agent how many skills have passed, "
                "beside a limit that counts low-level steps: leave it out, or show low_level_steps in an "
                "ObservationWrapper of your own (docs/guides/other_libraries.md)",
                stacklevel=1,
            )


def time_limits_around(env: gym.Wrapper) -> Iterator[gym.wrappers.TimeLimit]:
    """The TimeLimits around `env` whose `reset` is running."""
    return (layer for layer in wrappers_around(env) if isinstance(layer, gym.wrappers.TimeLimit))


def wrappers_around(env: gym.Wrapper) -> Iterator[gym.Wrapper]:
    """The wrappers around `env` whose `reset` is running.

    A wrapper cannot see what is around it, but one whose `reset` is running can be asked what it holds.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "reset":
            layer = around = frame.f_locals.get("self")
            while isinstance(layer, gym.Wrapper) and layer is not env:
                layer = vars(layer).get("env")  # absent where a wrapper's constructor calls `reset`
            if layer is env and around is not env and isinstance(around, gym.Wrapper):
                yield around
        frame = frame.f_back  # type: ignore[assignment]
