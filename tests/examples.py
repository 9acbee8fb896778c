"""Small layouts, data sets and policies shared by the tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from didi_gym.core.layout import Heading, Layout, ObservationSource
from didi_gym.core.observations import choose_numbers
from didi_gym.core.skill_space import SkillSpace
from didi_gym.data.dataset import TrajectoryDataset
from didi_gym.models.config import PolicyConfig, UNetConfig
from didi_gym.models.policy import SkillPolicy
from didi_gym.training import BehaviourConfig, DynamicsConfig, PriorConfig, SkillConfig, TrainConfig

BODY = Layout(  # x y | quaternion | vx vy: a body on a plane
    state_dim=8,
    policy_inputs=(2, 3, 4, 5, 6, 7),
    features=(0, 1),
    relative=(0, 1),
    heading=Heading((2, 3, 4, 5), ((0, 1), (6, 7))),
    sources=(ObservationSource(8, (2, 3, 4, 5, 6, 7)), ObservationSource(6, (0, 1, 2, 3, 4, 5))),
    state_source=ObservationSource(8, tuple(range(8))),
)

DISC = Layout(  # x y | cos yaw | vx vy | sin yaw, recorded as x, y, yaw, vx, vy: a body that cannot leave the plane
    state_dim=6,
    policy_inputs=(2, 3, 4, 5),
    features=(0, 1),
    relative=(0, 1),
    heading=Heading(vectors=((0, 1), (3, 4)), angle=(2, 5)),
    sources=(ObservationSource(5, (2, 3, 4), angles=(0,)),),
    state_source=ObservationSource(5, (0, 1, 2, 3, 4), angles=(2,)),
)


def disc_states(n: int, seed: int = 0) -> np.ndarray:
    """Random states `(n, 6)` of the disc."""
    return choose_numbers(np.random.default_rng(seed).normal(0, 3, (n, 5)), DISC.state_source)


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


def gait_dataset(episodes: int = 24, steps: int = 160, switch: bool = False, seed: int = 0) -> tuple[Any, np.ndarray]:
    """A point with three behaviours: circling left, circling right, and going to (3, 0); with their labels `(steps,)`.

    Each is a feedback law, so it can be taken up anywhere. With `switch` it changes about every 60 steps.
    """
    rng = np.random.default_rng(seed)
    pairs, labels = [], []
    for episode in range(episodes):
        position, law = rng.normal(0, 1, 2), episode % 3
        rows, actions = [position.copy()], []
        for _ in range(steps):
            if switch and rng.random() < 1 / 60:
                law = int(rng.integers(3))
            action = gait_action(position[None], law)[0] + rng.normal(0, 0.02, 2)
            actions.append(action.clip(-1, 1))
            position = position + 0.2 * actions[-1]
            rows.append(position.copy())
            labels.append(law)
        pairs.append((np.array(rows), np.array(actions)))
    return TrajectoryDataset.from_episodes(pairs, action_low=[-1, -1], action_high=[1, 1]), np.array(labels)


def gait_action(positions: np.ndarray, law: int) -> np.ndarray:
    """The action of a behaviour of `gait_dataset` at positions `(n, 2)`."""
    if law == 2:
        return (np.array([3.0, 0.0]) - positions).clip(-1, 1)
    radius = np.linalg.norm(positions, axis=1, keepdims=True)
    around = np.stack([-positions[:, 1], positions[:, 0]], axis=1) * (1 if law == 0 else -1)
    return ((around + (1 - radius) * positions) / np.maximum(radius, 0.2)).clip(-1, 1)


SMALL_BEHAVIOURS = BehaviourConfig(scout_steps=20, steps=40, batch_size=32, tuning_steps=20)


def tiny_unets(**settings: Any) -> TrainConfig:
    """As `tiny`, with a U-Net for the prior and for the policy."""
    unet = UNetConfig(channels=8, multipliers=(1, 2))
    config = tiny(network="unet", unet=unet, **settings)
    return replace(config, prior=replace(config.prior, network="unet", unet=unet))


def tiny(**settings: Any) -> TrainConfig:
    """Settings that train in a second: those of `TrainConfig` by their names, all others are of the skills."""
    own = {name: settings.pop(name) for name in ("horizon", "behaviours", "imagine", "seed") if name in settings}
    defaults = {
        "horizon": 8,
        "behaviours": SMALL_BEHAVIOURS,
        "prior": PriorConfig(steps=40, batch_size=32, width=32, depth=1, diffusion_steps=20),
        "dynamics": DynamicsConfig(steps=40, batch_size=32, width=32, members=2, unroll=3),
    }
    skills = SkillConfig(**{"steps": 40, "batch_size": 32, "width": 32, "depth": 1, **settings})
    return TrainConfig(skills, **{**defaults, **own})


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
