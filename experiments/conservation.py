"""Does skill execution lose or invent anything? Ten million low-level steps of random episodes, counted twice.

    python experiments/conservation.py             # 10 million steps in about five minutes, on one core
    python experiments/conservation.py --steps 100_000

Environments count their own steps and rewards, and refuse a step after their episode's end. The skill environments
around them, with durations, ends and rewards drawn at random, report theirs. Both must agree: no step in an ended
episode, the sum of `skill_length` equal to the steps taken, the sum of rewards equal but for rounding.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from didi_gym import Layout, SkillPolicy, SkillSpace, make_vec
from didi_gym.core.progress import progress
from didi_gym.models.config import PolicyConfig
from didi_gym.sb3 import make_vec_env

ENVS, DURATIONS, REPLAN_EVERY = 64, (1, 3, 8, 16), 4
FORMS = ("next_step", "same_step", "disabled", "dummy")


class RandomEpisodes(gym.Env):
    """Episodes of 1 to 60 steps that terminate or truncate, with random rewards, all drawn from its seed."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        self.steps, self.rewards, self.steps_after_end, self.left = 0, 0.0, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left, self.truncates = int(self.np_random.integers(1, 61)), bool(self.np_random.random() < 0.5)
        self.values = self.np_random.standard_normal(self.left + 1)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps_after_end += self.left <= 0
        self.left -= 1
        self.steps += 1
        reward = float(self.values[self.left])
        self.rewards += reward
        end = self.left <= 0
        return self._observe(), reward, end and not self.truncates, end and self.truncates, {}

    def _observe(self) -> np.ndarray:
        return np.array([self.values[self.left], self.left])


def untrained() -> SkillPolicy:
    torch.manual_seed(0)
    layout = Layout.flat(2)
    config = PolicyConfig(16, 2, layout, SkillSpace("ball", 2), skill_duration=16, replan_every=4, width=32, depth=1)
    return SkillPolicy(config).eval().requires_grad_(False)


def run(form: str, steps: int) -> dict[str, Any]:
    """What environments and skills counted in one form of vector environment."""
    settings = {"skill_duration": DURATIONS, "replan_every": REPLAN_EVERY}
    lengths, rewards, skills = 0, 0.0, 0
    if form == "dummy":
        env: Any = make_vec_env("RandomEpisodes-v0", untrained(), ENVS, seed=0, **settings)
        env.reset()
    else:
        env = make_vec("RandomEpisodes-v0", untrained(), ENVS, autoreset_mode=form, **settings)
        env.reset(seed=0)
    generator = np.random.default_rng(0)
    with progress(f"{form}: low-level steps", steps) as report:
        while env.low_level_steps < steps:
            actions = generator.uniform(-1, 1, (ENVS, 3)).astype(np.float32)
            if form == "dummy":
                _, reward, _, infos = env.step(actions)
                length = sum(info["skill_length"] for info in infos)
            else:
                _, reward, terminations, truncations, info = env.step(actions)
                parts = (info, info.get("final_info", {}))
                length = sum(int(part["skill_length"].sum()) for part in parts if "skill_length" in part)
                if form == "disabled" and (terminations | truncations).any():
                    env.reset(options={"reset_mask": terminations | truncations})
            lengths, skills = lengths + length, skills + ENVS
            rewards += float(np.sum(reward, dtype=np.float64))
            report(env.low_level_steps, {})
    bases = [each.unwrapped for each in env.unwrapped.envs]
    taken = sum(base.steps for base in bases)
    total = sum(base.rewards for base in bases)
    return {
        "form": form,
        "skills": skills,
        "environment_steps": taken,
        "sum_of_skill_length": lengths,
        "steps_in_ended_episodes": int(sum(base.steps_after_end for base in bases)),
        "environment_rewards": total,
        "sum_of_rewards": rewards,
        "absolute_difference_of_rewards": abs(total - rewards),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000_000, help="low-level steps, over all forms (10 million)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "conservation.json")
    arguments = parser.parse_args()
    gym.register("RandomEpisodes-v0", entry_point=RandomEpisodes, disable_env_checker=True)
    rows = [run(form, arguments.steps // len(FORMS)) for form in FORMS]
    for row in rows:
        print(row)
        # DummyVecEnv hands rewards on in float32
        tolerance = 1e-6 if row["form"] != "dummy" else 1e-3 * row["skills"] ** 0.5
        assert row["steps_in_ended_episodes"] == 0
        assert row["environment_steps"] == row["sum_of_skill_length"]
        assert row["absolute_difference_of_rewards"] < tolerance
    command = f"python experiments/conservation.py --steps {arguments.steps}"
    arguments.output.write_text(json.dumps({"command": command, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
