"""Memory of skill-action environments beside that of raw ones: what the main process and each worker hold.

    python benchmarks/memory.py
    python benchmarks/memory.py --csv benchmarks/results/memory.csv

Each case runs in a process of its own. Memory is private memory (USS): what would be free if the process ended.
Workers start with `forkserver`, so that nothing of the main process counts for them; with skills they load no torch.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil  # comes with the dev extra

ENV_ID, POLICY = "AntMaze_Open-v5", "ant-directions"
COLUMNS = ["form", "n", "raw_main_mb", "wrapped_main_mb", "raw_worker_mb", "wrapped_worker_mb"]
CASES = [("sync", 1), ("sync", 8), ("sync", 64), ("async", 2), ("async", 8)]


def measure(form: str, n: int, wrapped: bool) -> dict[str, float]:
    """MB of this process, and of its workers on average, after some steps."""
    from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

    import didi_gym
    from didi_gym.wrappers.make import make_low_level

    start = {"context": "forkserver"} if form == "async" else {}
    if wrapped:
        env: Any = didi_gym.make_vec(ENV_ID, POLICY, n, form, vector_kwargs=start)
    else:
        cls = AsyncVectorEnv if form == "async" else SyncVectorEnv
        env = cls([lambda: make_low_level(ENV_ID)] * n, **start)
    env.reset(seed=0)
    for _ in range(5):
        env.step(env.action_space.sample())
    workers = getattr(env.unwrapped, "processes", [])
    used = [psutil.Process(process.pid).memory_full_info().uss for process in workers]
    main = psutil.Process().memory_full_info().uss
    env.close()
    return {"main": main / 2**20, "worker": sum(used) / len(used) / 2**20 if used else 0.0}


def measure_alone(form: str, n: int, wrapped: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", json.dumps([form, n, wrapped])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="write the table here too")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(*arguments.case)))
        return
    rows = []
    print("  ".join(f"{name:>17}" for name in COLUMNS))
    for form, n in CASES:
        raw, wrapped = (measure_alone(form, n, is_wrapped) for is_wrapped in (False, True))
        numbers = [raw["main"], wrapped["main"], raw["worker"], wrapped["worker"]]
        row = dict(zip(COLUMNS, [form, n, *(round(number, 1) for number in numbers)], strict=True))
        rows.append(row)
        print("  ".join(f"{value!s:>17}" for value in row.values()), flush=True)
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            file.write(f"# python {' '.join(sys.argv)}\n")
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
