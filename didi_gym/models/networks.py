"""Networks: a residual MLP with conditioning, the same in torch (training, large batches, GPU) and numpy (acting)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

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
    """A frozen, folded copy of a `ResidualMLP` for few rows on a CPU, where the overhead of each call dominates.

    Folding is exact algebra, done once in float64:

    * a norm's weight and bias, and the inputs' scale, are part of the linear map that reads them;
    * the residual stream is read through norms only, which remove its mean: what is written to it has mean zero
      already, and of a norm one number per row is left;
    * the biases and conditions of all blocks are one product;
    * silu(2y) = y + y tanh(y), which cannot overflow, with the 2 in the weights.

    It holds no buffers: threads may share it, and what it returns is nobody else's.

    Args:
        state: The `state_dict` of the `ResidualMLP`.
        depth: Its residual blocks.
        scale: What x is to be divided by, `(input_dim,)`; default: nothing.
    """

    def __init__(self, state: Mapping[str, Tensor], depth: int, scale: np.ndarray | None = None) -> None:
        w = {name: tensor.detach().cpu().double().numpy() for name, tensor in state.items()}
        inlet = w["inlet.weight"].T if scale is None else w["inlet.weight"].T / scale[:, None]
        self._inlet, self._inlet_bias = _float32(_without_mean(inlet)), _float32(_without_mean(w["inlet.bias"]))
        self._width = width = self._inlet.shape[1]
        conditions, biases = [], []
        self._blocks = []
        for i in range(depth):
            first, bias = _behind_norm(w, f"norms.{i}", f"firsts.{i}")
            conditions.append(w[f"conditions.{i}.weight"].T / 2)
            biases.append(bias / 2)
            second, second_bias = (_without_mean(w[f"seconds.{i}.{name}"].T) for name in ("weight", "bias"))
            part = slice(i * width, (i + 1) * width)
            self._blocks.append((_float32(first / 2), part, _float32(second), _float32(second_bias)))
        self._conditions, self._biases = _float32(np.concatenate(conditions, 1)), _float32(np.concatenate(biases))
        outlet, bias = _behind_norm(w, f"norms.{depth}", "outlet")
        self._outlets: dict[int | None, tuple[np.ndarray, np.ndarray]] = {None: (_float32(outlet), _float32(bias))}

    def __call__(self, x: np.ndarray, condition: np.ndarray, outputs: int | None = None) -> np.ndarray:
        """As `ResidualMLP.forward`, in float32.

        Args:
            x: `(input_dim,)`, or `(n, input_dim)`.
            condition: `(condition_dim,)`, or `(n, condition_dim)`.
            outputs: Only so many of the first numbers are computed; default: all.

        Returns:
            `(outputs,)`, or `(n, outputs)`.
        """
        h = np.dot(x, self._inlet)
        h += self._inlet_bias
        conditions = np.dot(condition, self._conditions)  # (..., depth * width)
        conditions += self._biases
        for first, part, second, bias in self._blocks:
            y = np.dot(h, first)
            y *= self._inverse_deviation(h)
            y += conditions[..., part]
            hidden = np.tanh(y)
            hidden *= y
            hidden += y
            h += np.dot(hidden, second)
            h += bias
        outlet, bias = self._outlets.get(outputs) or self._slice_outlet(outputs)
        output = np.dot(h, outlet)
        output *= self._inverse_deviation(h)
        output += bias
        return output

    def _inverse_deviation(self, h: np.ndarray) -> Any:
        """What LayerNorm multiplies rows of mean zero with: a float for one row, else `(n, 1)`."""
        if h.ndim == 1:
            return 1 / math.sqrt(float(np.dot(h, h)) / self._width + _NORM_EPSILON)
        return 1 / np.sqrt(np.einsum("ij,ij->i", h, h)[:, None] / self._width + np.float32(_NORM_EPSILON))

    def _slice_outlet(self, outputs: int | None) -> tuple[np.ndarray, np.ndarray]:
        weight, bias = self._outlets[None]
        self._outlets[outputs] = np.ascontiguousarray(weight[:, :outputs]), bias[:outputs]
        return self._outlets[outputs]


def _float32(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32)


def _without_mean(x: np.ndarray) -> np.ndarray:
    return x - x.mean(-1, keepdims=True)


def _behind_norm(w: Mapping[str, np.ndarray], norm: str, linear: str) -> tuple[np.ndarray, np.ndarray]:
    """Weight `(in, out)` and bias of the linear map that reads a norm's output, as a map of what the norm scales."""
    weight = w[f"{linear}.weight"].T
    return w[f"{norm}.weight"][:, None] * weight, w[f"{linear}.bias"] + w[f"{norm}.bias"] @ weight


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


def one_hot_choice(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A discrete action, normalised as in the data: +1 at one of the logits `(..., n)` and -1 elsewhere.

    Without a generator it is the largest. With one it is drawn from their softmax, for training: a policy that always
    takes the largest hardly learns what the others lead to. The gradient is that of the softmax (straight-through
    Gumbel-softmax at temperature 1: Jang et al. 2017, arXiv 1611.01144).
    """
    if generator is not None:
        waiting = torch.empty_like(logits).exponential_(generator=generator)
        logits = logits - waiting.clamp(min=torch.finfo(logits.dtype).tiny).log()  # plus Gumbel noise
    soft = logits.softmax(-1)
    hard = torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)  # F.one_hot waits for the device
    return 2 * (hard + (soft - soft.detach())) - 1  # the bracket is exactly zero


def time_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding `(batch, dim)` of diffusion steps `(batch,)` (Vaswani et al. 2017, section 3.5)."""
    half = dim // 2
    frequency = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-np.log(10_000.0) / half))
    angle = t.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
