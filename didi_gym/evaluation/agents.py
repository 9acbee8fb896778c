"""Agents in whole episodes, over skills or not: one decision after another, and how well they do in low-level steps."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from didi_gym.core.env_rows import EnvRows
from didi_gym.core.progress import progress as progress_bar
from didi_gym.evaluation.statistics import stratified_bootstrap, wilson_interval

FIRST_SEED = 10_000_000
"""Far from the seeds of training episodes."""


class Agent(Protocol):
    """What Stable-Baselines3's agents are, and `didi_gym.planning.SkillGraph`."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]: ...


@dataclass(frozen=True)
class Decision:
    """One action of an agent and what came of it."""

    row: int
    """Index of the sub-environment; 0 in a single one."""
    episode: int
    """Number of the episode, from 0 in the order of the seeds."""
    seed: int
    """Of the episode's reset."""
    index: int
    """Number of the decision in its episode, from 0."""
    observation: Any
    action: Any
    next_observation: Any
    """After an episode's end its last one, never that of the next one's start."""
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]

    @property
    def low_level_steps(self) -> int:
        return int(self.info.get("skill_length", 1))

    @property
    def low_level_return(self) -> float:
        """Undiscounted."""
        return float(self.info.get("skill_return", self.reward))

    @property
    def success(self) -> bool | None:
        """What the environment says of it; None where it says nothing."""
        said = self.info.get("success", self.info.get("is_success"))
        return None if said is None else bool(said)

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated


def decisions(
    env: gym.Env | VectorEnv, agent: Agent, seeds: Iterable[int], *, deterministic: bool = True
) -> Iterator[Decision]:
    """Let an agent act in one environment or many, and hand out its decisions one by one.

    Each seed is one whole episode, begun where a row is free, so that short episodes count no more than long ones. With
    `itertools.count()` as seeds it goes on for ever.

    Args:
        env: One environment or a vector environment in any autoreset mode, over skills or low-level actions.
        agent: Anything with Stable-Baselines3's `predict`; where it returns a state, it gets it back.
        seeds: Of the episodes' resets.
        deterministic: What the agent is told.

    Example:
        >>> env = didi_gym.make("AntMaze_UMaze-v5", "ant-directions", skill_duration=16)
        >>> for decision in decisions(env, agent, range(10)):
        ...     print(decision.seed, decision.low_level_steps, decision.low_level_return)
    """
    rows, waiting = EnvRows(env), enumerate(map(operator.index, seeds))  # numpy's integers are no seeds
    episode, index = [(0, 0)] * len(rows), [0] * len(rows)
    state, start = None, np.ones(len(rows), bool)
    while True:
        free = dict(zip(np.flatnonzero(~rows.running).tolist(), waiting, strict=False))
        if free:
            rows.begin({row: seed for row, (_, seed) in free.items()})
        for row, numbered in free.items():
            episode[row], index[row], start[row] = numbered, 0, True
        if not rows.running.any():
            return
        before = list(rows.observations)
        predicted, state = agent.predict(rows.batch(), state, start, deterministic)
        actions = {int(row): predicted[row] if rows.is_vector else predicted for row in np.flatnonzero(rows.running)}
        start = np.zeros(len(rows), bool)
        for row, step in rows.step(actions).items():
            yield Decision(
                row,
                *episode[row],
                index[row],
                before[row],
                actions[row],
                step.observation,
                step.reward,
                step.terminated,
                step.truncated,
                step.info,
            )
            index[row] += 1


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
    """Actions of the agent; as many as low-level steps where it runs no skills."""
    terminated: bool
    """By the environment, and not for its length."""


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
        """Mean over the episodes of their undiscounted low-level returns."""
        return float(np.mean([row.low_level_return for row in self.episodes]))

    @property
    def mean_return_interval(self) -> tuple[float, float]:
        """95 % interval of `mean_return`, bootstrapped over the episodes."""
        returns = np.array([[row.low_level_return] for row in self.episodes])
        return stratified_bootstrap(returns, lambda scores: float(np.mean(scores)))

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
    env: gym.Env | VectorEnv,
    episodes: int = 50,
    *,
    seeds: Sequence[int] | None = None,
    deterministic: bool = True,
    progress: bool = True,
) -> AgentReport:
    """Let an agent act in whole episodes of an environment, which may run skills or low-level actions.

    Args:
        agent: Anything with Stable-Baselines3's `predict`.
        env: One environment or a vector environment, with an end to its episodes. Success is what its info calls
            `success` or `is_success`.
        episodes: How many.
        seeds: Of the episodes' resets; default: the same ones at every call, far from those of training.

    Returns:
        Rows of the episodes in the order of their seeds, with means and intervals. Steps are low-level ones, whatever
        the agent decides.

    Raises:
        ValueError: no episode.
    """
    chosen = list(range(FIRST_SEED, FIRST_SEED + episodes) if seeds is None else seeds)
    if not chosen:
        raise ValueError(f"expected at least one episode, got episodes={episodes} and seeds={seeds}")
    running: dict[int, list[Decision]] = {}
    rows: dict[int, EpisodeRow] = {}
    with progress_bar("evaluate agent", len(chosen), progress) as report:
        for decision in decisions(env, agent, chosen, deterministic=deterministic):
            running.setdefault(decision.episode, []).append(decision)
            if decision.ended:
                rows[decision.episode] = _row(running.pop(decision.episode))
                known = [row.success for row in rows.values() if row.success is not None]
                report(len(rows), {"success": float(np.mean(known))} if known else {})
    return AgentReport(tuple(row for _, row in sorted(rows.items())))


def _row(episode: list[Decision]) -> EpisodeRow:
    said = [decision.success for decision in episode if decision.success is not None]
    return EpisodeRow(
        episode[0].seed,
        any(said) if said else None,
        sum(decision.low_level_return for decision in episode),
        sum(decision.low_level_steps for decision in episode),
        len(episode),
        episode[-1].terminated,
    )
