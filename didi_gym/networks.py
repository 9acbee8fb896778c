"""Networks: a residual MLP with conditioning, the same in torch (training, large batches, GPU) and numpy (acting)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

_NORM_EPSILON = 1e-5


class ResidualMLP(nn.Module):
    """`depth` pre-norm residual blocks; the condition is added inside each.

    Args:
        input_dim, output_dim, condition_dim: Sizes of x, of the output and of the condition.
        width: Hidden units.
        depth: Residual blocks.
    """

    def __init__(self, input_dim: int, output_dim: int, condition_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.inlet = nn.Linear(input_dim, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=_NORM_EPSILON) for _ in range(depth + 1))
        self.firsts = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.conditions = nn.ModuleList(nn.Linear(condition_dim, width, bias=False) for _ in range(depth))
        self.seconds = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.outlet = nn.Linear(width, output_dim)
        with torch.no_grad():  # starts near zero: an untrained policy rests in the middle of its range
            self.outlet.weight.mul_(0.1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`(..., input_dim)` and `(..., condition_dim)` to `(..., output_dim)`."""
        h = self.inlet(x)
        for i in range(self.depth):
            hidden = self.firsts[i](self.norms[i](h)) + self.conditions[i](condition)
            h = h + self.seconds[i](F.silu(hidden))
        return self.outlet(self.norms[self.depth](h))


class NumpyResidualMLP:
    """A frozen copy of a `ResidualMLP` for small batches on a CPU, where torch's overhead per call dominates."""

    def __init__(self, state: Mapping[str, Tensor], depth: int) -> None:
        weights = {name: tensor.detach().cpu().float().numpy() for name, tensor in state.items()}
        self._depth = depth
        self._w = {name: np.ascontiguousarray(w.T) if w.ndim == 2 else w for name, w in weights.items()}

    def __call__(self, x: np.ndarray, condition: np.ndarray, outputs: int | None = None) -> np.ndarray:
        """As `ResidualMLP.forward`, float32; only the first `outputs` numbers are computed where given."""
        w = self._w
        h = x @ w["inlet.weight"] + w["inlet.bias"]
        for i in range(self._depth):
            hidden = self._norm(h, i) @ w[f"firsts.{i}.weight"] + w[f"firsts.{i}.bias"]
            hidden += condition @ w[f"conditions.{i}.weight"]
            hidden /= 1 + np.exp(-np.maximum(hidden, -80))  # SiLU; exp of more would overflow float32
            h = h + hidden @ w[f"seconds.{i}.weight"] + w[f"seconds.{i}.bias"]
        return self._norm(h, self._depth) @ w["outlet.weight"][:, :outputs] + w["outlet.bias"][:outputs]

    def _norm(self, h: np.ndarray, i: int) -> np.ndarray:
        centered = h - h.mean(-1, keepdims=True)
        variance = np.square(centered).mean(-1, keepdims=True)
        return centered / np.sqrt(variance + _NORM_EPSILON) * self._w[f"norms.{i}.weight"] + self._w[f"norms.{i}.bias"]


class EnsembleMLP(nn.Module):
    """`members` independent two-hidden-layer MLPs evaluated in one batched product."""

    def __init__(self, members: int, input_dim: int, output_dim: int, width: int) -> None:
        super().__init__()
        sizes = [input_dim, width, width, output_dim]
        self.weights = nn.ParameterList(torch.randn(members, m, n) / np.sqrt(m) for m, n in itertools.pairwise(sizes))
        self.biases = nn.ParameterList(torch.zeros(members, 1, n) for n in sizes[1:])
        with torch.no_grad():
            self.weights[-1].mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """`(members, batch, input_dim)` to `(members, batch, output_dim)`."""
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if i < len(self.weights) - 1:
                x = F.silu(F.layer_norm(x, x.shape[-1:]))
        return x


def time_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding `(batch, dim)` of diffusion steps `(batch,)` (Vaswani et al. 2017, section 3.5)."""
    half = dim // 2
    frequency = torch.exp(torch.arange(half, device=t.device) * (-np.log(10_000.0) / half))
    angle = t.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
