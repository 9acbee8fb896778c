"""Time of one plan, by engine and batch size, against torch's eager mode measured in turn in the same run.

    OMP_NUM_THREADS=1 python benchmarks/plan_latency.py --csv benchmarks/results/plan_latency.csv

Rows named `act` and `plan_actions` are the public methods of `SkillPolicy`, checks included. A GPU is used where there
is one; there the floor is timed too: the copies of a plan alone, and the launch of an almost empty graph.
"""

from __future__ import annotations

import csv
import gc
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from didi_gym import SkillPolicy

_EVICTED = 64 * 2**20  # bytes streamed through to push the weights out of the caches
_FEWEST = 5  # rounds, however slow
_HEADER = ("policy", "engine", "batch", "steps", "p50_us", "p99_us", "plans_per_s", "over_torch", "cold_p50_us")

Call = Callable[[], object]


@dataclass(frozen=True)
class PlanLatency:
    """Time the engines of skill policies in turn, and print median and 99th percentile in microseconds.

    `over_torch` is torch's median over the engine's; `cold_p50_us` is the median with the weights out of the caches,
    as after a long step of a simulator (batch 1 only).
    """

    policies: tuple[str, ...] = ("ant-directions", "pointmaze-medium")
    """Bundled names, folders or Hub ids."""
    batches: tuple[int, ...] = (1, 8, 32, 64, 256, 1024, 4096)
    """Observations per plan; 65536 is added on a GPU."""
    device: str = "auto"
    """Where the policies are: "auto" is a GPU where there is one."""
    threads: int = 1
    """Threads of torch; set OMP_NUM_THREADS to the same number for numpy's."""
    rounds: int = 2000
    """Most plans of each engine per row of the table."""
    seconds: float = 3.0
    """Most time per group of rows that are measured in turn."""
    csv: Path | None = None
    """Write the table here as well."""


def engines(policy: SkillPolicy, inputs: np.ndarray, skills: np.ndarray, steps: int) -> dict[str, Call]:
    """What is timed on this policy, by name; torch first."""
    made = {"torch": policy.engine("torch"), "torch bfloat16": policy.engine("torch", dtype="bfloat16")}
    if policy.device.type == "cuda":
        made["cuda-graph"] = policy.engine("cuda-graph")
        made["cuda-graph bfloat16"] = policy.engine("cuda-graph", dtype="bfloat16")
    else:
        made["numpy"] = policy.engine("numpy")
    if len(inputs) <= 64:
        made["batch-invariant"] = policy.engine(batch_invariant=True)
    calls: dict[str, Call] = {
        name: lambda engine=engine: engine(inputs, skills, steps) for name, engine in made.items()
    }
    calls["plan_actions"] = lambda: policy.plan_actions(inputs, skills, steps)
    if steps == 1:
        calls["act"] = lambda: policy.act(inputs, skills)
    return calls


def floors(policy: SkillPolicy, inputs: np.ndarray, skills: np.ndarray, steps: int) -> dict[str, Call]:
    """On a GPU, what no engine can be faster than."""
    device, action_dim = policy.device, policy.config.action_dim
    sent = torch.zeros(len(inputs), inputs.shape[1] + skills.shape[1], pin_memory=True)
    received = torch.zeros(len(inputs), steps, action_dim, pin_memory=True)
    there, back, one = sent.to(device), received.to(device), torch.zeros(1, device=device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        one.add_(1)

    def copies() -> None:
        there.copy_(sent, non_blocking=True)
        received.copy_(back, non_blocking=True)
        torch.cuda.synchronize()

    def launch() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return {"floor: copies": copies, "floor: empty graph": launch}


def in_turn(calls: dict[str, Call], rounds: int, seconds: float, before: Call | None = None) -> dict[str, np.ndarray]:
    """Microseconds of each call, one of each per round, until the rounds or the seconds are used up.

    Each timed call follows an untimed one of its own kind, unless something is to run `before` it: otherwise every
    engine would be timed with the caches full of the others' weights.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # what is made when first needed
    began = time.perf_counter()
    gc.disable()  # a collection of all of torch's objects takes longer than hundreds of plans
    try:
        for done in range(rounds):
            if done >= _FEWEST and time.perf_counter() - began > seconds:
                break
            for name, call in calls.items():
                (before or call)()
                start = time.perf_counter()
                call()
                times[name].append(1e6 * (time.perf_counter() - start))
    finally:
        gc.enable()
    return {name: np.array(measured) for name, measured in times.items()}


def measure(name: str, policy: SkillPolicy, batch: int, steps: int, args: PlanLatency) -> list[tuple]:
    """The rows of the table for one policy, batch size and number of steps."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(batch, len(policy.config.layout.policy_inputs))).astype(np.float32)
    skills = policy.skill_space.sample(batch, generator)
    calls = engines(policy, inputs, skills, steps)
    if policy.device.type == "cuda":
        calls |= floors(policy, inputs, skills, steps)
    times, cold = in_turn(calls, args.rounds, args.seconds), {}
    if batch == 1:
        stream = np.zeros(_EVICTED, np.uint8)
        cold = in_turn(calls, args.rounds // 10, args.seconds, before=lambda: np.add(stream, 1, out=stream))
    by_torch, rows = np.median(times["torch"]), []
    for engine, measured in times.items():
        middle, late = np.percentile(measured, [50, 99])
        cold_middle = f"{np.median(cold[engine]):.1f}" if cold else ""
        speed = f"{1e6 * batch / middle:.0f}", f"{by_torch / middle:.2f}"
        rows.append((name, engine, batch, steps, f"{middle:.1f}", f"{late:.1f}", *speed, cold_middle))
    return rows


def main(args: PlanLatency) -> None:
    torch.set_num_threads(args.threads)
    rows: list[tuple] = []
    print(_line(_HEADER))
    for name in args.policies:
        policy = SkillPolicy.from_pretrained(name, device=args.device)
        on_gpu = policy.device.type == "cuda"
        for steps in (1, policy.config.replan_every):
            for batch in (*args.batches, *((65536,) if on_gpu else ())):
                rows += measure(name, policy, batch, steps, args)
                print("\n".join(_line(row) for row in rows if row[:1] + row[2:4] == (name, batch, steps)), flush=True)
    if args.csv is not None:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with args.csv.open("w", newline="") as file:
            device = torch.cuda.get_device_name() if on_gpu else _processor()
            file.write(f"# OMP_NUM_THREADS={args.threads} python {' '.join(sys.argv)}\n")
            file.write(f"# {device}, {args.threads} thread(s), torch {torch.__version__}, numpy {np.__version__}\n")
            csv.writer(file, lineterminator="\n").writerows([_HEADER, *rows])
        print(f"wrote {args.csv}")


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(": ")[2] if names else platform.machine()


def _line(row: tuple) -> str:
    return f"{row[0]:<17} {row[1]:<20}" + "".join(f"{value:>12}" for value in row[2:])


if __name__ == "__main__":
    main(tyro.cli(PlanLatency))
