"""Time to a fixed held-out denoising loss: `train_prior` beside two other loops, judged alike, in one run.

    OMP_NUM_THREADS=1 python benchmarks/training_speed.py --csv benchmarks/results/training_speed.csv

* `ours`: `train_prior` as shipped.
* `plain`: the same network, batch, schedule and averaging in a loop as it is written every day: a DataLoader with one
  worker, Adam as it comes, eager.
* `released`: the architecture and settings of DIDI's released code: the temporal U-Net (32 channels, multipliers
  1 4 8), two batches of 128 accumulated, a constant rate of 2e-4, a DataLoader with one worker. Its windows are as long
  as those of the others.

The target is fixed by a rule before anything is trained: the loss that `ours` has after a third of its steps. Every
loop learns the same windows in the same units, and its averaged weights (of `released` these or the last ones,
whichever is better) are judged on the same held-out windows with the same noise, while the clock stands still. The
clock starts before a loop is set up. A loop that does not reach the target within the budget is reported as such, with
the loss it came to, and as so many times slower at least.

Then: milliseconds per step as the data, width, horizon and batch grow, and the share of the machine's own matrix rate.
"""

from __future__ import annotations

import csv
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode
from training_loops import WARM_UP, Clock, Curve, Terms, judge_on, train_ours, train_plainly

from didi_gym import DiffusionPrior, PriorConfig, TrajectoryDataset
from didi_gym.data.dataset import DatasetError
from didi_gym.training.losses import prior_loss

_HEADER = ("table", "loop", "setting", "steps", "seconds", "loss", "ms_per_step", "samples_per_s", "matrix_rate_share")
_RELEASED = PriorConfig(network="unet", learning_rate=2e-4, batch_size=128)
_ACCUMULATED = 2  # batches per step of the released loop

Row = tuple[object, ...]


@dataclass(frozen=True)
class TrainingSpeed:
    """Train the prior in three ways to the same held-out loss, and time steps as everything grows."""

    dataset: str = "didi/ant-directions-v0"
    """Minari id; where it is not on this disk a synthetic set of the same size takes its place."""
    steps: int = PriorConfig().steps
    """Steps of `ours`; the target is its loss after a third of them."""
    judgements: int = 60
    """How often `ours` and `plain` are judged over their steps; `released`, with longer steps, ten times as often."""
    budget: float = 600.0
    """Most seconds of `plain` and of `released`."""
    growth_steps: int = 60
    """Steps from which the time of one is taken, for each setting that grows; 0: none."""
    device: str = "auto"
    threads: int = 1
    """Threads of torch; set OMP_NUM_THREADS to the same number."""
    seed: int = 0
    csv: Path | None = None
    """Write the table here as well."""


