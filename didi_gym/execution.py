"""Skill execution inside one environment: choosing what the policy reads, running chunks of actions, scoring a skill.

Imports no torch: this module runs in environment worker processes, while planning stays in the main process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from didi_gym.config import Layout, ObservationSource

Reward = Literal["sum", "discounted", "last"] | Callable[[np.ndarray], float]

SKILL_KEYS = frozenset(
    {"skill_length", "skill_return", "skill_interrupted", "skill_ended", "skill_achieved_goals", "skill_rewards"}
)
"""The keys that skill execution adds to an environment's info."""


class InputSelector:
    """Picks what the policy reads out of an environment's observations.

    The first of the layout's sources that fits the observation space is chosen, once, at construction.

    Args:
        space: the observation space of a single environment.
        layout: the policy's layout.

    Raises:
        ValueError: no source fits.
    """

    def __init__(self, space: spaces.Space, layout: Layout) -> None:
        fitting = [source for source in layout.sources if _fits(space, source)]
        if not fitting:
            expected = " or ".join(_describe_source(source) for source in layout.sources) or "nothing it knows"
            raise ValueError(
                f"the policy cannot read this environment's observations: expected {expected}, got "
                f"{_describe_space(space)}; pass obs_fn=, a function from an observation to the "
                f"{len(layout.policy_inputs)} numbers the policy reads"
            )
        self.source: ObservationSource = fitting[0]
        self._indices = np.array(self.source.indices)

    def __call__(self, observation: Any) -> np.ndarray:
        """Select from one observation, or from many with the same leading dimensions.

        Returns:
            The policy's inputs, a new float32 array `(..., inputs)`.
        """
        keys = self.source.keys
        if not keys:
            joined = observation
        elif len(keys) == 1:
            joined = observation[keys[0]]
        else:
            joined = np.concatenate([observation[key] for key in keys], axis=-1)
        return joined[..., self._indices].astype(np.float32)


def _fits(space: spaces.Space, source: ObservationSource) -> bool:
    if not source.keys:
        parts: list[spaces.Space] = [space]
    elif isinstance(space, spaces.Dict) and set(source.keys) <= set(space.spaces):
        parts = [space[key] for key in source.keys]
    else:
        return False
    return all(isinstance(part, spaces.Box) and len(part.shape) == 1 for part in parts) and source.size == sum(
        part.shape[0] for part in parts if part.shape
    )


def _describe_source(source: ObservationSource) -> str:
    if not source.keys:
        return f"a Box of {source.size} numbers"
    return f"a Dict whose {' + '.join(map(repr, source.keys))} has {source.size} numbers"


def _describe_space(space: spaces.Space) -> str:
    if isinstance(space, spaces.Dict):
        return "a Dict of " + ", ".join(f"{key!r} {part.shape}" for key, part in space.spaces.items())
    return f"a {type(space).__name__} of shape {space.shape}"


