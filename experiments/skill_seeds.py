"""Train and evaluate a skill policy with several seeds, same settings, and write two rows per seed.

    didi-gym data ant-directions
    python experiments/skill_seeds.py --dataset didi/ant-directions-v0 --csv experiments/results/ant-directions.csv
    didi-gym data pointmaze-medium
    python experiments/skill_seeds.py --dataset didi/pointmaze-medium-v0 --contact-geoms block \
        --csv experiments/results/pointmaze-medium.csv

Every number is measured on simulator rollouts from held-out states, with the weights of the last step.
"""

from __future__ import annotations

import csv
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import tyro

from didi_gym.training import TrainConfig


@dataclass(frozen=True)
class SkillSeeds:
    """Train and evaluate one skill policy per seed."""

    dataset: str
    csv: Path
    seeds: tuple[int, ...] = (0, 1, 2)
    config: TrainConfig = field(default_factory=TrainConfig)
    """Settings of every run; its own seed is replaced."""
    runs: Path = Path("runs")
    """Folder of the runs; a run that is there is continued or reused."""
    contact_geoms: str | None = None
    """Regular expression of MuJoCo geom names to count contacts with."""
    jobs: int = 2
    """Runs side by side, one thread each."""


def run(args: SkillSeeds, seed: int) -> list[dict[str, Any]]:
    """Two rows: as deployed, and replanning every quarter of the horizon."""
    import torch

    from didi_gym import TrajectoryDataset, evaluate_skills
    from didi_gym.training import train

    torch.set_num_threads(1)
    dataset = TrajectoryDataset.from_minari(args.dataset)
    horizon = args.config.skills.horizon or dataset.suggest_horizon()
    training, _ = dataset.split(horizon=horizon)
    began = time.monotonic()
    output = args.runs / f"{args.dataset.replace('/', '-')}-seed{seed}"
    config = replace(args.config, seed=seed, skills=replace(args.config.skills, horizon=horizon))
    policy = train(training, config, output)
    clock = output / "training_seconds.txt"
    if not clock.is_file():  # a run that is there keeps the time it took
        clock.write_text(str(round(time.monotonic() - began)))
    report, _ = evaluate_skills(policy, dataset=dataset, contact_geoms=args.contact_geoms, held_episodes=32)
    report.save(output / "results.json")
    rarely, _ = evaluate_skills(
        policy, dataset=dataset, contact_geoms=args.contact_geoms, held_episodes=32, replan_every=horizon // 4
    )
    settings = {"seed": seed, "training_seconds": int(clock.read_text()), "horizon": horizon}
    return [{**settings, **asdict(r)} for r in (report, rarely)]


def main(args: SkillSeeds) -> None:
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        rows = [row for pair in pool.map(run, [args] * len(args.seeds), args.seeds) for row in pair]
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    with args.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    for name in rows[0]:
        print(
            f"{name:28}",
            *(f"{row[name]:10.3f}" if isinstance(row[name], float) else f"{row[name]:>10}" for row in rows),
        )


if __name__ == "__main__":
    main(tyro.cli(SkillSeeds))
