"""A learned one-step model ensemble. It makes the policy's trajectories consistent in training; acting needs none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from didi_gym.core.files import SafeFileError, in_short
from didi_gym.core.layout import Layout
from didi_gym.models.config import MAX_WIDTH, PolicyConfig
from didi_gym.models.networks import EnsembleMLP
from didi_gym.models.weights import load_network, read_training


class DynamicsEnsemble(nn.Module):
    """s_{t+1} = s_t + delta_scale * f_i(s_t, a_t) for members i, in normalised units.

    Relative state dimensions (positions) are predicted but never read.

    Args:
        members: Models in the ensemble.
        width: Hidden units of each.
    """

    delta_scale: Tensor
    readable: Tensor

    def __init__(self, layout: Layout, action_dim: int, members: int = 3, width: int = 256) -> None:
        super().__init__()
        self.members = members
        readable = sorted(set(range(layout.state_dim)) - set(layout.relative))
        self.net = EnsembleMLP(members, len(readable) + action_dim, layout.state_dim, width)
        self.register_buffer("delta_scale", torch.ones(layout.state_dim))
        self.register_buffer("readable", torch.tensor(readable, device="cpu"), persistent=False)

    @classmethod
    def from_training(cls, path: Path, config: PolicyConfig) -> DynamicsEnsemble | None:
        """The dynamics model in a `training.safetensors`; None where it holds none.

        Raises:
            SafeFileError: damaged, or of another shape than the policy's.
        """
        file = read_training(path)
        record = file.info
        parts, settings = (record.get(key) if isinstance(record, dict) else None for key in ("parts", "config"))
        if not isinstance(parts, list) or not isinstance(settings, dict):
            raise SafeFileError(f"{path}: its header does not say what it holds")
        if "dynamics" not in parts:
            return None
        sizes: Any = settings.get("dynamics")
        numbers: list[Any] = [sizes.get(name) if isinstance(sizes, dict) else None for name in ("members", "width")]
        if not all(type(number) is int and 1 <= number <= MAX_WIDTH for number in numbers):
            raise SafeFileError(
                f"{path}: dynamics: expected members and width in [1, {MAX_WIDTH}], got {in_short(str(sizes))}"
            )
        model = load_network(lambda: cls(config.layout, config.action_dim, *numbers), file, "dynamics.")
        return model.eval().requires_grad_(False)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """Next states `(members, batch, state_dim)` from states and actions of the same leading shape."""
        return state + self.delta_scale * self.net(torch.cat([state[..., self.readable], action], dim=-1))

    def rollout(self, first: Tensor, actions: Tensor) -> Tensor:
        """Differentiable rollouts; row i of the batch goes through member i modulo `members`.

        Args:
            first: First states `(batch, state_dim)`.
            actions: `(batch, steps, action_dim)`.

        Returns:
            States `(batch, steps + 1, state_dim)`, the first of them `first`.
        """
        batch, steps, _ = actions.shape
        surplus = -batch % self.members
        rows = torch.arange(batch + surplus, device=first.device) % batch
        state = self._by_member(first[rows])
        action = self._by_member(actions[rows])  # (members, batch / members, steps, action_dim)
        states = [state]
        for step in range(steps):
            states.append(self(states[-1], action[:, :, step]))
        stacked = torch.stack(states, dim=2)  # (members, batch / members, steps + 1, state_dim)
        return stacked.transpose(0, 1).reshape(-1, *stacked.shape[2:])[:batch]

    def _by_member(self, x: Tensor) -> Tensor:
        return x.view(-1, self.members, *x.shape[1:]).transpose(0, 1)