@dataclass(frozen=True)
class RewardRule:
    """How the low-level rewards of one skill become its reward.

    | reward | skill reward |
    |---|---|
    | `sum` | sum of discount^i r_i: the plain sum at discount 1, the SMDP-correct sum below |
    | `discounted` | the same, and discount must be below 1 |
    | `last` | the last r_i |
    | a function | of the array of the r_i, `(length,)` |
    """

    reward: Reward = "sum"
    discount: float = 1.0

    def __post_init__(self) -> None:
        if not callable(self.reward) and self.reward not in ("sum", "discounted", "last"):
            raise ValueError(f"reward must be 'sum', 'discounted', 'last' or a function, got {self.reward!r}")
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount must be in (0, 1], got {self.discount}")
        if self.reward == "discounted" and self.discount == 1:
            raise ValueError("reward='discounted' needs a discount below 1; pass discount=, the low-level gamma")
        if self.reward not in ("sum", "discounted") and self.discount != 1:
            raise ValueError(f"discount={self.discount} has no effect with reward={self.reward!r}; leave it at 1")

    def totals(self, rewards: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Rewards of n skills.

        Args:
            rewards: low-level rewards `(n, k)`; what lies past a skill's length is ignored.
            lengths: low-level steps of each skill `(n,)`, at least 1.

        Returns:
            `(n,)` float64. Summed in order, so a skill's reward does not depend on its company or on padding.
        """
        if callable(self.reward):
            rows = zip(rewards, lengths, strict=True)
            return np.array([float(self.reward(row[:length])) for row, length in rows])
        ends = (np.arange(len(rewards)), lengths - 1)
        if self.reward == "last":
            return rewards[ends]
        return (rewards * _powers(self.discount, rewards.shape[1])).cumsum(axis=1)[ends]


@lru_cache(maxsize=64)
def _powers(discount: float, n: int) -> np.ndarray:
    return np.array([discount**i for i in range(n)])


class SkillExecutor(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Runs chunks of low-level actions inside one environment and reports once per skill.

    Unlike `SkillActionWrapper` it holds no policy: whoever steps it sends the actions. So it can live in a worker
    process while one planner serves many environments. An action is a Dict of `actions`, an array of shape
    `(replan_every, *action shape)`, `n`, how many of them to run, and `last`, whether these complete the skill. A skill
    stops where the episode does: from then on actions do nothing, and reward, terminated and truncated are reported by
    the step with `last=1`, as is the info described in `finish`. Steps with `last=0` report reward 0, no end, and only
    `skill_ended` in their info.

    Args:
        env: an environment with a Box action space.
        skill_duration: low-level steps k of a skill.
        replan_every: the most actions in one step; `skill_duration` where None.
        reward, discount: see `RewardRule`.
    """

    def __init__(
        self,
        env: gym.Env,
        *,
        skill_duration: int,
        replan_every: int | None = None,
        reward: Reward = "sum",
        discount: float = 1.0,
    ) -> None:
        replan_every = skill_duration if replan_every is None else replan_every
        gym.utils.RecordConstructorArgs.__init__(
            self,
            _disable_deepcopy=True,
            skill_duration=skill_duration,
            replan_every=replan_every,
            reward=reward,
            discount=discount,
        )
        gym.Wrapper.__init__(self, env)
        _refuse_nested(env)
        if skill_duration < 1 or replan_every < 1:
            raise ValueError(
                f"skill_duration and replan_every must be at least 1, got {skill_duration} and {replan_every}"
            )
        if not isinstance(env.action_space, spaces.Box):
            raise ValueError(f"skills run in environments with a Box action space, got {env.action_space}")
        self.skill_duration = skill_duration
        self.reward_rule = RewardRule(reward, discount)
        self.low_level_steps = 0
        """Low-level steps taken since construction."""
        self.observation: Any = None
        """The latest observation: what the next chunk is planned from."""
        self._low_level_space = env.action_space
        self._goal_space = _goal_space(env)
        self._terminated = self._truncated = False
        self._needs_reset = True
        self._rewards: list[float] = []
        self._goals: list[np.ndarray] = []
        self._last_info: dict[str, Any] = {}
        chunk = (replan_every, *(1 for _ in env.action_space.shape))
        low, high = (np.tile(bound, chunk) for bound in (env.action_space.low, env.action_space.high))
        self.action_space = spaces.Dict(
            {
                "actions": spaces.Box(low, high, dtype=env.action_space.dtype),
                "n": spaces.Discrete(replan_every + 1),
                "last": spaces.Discrete(2),
            }
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        refuse_outer_time_limit(self)
        self.observation, info = self.env.reset(seed=seed, options=options)
        self._terminated = self._truncated = self._needs_reset = False
        self._begin_skill()
        return self.observation, info

    def step(self, action: dict[str, Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        ended = self.run(action["actions"][: int(action["n"])])
        if action["last"]:
            return self.finish()
        return self.observation, 0.0, False, False, {"skill_ended": ended}

    def run(self, actions: np.ndarray) -> bool:
        """Continue the skill with `actions` `(n, *action shape)`, clipped to their space, or until the episode ends.

        Returns:
            Whether the episode has ended.
        """
        space = self._low_level_space
        if actions.shape[1:] != space.shape:
            raise ValueError(f"low-level actions must have shape (n, *{space.shape}), got {actions.shape}")
        if len(self._rewards) + len(actions) > self.skill_duration and not self.ended:
            raise ValueError(f"a skill lasts {self.skill_duration} low-level steps; send last=1 with its last chunk")
        if len(actions) and self._needs_reset:
            raise gym.error.ResetNeeded("no episode is running: call reset() before the first skill and after an end")
        for action in np.clip(actions, space.low, space.high).astype(space.dtype, copy=False):
            if self.ended:
                break
            self.observation, reward, terminated, truncated, self._last_info = self.env.step(action)
            self._terminated, self._truncated = bool(terminated), bool(truncated)
            self._rewards.append(float(reward))
            self.low_level_steps += 1
            if self._goal_space is not None:
                self._goals.append(np.array(self.observation["achieved_goal"]))
        return self.ended

    def finish(self) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """End the skill and report it.

        Returns:
            observation, reward, terminated, truncated and the info of the last low-level step, with

            - `skill_length` (int): low-level steps taken;
            - `skill_return` (float): their undiscounted sum of rewards;
            - `skill_interrupted` (bool): the episode ended before the skill's `skill_duration`;
            - in goal environments, `skill_achieved_goals` `(k, *goal shape)`, filled up with the last one, and
              `skill_rewards` `(k,)`, filled up with zeros.

            A skill without a single step (a vector environment's reset step) reports reward 0 and no info.
        """
        length, reward, info = len(self._rewards), 0.0, {}
        if length:
            if clash := SKILL_KEYS & self._last_info.keys():
                raise ValueError(f"the environment's info already has {sorted(clash)}; rename these keys in a wrapper")
            missing = self.skill_duration - length
            rewards = np.array(self._rewards + [0.0] * missing)
            reward = float(self.reward_rule.totals(rewards[None], np.array([length]))[0])
            info = {
                **self._last_info,
                "skill_length": length,
                "skill_return": sum(self._rewards),
                "skill_interrupted": self.ended and missing > 0,
            }
            if self._goal_space is not None:
                info["skill_achieved_goals"] = np.stack(self._goals + [self._goals[-1]] * missing)
                info["skill_rewards"] = rewards
        self._needs_reset = self._needs_reset or self.ended
        self._begin_skill()
        return self.observation, reward, self._terminated, self._truncated, info

    @property
    def ended(self) -> bool:
        """Whether the episode has ended, inside this skill or before it."""
        return self._terminated or self._truncated

    def goal_rewards(self, achieved_goals: np.ndarray, desired_goals: np.ndarray) -> np.ndarray:
        """The base environment's reward at every low-level step of n skills, had the goals been others.

        Args:
            achieved_goals: `(n, k, *goal shape)`, as in `skill_achieved_goals`.
            desired_goals: `(n, *goal shape)`.

        Returns:
            `(n, k)` float64.
        """
        if self._goal_space is None:
            raise ValueError("goal rewards need a goal environment: achieved_goal, desired_goal and compute_reward")
        n, k = achieved_goals.shape[:2]
        achieved = achieved_goals.reshape(n * k, *achieved_goals.shape[2:])
        desired = np.repeat(desired_goals, k, axis=0)
        rewards = self.env.get_wrapper_attr("compute_reward")(achieved, desired, [{}] * (n * k))
        return np.asarray(rewards, dtype=np.float64).reshape(n, k)

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> Any:
        """The reward of one skill, or of n, for another desired goal: scored as in `step`, at every low-level step.

        Args:
            achieved_goal: `(*goal shape)` or `(n, *goal shape)`, unused: what counts is what was achieved on the way.
            desired_goal: `(*goal shape)` or `(n, *goal shape)`.
            info: the info of the skill, or n of them.

        Returns:
            A float, or `(n,)`.

        Raises:
            ValueError: an info without `skill_achieved_goals`.
        """
        desired = np.asarray(desired_goal)
        many = self._goal_space is None or desired.ndim > len(self._goal_space.shape)
        infos: Sequence[dict[str, Any]] = info if many else [info]
        if not all("skill_achieved_goals" in item for item in infos):
            raise ValueError(
                "the reward of a skill depends on the goals achieved on the way: expected 'skill_achieved_goals' in "
                "every info, got an info without; use didi_gym.sb3.SkillHerReplayBuffer, or "
                "HerReplayBuffer(copy_info_dict=True)"
            )
        achieved = np.stack([item["skill_achieved_goals"] for item in infos])
        lengths = np.array([item["skill_length"] for item in infos])
        totals = self.reward_rule.totals(self.goal_rewards(achieved, desired if many else desired[None]), lengths)
        return totals if many else float(totals[0])

    def _begin_skill(self) -> None:
        self._rewards, self._goals, self._last_info = [], [], {}


def _goal_space(env: gym.Env) -> spaces.Box | None:
    space = env.observation_space
    if not isinstance(space, spaces.Dict) or not {"achieved_goal", "desired_goal"} <= set(space.spaces):
        return None
    goal = space["achieved_goal"]
    return goal if isinstance(goal, spaces.Box) and env.has_wrapper_attr("compute_reward") else None


def _refuse_nested(env: gym.Env) -> None:
    layer = env
    while isinstance(layer, gym.Wrapper):
        if hasattr(layer, "skill_duration"):
            raise ValueError(f"the environment already runs skills: found {type(layer).__name__} inside; wrap it once")
        layer = layer.env


def refuse_outer_time_limit(env: gym.Wrapper) -> None:
    """Raise ValueError where a TimeLimit around `env` is calling its `reset`.

    A wrapper cannot see what is around it, but the callers of its `reset` can be seen: they are the wrappers around.
    """
    layer, frame = env, sys._getframe(2)
    while frame is not None:
        outer = frame.f_locals.get("self")
        if outer is not layer:
            if not isinstance(outer, gym.Wrapper) or outer.env is not layer:
                return
            if isinstance(outer, gym.wrappers.TimeLimit):
                raise ValueError(
                    "a TimeLimit around a skill-action environment counts skills, not low-level steps, and ends "
                    "episodes unseen by a Monitor inside; put it inside: SkillActionWrapper(TimeLimit(env, n), ...)"
                )
            layer = outer
        frame = frame.f_back  # type: ignore[assignment]
