"""Does training work over many environments at once, and what do the discounts of skills of several lengths change?

    python experiments/vector_training.py                            # everything, in eight minutes
    python experiments/vector_training.py --parts sac --seeds 0 --output quick.csv

`sac`: SAC with hindsight on AntMaze_Open-v5, configured as in `examples/demo.py`, in one environment (`single`), in
four of `make_vec_env` (`dummy`), and for the first seed also in four processes (`subproc`). All take the same number of
low-level steps and one gradient step for each decision, so success should be about the same; and `subproc` should end
with the weights of `dummy`, to the last bit.

`ppo`: PointMaze_Open-v3 with skills of 4, 8 or 16 steps, of which the agent chooses. SkillPPO discounts each by its
length; SB3's PPO has one discount for all, `gamma ** k`, and to it a decision costs the same whatever its length.

`signal`: the same agents where that matters: each low-level step pays 1 if it pushes the way a signal points, and the
signal is drawn anew every fourth step. A skill of 4 steps earns 4, one of 16 about 10: more per decision, less per
step.

Every agent is the last one of its training. `return` (without discount: the success rate, except for `signal`) and
`steps_to_goal` are of SB3's `evaluate_policy` in four environments, the columns after them of a loop over a single one,
on other seeds; `discounted_return` is that of the low-level task.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import gymnasium_robotics
import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

import didi_gym
from didi_gym.core.progress import progress
from didi_gym.sb3 import RelativeGoalExtractor, SkillHerReplayBuffer, SkillPPO, make_vec_env

Task = dict[str, Any]
Wrappers = Sequence[Callable[[gym.Env], gym.Env]]
ANT_GAMMA, POINT_GAMMA = 0.995, 0.99  # per low-level step
ANT: Task = {
    "env_id": "AntMaze_Open-v5",
    "policy": "ant-directions",
    "skill_duration": 16,
    "replan_every": 2,
    "discount": ANT_GAMMA,
}
POINT: Task = {
    "env_id": "PointMaze_Open-v3",
    "policy": "pointmaze-medium",
    "skill_duration": (4, 8, 16),
    "discount": POINT_GAMMA,
}
SIGNAL: Task = {**POINT, "max_episode_steps": 64}
COMMON: Task = {"continuing_task": False, "device": "cpu"}  # an episode ends where the goal is reached
PARTS = ("sac", "ppo", "signal")
PPO_GAMMAS = {f"PPO gamma^{k}": POINT_GAMMA**k for k in POINT["skill_duration"]}


class FollowSignal(gym.Wrapper):
    """Pays for pushing where the signal points, left or right; it is shown as a goal at that side."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self.random, self.steps = np.random.default_rng(int(self.env.unwrapped.np_random.integers(2**31))), 0
        return self.show(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, _, truncated, info = self.env.step(action)
        paid = float(action[0] * self.signal > 0)
        self.steps += 1
        return self.show(observation), paid, False, truncated, info

    def show(self, observation: dict[str, Any]) -> dict[str, Any]:
        if self.steps % 4 == 0:
            self.signal = float(self.random.choice([-1, 1]))
        return {**observation, "desired_goal": observation["achieved_goal"] + [self.signal, 0.0]}


def make_sac(run: str, seed: int) -> BaseAlgorithm:
    if run == "single":
        env: VecEnv = DummyVecEnv([partial(didi_gym.make, **ANT, **COMMON)])
    else:
        env = make_vec_env(**ANT, **COMMON, n_envs=4, vec_env_cls=SubprocVecEnv if run == "subproc" else DummyVecEnv)
    features = {"observation_indices": range(27), "near_scale": 2.0, "far_scale": 8.0}
    return SAC(
        "MultiInputPolicy",
        env,
        learning_rate=7e-4,
        batch_size=128,
        ent_coef="auto_0.1",
        buffer_size=20_000,
        learning_starts=300,
        train_freq=1,
        gradient_steps=env.num_envs,  # one for each decision: a step of the vector environment is num_envs of them
        replay_buffer_class=SkillHerReplayBuffer,
        replay_buffer_kwargs={"gamma": ANT_GAMMA, "her_ratio": 0.6},
        policy_kwargs=network([128, 128], features),
        seed=seed,
        device="cpu",
    )


def make_ppo(run: str, seed: int, task: Task, wrappers: Wrappers) -> BaseAlgorithm:
    cls, gamma = (SkillPPO, POINT_GAMMA) if run == "SkillPPO" else (PPO, PPO_GAMMAS[run])
    return cls(
        "MultiInputPolicy",
        make_vec_env(**task, **COMMON, n_envs=8, wrappers=wrappers),
        gamma=gamma,
        n_steps=64,
        batch_size=128,
        learning_rate=1e-3,
        policy_kwargs=network([64, 64], {"near_scale": 1.0, "far_scale": 4.0}),
        seed=seed,
        device="cpu",
    )


def network(net_arch: list[int], features: dict[str, Any]) -> dict[str, Any]:
    return {
        "net_arch": net_arch,
        "features_extractor_class": RelativeGoalExtractor,
        "features_extractor_kwargs": features,
    }


class StopAfter(BaseCallback):
    """Counts low-level steps, and ends training after so many."""

    def __init__(self, steps: int, report: Any) -> None:
        super().__init__()
        self.steps, self.report, self.taken = steps, report, 0

    def _on_step(self) -> bool:
        self.taken += sum(info["skill_length"] for info in self.locals["infos"])
        self.report(min(self.taken, self.steps), {})
        return self.taken < self.steps


def evaluate_by_sb3(agent: BaseAlgorithm, task: Task, wrappers: Wrappers, episodes: int, seed: int) -> dict[str, Any]:
    """By `evaluate_policy`; the Monitors inside report low-level returns, 1 where the goal is reached, and lengths."""
    env = make_vec_env(**task, **COMMON, n_envs=4, seed=20_000_000 + 1000 * seed, wrappers=wrappers)
    returns, lengths = evaluate_policy(agent, env, episodes, return_episode_rewards=True)
    assert isinstance(returns, list) and isinstance(lengths, list)
    env.close()
    reached = [total > 0 for total in returns]
    return {"return": round(float(np.mean(returns)), 2), "steps_to_goal": mean_where(lengths, reached)}


def mean_where(lengths: list[int], reached: list[bool]) -> float | None:
    chosen = [length for length, success in zip(lengths, reached, strict=True) if success]
    return round(float(np.mean(chosen)), 1) if chosen else None


def evaluate_by_hand(agent: BaseAlgorithm, task: Task, wrappers: Wrappers, episodes: int, seed: int) -> dict[str, Any]:
    """The same by the loop of `examples/demo.py`, on its seeds; also the discounted return and the skills' lengths."""
    env = make_one(task, wrappers)
    returns, steps, discounted, skills = [], [], [], []
    for episode in range(episodes):
        observation, _ = env.reset(seed=10_000_000 + 1000 * seed + episode)
        length, total, value, ended = 0, 0.0, 0.0, False
        while not ended:
            action, _ = agent.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, info = env.step(action)
            total += info["skill_return"]
            value += task["discount"] ** length * float(reward)
            length += info["skill_length"]
            skills.append(info["skill_length"])
            ended = terminated or truncated
        returns.append(total)
        steps.append(length)
        discounted.append(value)
    env.close()
    return {
        "return_by_hand": round(float(np.mean(returns)), 2),
        "steps_to_goal_by_hand": mean_where(steps, [total > 0 for total in returns]),
        "discounted_return": round(float(np.mean(discounted)), 3),
        "mean_skill_length": round(float(np.mean(skills)), 1),
    }


def make_one(task: Task, wrappers: Wrappers) -> gym.Env:
    settings = {**task, **COMMON}
    names = {"env_id", "continuing_task", "max_episode_steps"} & settings.keys()
    low_level = {name: settings.pop(name) for name in names}
    env: gym.Env = gym.make(low_level.pop("env_id"), **low_level)
    for wrapper in wrappers:
        env = wrapper(env)
    return didi_gym.SkillActionWrapper(env, **settings)


def run_one(part: str, run: str, seed: int, steps: int, episodes: int) -> dict[str, Any]:
    task, wrappers = {"sac": (ANT, ()), "ppo": (POINT, ()), "signal": (SIGNAL, (FollowSignal,))}[part]
    agent = make_sac(run, seed) if part == "sac" else make_ppo(run, seed, task, wrappers)
    began = time.monotonic()
    with progress(f"{part}, {run}, seed {seed}", steps) as report:
        callback = StopAfter(steps, report)
        agent.learn(steps, callback=callback)  # fewer decisions than that
    seconds = time.monotonic() - began
    env = agent.get_env()
    assert env is not None
    env.close()
    weights = torch.nn.utils.parameters_to_vector(agent.policy.parameters()).detach().numpy()
    return {
        "part": part,
        "env_id": task["env_id"],
        "agent": f"SAC + HER, {run}" if part == "sac" else run,
        "seed": seed,
        "n_envs": agent.n_envs,
        "low_level_steps": callback.taken,
        "decisions": agent.num_timesteps,
        "training_seconds": round(seconds, 1),
        "weights": f"{zlib.crc32(weights.tobytes()):08x}",
        "episodes": episodes,
        **evaluate_by_sb3(agent, task, wrappers, episodes, seed),
        **evaluate_by_hand(agent, task, wrappers, episodes, seed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=50_000, help="low-level steps of training (50,000)")
    parser.add_argument("--episodes", type=int, default=100, help="episodes of each evaluation (100)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "vector-training.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    gym.register_envs(gymnasium_robotics)
    rows = []
    for part in arguments.parts:
        runs = ["single", "dummy", "subproc"] if part == "sac" else ["SkillPPO", *PPO_GAMMAS]
        for seed in arguments.seeds:
            for run in runs:
                if run == "subproc" and seed != arguments.seeds[0]:
                    continue  # it repeats `dummy`
                rows.append(run_one(part, run, seed, arguments.steps, arguments.episodes))
                print(rows[-1], flush=True)
    with open(arguments.output, "w", newline="") as file:
        file.write(f"# python experiments/vector_training.py {' '.join(sys.argv[1:])}".rstrip() + "\n")
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
