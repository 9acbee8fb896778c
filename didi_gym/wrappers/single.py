"""One environment whose actions are skills."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from didi_gym.core.observations import warn_of_other_step
from didi_gym.wrappers.controller import Engine, EngineName, MaskFn, ObservationFn, SkillController
from didi_gym.wrappers.executor import SkillExecutor, TerminateFn, env_name, refuse_outer_time_limit, require_one
from didi_gym.wrappers.references import (
    check_actions,
    load_policy,
    policy_reference,
    resolve_settings,
    warn_of_other_units,
)
from didi_gym.wrappers.rewards import Reward, RewardRule

if TYPE_CHECKING:
    from didi_gym.models.policy import SkillPolicy


class SkillActionWrapper(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Makes skills the actions of an environment: one step runs one skill of a pretrained policy.

    Use it where a task is too long for low-level actions: an agent then decides once in `skill_duration` steps, and
    every decision already is a coherent movement. The action space is the policy's skill space; the observation space
    is unchanged. For many environments with one controller use `didi_gym.make_vec`; it gives the same transitions.

    A step plans from the latest observation, runs `replan_every` low-level actions, plans again, and ends when
    `skill_duration` of them are done or the episode ends, whichever comes first. Its info is that of the last
    low-level step with `skill_length`, `skill_return`, `skill_interrupted` and, in goal environments,
    `skill_achieved_goals` and `skill_rewards` (see `SkillExecutor.finish`).

    Whatever counts or films low-level steps belongs inside: TimeLimit, RecordEpisodeStatistics, Monitor, RecordVideo.
    Whatever transforms the agent's observations or rewards (VecNormalize) belongs outside.

    Args:
        env: an environment with the policy's action space and an observation in which the policy finds its inputs.
        policy: a bundled name, a Hub id (`owner/name`, `owner/name@revision`), a folder, or a live `SkillPolicy`.
        skill_duration: low-level steps of a skill; the policy's default where None. Of several, as in `(4, 8, 16)`, the
            agent chooses: a continuous action then ends with one more coordinate, whose range is cut into equal parts,
            and a discrete one is `skill * len(skill_duration) + choice`.
        until_done: skills last until the episode ends, at most `skill_duration` where that is given.
        terminate_fn: `(observation, skill, steps) -> bool`, asked after each low-level step whether the skill (not the
            episode) ends here; it may hold an agent's values, to interrupt a skill that is no longer the best
            (interrupting options: Sutton, Precup & Singh 1999, section 4).
        replan_every: low-level steps run of each plan, 1 to the policy's horizon; the policy's default where None.
        reward: how a skill's low-level rewards become one: `sum`, `discounted`, `last`, or a function of their array.
        discount: low-level gamma; below 1 the sum becomes the discounted sum that an SMDP agent with
            `gamma ** skill_length` needs (see `didi_gym.sb3.SkillReplayBuffer`).
        obs_fn: a function from an observation to the policy's inputs `(inputs,)`, where the policy does not know the
            form of the environment's observations.
        mask_fn: a function from an observation to the discrete skills allowed there, bool `(skills,)`; `action_masks`
            gives it to `sb3_contrib.MaskablePPO`.
        device: where to load a policy given by name; a live policy stays where it is.
        engine, batch_invariant: what computes plans: a name, or what `SkillPolicy.engine` returns. With
            `batch_invariant` this wrapper and a vectorised one agree bit for bit.

    Attributes:
        policy: the live policy.
        skill_duration: low-level steps of a skill, of the longest where the agent chooses.
        skill_durations: those it can choose from; one otherwise.
        mask_fn: as given.
        replan_every: low-level steps run of each plan.
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
        skill_duration: int | Sequence[int] | None = None,
        until_done: bool = False,
        terminate_fn: TerminateFn | None = None,
        replan_every: int | None = None,
        reward: Reward = "sum",
        discount: float = 1.0,
        obs_fn: ObservationFn | None = None,
        mask_fn: MaskFn | None = None,
        device: str = "auto",
        engine: EngineName | Engine = "auto",
        batch_invariant: bool = False,
    ) -> None:
        require_one(env, "SkillActionWrapper")
        self.policy = load_policy(policy, device)
        durations, self.replan_every = resolve_settings(self.policy, skill_duration, until_done, replan_every)
        gym.utils.RecordConstructorArgs.__init__(
            self,
            _disable_deepcopy=True,
            policy=policy_reference(self.policy),
            skill_duration=durations if len(durations) > 1 else next(iter(durations), None),
            until_done=until_done,
            terminate_fn=terminate_fn,
            replan_every=self.replan_every,
            reward=reward,
            discount=float(discount),
            obs_fn=obs_fn,
            mask_fn=mask_fn,
            device=device,
            engine=engine,
            batch_invariant=batch_invariant,
        )
        gym.Wrapper.__init__(self, env)
        # Not a layer of its own (`self.env` stays the environment), so specs rebuild this one wrapper only.
        self._executor = SkillExecutor(
            env,
            skill_duration=max(durations, default=None),
            replan_every=self.replan_every,
            reward=reward,
            discount=discount,
            until_done=until_done,
            terminate_fn=terminate_fn,
            skill_dim=self.policy.skill_space.skill_dim,
        )
        self.skill_duration = self._executor.skill_duration
        self.skill_durations = durations or (self.skill_duration,)
        self.mask_fn = mask_fn
        check_actions(env.action_space, self.policy)
        self._controller = SkillController(
            self.policy,
            env.observation_space,
            durations=self.skill_durations,
            replan_every=self.replan_every,
            obs_fn=obs_fn,
            mask_fn=mask_fn,
            env_name=env_name(env),
            engine=engine,
            batch_invariant=batch_invariant,
        )
        warn_of_other_step(self._executor.step_seconds, self.policy.config.step_seconds, env_name(env))
        warn_of_other_units(self.policy, self._executor.observation_wrappers, env_name(env))
        self._closed = False
        self._inputs: np.ndarray | None = None
        self._kept: Any = None
        self.action_space = self._controller.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        refuse_outer_time_limit(self)
        observation, info = self._executor.reset(seed=seed, options=options)
        self._look(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Run one skill.

        Args:
            action: an element of the action space; numbers outside [-1, 1] are clipped.

        Returns:
            observation, reward, terminated, truncated, info after the skill's last low-level step.

        Raises:
            ValueError: not one action, or a number of it or of the policy's inputs that is not finite.
            gymnasium.error.ResetNeeded: no episode is running.
        """
        skill, duration = self._controller.decode(action)
        if duration.ndim:
            raise ValueError(f"expected one action, of shape {self.action_space.shape}, got shape {np.shape(action)}")
        executor, controller = self._executor, self._controller
        executor.begin(int(duration), skill)
        assert self._inputs is not None  # an episode is running
        over = executor.run(controller.plan(self._inputs[None], skill[None])[0])
        while not over:
            inputs = controller.inputs(executor.observation)
            over = executor.run(controller.plan(inputs[None], skill[None])[0])
        result = executor.finish()
        if not executor.ended:
            self._look(result[0])
        return result

    def _look(self, observation: Any) -> None:
        """Take from an observation what the next step needs: the caller may write into the array it gets."""
        self._inputs, self._kept = self._controller.inputs(observation), self._controller.kept(observation)

    def action_masks(self) -> np.ndarray:
        """Which discrete actions are allowed now, bool `(actions,)`: what `sb3_contrib.MaskablePPO` asks for."""
        return self._controller.masks([self._kept])[0]

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

    def ends_at(self, goal: np.ndarray) -> bool | None:
        """Whether an episode ends where a goal is achieved; see `SkillExecutor.ends_at`."""
        return self._executor.ends_at(goal)

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> Any:
        """The reward of one or n skills for other desired goals; see `SkillExecutor.compute_reward`."""
        return self._executor.compute_reward(achieved_goal, desired_goal, info)

    def goal_rewards(
        self,
        achieved_goals: np.ndarray,
        desired_goals: np.ndarray,
        infos: Sequence[Sequence[dict[str, Any]]] | None = None,
    ) -> np.ndarray:
        """Low-level rewards `(n, k)` for other desired goals; see `SkillExecutor.goal_rewards`."""
        return self._executor.goal_rewards(achieved_goals, desired_goals, infos)
