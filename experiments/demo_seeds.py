"""Collect the results of `examples/demo.py` runs of several seeds into one small table.

for s in 0 1 2; do python examples/demo.py --seed $s --output demo_out/seed$s --no-video; done
python experiments/demo_seeds.py demo_out/seed* > experiments/results/antmaze-open.csv
"""

import csv
import json
import sys
from pathlib import Path


def main(folders: list[str]) -> None:
    writer = csv.writer(sys.stdout)
    writer.writerow(
        ["env_id", "seed", "agent", "low_level_steps", "success", "low_95", "high_95", "episodes", "steps_to_goal"]
    )
    for folder in folders:
        results = json.loads((Path(folder) / "results.json").read_text())
        settings = results["settings"]
        for agent in ("skills", "random", "flat"):
            row = results[agent]
            steps = 0 if agent == "random" else settings["steps"]
            reached = row["mean_steps_to_goal"]
            numbers = [
                row["success"],
                *row["success_95"],
                row["episodes"],
                None if reached is None else round(reached, 1),
            ]
            writer.writerow([settings["env_id"], settings["seed"], agent, steps, *numbers])


if __name__ == "__main__":
    main(sys.argv[1:])
