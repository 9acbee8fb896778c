"""PPO and A2C over skills of variable length: rollout buffers with one discount for each transition.

Where every skill lasts k low-level steps, SB3's own PPO with `gamma=gamma_low ** k` is exact already. It is not for
skills that an episode's end cuts short: after tau < k steps they are worth r + gamma_low ** tau V, which matters where
time limits truncate inside a skill (terminated, it has no V). Let k divide the time limit, or use the classes here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from didi_gym.sb3.lengths import check_gamma, check_observations, read_lengths


class SkillRolloutBuffer(RolloutBuffer):
    """A rollout buffer of skills, each discounted by its own length: gamma ** `info["skill_length"]`.

    With tau_t low-level steps in skill t, generalised advantages (GAE, arXiv 1506.02438) in the semi-Markov form:

        delta_t = r_t + gamma^tau_t V_{t+1} - V_t,    A_t = delta_t + gamma^tau_t lambda A_{t+1},

    without the parts of t+1 where skill t ends the episode. lambda counts decisions, gamma low-level steps. Skills of
    one step give SB3's advantages, bit for bit.

    `SkillPPO` and `SkillA2C` use it; SB3's own algorithms do not tell a rollout buffer how long a skill was.

    Args:
        gamma: the low-level discount, per low-level step.
        others: see `stable_baselines3.common.buffers.RolloutBuffer`.
    """

    skill_lengths: np.ndarray
    """Low-level steps of each stored skill, `(buffer_size, n_envs)`."""

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
    ) -> None:
        check_observations(type(self), DictRolloutBuffer, observation_space)
        super().__init__(
            buffer_size, observation_space, action_space, device, gae_lambda, check_gamma(gamma), n_envs=n_envs
        )

    def reset(self) -> None:
        self.skill_lengths = np.ones((self.buffer_size, self.n_envs), dtype=np.int32)
        self._announced: tuple[np.ndarray, np.ndarray] | None = None
        super().reset()

    def announce(self, infos: list[dict[str, Any]], rewards: np.ndarray) -> None:
        """Say how long the skills ran that the next `add` stores, and what they earned.

        Args:
            infos: what the environments' step returned, n_envs of them.
            rewards: likewise `(n_envs,)`, before the algorithm adds the values of truncated episodes.

        Raises:
            ValueError: an info without `skill_length`.
        """
        self._announced = read_lengths(infos), rewards.copy()

    def add(self, obs: Any, action: np.ndarray, reward: np.ndarray, *args: Any, **kwargs: Any) -> None:
        """Store a step; see SB3's class.

        Raises:
            ValueError: nobody announced the step.
        """
        if self._announced is None:
            raise ValueError(
                "a rollout buffer of skills needs the length of every skill, and the algorithm did not announce it; "
                "use SkillPPO, SkillA2C or SkillMaskablePPO of didi_gym.sb3, which choose this buffer themselves"
            )
        lengths, earned = self._announced
        self._announced = None
        self.skill_lengths[self.pos] = lengths
        # Where an episode was truncated, the algorithm has added gamma V(terminal observation), not gamma^tau V.
        bootstrap = np.asarray(reward, np.float64) - earned
        super().add(obs, action, earned + bootstrap * self.gamma ** (lengths - 1.0), *args, **kwargs)

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        """Fill `advantages` and `returns`, `(buffer_size, n_envs)`.

        Args:
            last_values: V of the observations after the last step, n_envs of them.
            dones: whether the last step ended the episode, `(n_envs,)`.
        """
        discounts = self.gamma**self.skill_lengths  # float64
        decays = (discounts * self.gae_lambda).astype(np.float32)
        discounts = discounts.astype(np.float32)  # like all numbers here, and those of SB3's scalar gamma
        last = last_values.detach().cpu().numpy().reshape(1, self.n_envs)
        next_values = np.concatenate([self.values[1:], last])
        goes_on = 1 - np.concatenate([self.episode_starts[1:], dones.astype(np.float32)[None]])
        deltas = self.rewards + discounts * next_values * goes_on - self.values
        advantage = np.zeros(self.n_envs, dtype=np.float32)
        for step in reversed(range(self.buffer_size)):
            advantage = deltas[step] + decays[step] * goes_on[step] * advantage
            self.advantages[step] = advantage
        self.returns = self.advantages + self.values


class SkillDictRolloutBuffer(SkillRolloutBuffer, DictRolloutBuffer):
    """`SkillRolloutBuffer` for Dict observations."""


class SkillOnPolicy(OnPolicyAlgorithm):
    """What an on-policy algorithm of SB3 needs for skills: the right buffer, told of every step's lengths.

    Mix it in before the algorithm: `class SkillPPO(SkillOnPolicy, PPO)`.
    """

    skill_buffers: tuple[type[SkillRolloutBuffer], type[SkillRolloutBuffer]] = (
        SkillRolloutBuffer,
        SkillDictRolloutBuffer,
    )
    """The default buffers, for Box and for Dict observations."""

    def _setup_model(self) -> None:
        if self.rollout_buffer_class is None:
            self.rollout_buffer_class = self.skill_buffers[isinstance(self.observation_space, spaces.Dict)]
        if not issubclass(self.rollout_buffer_class, SkillRolloutBuffer):
            raise ValueError(
                f"{type(self).__name__} discounts each skill by its length, which needs a SkillRolloutBuffer, got "
                f"{self.rollout_buffer_class.__name__}; leave rollout_buffer_class out"
            )
        super()._setup_model()

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, *args: Any, **kwargs: Any
    ) -> bool:
        announcing: Any = _Announcing(callback, rollout_buffer)
        return super().collect_rollouts(env, announcing, rollout_buffer, *args, **kwargs)


class _Announcing:
    """A callback that announces each step to the buffer, after the environments' step and before it is stored."""

    def __init__(self, callback: BaseCallback, buffer: Any) -> None:
        self._callback, self._buffer = callback, buffer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._callback, name)

    def on_step(self) -> bool:
        goes_on = self._callback.on_step()
        step = self._callback.locals
        self._buffer.announce(step["infos"], step["rewards"])
        return goes_on


class SkillPPO(SkillOnPolicy, PPO):
    """PPO whose `gamma` is the discount per low-level step: a skill of tau steps is discounted by gamma ** tau.

    It differs from SB3's PPO in the buffer and in the meaning of `gamma` only; `gae_lambda`, `n_steps` and
    `total_timesteps` count skills. To be exact, give the wrapper the same `discount`.

    Raises:
        ValueError: a `rollout_buffer_class` that does not know skills; while learning, an environment that runs none.

    Example:
        >>> env = SkillActionWrapper(gym.make("PointMaze_Medium-v3"), "pointmaze-medium", discount=0.995)
        >>> agent = SkillPPO("MultiInputPolicy", env, gamma=0.995).learn(10_000)
    """


class SkillA2C(SkillOnPolicy, A2C):
    """A2C whose `gamma` is the discount per low-level step; see `SkillPPO`."""
