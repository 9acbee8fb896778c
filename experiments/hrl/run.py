r"""The maze benchmark: agents over skills, and without, by low-level steps.

    python experiments/hrl/run.py --agents skill-graph --mazes Open UMaze Medium Large Own --seeds 0 1 2 3 4
    python experiments/hrl/run.py --agents sac sac-from-graph ppo --mazes Medium --seeds 0 1 2
    python experiments/hrl/run.py --agents flat-sac --mazes UMaze --seeds 0

Each agent learns in the unmodified environment and is evaluated in it after every budget of the maze, in its last
state: 50 episodes from seeds that no training episode has. A row is written when it is measured; runs whose rows are
there are not repeated. `--jobs 2` runs two at a time.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from agents import AGENTS, test_env
from rows import RESULTS, read
from tasks import MAZES

from didi_gym.evaluation import evaluate_agent

FILE = "hrl.csv"
KEY = ("agent", "maze", "seed")
COLUMNS = (*KEY, "low_level_steps", "success", "low_95", "high_95", "episodes", "steps_to_goal", "seconds")
EPISODES = 50


def run(name: str, maze_name: str, seed: int, budgets: tuple[int, ...]) -> list[dict[str, Any]]:
    """Rows of one run."""
    torch.set_num_threads(1)
    maze, rows = MAZES[maze_name], []
    learning, begun = 0.0, time.monotonic()
    for budget, agent in AGENTS[name](maze, seed, budgets):
        learning += time.monotonic() - begun
        report = evaluate_agent(agent, test_env(name, maze, seed), EPISODES, progress=False)
        low, high = report.success_interval
        numbers = (budget, report.success, round(low, 4), round(high, 4), EPISODES, round(report.steps_to_success, 1))
        rows.append(dict(zip(COLUMNS, (name, maze_name, seed, *numbers, round(learning, 1)), strict=True)))
        begun = time.monotonic()
    return rows


def write(rows: list[dict[str, Any]]) -> None:
    with (RESULTS / FILE).open("w", newline="") as file:
        file.write("# python experiments/hrl/run.py --agents ... --mazes ... --seeds ...\n")
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (*(str(row[c]) for c in KEY), int(row["low_level_steps"]))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", nargs="+", choices=AGENTS, required=True)
    parser.add_argument("--mazes", nargs="+", choices=MAZES, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--budgets", nargs="+", type=int, help="low-level steps, in place of the maze's own")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    done = {tuple(row[column] for column in KEY) for row in read(FILE)}
    wanted = [
        key for key in product(arguments.agents, arguments.mazes, arguments.seeds) if tuple(map(str, key)) not in done
    ]
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(run, *key, tuple(arguments.budgets or MAZES[key[1]].budgets)) for key in wanted]
        for job in as_completed(jobs):
            rows = job.result()
            write([*read(FILE), *rows])
            for row in rows:
                print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
