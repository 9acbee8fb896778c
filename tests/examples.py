"""Small layouts, data sets and policies shared by the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from didi_gym.config import DynamicsConfig, Heading, Layout, ObservationSource, PolicyConfig, PriorConfig, SkillConfig
from didi_gym.data import TrajectoryDataset
from didi_gym.policy import SkillPolicy
from didi_gym.skills import SkillSpace
from didi_gym.training import TrainConfig

BODY = Layout(  # x y | quaternion | vx vy: a body on a plane
    state_dim=8,
    policy_inputs=(2, 3, 4, 5, 6, 7),
    features=(0, 1),
    relative=(0, 1),
    heading=Heading((2, 3, 4, 5), ((0, 1), (6, 7))),
    sources=(ObservationSource(8, (2, 3, 4, 5, 6, 7)), ObservationSource(6, (0, 1, 2, 3, 4, 5))),
    state_source=ObservationSource(8, tuple(range(8))),
)


def body_states(n: int, seed: int = 0) -> np.ndarray:
    """Random states `(n, 8)` of the body, unit quaternions."""
    states = np.random.default_rng(seed).normal(size=(n, 8)).astype(np.float32)
    states[:, 2:6] /= np.linalg.norm(states[:, 2:6], axis=1, keepdims=True)
    return states


def point_dataset(episodes: int = 12, steps: int = 60, seed: int = 0) -> TrajectoryDataset:
    """A point that moves by its action: x' = x + 0.1 a, with headings held for a while."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(episodes):
        actions = np.repeat(rng.uniform(-1, 1, (steps // 6, 2)), 6, axis=0) + rng.normal(0, 0.05, (steps, 2))
        actions = actions.clip(-1, 1)
        positions = np.concatenate([np.zeros((1, 2)), np.cumsum(0.1 * actions, axis=0)])
        pairs.append((positions, actions))
    return TrajectoryDataset.from_episodes(pairs, action_low=[-1, -1], action_high=[1, 1])


def tiny(**skills: Any) -> TrainConfig:
    """Settings that train in a second."""
    return TrainConfig(
        SkillConfig(**{"horizon": 8, "steps": 40, "batch_size": 32, "width": 32, "depth": 1, **skills}),
        PriorConfig(steps=40, batch_size=32, width=32, depth=1, diffusion_steps=20),
        DynamicsConfig(steps=40, batch_size=32, width=32, members=2, unroll=3),
    )


def random_policy(
    layout: Layout = BODY, *, seed: int = 0, low: Any = (-1.0, -0.5, -2.0), high: Any = (1.0, 0.25, 3.0), **changes: Any
) -> SkillPolicy:
    """An untrained policy whose normaliser and bounds are not the identity."""
    settings = {
        "horizon": 8,
        "action_dim": len(low),
        "layout": layout,
        "skill_space": SkillSpace("ball", 2),
        "skill_duration": 8,
        "replan_every": 4,
        "width": 32,
        "depth": 2,
    }
    torch.manual_seed(seed)
    policy = SkillPolicy(PolicyConfig(**{**settings, **changes}))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        policy.normalizer.scale.uniform_(0.5, 2)
        policy.low.copy_(torch.tensor(low))
        policy.high.copy_(torch.tensor(high))
    return policy.eval().requires_grad_(False)
