"""Low-level steps per second of skill-action environments, over those of the raw environment.

    python benchmarks/step_rate.py                      # single, sync and async at k = m = 16, N = 8
    python benchmarks/step_rate.py --sweep              # and how the ratio goes with N, k, m and the horizon
    python benchmarks/step_rate.py --forms sync --n 64 1024 --device cuda
    python benchmarks/step_rate.py --sweep --csv benchmarks/results/step_rate.csv

Raw and wrapped environments run in turns, so that both see the same machine; the ratio is the median over the turns,
low and high are its quartiles. In each turn both start from the same seed and run the same skills: the raw
environment's actions are planned while its clock stands still, so both simulate the same motion. Episodes do not end
(no time limit, no unhealthy states), so resets cost neither anything.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

import didi_gym
from didi_gym import Layout, SkillPolicy, SkillSpace
from didi_gym.core.observations import InputSelector
from didi_gym.models.config import PolicyConfig
from didi_gym.sb3 import make_vec_env
from didi_gym.wrappers.make import make_low_level

FOREVER = 10**9
ENVS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "PointMaze": ("PointMaze_Medium-v3", "pointmaze-medium", {"continuing_task": True}),
    "HalfCheetah": ("HalfCheetah-v5", None, {}),
    "Ant": ("Ant-v5", "ant-directions", {"terminate_when_unhealthy": False}),
    "Humanoid": ("Humanoid-v5", None, {"terminate_when_unhealthy": False}),
}
"""Environment, bundled policy (an untrained one of the same size where there is none), settings."""
COLUMNS = ["env", "form", "n", "k", "m", "horizon", "device", "raw", "wrapped", "ratio", "low", "high"]


@dataclass
class Case:
    """One row: a form of one environment with its settings."""

    env: str
    form: str
    n: int = 8
    k: int = 16
    m: int = 16
    horizon: int = 16


def policy_for(case: Case, device: str) -> SkillPolicy:
    env_id, name, kwargs = ENVS[case.env]
    if name is not None and SkillPolicy.from_pretrained(name).config.horizon >= case.m:
        return SkillPolicy.from_pretrained(name, device=device)
    env = make_low_level(env_id, **kwargs)
    space = env.observation_space
    inputs = space["observation"] if isinstance(space, gym.spaces.Dict) else space
    keys = ("observation",) if isinstance(space, gym.spaces.Dict) else ()
    layout = Layout.flat(inputs.shape[0], keys=keys) if keys else Layout.flat(inputs.shape[0])
    torch.manual_seed(0)
    policy = SkillPolicy(
        PolicyConfig(
            horizon=case.horizon,
            action_dim=env.action_space.shape[0],
            layout=layout,
            skill_space=SkillSpace("ball", 2),
            skill_duration=case.k,
            replan_every=min(case.m, case.horizon),
            width=256,
            depth=3,
        )
    )
    policy.low.copy_(torch.as_tensor(env.action_space.low))
    policy.high.copy_(torch.as_tensor(env.action_space.high))
    env.close()
    return policy.eval().requires_grad_(False).to(device)


def make_raw(case: Case, env_id: str, kwargs: dict[str, Any]) -> Any:
    makers = [lambda: make_low_level(env_id, max_episode_steps=FOREVER, **kwargs)] * case.n
    forms: dict[str, Callable[[], Any]] = {
        "single": makers[0],
        "sync": lambda: SyncVectorEnv(makers),
        "async": lambda: AsyncVectorEnv(makers),
        "dummy": lambda: DummyVecEnv(makers),
        "subproc": lambda: SubprocVecEnv(makers, start_method="fork"),
    }
    return forms[case.form]()


def make_wrapped(case: Case, policy: SkillPolicy, env_id: str, kwargs: dict[str, Any]) -> Any:
    settings = {**kwargs, "skill_duration": case.k, "replan_every": case.m, "max_episode_steps": FOREVER}
    if case.form == "single":
        return didi_gym.make(env_id, policy, **settings)
    if case.form in ("sync", "async"):
        return didi_gym.make_vec(env_id, policy, case.n, case.form, **settings)
    start = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}} if case.form == "subproc" else {}
    return make_vec_env(env_id, policy, case.n, **start, **settings)


def measure(case: Case, turns: int, seconds: float, device: str) -> dict[str, Any]:
    """One row of the table."""
    env_id, _, kwargs = ENVS[case.env]
    policy = policy_for(case, device)
    n = 1 if case.form == "single" else case.n
    raw, wrapped = make_raw(case, env_id, kwargs), make_wrapped(case, policy, env_id, kwargs)
    single = case.form == "single"
    select = InputSelector(raw.observation_space if single else single_space(raw), policy.config.layout)

    def raw_skill(observations: Any, actions: np.ndarray) -> tuple[Any, float]:
        skills, spent = policy.skill_space.to_skill(actions), 0.0
        for begin in range(0, case.k, case.m):
            inputs = select(observations)[None] if single else select(observations)
            plans = policy.plan_actions(inputs, skills, case.m)
            steps = [plans[0, t] if single else plans[:, t] for t in range(min(case.m, case.k - begin))]
            start = time.perf_counter()
            for low_level in steps:
                observations = raw.step(low_level)[0]
            spent += time.perf_counter() - start
        return observations, spent

    def wrapped_skill(_: Any, actions: np.ndarray) -> tuple[Any, float]:
        start = time.perf_counter()
        observations = wrapped.step(actions[0] if single else actions)[0]
        return observations, time.perf_counter() - start

    def rate(env: Any, skill: Callable[..., tuple[Any, float]], seed: int, skills: int) -> float:
        """Low-level steps per second over some skills, the same ones for the same seed."""
        rng, spent = np.random.default_rng(seed), 0.0
        observations = reset(env, seed)
        for _ in range(skills):
            observations, seconds = skill(observations, rng.uniform(-1, 1, (n, 2)).astype(np.float32))
            spent += seconds
        return skills * n * case.k / spent

    try:
        rate(raw, raw_skill, 0, 5), rate(wrapped, wrapped_skill, 0, 5)  # warm
        skills = max(2, round(seconds * rate(raw, raw_skill, 0, 5) / (n * case.k)))
        rates = [
            (rate(raw, raw_skill, seed, skills), rate(wrapped, wrapped_skill, seed, skills)) for seed in range(turns)
        ]
        ratios = sorted(ours / theirs for theirs, ours in rates)
        quartile = len(ratios) // 4
        return {
            **{name: getattr(case, name) for name in ("env", "form", "k", "m")},
            "n": n,
            "horizon": policy.config.horizon,
            "device": policy.device.type,
            "raw": round(statistics.median(theirs for theirs, _ in rates)),
            "wrapped": round(statistics.median(ours for _, ours in rates)),
            "ratio": round(statistics.median(ratios), 3),
            "low": round(ratios[quartile], 3),
            "high": round(ratios[-1 - quartile], 3),
        }
    finally:
        raw.close()
        wrapped.close()


def single_space(env: Any) -> gym.Space:
    return env.single_observation_space if isinstance(env, gym.vector.VectorEnv) else env.observation_space


def reset(env: Any, seed: int) -> Any:
    if isinstance(env, VecEnv):
        env.seed(seed)
        return env.reset()
    return env.reset(seed=seed)[0]


def cases(envs: Sequence[str], forms: Sequence[str], numbers: Sequence[int], sweep: bool) -> list[Case]:
    rows = [Case(env, form, n) for env in envs for form in forms for n in numbers]
    if sweep:
        for env in envs:
            rows += [Case(env, "sync", n=n) for n in (1, 2, 32)]
            rows += [Case(env, "single", k=k, m=min(k, 16)) for k in (4, 64)]
            rows += [Case(env, form, m=m) for form in ("single", "sync") for m in (1, 4)]
            rows += [Case(env, "single", k=64, m=64, horizon=64)]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", choices=list(ENVS), default=list(ENVS), help="default: all")
    forms = ["single", "sync", "async", "dummy", "subproc"]
    parser.add_argument("--forms", nargs="+", choices=forms, default=forms, help="default: all")
    parser.add_argument("--n", nargs="+", type=int, default=[8], help="sub-environments of a vector form (default 8)")
    parser.add_argument("--device", default="cpu", help="where the policy plans: cpu (default) or cuda")
    parser.add_argument("--sweep", action="store_true", help="also vary the number of environments, k, m and horizon")
    parser.add_argument("--turns", type=int, default=15, help="turns of raw and wrapped (default 15)")
    parser.add_argument("--seconds", type=float, default=0.4, help="seconds of each turn of each (default 0.4)")
    parser.add_argument("--csv", type=Path, help="write the table here too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print("   ".join(f"{name:>11}" for name in COLUMNS))
    for case in cases(arguments.envs, arguments.forms, arguments.n, arguments.sweep):
        row = measure(case, arguments.turns, arguments.seconds, arguments.device)
        rows.append(row)
        print("   ".join(f"{row[name]!s:>11}" for name in COLUMNS), flush=True)
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        with arguments.csv.open("w", newline="") as file:
            file.write(f"# python {' '.join(sys.argv)}\n")
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
