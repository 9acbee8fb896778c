"""Skills without a policy: samples of the prior, and constant actions."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from didi_gym import DiffusionPrior, SkillPolicy
from didi_gym.core.frames import inputs_to_state, localize, turn
from didi_gym.models.policy import Plan
from methods.run import Run

_SAMPLING_STEPS = 20  # denoiser calls per plan


def prior_sampling(run: Run) -> SkillPolicy:
    """Every plan is a sample of the prior from the present state; z only seeds the noise, the same at each plan."""
    policy = _controller(PriorSampling, run)
    policy.prior = run.require_prior()
    return policy


def random_skills(run: Run) -> SkillPolicy:
    """Every skill is a constant action, held: a random linear map of continuous z, a random table for discrete."""
    policy = _controller(ConstantActions, run)
    space, size = run.policy.skill_space, run.policy.config.action_dim
    generator = np.random.default_rng(run.seed)
    if space.is_discrete:
        table = generator.uniform(-1, 1, (space.size, size))
    else:  # orthogonal rows, such that actions fill their range whatever the dimensions
        square = np.linalg.qr(generator.standard_normal((max(space.size, size),) * 2))[0]
        table = square[: space.size, :size] * np.sqrt(max(size / space.size, 1.0))
    policy.table = torch.as_tensor(table, dtype=torch.float32)
    return policy


class Planner(SkillPolicy):
    """A policy whose plans come from something other than its network; arrays only."""

    def imagine(self, first: Tensor, skills: np.ndarray) -> tuple[Tensor, Tensor]:
        """States and actions of whole trajectories from first states `(n, state_dim)`, normalised, own frames."""
        raise NotImplementedError

    def plan(self, observations: Any, skills: Any, *, replan_every: int | None = None) -> Plan[np.ndarray]:
        layout = self.config.layout
        state = inputs_to_state(torch.as_tensor(np.asarray(observations, np.float32)), layout)
        local, yaw = localize(state[:, None], layout)
        with torch.no_grad():
            states, actions = self.imagine(self.normalizer.normalize(local[:, 0]), np.asarray(skills, np.float32))
        states = self.normalizer.denormalize(states)
        if yaw is not None:
            assert layout.heading is not None
            states = turn(states, yaw[:, None], layout.heading)
        actions = self.low + (actions.clamp(-1, 1) + 1) / 2 * (self.high - self.low)
        return Plan(torch.clamp(actions, self.low, self.high).numpy(), states.numpy())

    def plan_actions(self, inputs: Any, skills: Any, steps: int | None = None) -> Any:
        return self.plan(inputs, skills).actions[:, :steps]


class PriorSampling(Planner):
    """Plans are samples of `prior`."""

    prior: DiffusionPrior

    def imagine(self, first: Tensor, skills: np.ndarray) -> tuple[Tensor, Tensor]:
        samples = [
            self.prior.sample(state[None], torch.Generator().manual_seed(zlib.crc32(z.tobytes())), _SAMPLING_STEPS)
            for state, z in zip(first, skills, strict=True)
        ]
        return torch.cat(samples).split([self.prior.state_dim, self.prior.action_dim], dim=-1)  # type: ignore[return-value]


class ConstantActions(Planner):
    """Plans hold the action z @ `table`."""

    table: Tensor

    def imagine(self, first: Tensor, skills: np.ndarray) -> tuple[Tensor, Tensor]:
        actions = (torch.from_numpy(skills) @ self.table)[:, None].expand(-1, self.config.horizon, -1).clamp(-1, 1)
        assert self.dynamics is not None
        return self.dynamics.rollout(first, actions)[:, :-1], actions

    def plan_actions(self, inputs: Any, skills: Any, steps: int | None = None) -> Any:
        action = (np.asarray(skills, np.float32) @ self.table.numpy()).clip(-1, 1)  # no states are needed to act
        held = np.repeat(action[:, None], steps or self.config.horizon, axis=1)
        return (self.action_low + (held + 1) / 2 * (self.action_high - self.action_low)).clip(
            self.action_low, self.action_high
        )


def _controller(cls: Any, run: Run) -> Any:
    policy = cls(replace(run.policy.config, plan_length=None, replan_every=1))
    policy.normalizer.load_state_dict(run.policy.normalizer.state_dict())
    policy.low.copy_(run.policy.low)
    policy.high.copy_(run.policy.high)
    policy.attach_dynamics(run.policy.dynamics)
    return policy.eval().requires_grad_(False)
