"""What a SkillGraph's own decisions cost, beside the skills and the simulator that carry them out.

    OMP_NUM_THREADS=1 python benchmarks/deciding.py --csv benchmarks/results/deciding.csv

Processor time in one process: deciding and learning over `env.step`, which plans and simulates. Training in four equal
parts, as the graph grows, and then evaluation.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import didi_gym
from didi_gym.evaluation import evaluate_agent
from didi_gym.planning import SkillGraph

PARTS = 4


class Clock:
    """Adds up the processor time that methods take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, owner: Any, name: str) -> None:
        method = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            result = method(*args, **kwargs)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - began
            return result

        setattr(owner, name, timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="AntMaze_Medium-v5")
    parser.add_argument("--steps", type=int, default=50_000, help="low-level steps of training")
    parser.add_argument("--episodes", type=int, default=20, help="of evaluation")
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    settings = {"skill_duration": (4, 8), "replan_every": 1, "device": "cpu"}
    env = didi_gym.make(arguments.env_id, "ant-directions", continuing_task=False, **settings)
    agent, clock = SkillGraph(env, seed=0), Clock()
    for owner, name in ((agent, "_decide"), (agent, "_learn_from"), (env, "step")):
        clock.watch(owner, name)
    rows = []
    for part in range(1, PARTS + 1):
        clock.seconds.clear()
        agent.learn(part * arguments.steps // PARTS - agent.low_level_steps)
        rows.append((f"training to {agent.low_level_steps:,}", dict(clock.seconds)))
    clock.seconds.clear()
    evaluate_agent(agent, env, arguments.episodes)
    rows.append((f"evaluation, {arguments.episodes} episodes", dict(clock.seconds)))
    shown = [
        (what, *(round(s.get(name, 0.0) / s["step"], 4) for name in ("_decide", "_learn_from"))) for what, s in rows
    ]
    for what, deciding, learning in shown:
        print(f"{what:28} deciding {deciding:.3f}   learning {learning:.3f}   of skills and simulator")
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            file.write("# OMP_NUM_THREADS=1 python benchmarks/deciding.py --csv benchmarks/results/deciding.csv\n")
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([("part", "deciding_over_stepping", "learning_over_stepping"), *shown])


if __name__ == "__main__":
    main()
