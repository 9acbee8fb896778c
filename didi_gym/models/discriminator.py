"""The skill discriminator q(z | trajectory), in two forms: by what changes, and by what a window looks like."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from didi_gym.core.frames import turn
from didi_gym.core.layout import Layout


class Discriminator(nn.Module):
    """Recognises a skill by how the layout's features change over a trajectory, seen through noise.

    Noise sets the resolution: differences too small to matter in the world do not count, so skills must differ visibly.

    Args:
        horizon: Steps of a trajectory.
        times: Instants, evenly spaced over the horizon, at which it looks.
        noise: On its input, in standard deviations of the data's features.
        width: Hidden units.
    """

    feature_scale: Tensor

    def __init__(
        self, layout: Layout, skill_dim: int, horizon: int, times: int = 4, noise: float = 0.25, width: int = 128
    ) -> None:
        super().__init__()
        self.layout, self.noise = layout, noise
        self.features = list(layout.features)
        self.times = _instants(horizon, times)[1:]
        self.register_buffer("feature_scale", torch.ones(len(self.times), len(self.features)))
        self.net = nn.Sequential(
            nn.Linear(self.feature_scale.numel(), width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, skill_dim),
        )

    def change(self, states: Tensor, angle: Tensor | None = None) -> Tensor:
        """How the features change, `(batch, times, features)`, in environment units.

        Args:
            states: `(batch, horizon, state_dim)`, environment units, in the trajectory's own frame.
            angle: Radians `(batch,)` by which the world is turned first (needs a heading).
        """
        seen = states[:, [0, *self.times]]
        if angle is not None:
            assert self.layout.heading is not None
            seen = turn(seen, angle[:, None], self.layout.heading)
        return seen[:, 1:, self.features] - seen[:, :1, self.features]

    @torch.no_grad()
    def fit_scale(self, states: Tensor) -> None:
        """Set the unit of each feature to its standard deviation over data states `(batch, horizon, state_dim)`."""
        scale = self.change(states).square().mean(0).sqrt()
        if self.layout.heading is not None:  # one unit for both coordinates, so that directions stay directions
            for pair in self.layout.heading.turning:
                if set(pair) <= set(self.features):
                    both = [self.features.index(i) for i in pair]
                    scale[:, both] = scale[:, both].square().mean(-1, keepdim=True).sqrt()
        self.feature_scale.copy_(torch.where(scale > 1e-6, scale, torch.ones_like(scale)))

    def forward(self, states: Tensor, angle: Tensor | None, generator: torch.Generator) -> Tensor:
        """Estimates of z (continuous) or logits (discrete), `(batch, skill_dim)`."""
        change = self.change(states, angle) / self.feature_scale
        noise = torch.randn(change.shape, generator=generator, device=change.device)
        return self.net((change + self.noise * noise).flatten(1))


class WindowClassifier(nn.Module):
    """q(z | window) of behaviours found in the data: it sees states and actions as they are, through noise.

    A gait is told by posture and rhythm, not by where it leads. It learns from the data alone, never from the policy's
    own trajectories, so a policy cannot teach it a code of its own.

    Args:
        horizon, times, noise, width: As of `Discriminator`; it also looks at the first instant.
    """

    inputs: Tensor
    center: Tensor
    scale: Tensor

    def __init__(
        self,
        layout: Layout,
        action_dim: int,
        skill_dim: int,
        horizon: int,
        times: int = 4,
        noise: float = 0.25,
        width: int = 128,
    ) -> None:
        super().__init__()
        self.times, self.noise = _instants(horizon, times), noise
        self.register_buffer("inputs", torch.tensor(layout.policy_inputs, device="cpu"), persistent=False)
        seen = len(layout.policy_inputs) + action_dim
        self.register_buffer("center", torch.zeros(seen))
        self.register_buffer("scale", torch.ones(seen))
        self.net = nn.Sequential(
            nn.Linear(len(self.times) * seen, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, skill_dim),
        )

    @torch.no_grad()
    def fit_scale(self, states: Tensor, actions: Tensor) -> None:
        """Set the unit of each number to its standard deviation over data windows, normalised as in `forward`."""
        seen = torch.cat([states[..., self.inputs], actions], dim=-1).flatten(0, 1)
        self.center.copy_(seen.mean(0))
        self.scale.copy_(seen.std(0).clamp(min=1e-3))

    def forward(self, states: Tensor, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Logits `(batch, skills)` from normalised states `(batch, horizon, state_dim)` and actions of them."""
        seen = torch.cat([states[:, self.times][..., self.inputs], actions[:, self.times]], dim=-1)
        seen = (seen - self.center) / self.scale
        noise = torch.randn(seen.shape, generator=generator, device=seen.device)
        return self.net((seen + self.noise * noise).flatten(1))


def _instants(horizon: int, times: int) -> list[int]:
    """The first step of a trajectory and `times` further ones, evenly spaced up to the last."""
    if not 1 <= times < horizon:
        raise ValueError(f"feature_times must be in 1..{horizon - 1}, one less than the horizon, got {times}")
    return torch.linspace(0, horizon - 1, times + 1, device="cpu").round().long().tolist()
