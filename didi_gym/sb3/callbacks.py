"""A callback for Stable-Baselines3's agents that counts in low-level steps."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv
from stable_baselines3.common.callbacks import BaseCallback

from didi_gym.core.env_rows import EnvRows
from didi_gym.evaluation.agents import AgentReport, evaluate_agent

_COLUMNS = ("low_level_steps", "success", "success_low", "success_high", "mean_return", "steps_to_success", "falls")


class LowLevelEvalCallback(BaseCallback):
    """Evaluates an agent every so many low-level steps, and ends training after so many.

    Stable-Baselines3's `EvalCallback` counts skills, which are not comparable between agents whose skills last
    differently long, or with a flat agent. This one counts `skill_length`, or 1 where an environment runs no skills.

    It logs `eval/success`, `eval/mean_return`, `eval/falls` and `time/low_level_steps`.

    Args:
        env: To evaluate in: one environment or a Gymnasium vector environment, not one of Stable-Baselines3's.
        every: Low-level steps between evaluations.
        until: Low-level steps after which training ends; None leaves that to `total_timesteps`.
        episodes: Of each evaluation, from the same seeds each time.
        file: A CSV file that gets one row for each evaluation.

    Attributes:
        low_level_steps: Taken in training so far.
        reports: `(low_level_steps, AgentReport)` of each evaluation.

    Example:
        >>> test = didi_gym.make("AntMaze_UMaze-v5", "ant-directions", skill_duration=16)
        >>> agent.learn(10**9, callback=LowLevelEvalCallback(test, every=10_000, until=100_000))
    """

    def __init__(
        self,
        env: gym.Env | VectorEnv,
        *,
        every: int,
        until: int | None = None,
        episodes: int = 50,
        file: str | Path | None = None,
    ) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every is a number of low-level steps, at least 1, got {every}")
        EnvRows(env)  # refuses what cannot be evaluated in, before anything was trained
        if episodes < 1:
            raise ValueError(f"episodes of each evaluation must be at least 1, got {episodes}")
        self.env, self.every, self.until, self.episodes = env, every, until, episodes
        self.file = None if file is None else Path(file)
        self.low_level_steps = 0
        self.reports: list[tuple[int, AgentReport]] = []

    def _on_step(self) -> bool:
        before = self.low_level_steps
        self.low_level_steps += sum(int(info.get("skill_length", 1)) for info in self.locals["infos"])
        self.logger.record("time/low_level_steps", self.low_level_steps)
        if before // self.every < self.low_level_steps // self.every:
            self._evaluate()
        return self.until is None or self.low_level_steps < self.until

    def _on_training_end(self) -> None:
        if self.reports and self.reports[-1][0] == self.low_level_steps:
            return
        self._evaluate()

    def _evaluate(self) -> None:
        report = evaluate_agent(self.model, self.env, self.episodes, progress=False)
        self.reports.append((self.low_level_steps, report))
        low, high = report.success_interval
        row: tuple[Any, ...] = (self.low_level_steps, report.success, low, high, report.mean_return)
        row += (report.steps_to_success, report.falls)
        for name in ("success", "mean_return", "falls"):
            self.logger.record(f"eval/{name}", getattr(report, name))
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            is_new = not self.file.exists()
            with self.file.open("a", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerows([_COLUMNS, row] if is_new else [row])
