"""Where does diversity start to cost fidelity, how much data is enough, and how narrow may it be?

    didi-gym data pointmaze-medium
    python experiments/sensitivity.py --csv experiments/results/sensitivity.csv

One setting at a time is moved away from its default: the skill's dimension, the horizon, the share of the data's
episodes, and the width of the sector of directions in which the data moves. Training has `--share` of the default
steps.
A finished row is kept: the same command goes on where it was stopped.
"""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from didi_gym import (
    DynamicsConfig,
    PriorConfig,
    SkillConfig,
    SkillSpace,
    TrainConfig,
    TrajectoryDataset,
    evaluate_skills,
    train,
)

STUDIES: dict[str, tuple[float, ...]] = {
    "skill dimension": (2, 1, 4, 8),
    "horizon": (24, 12, 48),
    "share of the data": (1.0, 0.2, 0.05, 0.01),
    "sector of directions, degrees": (360, 120, 60),
}  # the first of each is the default, which all studies share


@dataclass(frozen=True)
class Sensitivity:
    """Train and evaluate with one setting moved at a time."""

    csv: Path
    dataset: str = "didi/pointmaze-medium-v0"
    studies: tuple[str, ...] = tuple(STUDIES)
    seeds: tuple[int, ...] = (0,)
    share: float = 0.3
    """Share of the default training steps."""
    runs: Path = Path("runs/sensitivity")


def part_of(dataset: TrajectoryDataset, kept: np.ndarray) -> TrajectoryDataset:
    """The data set with the episodes `kept` only."""
    return replace(dataset, starts=dataset.starts[kept], lengths=dataset.lengths[kept])


def in_sector(dataset: TrajectoryDataset, degrees: float, length: int = 24) -> TrajectoryDataset:
    """Pieces of episodes, as long as possible, in which the features move within a sector around +x."""
    x, y = list(dataset.layout.features)[:2]
    starts, lengths = [], []
    for first, count in zip(dataset.starts, dataset.lengths, strict=True):
        moved = dataset.observations[first + length : first + count][:, [x, y]]
        moved = moved - dataset.observations[first : first + count - length][:, [x, y]]
        inside = np.abs(np.degrees(np.arctan2(moved[:, 1], moved[:, 0]))) <= degrees / 2
        edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(int), [0]])))
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            if end - begin >= length:  # what moves on within the sector for a while
                starts.append(first + begin)
                lengths.append(end - begin)
    return replace(dataset, starts=np.array(starts), lengths=np.array(lengths))


def run(args: Sensitivity, study: str, value: float, seed: int) -> dict[str, Any]:
    """Train and evaluate with one setting moved: the fields of the report, and the steps of the data."""
    whole = TrajectoryDataset.from_minari(args.dataset)
    skills, horizon, data = SkillConfig(), whole.suggest_horizon(), whole
    if study == "skill dimension":
        skills = replace(skills, skill_space=SkillSpace("ball", int(value)))
    elif study == "horizon":
        horizon = int(value)
    elif study == "share of the data":
        chosen = np.random.default_rng(seed).permutation(len(whole.lengths))
        data = part_of(whole, np.sort(chosen[: max(round(value * len(chosen)), 2)]))
    elif value < 360:
        data = in_sector(whole, value)
    config = TrainConfig(
        replace(skills, steps=round(args.share * skills.steps)),
        prior=PriorConfig(steps=round(args.share * PriorConfig().steps)),
        dynamics=DynamicsConfig(steps=round(args.share * DynamicsConfig().steps)),
        horizon=horizon,
        seed=seed,
    )
    default, name = args.runs / f"default-{seed}", f"{study.split(',')[0].replace(' ', '-')}-{value:g}-{seed}"
    output = default if value == STUDIES[study][0] else args.runs / name
    reuse = default if study == "skill dimension" and output != default else None
    policy = train(data, config, output, reuse=reuse)
    # fidelity against the data trained on: does a policy stay where that was?
    report, _ = evaluate_skills(policy, dataset=data, contact_geoms="block", hold=1, seed=seed)
    return {"steps": int(data.lengths.sum()), **asdict(report)}


def main(args: Sensitivity) -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    if args.csv.is_file():
        with args.csv.open(newline="") as file:
            rows = list(csv.DictReader(file))
    done = {(r["study"], r["value"], str(r["seed"])) for r in rows}
    for seed in args.seeds:
        shared: dict[str, Any] = {}
        for study in args.studies:
            for value in STUDIES[study]:
                if (study, f"{value:g}", str(seed)) in done:
                    continue
                is_default = value == STUDIES[study][0]
                report = shared or run(args, study, value, seed) if is_default else run(args, study, value, seed)
                shared = report if is_default else shared
                row = {"study": study, "value": f"{value:g}", "seed": seed, **report}
                rows.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
                args.csv.parent.mkdir(parents=True, exist_ok=True)
                with args.csv.open("w", newline="") as file:
                    writer = csv.DictWriter(file, rows[-1])
                    writer.writeheader()
                    writer.writerows(rows)
                print(study, value, {k: rows[-1][k] for k in ("mutual_information_bits", "fidelity", "spread_ratio")})


if __name__ == "__main__":
    main(tyro.cli(Sensitivity))
