"""One environment whose actions are skills."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from didi_gym.data import is_bound
from didi_gym.execution import InputSelector, Reward, RewardRule, SkillExecutor, refuse_outer_time_limit

if TYPE_CHECKING:
    from didi_gym.policy import SkillPolicy


class SkillActionWrapper(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Makes skills the actions of an environment: one step runs one skill of a pretrained policy.

    Use it where a task is too long for low-level actions: an agent then decides once in `skill_duration` steps, and
    every decision already is a coherent movement. The action space is the policy's skill space; the observation space
    is unchanged. For many environments with one planner use `didi_gym.make_vec` instead; it gives the same transitions.

    A step plans from the latest observation, runs `replan_every` low-level actions, plans again, and ends when
    `skill_duration` of them are done or the episode ends, whichever comes first. Its info is that of the last
    low-level step with `skill_length`, `skill_return`, `skill_interrupted` and, in goal environments,
    `skill_achieved_goals` and `skill_rewards` (see `SkillExecutor.finish`).

    Whatever counts or films low-level steps belongs inside: TimeLimit, RecordEpisodeStatistics, Monitor, RecordVideo.
    Whatever transforms the agent's observations or rewards (VecNormalize) belongs outside.

    Args:
        env: an environment with the policy's action space and an observation in which the policy finds its inputs.
        policy: a bundled name, a Hub id (`owner/name`, `owner/name@revision`), a folder, or a live `SkillPolicy`.
        skill_duration: low-level steps of a skill; the policy's default where None.
        replan_every: low-level steps run of each plan, 1 to the policy's horizon; the policy's default where None.
        reward: how a skill's low-level rewards become one: `sum`, `discounted`, `last`, or a function of their array.
        discount: low-level gamma; below 1 the sum becomes the discounted sum that an SMDP agent with
            `gamma ** skill_length` needs (see `didi_gym.sb3.SkillReplayBuffer`).
        device: where to load a policy given by name; a live policy stays where it is.
        obs_fn: a function from an observation to the policy's inputs `(inputs,)`, where the policy does not know the
            form of the environment's observations.

    Attributes:
        policy: the live policy.
        skill_duration, replan_every: low-level steps, resolved.
        low_level_steps: low-level steps taken since construction, for curves that compare with other agents.

    Raises:
        ValueError: the environment does not fit the policy, already runs skills, or a setting is out of range; on
            reset, a TimeLimit is around the wrapper.

    Example:
        >>> import gymnasium as gym
        >>> import gymnasium_robotics
        >>> from didi_gym import SkillActionWrapper
        >>> env = SkillActionWrapper(gym.make("PointMaze_Medium-v3"), "pointmaze-medium")
        >>> observation, info = env.reset(seed=0)
        >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        >>> info["skill_length"] == env.skill_duration
        True

    The spec records names, never weights, so `gym.make(env.spec)` and its JSON form rebuild the environment wherever
    the policy can be loaded; with a live policy that was neither loaded nor saved they raise.
    """

    def __init__(
        self,
        env: gym.Env,
        policy: str | Path | SkillPolicy,
        *,
        skill_duration: int | None = None,
        replan_every: int | None = None,
        reward: Reward = "sum",
        discount: float = 1.0,
        device: str = "auto",
        obs_fn: Callable[[Any], np.ndarray] | None = None,
    ) -> None:
        if not isinstance(env, gym.Env):
            raise TypeError(
                f"SkillActionWrapper wraps one gymnasium.Env, got {type(env).__name__}; for vector environments use "
                "didi_gym.make_vec or didi_gym.sb3.make_vec_env"
            )
        self.policy = _load(policy, device)
        config = self.policy.config
        self.skill_duration = config.skill_duration if skill_duration is None else skill_duration
        self.replan_every = min(config.replan_every, self.skill_duration) if replan_every is None else replan_every
        gym.utils.RecordConstructorArgs.__init__(
            self,
            _disable_deepcopy=True,
            policy=_reference(self.policy),
            skill_duration=self.skill_duration,
            replan_every=self.replan_every,
            reward=reward,
            discount=discount,
            device=device,
            obs_fn=obs_fn,
        )
        gym.Wrapper.__init__(self, env)
        # Not a layer of its own (`self.env` stays the environment), so specs rebuild this one wrapper only.
        self._executor = SkillExecutor(
            env, skill_duration=self.skill_duration, replan_every=self.replan_every, reward=reward, discount=discount
        )
        if self.replan_every > config.horizon:
            raise ValueError(
                f"replan_every must be in 1..{config.horizon}, the policy's horizon, got {self.replan_every}; a skill "
                "may last longer than one plan, it is then planned again on the way"
            )
        check_actions(env.action_space, self.policy)
        self._select = obs_fn or InputSelector(env.observation_space, config.layout)
        self._closed = False
        self.action_space = self.policy.skill_space.gym_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        refuse_outer_time_limit(self)
        return self._executor.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Run one skill.

        Args:
            action: an element of the skill space; numbers outside [-1, 1] are clipped.

        Returns:
            observation, reward, terminated, truncated, info after the skill's last low-level step.

        Raises:
            ValueError: an action that is not finite.
            gymnasium.error.ResetNeeded: no episode is running.
        """
        skill = self.policy.skill_space.to_skill(action)[None]  # (1, skill_dim)
        for done in range(0, self.skill_duration, self.replan_every):
            actions = self.policy.plan_actions(self._inputs(), skill, steps=self.replan_every)[0]
            if self._executor.run(actions[: self.skill_duration - done]):
                break
        return self._executor.finish()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.env.close()

    @property
    def low_level_steps(self) -> int:
        return self._executor.low_level_steps

    @property
    def reward_rule(self) -> RewardRule:
        return self._executor.reward_rule

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> Any:
        """The reward of one or n skills for other desired goals; see `SkillExecutor.compute_reward`."""
        return self._executor.compute_reward(achieved_goal, desired_goal, info)

    def goal_rewards(self, achieved_goals: np.ndarray, desired_goals: np.ndarray) -> np.ndarray:
        """Low-level rewards `(n, k)` for other desired goals; see `SkillExecutor.goal_rewards`."""
        return self._executor.goal_rewards(achieved_goals, desired_goals)

    def _inputs(self) -> np.ndarray:
        """What the policy reads now, `(1, inputs)` float32."""
        if self._executor.observation is None:
            raise gym.error.ResetNeeded("call reset() before the first step()")
        inputs = np.asarray(self._select(self._executor.observation), dtype=np.float32)
        size = len(self.policy.config.layout.policy_inputs)
        if inputs.shape != (size,):
            raise ValueError(f"obs_fn must return the policy's {size} inputs, got shape {inputs.shape}")
        return inputs[None]


def _load(policy: Any, device: str) -> SkillPolicy:
    if policy is None:
        raise ValueError(
            "policy is None. If this came from an environment's spec: it was recorded from a live policy that has no "
            "name; save_pretrained() that policy, load it with from_pretrained(), and wrap again"
        )
    if not isinstance(policy, (str, Path)):
        return policy
    from didi_gym.policy import SkillPolicy  # torch loads here, so that importing the wrapper stays quick

    return SkillPolicy.from_pretrained(policy, device=device)


def _reference(policy: SkillPolicy) -> str | None:
    """A string from which `policy` can be loaded again, pinned to its revision; None where there is none."""
    if policy.name_or_path is None or policy.revision is None:
        return policy.name_or_path and str(policy.name_or_path)
    return f"{policy.name_or_path.partition('@')[0]}@{policy.revision}"


def check_actions(space: spaces.Space, policy: SkillPolicy) -> None:
    """Raise ValueError where an environment's actions are not those that `policy` was trained on."""
    low, high = policy.action_low, policy.action_high
    same = (
        isinstance(space, spaces.Box)
        and space.shape == low.shape
        and all(
            # the policy's bound is the data's extreme where the space has none
            np.array_equal(ours[is_bound(theirs)], theirs[is_bound(theirs)].astype(np.float32))
            for ours, theirs in ((low, space.low), (high, space.high))
        )
    )
    if not same:
        raise ValueError(
            f"the environment's actions are not those the policy was trained on: expected {spaces.Box(low, high)}, "
            f"got {space}; use the policy's environment ({policy.config.env_id or 'not recorded'}) or, where only "
            "units differ, gymnasium.wrappers.RescaleAction inside"
        )
