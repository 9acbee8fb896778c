"""Replay buffers of skills: for SAC, TD3 and DQN of stable-baselines3, TQC, CrossQ and QR-DQN of sb3-contrib."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from didi_gym.sb3.lengths import check_gamma, check_observations, read_lengths
from didi_gym.wrappers.rewards import RewardRule

SUCCESS_TOLERANCE = 1e-6
"""How far below the reward of a reached goal still counts as reached, against rounding."""


class SkillReplayBuffer(ReplayBuffer):
    """A replay buffer of skills, each discounted by its own length: gamma ** `info["skill_length"]`.

    Use it with SAC, TD3 or DQN on Box observations; `SkillDictReplayBuffer` is its form for Dict observations and
    `SkillHerReplayBuffer` adds hindsight goals. To be exact, give the wrapper the same `discount`.

    Args:
        gamma: the low-level discount, per low-level step; required. The agent's own `gamma` has no effect.
        others: see `stable_baselines3.common.buffers.ReplayBuffer`; `optimize_memory_usage` is not supported.

    Example:
        >>> env = SkillActionWrapper(gym.make("HalfCheetah-v5"), "my-skills", discount=0.995)
        >>> kwargs = {"gamma": 0.995}
        >>> agent = SAC("MlpPolicy", env, replay_buffer_class=SkillReplayBuffer, replay_buffer_kwargs=kwargs)
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        gamma: float | None = None,
        **kwargs: Any,
    ) -> None:
        check_observations(type(self), DictReplayBuffer, observation_space)
        if gamma is None:
            raise TypeError(
                f"{type(self).__name__} has a gamma of its own, the discount per low-level step, and the agent's has "
                "no effect: pass replay_buffer_kwargs={'gamma': ...}"
            )
        if optimize_memory_usage:
            raise ValueError("skill replay buffers keep both observations of a skill; set optimize_memory_usage=False")
        super().__init__(
            buffer_size,
            observation_space,
            action_space,
            device=device,
            n_envs=n_envs,
            handle_timeout_termination=handle_timeout_termination,
            **kwargs,
        )
        self.gamma = check_gamma(gamma)
        self.skill_lengths = np.ones((self.buffer_size, self.n_envs), dtype=np.int32)
        """Low-level steps of each stored skill, `(buffer_size, n_envs)`."""

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: list[dict[str, Any]]) -> None:
        self.skill_lengths[self.pos] = read_lengths(infos)
        super().add(obs, next_obs, action, reward, done, infos)

    def discounts(self, lengths: np.ndarray) -> np.ndarray:
        """gamma ** lengths in float64; samples carry it as float32, like every number of SB3."""
        return self.gamma**lengths

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Any:
        return self._get_samples(np.random.randint(0, self.size(), size=batch_size), env)

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> Any:
        at = batch_inds, np.random.randint(0, self.n_envs, size=len(batch_inds))
        observations, next_observations = _take(self.observations, at), _take(self.next_observations, at)
        return self._samples(observations, next_observations, at, *self._stored(at), env)

    def _stored(self, at: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rewards, dones (timeouts are none) and lengths of the transitions at `(slots, environments)`, each `(n,)`."""
        return self.rewards[at], self.dones[at] * (1 - self.timeouts[at]), self.skill_lengths[at]

    def _samples(
        self,
        observations: Any,
        next_observations: Any,
        at: tuple[np.ndarray, np.ndarray],
        rewards: np.ndarray,
        dones: np.ndarray,
        lengths: np.ndarray,
        env: VecNormalize | None,
    ) -> Any:
        columns = {
            "observations": self._normalize_obs(observations, env),
            "actions": self.actions[at],
            "next_observations": self._normalize_obs(next_observations, env),
            "dones": dones[:, None],
            "rewards": self._normalize_reward(rewards[:, None], env),
            "discounts": self.discounts(lengths)[:, None].astype(np.float32),
        }
        tensors: dict[str, Any] = {
            name: {key: self.to_torch(part, copy=False) for key, part in column.items()}
            if isinstance(column, dict)
            else self.to_torch(column, copy=False)  # all columns are fresh arrays already
            for name, column in columns.items()
        }
        if isinstance(observations, dict):
            return DictReplayBufferSamples(**tensors)
        return ReplayBufferSamples(**tensors)


def _take(observations: Any, at: tuple[np.ndarray, np.ndarray]) -> Any:
    if isinstance(observations, dict):
        return {key: values[at] for key, values in observations.items()}
    return observations[at]


class SkillDictReplayBuffer(SkillReplayBuffer, DictReplayBuffer):
    """`SkillReplayBuffer` for Dict observations."""


class SkillHerReplayBuffer(SkillDictReplayBuffer, HerReplayBuffer):
    """Hindsight experience replay over skills (HER, arXiv 1707.01495, strategy `future`).

    A share `her_ratio` of each batch gets another desired goal: one achieved at the end of the same or a random later
    skill of the episode. Its reward is computed anew from the base environment's reward at every low-level step, so a
    goal passed in the middle of a skill counts. With the goal unchanged it would be the stored transition again.

    It differs from SB3's `HerReplayBuffer`, which on skills would compare only the last achieved goal, keep the old
    done, and use one discount for all lengths. Episodes still running are sampled too.

    Args:
        env: the training environment, given by SB3.
        gamma: the low-level discount; required. The agent's own `gamma` has no effect.
        her_ratio: share of relabelled transitions in a batch.
        terminal_on_success: whether the task ends where the goal is reached, as in the environment. A relabelled skill
            then ends at the low-level step that reaches the goal, and a termination that reached the *old* goal is none
            under a new one. Set to False for tasks that go on (`continuing_task=True` in mazes).
        success_reward: the low-level reward that says the goal is reached: 1 for rewards 0/1, 0 for -1/0. Where None,
            the environment is asked for its reward at the goal itself.
        copy_info_dict: whether to keep the info of every low-level step and give it to the environment's
            `compute_reward`, which needs it where rewards do not depend on the goals alone.

    Memory: `skill_duration` achieved goals per transition (with `copy_info_dict` infos too), beside what
    `DictReplayBuffer` holds.

    The base environment's reward must depend on achieved and desired goal (and info) only, and no wrapper inside may
    change it. Where an environment goes on after its goal was reached although `terminal_on_success` says that it ends,
    a warning names what to set.

    Example:
        >>> env = didi_gym.make("AntMaze_Open-v5", "ant-directions", continuing_task=False, discount=0.995)
        >>> kwargs = {"gamma": 0.995, "her_ratio": 0.6}
        >>> agent = SAC("MultiInputPolicy", env, replay_buffer_class=SkillHerReplayBuffer, replay_buffer_kwargs=kwargs)
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Dict,
        action_space: spaces.Space,
        env: VecEnv,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        gamma: float | None = None,
        her_ratio: float = 0.8,
        terminal_on_success: bool = True,
        success_reward: float | None = None,
        copy_info_dict: bool = False,
    ) -> None:
        if not 0 <= her_ratio <= 1:
            raise ValueError(f"her_ratio is a share of each batch and must be in [0, 1], got {her_ratio}")
        duration, rule = _skill_settings(env)
        if gamma is not None and rule.discount not in (1.0, gamma):
            raise ValueError(
                f"the wrapper discounts rewards by {rule.discount} per low-level step, the buffer by {gamma}; give "
                "both the same (or the wrapper none)"
            )
        super().__init__(
            buffer_size,
            observation_space,
            action_space,
            device=device,
            n_envs=n_envs,
            optimize_memory_usage=optimize_memory_usage,
            handle_timeout_termination=handle_timeout_termination,
            gamma=gamma,
            env=env,
        )
        # SB3's class is a base because SB3 gives its subclasses the environment; its bookkeeping is not used.
        del self.infos, self.ep_start, self.ep_length, self._current_ep_start
        self.her_ratio = her_ratio
        self.terminal_on_success = terminal_on_success
        self.success_reward = success_reward
        self.reward_rule = rule
        self._warned = self._asked = False
        goal = observation_space["achieved_goal"]
        if not isinstance(goal, spaces.Box):
            raise ValueError(f"SkillHerReplayBuffer needs goals in a Box, got {goal}; write them as a Box inside")
        slots = (self.buffer_size, self.n_envs)
        self.achieved_goals = np.zeros((*slots, duration, *goal.shape), dtype=goal.dtype)
        self._infos = np.empty(slots, dtype=object) if copy_info_dict else None  # of low-level steps
        self._reached = np.zeros(slots, dtype=bool)  # the skill's last step reached the goal it had
        self._episode_last = np.full(slots, -1, dtype=np.int64)  # slot of the episode's last skill, -1 while running
        self._episode_skills = np.zeros(self.n_envs, dtype=np.int64)  # skills so far of the running episodes

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: list[dict[str, Any]]) -> None:
        self._end_abandoned_episodes(obs)
        self.skill_lengths[self.pos] = read_lengths(infos)
        if self.success_reward is None:
            goal = np.asarray(obs["desired_goal"])[:1]
            steps = None if self._infos is None else [infos[0]["skill_infos"][:1]]
            self.success_reward = float(self._goal_rewards(goal[:, None], goal, steps)[0, 0])
        if not self._asked and self.env is not None:
            self._asked = True
            if self.env.env_method("ends_at", np.asarray(obs["desired_goal"])[0], indices=[0])[0] is False:
                self._warn_of_going_on()
        for index, info in enumerate(infos):
            self.achieved_goals[self.pos, index] = info["skill_achieved_goals"]
            if self._infos is not None:
                self._infos[self.pos, index] = info["skill_infos"]
            hits = self._succeeds(info["skill_rewards"][: info["skill_length"]])
            self._reached[self.pos, index] = hits[-1]
            if hits.any() and not done[index]:
                self._warn_of_going_on()
        slot = self.pos
        DictReplayBuffer.add(self, obs, next_obs, action, reward, done, infos)
        self._episode_last[slot] = -1
        self._episode_skills += 1
        for ended in np.flatnonzero(done):
            self._end_episode(int(ended), slot)

    def truncate_last_trajectory(self) -> None:
        """End the running episodes as by a time limit: after loading, the environment starts new ones."""
        self._truncate(self._episode_skills > 0)

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> Any:
        at = batch_inds, np.random.randint(0, self.n_envs, size=len(batch_inds))
        observations, next_observations = _take(self.observations, at), _take(self.next_observations, at)
        rewards, dones, lengths = self._stored(at)
        n = int(self.her_ratio * len(batch_inds))
        if n:
            chosen = at[0][:n], at[1][:n]
            goals = self._future_goals(chosen)
            observations["desired_goal"][:n] = next_observations["desired_goal"][:n] = goals
            rewards[:n], dones[:n], lengths[:n] = self._relabel(chosen, goals)
        return self._samples(observations, next_observations, at, rewards, dones, lengths, env)

    def _future_goals(self, at: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Goals achieved at the end of this or a random later skill of the episode, `(n, *goal shape)`."""
        slots, envs = at
        last = self._episode_last[at]
        last = np.where(last < 0, self.pos - 1, last)
        later = np.random.randint(0, (last - slots) % self.buffer_size + 1)  # the ring: an episode may wrap around
        return self.next_observations["achieved_goal"][(slots + later) % self.buffer_size, envs]

    def _relabel(
        self, at: tuple[np.ndarray, np.ndarray], goals: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rewards, dones and lengths `(n,)` of the skills at `(slots, environments)`, had their goals been `goals`."""
        _, dones, lengths = self._stored(at)
        infos = None if self._infos is None else list(self._infos[at])
        rewards = self._goal_rewards(self.achieved_goals[at], goals, infos)  # (n, k)
        if self.terminal_on_success:
            # A skill's padding repeats its last goal, so it cannot succeed first there.
            hits = self._succeeds(rewards)
            hit = hits.any(axis=1)
            lengths = np.where(hit, hits.argmax(axis=1) + 1, lengths).astype(lengths.dtype)
            dones = np.where(hit, 1, dones * ~self._reached[at]).astype(dones.dtype)
        return self.reward_rule.totals(rewards, lengths).astype(np.float32), dones, lengths

    def _succeeds(self, rewards: Any) -> Any:
        assert self.success_reward is not None  # the first `add` asked the environment
        return rewards >= self.success_reward - SUCCESS_TOLERANCE

    def _warn_of_going_on(self) -> None:
        """Warn once where episodes go on at the goal and relabelled ones would end there."""
        if self._warned or not self.terminal_on_success:
            return
        self._warned = True
        warnings.warn(
            "the environment goes on where the goal is reached, but terminal_on_success=True lets relabelled episodes "
            "end there, so these teach other values than real ones. Pass replay_buffer_kwargs="
            "{'terminal_on_success': False, ...}, or make an environment that ends there (mazes: "
            "env_kwargs={'continuing_task': False})",
            stacklevel=3,
        )

    def _goal_rewards(self, achieved_goals: np.ndarray, goals: np.ndarray, infos: Any = None) -> np.ndarray:
        if self.env is None:
            raise ValueError("the buffer was loaded without an environment to compute rewards; call set_env(env)")
        return self.env.env_method("goal_rewards", achieved_goals, goals, infos, indices=[0])[0]

    def _end_abandoned_episodes(self, obs: dict[str, np.ndarray]) -> None:
        """Notice where the environment was reset without a done (a new call of `learn`): goals must not cross that."""
        previous = self.next_observations
        moved = np.zeros(self.n_envs, dtype=bool)
        for key in ("achieved_goal", "desired_goal"):
            changed = previous[key][self.pos - 1] != obs[key]
            moved |= changed.reshape(self.n_envs, -1).any(axis=1)
        self._truncate(moved & (self._episode_skills > 0))

    def _truncate(self, running: np.ndarray) -> None:
        for index in np.flatnonzero(running):
            self.dones[self.pos - 1, index] = self.timeouts[self.pos - 1, index] = 1  # so that values bootstrap
            self._end_episode(int(index), (self.pos - 1) % self.buffer_size)

    def _end_episode(self, index: int, slot: int) -> None:
        skills = min(int(self._episode_skills[index]), self.buffer_size)
        self._episode_last[(slot - np.arange(skills)) % self.buffer_size, index] = slot
        self._episode_skills[index] = 0


def _skill_settings(env: VecEnv) -> tuple[int, RewardRule]:
    """`skill_duration` and `reward_rule` of the environments."""
    try:
        return env.get_attr("skill_duration", indices=[0])[0], env.get_attr("reward_rule", indices=[0])[0]
    except AttributeError as error:
        raise ValueError(
            "SkillHerReplayBuffer needs environments that run skills: expected a SkillActionWrapper, got environments "
            "without skill_duration; wrap them, or use HerReplayBuffer"
        ) from error
