"""The loops that `training_speed.py` compares, the clock they run by, and the judge of what they learn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, default_collate

from didi_gym import DiffusionPrior, PriorConfig, Run, TrajectoryDataset, train_prior
from didi_gym.core.frames import localize
from didi_gym.training import run as run_module
from didi_gym.training.batches import Batches, fit_normalizer
from didi_gym.training.checkpoints import TrainingState
from didi_gym.training.losses import prior_loss

WARM_UP = 5  # steps that do not count for the time of one
_JUDGED = 2048  # held-out windows


@dataclass(frozen=True)
class Terms:
    """What is the same for all loops."""

    device: torch.device
    seed: int
    judgements: int
    """How often a loop is judged over its steps; `released`, with longer steps, ten times as often."""
    budget: float
    """Most seconds of `plain` and of `released`."""


class Clock:
    """Seconds since it was made, other than those spent in `stopped`."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._began = device, time.perf_counter()
        self.laps: list[float] = []

    def read(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - self._began

    def lap(self) -> None:
        """Note that a step has ended."""
        self.laps.append(time.perf_counter() - self._began)

    def stopped(self, work: Callable[[], float]) -> tuple[float, float]:
        """The seconds so far, and what `work` returns."""
        seconds = self.read()
        result = work()
        self._began = time.perf_counter() - seconds
        return seconds, result

    def ms_per_step(self) -> float:
        """The median over steps; on a GPU the mean, since the host runs ahead of it."""
        laps = np.diff(self.laps[WARM_UP:])
        return 1e3 * float(np.mean(laps) if self._device.type == "cuda" else np.median(laps))


@dataclass(frozen=True)
class Curve:
    """How a loop's held-out loss fell."""

    points: list[tuple[int, float, float]]
    """(steps, seconds, loss)."""
    ms_per_step: float
    samples_per_step: int

    def reached(self, target: float) -> tuple[int, float, float] | None:
        return next((point for point in self.points if point[2] <= target), None)


def train_ours(
    train: TrajectoryDataset,
    config: PriorConfig,
    horizon: int,
    terms: Terms,
    judge: Callable[[DiffusionPrior], float] | None = None,
) -> Curve:
    """`train_prior`, watched at the end of each step."""
    every, points = max(config.steps // terms.judgements, 1), []
    third = max(config.steps // 3, 1)
    clock = Clock(terms.device)

    class Watched(TrainingState):
        def finish_step(self) -> None:
            super().finish_step()
            clock.lap()
            if judge is not None and (self.step % every == 0 or self.step in (third, config.steps)):
                average = self.average
                seconds, loss = clock.stopped(lambda: judge(average))  # type: ignore[arg-type]
                points.append((self.step, seconds, loss))

    run_module.TrainingState = Watched  # type: ignore[misc]
    try:
        train_prior(Run(train, horizon=horizon, seed=terms.seed, device=terms.device, progress=False), config)
    finally:
        run_module.TrainingState = TrainingState  # type: ignore[misc]
    return Curve(points, clock.ms_per_step(), config.batch_size)


class Windows(Dataset):
    """The windows of a data set one by one, as a DataLoader asks for them."""

    def __init__(self, dataset: TrajectoryDataset, horizon: int) -> None:
        self._dataset, self._horizon = dataset, horizon
        self._starts = dataset.window_starts(np.arange(dataset.num_windows(horizon)), horizon)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        part = slice(self._starts[index], self._starts[index] + self._horizon)
        return self._dataset.observations[part], self._dataset.actions[part]


def train_plainly(
    train: TrajectoryDataset,
    config: PriorConfig,
    horizon: int,
    terms: Terms,
    judge: Callable[[nn.Module], float] | None = None,
    target: float = -math.inf,
    accumulated: int = 1,
) -> Curve:
    """A loop as it is written every day, until the target or the end of the budget.

    An MLP is given the schedule and the clipping of `train_prior`; a U-Net neither, as released.
    """
    device, ours = terms.device, config.network == "mlp"
    clock = Clock(device)
    normalizer = fit_normalizer(train, horizon)
    low, high = torch.as_tensor(train.action_low), torch.as_tensor(train.action_high)

    def collate(items: list[tuple[np.ndarray, np.ndarray]]) -> Tensor:
        observations, actions = default_collate(items)
        states = normalizer.normalize(localize(observations, train.layout)[0])
        return torch.cat([states, (2 * (actions - low) / (high - low) - 1).clamp(-1, 1)], dim=-1)

    options = {"shuffle": True, "drop_last": True, "num_workers": 1, "pin_memory": device.type == "cuda"}
    loader = DataLoader(Windows(train, horizon), config.batch_size, collate_fn=collate, **options)

    def batches() -> Iterator[Tensor]:
        while True:
            yield from loader

    torch.manual_seed(terms.seed)
    prior = DiffusionPrior(horizon, train.layout.state_dim, train.action_dim, **config.sizes).to(device)
    optimizer = torch.optim.Adam(prior.parameters(), lr=config.learning_rate)
    average = AveragedModel(prior, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
    generator, source = torch.Generator(device).manual_seed(terms.seed), batches()
    every = max(config.steps // (terms.judgements if ours else 10 * terms.judgements), 1)
    points: list[tuple[int, float, float]] = []
    step = 0
    while step < config.steps or not ours:  # a constant rate has no end
        if ours:
            optimizer.param_groups[0]["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        optimizer.zero_grad()
        for _ in range(accumulated):
            trajectories = next(source).to(device, non_blocking=True)
            (prior_loss(prior, trajectories, generator)[0] / accumulated).backward()
        if ours:
            nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(prior)
        step += 1
        clock.lap()
        if judge is None:
            if step == config.steps:
                break
        elif step % every == 0:
            seconds, loss = clock.stopped(lambda: min(map(judge, [average.module, *([] if ours else [prior])])))
            points.append((step, seconds, loss))
            if loss <= target or seconds > terms.budget:
                break
    return Curve(points, clock.ms_per_step(), config.batch_size * accumulated)


def judge_on(held_out: TrajectoryDataset, train: TrajectoryDataset, horizon: int, device: torch.device) -> Callable:
    """A function prior -> its denoising loss on fixed held-out windows, at fixed noise."""
    batches = Batches(held_out, fit_normalizer(train, horizon), device)
    windows = torch.cat(batches.draw(_JUDGED, horizon, torch.Generator(device).manual_seed(1)), dim=-1)

    @torch.no_grad()
    def judge(prior: DiffusionPrior) -> float:
        return float(prior_loss(prior, windows, torch.Generator(device).manual_seed(2))[0])

    return judge
