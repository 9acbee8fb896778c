"""The network of a skill policy with its statistics: pi(trajectory | observation, z) in normalised units."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from didi_gym.core.frames import HeadingFrame, localize, turn_skill
from didi_gym.core.skill_space import SkillSpace
from didi_gym.models.config import PolicyConfig
from didi_gym.models.dynamics import DynamicsEnsemble
from didi_gym.models.networks import ResidualMLP, one_hot_choice
from didi_gym.models.normalizer import Normalizer
from didi_gym.models.unet import TemporalUNet
from didi_gym.models.weights import MAX_NUMBERS, float32_by_default

_TORCH = torch.arctan2, torch.cos, torch.sin


class PolicyNetwork(nn.Module):
    """What learns: the weights of a `SkillPolicy`, with the statistics and bounds of the data they learn from.

    `forward` and `trajectory` speak normalised units in the trajectory's own frame; `emit` speaks environment units.
    """

    low: Tensor
    high: Tensor
    input_indices: Tensor
    range_low: Tensor
    range_high: Tensor

    @float32_by_default()
    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        layout = config.layout
        # a tensor, since indexing with a list copies it to the device and waits
        self.register_buffer("input_indices", torch.tensor(layout.policy_inputs, device="cpu"), persistent=False)
        self._joint = config.consistency == "joint"
        self._read = len(layout.policy_inputs)
        turns_skill = not config.skill_space.is_discrete
        self.frame = None if layout.heading is None else HeadingFrame(layout, turns_skill)
        skill_dim = config.skill_space.skill_dim
        read, state_dim = len(layout.policy_inputs) + skill_dim, layout.state_dim if self._joint else 0
        self.net: nn.Module
        if config.network == "unet":
            dim = config.action_dim + state_dim
            self.net = TemporalUNet(config.actions_per_plan, read, dim, skill_dim, config.unet)
        else:  # all actions, to be sliced off cheaply, then the states 1..H-1 where it is joint
            outputs = config.actions_per_plan * config.action_dim + (config.horizon - 1) * state_dim
            self.net = ResidualMLP(read, outputs, skill_dim, config.width, config.depth)
        self.normalizer = Normalizer(layout.state_dim)
        self.register_buffer("low", -torch.ones(config.action_dim))
        self.register_buffer("high", torch.ones(config.action_dim))
        if config.action_range is not None:
            for name, limit in zip(("range_low", "range_high"), config.action_range, strict=True):
                limits = torch.tensor(limit, dtype=torch.float32, device="cpu")
                self.register_buffer(name, limits, persistent=False)
        if (numbers := sum(tensor.numel() for tensor in self.state_dict().values())) > MAX_NUMBERS:
            raise ValueError(f"a policy may have {MAX_NUMBERS:,} weights, this would have {numbers:,}: lower its width")

    @property
    def skill_space(self) -> SkillSpace:
        return self.config.skill_space

    @property
    def device(self) -> torch.device:
        return self.low.device

    @property
    def action_low(self) -> np.ndarray:
        """Lower action bounds `(action_dim,)`, environment units."""
        return self.low.cpu().numpy()

    @property
    def action_high(self) -> np.ndarray:
        """Upper action bounds `(action_dim,)`, environment units."""
        return self.high.cpu().numpy()

    @property
    def action_range(self) -> tuple[Tensor, Tensor]:
        """The actions `(action_dim,)` that -1 and 1 stand for, environment units: the bounds where the configuration
        has no `action_range`."""
        return (self.low, self.high) if self.config.action_range is None else (self.range_low, self.range_high)

    def forward(
        self, inputs: Tensor, skills: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Emit trajectories for normalised policy inputs and skills in the trajectory's frame.

        Args:
            inputs: `(batch, len(policy_inputs))`.
            skills: `(batch, skill_dim)`.
            generator: Where given, discrete actions are drawn, for training; else they are the most likely ones.

        Returns:
            Actions `(batch, plan_length, action_dim)` in [-1, 1], discrete ones +1 where they are taken, else -1; in
            the joint form also states `(batch, horizon - 1, state_dim)` from the second on, as changes from the
            first; else None.
        """
        config = self.config
        output = self.net(torch.cat([inputs, skills], dim=-1), skills)
        if config.network == "unet":  # a step's action, then its state
            by_step = output.unflatten(1, (config.actions_per_plan, -1))
            actions, changes = by_step[..., : config.action_dim], by_step[:, 1:, config.action_dim :]
        else:
            emitted = config.actions_per_plan * config.action_dim
            actions = output[:, :emitted].unflatten(1, (config.actions_per_plan, -1))
            changes = output[:, emitted:].unflatten(1, (config.horizon - 1, -1)) if self._joint else None
        if config.discrete_actions:
            # of logits that are no numbers the largest would be some action nevertheless: the sum makes all of it NaN
            actions = one_hot_choice(actions, generator) + 0 * actions.detach().sum(-1, keepdim=True)
        else:
            actions = actions.tanh()
        return actions, changes if self._joint else None

    def trajectory(
        self,
        first: Tensor,
        skills: Tensor,
        dynamics: DynamicsEnsemble | None,
        replan_every: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Normalised states `(batch, horizon, state_dim)` and actions from first states `(batch, state_dim)`.

        The states follow from the actions through `dynamics`, with a new plan every `replan_every` steps (default: one
        plan for all), as the policy is executed; in the joint form they are the policy's own, in one plan. With a
        `generator` discrete actions are drawn, as in `forward`.
        """
        horizon = self.config.horizon
        if self._joint:
            actions, changes = self(first[:, self.input_indices], skills, generator)
            assert changes is not None
            return torch.cat([first[:, None], first[:, None] + changes], dim=1), actions
        if dynamics is None:
            raise ValueError("this policy emits actions only: its states need the dynamics model it was trained with")
        every = min(replan_every or horizon, self.config.actions_per_plan)
        states, actions = first[:, None], first.new_empty(len(first), 0, self.config.action_dim)
        while actions.shape[1] < horizon:
            here, turned = (first, skills) if actions.shape[1] == 0 else self._reframe(states[:, -1], skills)
            chunk = self(here[:, self.input_indices], turned, generator)[0][:, : min(every, horizon - actions.shape[1])]
            states = torch.cat([states, dynamics.rollout(states[:, -1], chunk)[:, 1:]], dim=1)
            actions = torch.cat([actions, chunk], dim=1)
        return states[:, :horizon], actions

    def _reframe(self, states: Tensor, skills: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised states and skills seen from the states' own frame."""
        if self.config.layout.heading is None:
            return states, skills  # relative positions are not read
        local, yaw = localize(self.normalizer.denormalize(states)[:, None], self.config.layout)
        turned = skills if self.config.skill_space.is_discrete else turn_skill(skills, -yaw)
        return self.normalizer.normalize(local[:, 0]), turned

    def emit(self, joined: Tensor, steps: int) -> Tensor:
        """What engines of torch run: from environment units to environment units, without waiting for the device.

        Args:
            joined: Policy inputs and skills side by side, `(n, len(policy_inputs) + skill_dim)`, on this device.

        Returns:
            The first actions, `(n, steps, action_dim)`.
        """
        inputs, skills, _ = self.localize(joined)
        inputs = (inputs - self.normalizer.center[self.input_indices]) / self.normalizer.scale[self.input_indices]
        return self.to_environment(self(inputs, skills)[0][:, :steps])

    def localize(self, joined: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Policy inputs and skills in the inputs' own frame, still in environment units, and the yaw of that frame."""
        yaw = None
        if self.frame is not None:
            joined = joined.clone()
            yaw = self.frame.enter(joined.T, _TORCH)
        return joined[:, : self._read], joined[:, self._read :], yaw

    def to_environment(self, actions: Tensor) -> Tensor:
        """Actions in [-1, 1] in environment units, inside the bounds."""
        low, high = self.action_range
        scaled = low + (actions + 1) / 2 * (high - low)
        return torch.minimum(torch.maximum(scaled, self.low), self.high)  # rounding must not leave the bounds
