"""How well an agent does, over skills or not: episodes from held-out seeds, counted in low-level steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from didi_gym.core.progress import progress as progress_bar
from didi_gym.evaluation.statistics import wilson_interval

FIRST_SEED = 10_000_000
"""Far from the seeds of training episodes."""


class Agent(Protocol):
    """What Stable-Baselines3's agents are, and `didi_gym.planning.SkillGraph`."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]: ...


@dataclass(frozen=True)
class EpisodeRow:
    """One evaluated episode."""

    seed: int
    success: bool | None
    """None where the environment says nothing of success."""
    low_level_return: float
    """Undiscounted."""
    low_level_steps: int
    decisions: int
    terminated: bool


@dataclass(frozen=True)
class AgentReport:
    """What `evaluate_agent` saw; each property is over all episodes."""

    episodes: tuple[EpisodeRow, ...]

    @property
    def success(self) -> float:
        """Share of episodes with success; NaN where the environment says nothing of it."""
        known = [row.success for row in self.episodes if row.success is not None]
        return float(np.mean(known)) if known else float("nan")

    @property
    def success_interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of `success`."""
        known = [row.success for row in self.episodes if row.success is not None]
        return wilson_interval(sum(known), len(known))

    @property
    def mean_return(self) -> float:
        return float(np.mean([row.low_level_return for row in self.episodes]))

    @property
    def steps_to_success(self) -> float:
        """Mean low-level steps of the episodes with success; NaN where there are none."""
        steps = [row.low_level_steps for row in self.episodes if row.success]
        return float(np.mean(steps)) if steps else float("nan")

    @property
    def falls(self) -> float:
        """Share of episodes that the environment terminated without success; NaN where success is not known."""
        known = [row.terminated and not row.success for row in self.episodes if row.success is not None]
        return float(np.mean(known)) if known else float("nan")

    def __str__(self) -> str:
        low, high = self.success_interval
        return (
            f"success {self.success:.2f} [{low:.2f}, {high:.2f}] in {len(self.episodes)} episodes, "
            f"return {self.mean_return:.3g}, steps to success {self.steps_to_success:.0f}, falls {self.falls:.2f}"
        )


def evaluate_agent(
    agent: Agent,
    env: gym.Env,
    episodes: int = 50,
    *,
    seeds: Sequence[int] | None = None,
    deterministic: bool = True,
    progress: bool = True,
) -> AgentReport:
    """Let an agent act in whole episodes of an environment, which may run skills or low-level actions.

    Args:
        agent: Anything with Stable-Baselines3's `predict`.
        env: One environment with an end to its episodes. Success is what its info calls `success` or `is_success`.
        episodes: How many.
        seeds: Of the episodes' resets; default: the same ones at every call, far from those of training.

    Returns:
        Rows of the episodes, with means and intervals. Steps are low-level ones, whatever the agent decides.
    """
    rows = []
    chosen = range(FIRST_SEED, FIRST_SEED + episodes) if seeds is None else seeds
    with progress_bar("evaluate agent", len(chosen), progress) as report:
        for seed in chosen:
            rows.append(_run_episode(agent, env, int(seed), deterministic))
            known = [row.success for row in rows if row.success is not None]
            report(len(rows), {"success": float(np.mean(known))} if known else {})
    return AgentReport(tuple(rows))


def _run_episode(agent: Agent, env: gym.Env, seed: int, deterministic: bool) -> EpisodeRow:
    observation, _ = env.reset(seed=seed)
    state, start, total, steps, decisions = None, np.ones(1, bool), 0.0, 0, 0
    success: bool | None = None
    while True:
        action, state = agent.predict(observation, state, start, deterministic)
        observation, reward, terminated, truncated, info = env.step(action)
        start = np.zeros(1, bool)
        total += float(info.get("skill_return", reward))
        steps += int(info.get("skill_length", 1))
        decisions += 1
        said = info.get("success", info.get("is_success"))
        success = success if said is None else bool(success or said)
        if terminated or truncated:
            return EpisodeRow(seed, success, total, steps, decisions, bool(terminated))
