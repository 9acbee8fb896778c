"""What a SkillGraph keeps when the task changes: other goals and starts, and a door that closes.

    python experiments/hrl/transfer.py --seeds 0 1 2

- `goals`: 50,000 low-level steps on AntMaze_Medium, always between three pairs of cells; success there, and
  on the maze's own random starts and goals, without a further step.
- `door`: 20,000 steps in a maze with two ways, whose left one then closes; success before, at once, and after further
  training.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from rows import RESULTS, read
from tasks import DOOR, MAZES, closed

from didi_gym import SkillActionWrapper
from didi_gym.evaluation import evaluate_agent
from didi_gym.planning import SkillGraph

FILE = "hrl-transfer.csv"
COLUMNS = ("study", "seed", "where", "further_steps", "success", "low_95", "high_95", "episodes", "steps_to_goal")
PAIRS = (((1, 1), (6, 6)), ((1, 6), (6, 1)), ((6, 6), (1, 1)))  # (start, goal) cells: row and column
FURTHER = (0, 5_000, 10_000, 20_000)


class Few(gym.Wrapper):
    """Episodes begin and end in one of a few pairs of cells, with the maze's own noise around them."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        start, goal = PAIRS[np.random.default_rng(seed).integers(len(PAIRS))]
        return self.env.reset(seed=seed, options={"reset_cell": np.array(start), "goal_cell": np.array(goal)})


def row(
    study: str, seed: int, where: str, further: int, agent: SkillGraph, env: gym.Env, n: int = 50
) -> dict[str, Any]:
    report = evaluate_agent(agent, env, n, progress=False)
    low, high = report.success_interval
    numbers = (report.success, round(low, 4), round(high, 4), n, round(report.steps_to_success, 1))
    found = dict(zip(COLUMNS, (study, seed, where, further, *numbers), strict=True))
    print(*found.values(), flush=True)
    return found


def goals(seed: int) -> list[dict[str, Any]]:
    maze = MAZES["Medium"]
    few = SkillActionWrapper(Few(maze.make()), maze.policy, skill_duration=maze.durations, replan_every=1, device="cpu")
    agent = SkillGraph(few, seed=seed).learn(50_000, progress=False)
    return [
        row("goals", seed, "the pairs of training", 0, agent, few),
        row("goals", seed, "random starts and goals", 0, agent, maze.make_skills()),
    ]


def door(seed: int) -> list[dict[str, Any]]:
    maze, file = MAZES["Two_Ways"], RESULTS / f"door-{seed}.safetensors"
    env = maze.make_skills()
    agent = SkillGraph(env, seed=seed).learn(20_000, progress=False)
    rows = [row("door", seed, "open", 0, agent, env)]
    agent.save(file)
    shut = closed(maze, DOOR).make_skills()
    agent = SkillGraph.load(file, shut)
    file.unlink()
    done = 0
    for further in FURTHER:
        agent.learn(further - done, progress=False)
        done = further
        rows.append(row("door", seed, "closed", further, agent, shut))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    torch.set_num_threads(1)
    for seed in parser.parse_args().seeds:
        for study in (goals, door):
            if any(r["study"] == study.__name__ and int(r["seed"]) == seed for r in read(FILE)):
                continue
            rows = [*read(FILE), *study(seed)]
            with (RESULTS / FILE).open("w", newline="") as file:
                file.write("# python experiments/hrl/transfer.py --seeds 0 1 2\n")
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(sorted(rows, key=lambda r: (r["study"], int(r["seed"]))))


if __name__ == "__main__":
    main()
