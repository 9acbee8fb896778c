"""The main job, end to end: skills learned without rewards let a Stable-Baselines3 agent solve an ant maze.

The bundled `ant-directions` skills come from an ant on an open plane; they never saw a maze. Here they become the
actions of gymnasium-robotics' AntMaze_Open-v5 (sparse reward, random goals), and SAC with hindsight picks them. Beside
it: random skills, and a flat SAC with hindsight that gets the same environment steps and the same features.

Run `make demo`, or `python examples/demo.py --help`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro

GAMMA = 0.995  # per low-level step
ENVIRONMENTS = 8


@dataclass(frozen=True)
class Demo:
    """Train SAC over skills and a flat SAC on the same ant maze, and compare them."""

    env_id: str = "AntMaze_Open-v5"
    policy: str = "ant-directions"
    """Bundled name, folder or Hub id of the skill policy."""
    steps: int = 50_000
    """Low-level environment steps for each agent."""
    episodes: int = 100
    """Evaluation episodes of the agent over skills, from seeds not trained on."""
    baseline_episodes: int = 50
    """Evaluation episodes of each baseline; they run to the time limit, so they take far longer."""
    skill_duration: int = 16
    """Low-level steps per skill."""
    replan_every: int = 2
    """Low-level steps executed of each plan."""
    seed: int = 0
    output: Path = Path("demo_out")
    """Folder for results.json, skill_map.png, learning_curves.png and agent.mp4."""
    video: bool = True


def make_task(demo: Demo, **kwargs: Any) -> gym.Env:
    """The unmodified environment; `continuing_task=False` ends an episode where the goal is reached."""
    import gymnasium_robotics

    gym.register_envs(gymnasium_robotics)
    return gym.make(demo.env_id, continuing_task=False, **kwargs)


def make_skill_task(demo: Demo, **kwargs: Any) -> gym.Env:
    from didi_gym import SkillActionWrapper

    durations = {"skill_duration": demo.skill_duration, "replan_every": demo.replan_every}
    return SkillActionWrapper(make_task(demo, **kwargs), demo.policy, discount=GAMMA, device="cpu", **durations)


def train_agent(demo: Demo, over_skills: bool) -> tuple[Any, list[tuple[int, bool]]]:
    """Train SAC with hindsight; returns the agent and (low-level steps so far, success) of every training episode."""
    from stable_baselines3 import SAC, HerReplayBuffer
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import DummyVecEnv

    from didi_gym.core.progress import progress
    from didi_gym.sb3 import RelativeGoalExtractor, SkillHerReplayBuffer

    label = "SAC over skills" if over_skills else "flat SAC"
    venv = DummyVecEnv([partial(make_skill_task if over_skills else make_task, demo)] * ENVIRONMENTS)
    venv.seed(demo.seed * 1000)
    limit = venv.envs[0].spec.max_episode_steps
    features = {"observation_indices": tuple(range(27)), "near_scale": 2.0, "far_scale": 8.0}
    common = {
        "policy_kwargs": {
            "net_arch": [128, 128],
            "features_extractor_class": RelativeGoalExtractor,
            "features_extractor_kwargs": features,
        },
        "learning_rate": 7e-4,
        "batch_size": 128,
        "ent_coef": "auto_0.1",
        "train_freq": 1,
        "seed": demo.seed,
        "device": "cpu",
    }
    if over_skills:
        agent = SAC(
            "MultiInputPolicy",
            venv,
            buffer_size=20_000,
            learning_starts=300,
            gradient_steps=ENVIRONMENTS,  # one for each decision
            replay_buffer_class=SkillHerReplayBuffer,
            replay_buffer_kwargs={"gamma": GAMMA, "her_ratio": 0.6},
            **common,
        )
    else:
        agent = SAC(
            "MultiInputPolicy",
            venv,
            gamma=GAMMA,
            buffer_size=max(demo.steps, 20_000),
            learning_starts=(limit + 1) * ENVIRONMENTS,  # SB3's hindsight samples finished episodes only
            gradient_steps=2,  # one for every four steps: more in total than the agent over skills gets
            replay_buffer_class=HerReplayBuffer,
            replay_buffer_kwargs={"n_sampled_goal": 2, "goal_selection_strategy": "future"},  # two thirds relabelled
            **common,
        )
    episodes: list[tuple[int, bool]] = []

    class Curve(BaseCallback):
        """Counts low-level steps, ends training at the budget, and records whether episodes reached their goal."""

        low_level = 0

        def _on_step(self) -> bool:
            for info, done in zip(self.locals["infos"], self.locals["dones"], strict=True):
                self.low_level += int(info.get("skill_length", 1))
                if done:
                    episodes.append((self.low_level, bool(info["success"])))
            recent = np.mean([success for _, success in episodes[-50:]] or [0.0])
            report(min(self.low_level, demo.steps), {"success": recent, "episodes": len(episodes)})
            return self.low_level < demo.steps

    with progress(label, demo.steps) as report:
        agent.learn(10 * demo.steps, callback=Curve())
    venv.close()
    return agent, episodes


def evaluate(env: gym.Env, act: Callable[[Any], Any], episodes: int, seed: int, label: str) -> dict[str, Any]:
    """Success, with a 95 % Wilson interval, and low-level steps to the goal, in episodes of unseen seeds."""
    from didi_gym.core.progress import progress

    lengths, successes = [], []
    with progress(label, episodes) as report:
        for episode in range(episodes):
            observation, _ = env.reset(seed=10_000_000 + 1000 * seed + episode)
            length, ended = 0, False
            while not ended:
                observation, _, terminated, truncated, info = env.step(act(observation))
                length += int(info.get("skill_length", 1))
                ended = terminated or truncated
            successes.append(bool(info["success"]))
            lengths.append(length)
            report(episode + 1, {"success": float(np.mean(successes))})
    env.close()
    p, n, z = float(np.mean(successes)), episodes, 1.96
    center, half = (
        (p + z * z / 2 / n) / (1 + z * z / n),
        z * np.sqrt(p * (1 - p) / n + z * z / 4 / n / n) / (1 + z * z / n),
    )
    reached = [length for length, success in zip(lengths, successes, strict=True) if success]
    return {
        "success": p,
        "success_95": [round(float(center - half), 4), round(float(center + half), 4)],
        "episodes": n,
        "mean_steps_to_goal": float(np.mean(reached)) if reached else None,
    }


def run_skills(demo: Demo) -> dict[str, Any]:
    torch.set_num_threads(1)
    began = time.monotonic()
    agent, curve = train_agent(demo, over_skills=True)
    seconds = time.monotonic() - began
    agent.save(demo.output / "skill_agent.zip")
    act = lambda observation: agent.predict(observation, deterministic=True)[0]  # noqa: E731
    result = evaluate(make_skill_task(demo), act, demo.episodes, demo.seed, "evaluate SAC over skills")
    return {**result, "training_seconds": round(seconds, 1), "curve": curve}


def run_flat(demo: Demo) -> dict[str, Any]:
    torch.set_num_threads(1)
    began = time.monotonic()
    agent, curve = train_agent(demo, over_skills=False)
    seconds = time.monotonic() - began
    act = lambda observation: agent.predict(observation, deterministic=True)[0]  # noqa: E731
    result = evaluate(make_task(demo), act, demo.baseline_episodes, demo.seed, "evaluate flat SAC")
    return {**result, "training_seconds": round(seconds, 1), "curve": curve}


def run_random(demo: Demo) -> dict[str, Any]:
    torch.set_num_threads(1)
    env = make_skill_task(demo)
    env.action_space.seed(demo.seed)
    return evaluate(
        env, lambda _: env.action_space.sample(), demo.baseline_episodes, demo.seed, "evaluate random skills"
    )


def draw_pictures(demo: Demo, results: dict[str, dict[str, Any]]) -> None:
    """The map of the skills in the open, the learning curves, and a film of the trained agent."""
    from didi_gym import SkillPolicy
    from didi_gym.evaluation.plots import plot_learning_curves, plot_skill_map
    from didi_gym.evaluation.rollouts import hold_skills

    policy = SkillPolicy.from_pretrained(demo.policy, device="cpu")
    held = hold_skills(policy, skills=16, episodes=4, seed=demo.seed)
    title = f"{demo.policy}: skills held for {held.paths.shape[1] - 1} steps in the simulator"
    plot_skill_map(held.paths, held.skills, policy.skill_space, demo.output / "skill_map.png", title=title)
    curves = {}
    for name, key in (("SAC over skills", "skills"), ("flat SAC + HER", "flat")):
        steps, success = np.array(results[key]["curve"], float).reshape(-1, 2).T
        rate = [success[max(0, i - 39) : i + 1].mean() for i in range(len(success))]
        if len(rate) > 9:  # the first to end are the lucky ones: no rate from so few
            curves[name] = (steps[9:], np.array(rate[9:]))
    if curves:
        plot_learning_curves(curves, demo.output / "learning_curves.png", title=demo.env_id)
    if demo.video:
        film_agent(demo)


def film_agent(demo: Demo, episodes: int = 3) -> None:
    from stable_baselines3 import SAC

    from didi_gym import SkillActionWrapper
    from didi_gym.evaluation.video import Camera, make_rendered_env, write_video

    class Film(gym.Wrapper):
        """Takes a picture of every second low-level step."""

        def __init__(self, env: gym.Env) -> None:
            super().__init__(env)
            self.camera, self.frames, self.count = Camera(env), [], 0

        def step(self, action: Any) -> Any:
            result = self.env.step(action)
            if self.count % 2 == 0 or result[2]:
                self.frames.append(self.camera.frame())
            self.count += 1
            return result

    film = Film(make_rendered_env(demo.env_id, continuing_task=False))
    durations = {"skill_duration": demo.skill_duration, "replan_every": demo.replan_every}
    env = SkillActionWrapper(film, demo.policy, device="cpu", **durations)
    agent = SAC.load(demo.output / "skill_agent.zip", env=env, device="cpu")
    for episode in range(episodes):
        observation, _ = env.reset(seed=20_000_000 + episode)
        ended = False
        while not ended and film.count < (episode + 1) * 300:
            observation, _, terminated, truncated, _ = env.step(agent.predict(observation, deterministic=True)[0])
            ended = terminated or truncated
    write_video(film.frames, demo.output / "agent.mp4", fps=10)
    env.close()


def main(demo: Demo) -> None:
    demo.output.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:  # two cores: the rest waits its turn
        jobs = {
            "skills": pool.submit(run_skills, demo),
            "flat": pool.submit(run_flat, demo),
            "random": pool.submit(run_random, demo),
        }
        results = {name: job.result() for name, job in jobs.items()}
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(demo).items()}
    seconds = round(time.monotonic() - began, 1)
    record = {"settings": settings, "seconds_without_pictures": seconds, **results}
    (demo.output / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    draw_pictures(demo, results)
    print(f"\n{demo.env_id}, {demo.steps} low-level steps of training, seed {demo.seed}, last checkpoint")
    print(f"{'agent':24} {'success':>8} {'95 % interval':>16} {'episodes':>9} {'steps to goal':>14}")
    for name, key in (("SAC over skills", "skills"), ("random skills", "random"), ("flat SAC + HER", "flat")):
        row = results[key]
        low, high = row["success_95"]
        steps = "-" if row["mean_steps_to_goal"] is None else f"{row['mean_steps_to_goal']:.0f}"
        print(f"{name:24} {row['success']:8.2f} {f'{low:.2f} - {high:.2f}':>16} {row['episodes']:9} {steps:>14}")
    print(f"{time.monotonic() - began:.0f} s in all. Pictures and numbers are in {demo.output}/")


if __name__ == "__main__":
    main(tyro.cli(Demo))