def to_target(data: TrajectoryDataset, horizon: int, config: PriorConfig, terms: Terms, rate: float) -> list[Row]:
    """The three loops, and their curves."""
    train, held_out = data.split(horizon=horizon)
    judge = judge_on(held_out, train, horizon, terms.device)
    train_ours(train, replace(config, steps=2 * WARM_UP), horizon, terms)  # loads what a process loads once
    curves = {"ours": train_ours(train, config, horizon, terms, judge)}
    target = next(loss for step, _, loss in curves["ours"].points if step == max(config.steps // 3, 1))  # the rule
    third = max(config.steps // 3, 1)
    print(f"target: {target:.6f}, the held-out loss of ours after {third} of {config.steps} steps", flush=True)
    released, rows = replace(_RELEASED, steps=config.steps), []
    ours = curves["ours"].reached(target)
    assert ours is not None
    for loop in ("ours", "plain", "released"):
        if loop == "plain":
            curves[loop] = train_plainly(train, config, horizon, terms, judge, target)
        elif loop == "released":
            curves[loop] = train_plainly(train, released, horizon, terms, judge, target, _ACCUMULATED)
        curve = curves[loop]
        reached = curve.reached(target)
        steps, seconds, loss = reached or curve.points[-1]
        setting = f"target {target:.6f} " + ("reached" if reached else "not reached")
        used = released if loop == "released" else config
        share = _flops(used, data, horizon) * curve.samples_per_step / (used.batch_size * curve.ms_per_step * 1e-3)
        rows.append(_row("to_target", loop, setting, steps, seconds, loss, curve, share / rate))
        ratio = f"{'' if reached else 'at least '}{seconds / ours[1]:.1f} times ours"
        print(f"{loop}: loss {loss:.6f} after {seconds:.1f} s and {steps} steps, {ratio}", flush=True)
    rows += [("curve", loop, "", *_rounded(point)) for loop, curve in curves.items() for point in curve.points]
    return rows


def growth(data: TrajectoryDataset, horizon: int, config: PriorConfig, terms: Terms, rate: float) -> list[Row]:
    """Time of a step as one thing grows at a time."""
    small = _first_steps(data, 20_000)
    rows: list[Row] = []

    def add(name: str, loop: str, dataset: TrajectoryDataset, config: PriorConfig, horizon: int) -> None:
        train = train_ours if loop == "ours" else train_plainly
        curve = train(dataset, config, horizon, terms)
        share = _flops(config, dataset, horizon) / (curve.ms_per_step * 1e-3 * rate)
        rows.append(_row("growth", loop, name, config.steps, "", "", curve, share))
        print(_line(rows[-1]), flush=True)

    for copies in (1, 10, 100):
        grown = _copies(small, copies)
        for loop in ("ours", "plain"):
            add(f"{len(grown.observations)} data steps", loop, grown, config, horizon)
    for width in (160, 320, 640, 1280):
        add(f"width {width}", "ours", data, replace(config, width=width), horizon)
    for length in (8, 16, 32, 64, 128):
        if data.num_windows(length) > 0:
            add(f"horizon {length}", "ours", data, config, length)
    for batch in (32, 128, 512, 2048):
        add(f"batch {batch}", "ours", data, replace(config, batch_size=batch), horizon)
    return rows


def matrix_rate(device: torch.device, seconds: float = 1.0) -> float:
    """Floating-point operations per second of float32 products: the most of several sizes and repetitions."""
    best = 0.0
    for n in (4096, 8192) if device.type == "cuda" else (256, 512, 1024):
        a, b, clock = torch.randn(n, n, device=device), torch.randn(n, n, device=device), Clock(device)
        while clock.read() < seconds:
            before = clock.read()
            a @ b
            best = max(best, 2 * n**3 / (clock.read() - before))
    return best


def _flops(config: PriorConfig, data: TrajectoryDataset, horizon: int) -> float:
    """Floating-point operations of one batch, forward and backward."""
    prior = DiffusionPrior(horizon, data.layout.state_dim, data.action_dim, **config.sizes)
    windows = torch.zeros(config.batch_size, horizon, data.layout.state_dim + data.action_dim)
    with FlopCounterMode(display=False) as counter:
        prior_loss(prior, windows, torch.Generator())[0].backward()
    return counter.get_total_flops()


def synthetic(episodes: int = 300, steps: int = 1000) -> TrajectoryDataset:
    """A damped linear system of 27 states, driven by 8 actions that are held for a while."""
    rng = np.random.default_rng(0)
    drive = rng.normal(0, 0.3, (8, 27))
    turn = np.linalg.qr(rng.normal(size=(27, 27)))[0] * 0.97
    actions = np.repeat(rng.uniform(-1, 1, (episodes, steps // 10, 8)), 10, axis=1)
    states = np.zeros((episodes, steps + 1, 27), np.float32)
    for step in range(steps):
        states[:, step + 1] = states[:, step] @ turn + actions[:, step] @ drive
    pairs = list(zip(states, actions, strict=True))
    return TrajectoryDataset.from_episodes(pairs, action_low=[-1.0] * 8, action_high=[1.0] * 8)


def _first_steps(data: TrajectoryDataset, steps: int) -> TrajectoryDataset:
    """The first episodes, of `steps` steps together."""
    episodes = max(int(np.searchsorted(np.cumsum(data.lengths), steps)), 1)
    end = int(data.lengths[:episodes].sum())
    return replace(
        data,
        observations=data.observations[:end],
        actions=data.actions[:end],
        starts=data.starts[:episodes],
        lengths=data.lengths[:episodes],
    )


def _copies(data: TrajectoryDataset, n: int) -> TrajectoryDataset:
    """The data set n times over, as so many arrays would be in memory."""
    offsets = np.repeat(np.arange(n) * len(data.observations), len(data.starts))
    return replace(
        data,
        observations=np.tile(data.observations, (n, 1)),
        actions=np.tile(data.actions, (n, 1)),
        starts=np.tile(data.starts, n) + offsets,
        lengths=np.tile(data.lengths, n),
    )


def _device(name: str) -> torch.device:
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _row(table: str, loop: str, setting: str, steps: int, seconds: object, loss: object, c: Curve, share: float) -> Row:
    speed = f"{c.ms_per_step:.3f}", f"{1e3 * c.samples_per_step / c.ms_per_step:.0f}", f"{share:.3f}"
    return (table, loop, setting, *_rounded((steps, seconds, loss)), *speed)


def _rounded(point: tuple) -> tuple:
    steps, seconds, loss = point
    return steps, seconds if seconds == "" else f"{seconds:.2f}", loss if loss == "" else f"{loss:.6f}"


def _line(row: Row) -> str:
    return f"{row[0]:<10} {row[1]:<9} {row[2]:<32}" + "".join(f"{value:>15}" for value in row[3:])


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(": ")[2] if names else platform.machine()


def main(args: TrainingSpeed) -> None:
    torch.set_num_threads(args.threads)
    try:
        data, name = TrajectoryDataset.from_minari(args.dataset), args.dataset
    except DatasetError:
        data, name = synthetic(), "synthetic"
    terms = Terms(_device(args.device), args.seed, args.judgements, args.budget)
    horizon, rate = data.suggest_horizon(), matrix_rate(terms.device)
    machine = torch.cuda.get_device_name() if terms.device.type == "cuda" else _processor()
    about = f"{name}, horizon {horizon}; {machine}, {args.threads} thread(s), torch {torch.__version__}; "
    about += f"float32 matrix rate {rate / 1e9:.0f} GFLOP/s"
    print(about)
    rows = to_target(data, horizon, PriorConfig(steps=args.steps), terms, rate)
    print(_line(_HEADER))
    print("\n".join(_line(row) for row in rows if row[0] == "to_target"), flush=True)
    if args.growth_steps > 0:
        rows += growth(data, horizon, PriorConfig(steps=args.growth_steps), terms, rate)
    if args.csv is not None:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with args.csv.open("w", newline="") as file:
            file.write(f"# OMP_NUM_THREADS={args.threads} python {' '.join(sys.argv)}\n# {about}\n")
            csv.writer(file, lineterminator="\n").writerows([_HEADER, *rows])
        print(f"wrote {args.csv}")


if __name__ == "__main__":
    main(tyro.cli(TrainingSpeed))
