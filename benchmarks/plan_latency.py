"""Time of one plan by batch size, numpy against torch, interleaved in one run; one thread.

OMP_NUM_THREADS=1 python benchmarks/plan_latency.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import tyro

import didi_gym.policy as policy_module
from didi_gym import SkillPolicy


@dataclass(frozen=True)
class PlanLatency:
    """Compare the two ways a policy plans on a CPU."""

    policy: str = "ant-directions"
    batches: tuple[int, ...] = (1, 8, 32, 128, 1024)
    rounds: int = 200
    """Plans of each kind per batch size; the median is shown."""


def seconds(call: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - began


def main(args: PlanLatency) -> None:
    torch.set_num_threads(1)
    policy = SkillPolicy.from_pretrained(args.policy, device="cpu")
    steps, generator = policy.config.replan_every, np.random.default_rng(0)
    print(f"{args.policy}: microseconds for the first {steps} actions of each plan")
    print(f"{'batch':>6} {'numpy':>10} {'torch':>10} {'torch / numpy':>14}")
    for batch in args.batches:
        inputs = generator.normal(size=(batch, len(policy.config.layout.policy_inputs))).astype(np.float32)
        skills = policy.skill_space.sample(batch, generator)
        times: dict[int, list[float]] = {0: [], 10**9: []}  # largest batch that goes through numpy
        for _ in range(args.rounds):
            for limit, measured in times.items():
                policy_module._NUMPY_BATCH = limit
                measured.append(seconds(policy.plan_actions, inputs, skills, steps))
        by_torch, by_numpy = (1e6 * statistics.median(times[limit]) for limit in (0, 10**9))
        print(f"{batch:6} {by_numpy:10.0f} {by_torch:10.0f} {by_torch / by_numpy:14.2f}")


if __name__ == "__main__":
    main(tyro.cli(PlanLatency))
