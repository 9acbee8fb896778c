"""Agents of the maze benchmark: each yields itself after every budget of low-level steps, to be evaluated as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from tasks import Maze

from didi_gym.planning import SkillGraph
from didi_gym.sb3 import RelativeGoalExtractor, SkillHerReplayBuffer, SkillPPO, store_transitions

GAMMA = 0.995  # per low-level step
HOLD = 16  # low-level steps of a skill, for agents that do not choose
ENVIRONMENTS = 8
UPDATES = 8  # gradient steps for each decision: simulation is dear
Trained = Iterator[tuple[int, Any]]


class Until(BaseCallback):
    """Ends training after so many low-level steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps, self.taken = steps, 0

    def _on_step(self) -> bool:
        self.taken += sum(info.get("skill_length", 1) for info in self.locals["infos"])
        return self.taken < self.steps


class ConstantActions:
    """Skills without learning: each is one random action, held."""

    def __init__(self, skill_dim: int, low: np.ndarray, high: np.ndarray, seed: int) -> None:
        square = np.linalg.qr(np.random.default_rng(seed).standard_normal((max(skill_dim, len(low)),) * 2))[0]
        self.table = square[:skill_dim, : len(low)] * np.sqrt(max(len(low) / skill_dim, 1.0))
        self.low, self.high = low, high

    def __call__(self, inputs: np.ndarray, skills: np.ndarray, steps: int) -> np.ndarray:
        unit = (np.clip(skills @ self.table, -1, 1) + 1) / 2
        return np.repeat((self.low + unit * (self.high - self.low))[:, None], steps, axis=1).astype(np.float32)


def skill_graph(maze: Maze, seed: int, budgets: tuple[int, ...]) -> Trained:
    agent = SkillGraph(maze.make_skills(), seed=seed)
    for budget in budgets:
        yield budget, agent.learn(budget - agent.low_level_steps, progress=False)


def graph_of_random_skills(maze: Maze, seed: int, budgets: tuple[int, ...]) -> Trained:
    agent = SkillGraph(random_skills(maze, seed), seed=seed)
    for budget in budgets:
        yield budget, agent.learn(budget - agent.low_level_steps, progress=False)


def random_skills(maze: Maze, seed: int) -> gym.Env:
    space = maze.make().action_space
    return maze.make_skills(engine=ConstantActions(2, space.low, space.high, seed))  # type: ignore[attr-defined]


class Random:
    """Any skill, whatever is observed."""

    def __init__(self, env: gym.Env, seed: int) -> None:
        self.space = env.action_space
        self.space.seed(seed)

    def predict(self, *_: Any) -> tuple[Any, None]:
        return self.space.sample(), None


def random(maze: Maze, seed: int, budgets: tuple[int, ...]) -> Trained:
    yield 0, Random(maze.make_skills(durations=(HOLD,), replan_every=2), seed)


def settings(seed: int) -> dict[str, Any]:
    """Of every gradient agent: where the goal lies from here, and where here is."""
    features = {"observation_indices": tuple(range(27)), "near_scale": 2.0, "far_scale": 8.0, "absolute_goals": True}
    network = {
        "net_arch": [128, 128],
        "features_extractor_class": RelativeGoalExtractor,
        "features_extractor_kwargs": features,
    }
    return {"policy_kwargs": network, "seed": seed, "device": "cpu"}


def skill_envs(maze: Maze, seed: int, n: int = ENVIRONMENTS, duration: int = HOLD) -> DummyVecEnv:
    make = partial(maze.make_skills, durations=(duration,), replan_every=2, discount=GAMMA)
    envs = DummyVecEnv([make] * n)
    envs.seed(1_000 * seed)
    return envs


def new_sac(env: Any, seed: int, **changes: Any) -> SAC:
    common = {
        "learning_rate": 7e-4,
        "batch_size": 128,
        "ent_coef": "auto_0.1",
        "train_freq": 1,
        "learning_starts": 300,
        "buffer_size": 30_000,
        "gradient_steps": UPDATES * ENVIRONMENTS,
        "replay_buffer_class": SkillHerReplayBuffer,
        "replay_buffer_kwargs": {"gamma": GAMMA, "her_ratio": 0.6},
    }
    return SAC("MultiInputPolicy", env, **common | settings(seed) | changes)


def sac(maze: Maze, seed: int, budgets: tuple[int, ...]) -> Trained:
    agent, done = new_sac(skill_envs(maze, seed), seed), 0
    for budget in budgets:
        agent.learn(10**9, callback=Until(budget - done), reset_num_timesteps=False)
        done = budget
        yield budget, agent


def sac_from_graph(maze: Maze, seed: int, budgets: tuple[int, ...]) -> Trained:
    """The graph acts for the first half of the largest budget and fills the replay buffer; SAC goes on alone."""
    first = max(budgets) // 2
    envs = skill_envs(maze, seed, n=1)
    agent = new_sac(envs, seed, learning_starts=0, gradient_steps=UPDATES)
    graph = SkillGraph(maze.make_skills(durations=(HOLD,), replan_every=2, discount=GAMMA), seed=seed)
    graph.learn(first, progress=False, on_step=store_transitions(agent))
    agent.learn(1)
    agent.train(UPDATES * agent.replay_buffer.size(), batch_size=128)
    done = first
    for budget in sorted(b for b in budgets if b > first):
        agent.learn(10**9, callback=Until(budget - done), reset_num_timesteps=False)
        done = budget
        yield budget, agent


def ppo(maze: Maze, seed: int, budgets: tuple[int, ...]) -> Trained:
    agent, done = (
        SkillPPO(
            "MultiInputPolicy",
            skill_envs(maze, seed),
            gamma=GAMMA,
            n_steps=64,
            batch_size=128,
            ent_coef=0.01,
            **settings(seed),
        ),
        0,
    )
    for budget in budgets:
        agent.learn(10**9, callback=Until(budget - done), reset_num_timesteps=False)
        done = budget
        yield budget, agent


def flat_sac(maze: Maze, seed: int, budgets: tuple[int, ...]) -> Trained:
    """Without skills, with ten times the steps."""
    envs = DummyVecEnv([maze.make] * ENVIRONMENTS)
    envs.seed(1_000 * seed)
    changes = {
        "gamma": GAMMA,
        "buffer_size": 500_000,
        "learning_starts": 10_000,
        "gradient_steps": 2,
        "replay_buffer_class": HerReplayBuffer,
        "replay_buffer_kwargs": {"n_sampled_goal": 2, "goal_selection_strategy": "future"},
    }
    agent = new_sac(envs, seed, **changes)
    agent.learn(10**9, callback=Until(10 * max(budgets)))
    yield 10 * max(budgets), agent


AGENTS: dict[str, Callable[[Maze, int, tuple[int, ...]], Trained]] = {
    "skill-graph": skill_graph,
    "graph-of-random-skills": graph_of_random_skills,
    "random": random,
    "sac": sac,
    "sac-from-graph": sac_from_graph,
    "ppo": ppo,
    "flat-sac": flat_sac,
}


def test_env(agent: str, maze: Maze, seed: int) -> gym.Env:
    """The environment that an agent is evaluated in."""
    if agent == "flat-sac":
        return maze.make()
    if agent == "graph-of-random-skills":
        return random_skills(maze, seed)
    if agent == "skill-graph":
        return maze.make_skills()
    return maze.make_skills(durations=(HOLD,), replan_every=2)
