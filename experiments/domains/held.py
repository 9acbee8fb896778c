"""What the measures of domains share: skills held from resets, where they lead, and tables of their figures."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "hub"))
from recipe import Recipe
from rows import RESULTS, ROOT, read

from didi_gym import SkillPolicy, TrajectoryDataset
from didi_gym.cli import main as cli
from didi_gym.data.generators.domains import DOMAINS
from didi_gym.data.minari import load_minari
from didi_gym.evaluation.rollouts import Rollout, SkillSimulator, make_data_env

ROLLOUTS = 16
COLUMNS = ("policy", "seed", "device", "measure", "value")
Measure = Callable[[SkillPolicy, TrajectoryDataset], dict[str, float]]


def rollouts(policy: SkillPolicy, skills: int, steps: int, n: int = ROLLOUTS) -> list[list[Rollout]]:
    """Each of `skills` evenly spread skills, held from the same `n` resets."""
    simulator = SkillSimulator(policy, make_data_env(policy))
    starts = simulator.random_starts(n, np.random.default_rng(0), burn_in=0)
    grid = policy.skill_space.grid(skills)
    return [[simulator.hold(simulator.visit(start), skill, steps) for start in starts] for skill in grid]


def octants(moves: np.ndarray) -> np.ndarray:
    """Which of eight directions changes `(..., 2)` have, 0 to 7."""
    return np.round(np.arctan2(moves[..., 1], moves[..., 0]) / (np.pi / 4)).astype(int) % 8


def unit(moves: np.ndarray) -> np.ndarray:
    """Changes `(..., 2)` brought to length 1, zero where there is none."""
    return moves / np.maximum(np.linalg.norm(moves, axis=-1, keepdims=True), 1e-9)


def direction_errors(skills: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Angles in degrees between what skills mean and where they led, `(skills, n)`.

    A skill `(2,)` is a direction, but the discriminator may have learned all directions turned or mirrored: the one
    rotation or reflection that fits all rollouts best is taken out.

    Args:
        skills: `(skills, 2)`.
        moves: `(skills, n, 2)`.
    """
    to = np.arctan2(moves[..., 1], moves[..., 0])
    found = []
    for sense in (1, -1):
        error = to - sense * np.arctan2(skills[:, 1], skills[:, 0])[:, None]
        common = np.angle(np.exp(1j * error).mean())
        found.append(np.degrees(np.abs(np.angle(np.exp(1j * (error - common))))))
    return min(found, key=lambda errors: float(errors.mean()))


def main(
    name: str, file: str, measure: Measure, about: str | None, words: Sequence[str] | None = None, **data: Any
) -> None:
    """Train the policy `name` by its recipe where no run of a seed is there, measure it, and write what was found.

    Args:
        words: Of the command line; default: the process's own.
        data: What else the generator of the data set is given.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the training runs")
    parser.add_argument("--dry", action="store_true", help="write no table")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    recipe = Recipe.read(ROOT / "hub" / "recipes" / f"{name}.toml")
    try:
        load_minari(recipe.data.dataset)
    except FileNotFoundError:
        DOMAINS[name].collect(dataset_id=recipe.data.dataset, steps=DOMAINS[name].steps, **data)
    dataset = TrajectoryDataset.from_minari(recipe.data.dataset)
    for seed in arguments.seeds:
        folder = arguments.runs / f"{name}-seed{seed}"
        if not (folder / "model.safetensors").is_file():
            cli.run([*recipe.train_arguments(str(folder)), "--seed", str(seed)])
        found = measure(SkillPolicy.from_pretrained(folder, device="cpu"), dataset)
        print(name, seed, found, flush=True)
        if not arguments.dry:
            write(file, name, seed, found)


def write(file: str, policy: str, seed: int, found: dict[str, float]) -> None:
    """Rows of one policy and seed, in place of those that are there."""
    kept = [row for row in read(file) if (row["policy"], row["seed"]) != (policy, str(seed))]
    new: list[dict[str, Any]] = [
        {"policy": policy, "seed": seed, "device": "cpu", "measure": name, "value": f"{value:.4g}"}
        for name, value in found.items()
    ]
    with (RESULTS / file).open("w", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*kept, *new], key=lambda row: (row["policy"], int(row["seed"]))))
