"""Rivals and ablations on the same data, prior, dynamics model and metrics: one row per data set, method and seed.

    for seed in 0 1 2 3 4; do
        didi-gym train --dataset didi/ant-directions-v0 --output runs/didi-ant-directions-v0-seed$seed --seed $seed
    done
    python experiments/baselines.py --dataset didi/ant-directions-v0 --seeds 0 1 2 3 4 \
        --methods didi no-prior no-diversity bc-anchor vae released prior-sampling random-skills contrastive metra \
            entropy
    python experiments/baselines.py --dataset didi/pointmaze-medium-v0 --contact-geoms block ...
    python experiments/baselines.py --dataset didi/halfcheetah-gaits-v0 --starts 16 \
        --methods didi imitation-only no-prior vae prior-sampling released

The folder `RUNS/<data set, / as ->-seed<N>` gives the prior and the dynamics model of a seed: its methods share them.
All are executed alike, with a new plan every `--replan-every` steps. `training_seconds` is what a method's own training
took (of `didi`: everything, where the folder says it). A row is written as soon as it is measured; one that is there is
skipped. `experiments/methods/` says what each method is.
"""

from __future__ import annotations

import csv
import fcntl
import io
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import tyro
from methods import METHODS, Run

from didi_gym import SkillPolicy, TrajectoryDataset, evaluate_skills
from didi_gym.core.files import write_atomically
from didi_gym.evaluation.report import SkillReport

KEY = ("dataset", "method", "seed")
COLUMNS = (*KEY, "training_seconds", *(field.name for field in fields(SkillReport)))


@dataclass(frozen=True)
class Baselines:
    """Train and evaluate methods on a data set."""

    dataset: str
    """Minari data set id."""
    methods: tuple[str, ...] = tuple(name for name in METHODS if name != "behaviours")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    runs: Path = Path("runs")
    """Folder of the run folders."""
    csv: Path = Path("experiments/results/skills.csv")
    steps: int | None = None
    """Gradient steps of each method, for trials; default: those of the run folder, or what a method says of itself."""
    starts: int = 64
    """Start states of the evaluation."""
    replan_every: int = 1
    """Environment steps executed of each plan."""
    contact_geoms: str | None = None
    """Regular expression of MuJoCo geom names to count contacts with."""
    label: str | None = None
    """What the table calls method `didi`, where the run folders are of another form of it (e.g. `unet-joint`)."""
    policies: Path | None = None
    """Folder to save the trained policies to, e.g. for `experiments/gait_recovery.py`; default: they are not kept."""
    agents: Path | None = None
    """For method `behaviours`: the folder of policies that the data set was recorded with."""
    again: bool = False
    """Measure anew what the file holds."""


def measure(args: Baselines, dataset: TrajectoryDataset, method: str, seed: int) -> dict[str, Any]:
    """Train and evaluate one method with one seed: a row."""
    name = f"{args.dataset.replace('/', '-')}-seed{seed}"
    folder = args.runs / name
    if not folder.is_dir():
        raise FileNotFoundError(f"no {folder}: didi-gym train --dataset {args.dataset} --output {folder} --seed {seed}")
    run = Run.load(dataset, folder, seed, args.steps, agents=args.agents)
    began = time.monotonic()
    policy = METHODS[method](run)
    seconds: float = round(time.monotonic() - began, 1)
    if method == "didi":
        clock = folder / "training_seconds.txt"
        seconds = float(clock.read_text()) if clock.is_file() else math.nan
    if args.policies is not None and type(policy) is SkillPolicy:  # what has no network of its own cannot be loaded
        policy.save_pretrained(args.policies / f"{name}-{method}")
    report, _ = evaluate_skills(
        policy,
        dataset=dataset,
        starts=args.starts,
        replan_every=args.replan_every,
        contact_geoms=args.contact_geoms,
        # holding on takes most of the time, and the combined score does not need it
        hold=8 if method in ("didi", "behaviours") else 1,
    )
    return {
        "dataset": args.dataset,
        "method": named(args, method),
        "seed": seed,
        "training_seconds": seconds,
        **asdict(report),
    }


def named(args: Baselines, method: str) -> str:
    """The name of a method in the table."""
    return args.label if args.label is not None and method == "didi" else method


def read_rows(file: Path) -> dict[tuple[str, ...], dict[str, str]]:
    """The rows of `file` by data set, method and seed; none where there is no file."""
    if not file.is_file():
        return {}
    with file.open(newline="") as lines:
        return {tuple(row[name] for name in KEY): row for row in csv.DictReader(lines)}


def merge_row(file: Path, row: dict[str, Any]) -> None:
    """Put `row` into `file` in place of one with the same key; the file is whole at any time."""
    texts = {name: str(round(value, 4) if isinstance(value, float) else value) for name, value in row.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(file.parent):
        rows = {**read_rows(file), tuple(texts[name] for name in KEY): texts}
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="nan")
        writer.writeheader()
        writer.writerows(rows[key] for key in sorted(rows))
        write_atomically(file, text.getvalue().encode())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let processes that write to the same folder take turns."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def main(args: Baselines) -> None:
    if unknown := sorted(set(args.methods) - set(METHODS)):
        raise SystemExit(f"no method {', '.join(unknown)}; there are {', '.join(METHODS)}")
    torch.set_num_threads(1)
    dataset = TrajectoryDataset.from_minari(args.dataset)
    for seed in args.seeds:
        for method in args.methods:
            if (args.dataset, named(args, method), str(seed)) in read_rows(args.csv) and not args.again:
                print(f"{args.dataset} {method} {seed}: there already")
                continue
            began = time.monotonic()
            row = measure(args, dataset, method, seed)
            merge_row(args.csv, row)
            shown = ("training_seconds", "real_spread", "spread_ratio", "probe", "mutual_information_bits", "fidelity")
            print(
                f"{args.dataset} {method} {seed}: " + "  ".join(f"{name} {row[name]:.3g}" for name in shown),
                f" {time.monotonic() - began:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main(tyro.cli(Baselines))
