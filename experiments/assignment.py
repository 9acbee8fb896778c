"""Are the behaviours of a mixture found without labels? Purity of the segmentation; labels serve for scoring only.

    python experiments/assignment.py --datasets didi/halfcheetah-gaits-v0 didi/halfcheetah-gaits-switching-v0 \\
        --sizes 8 12 16 24 --csv experiments/results/assignment.csv

Purity is the share of steps whose behaviour is the most frequent one of their skill; a behaviour is covered where some
skill is mostly made of it. `windows`: clusters of windows; `refined`: borders by the errors of a scout policy, and
skills merged that are one behaviour.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from didi_gym import SkillConfig, TrajectoryDataset
from didi_gym.core.skill_space import SkillSpace
from didi_gym.data import read_labels
from didi_gym.training import BehaviourConfig, Run, find_behaviours
from didi_gym.training.segmentation import Segmentation, cluster_windows

COLUMNS = ("dataset", "clusters", "seed", "stage", "skills", "purity", "covered", "behaviours")
HORIZON = 16


@dataclass(frozen=True)
class Purity:
    """Assign the steps of labelled mixtures to skills, and compare with the labels."""

    datasets: tuple[str, ...] = ("didi/halfcheetah-gaits-v0", "didi/halfcheetah-gaits-switching-v0")
    """Minari ids of mixtures made by `didi-gym data from-agents`."""
    sizes: tuple[int, ...] = (8, 12, 16, 24)
    """Clusters asked for (`skills.skill-space.size`)."""
    seeds: tuple[int, ...] = (0, 1, 2)
    csv: Path = Path("experiments/results/assignment.csv")


def score(segmentation: Segmentation, truth: np.ndarray) -> dict[str, int | float]:
    """Skills, purity, and behaviours covered of those there are."""
    known = segmentation.labels >= 0
    counts = np.zeros((segmentation.skills, truth.max() + 1), np.int64)
    np.add.at(counts, (segmentation.labels[known], truth[known]), 1)
    mostly = counts.argmax(1)[counts.max(1) > counts.sum(1) / 2]
    purity = counts.max(1).sum() / counts.sum()
    return {
        "skills": segmentation.skills,
        "purity": round(float(purity), 4),
        "covered": len(set(mostly)),
        "behaviours": int((counts.sum(0) > 0).sum()),
    }


def main(args: Purity) -> None:
    torch.set_num_threads(1)
    rows = []
    for name in args.datasets:
        truth = read_labels(name).steps
        dataset = TrajectoryDataset.from_minari(name).split(horizon=HORIZON)[0]
        for size in args.sizes:
            skills = SkillConfig(skill_space=SkillSpace("discrete", size))
            for seed in args.seeds:
                found = {
                    "windows": cluster_windows(dataset, size, BehaviourConfig(), seed),
                    "refined": find_behaviours(Run(dataset, horizon=HORIZON, seed=seed, progress=False), skills=skills),
                }
                for stage, segmentation in found.items():
                    key = {"dataset": name, "clusters": size, "seed": seed, "stage": stage}
                    rows.append({**key, **score(segmentation, truth)})
                    print(rows[-1], flush=True)
                with args.csv.open("w", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Purity))
