"""The temporal U-Net of Diffuser (Janner et al. 2022, arXiv 2205.09991), which DIDI's released code trains.

Residual blocks of 1-D convolutions over the horizon, halved and doubled between levels, with the condition added in
each block. Here the condition is any vector (a diffusion step and a first state, or a skill) and any horizon will do.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from didi_gym.models.config import UNetConfig

_KERNEL, _GROUPS = 5, 8  # of every convolution in a block and of its norm, as released


class TemporalUNet(nn.Module):
    """Maps a trajectory and a condition to a trajectory, both flattened step by step.

    Args:
        steps: Length of the trajectory, any number from 1.
        input_dim, output_dim: Numbers per step of the input and of the output.
        condition_dim: Size of the condition.
        config: Channels of the levels.
    """

    def __init__(self, steps: int, input_dim: int, output_dim: int, condition_dim: int, config: UNetConfig) -> None:
        super().__init__()
        base, widths = config.channels, [config.channels * multiplier for multiplier in config.multipliers]
        self.steps, self.input_dim = steps, input_dim
        self._padded = -(-steps // 2 ** (len(widths) - 1)) * 2 ** (len(widths) - 1)  # halves evenly at every level
        self.embed = nn.Sequential(nn.Linear(condition_dim, 4 * base), nn.Mish(), nn.Linear(4 * base, base), nn.Mish())
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        self.halvings, self.doublings = nn.ModuleList(), nn.ModuleList()
        for dim, width in itertools.pairwise([input_dim, *widths]):
            self.downs.append(_Blocks(dim, width, base))
        for width in widths[:-1]:
            self.halvings.append(nn.Conv1d(width, width, 3, stride=2, padding=1))
        self.middle = _Blocks(widths[-1], widths[-1], base)
        for width, narrower in itertools.pairwise(widths[::-1]):
            self.ups.append(_Blocks(2 * width, narrower, base))
            self.doublings.append(nn.ConvTranspose1d(narrower, narrower, 4, stride=2, padding=1))
        self.last = _convolution(widths[0], widths[0])
        self.outlet = nn.Conv1d(widths[0], output_dim, 1)
        with torch.no_grad():  # starts near zero, as the residual MLP does
            self.outlet.weight.mul_(0.1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`(batch, given * input_dim)` and `(batch, condition_dim)` to `(batch, steps * output_dim)`.

        Steps that are not given, the last ones, are zero: a policy is given the first only.
        """
        h = F.pad(x, (0, self._padded * self.input_dim - x.shape[1]))
        h = h.unflatten(1, (self._padded, self.input_dim)).transpose(1, 2)  # (batch, input_dim, padded steps)
        embedded, skips = self.embed(condition), []
        for i, blocks in enumerate(self.downs):
            h = blocks(h, embedded)
            if i < len(self.halvings):
                skips.append(h)
                h = self.halvings[i](h)
        skips.append(h)
        h = self.middle(h, embedded)
        for blocks, double in zip(self.ups, self.doublings, strict=True):
            h = double(blocks(torch.cat([h, skips.pop()], dim=1), embedded))
        h = self.outlet(self.last(h))  # the finest level is joined to no skip connection, as released
        return h[:, :, : self.steps].transpose(1, 2).flatten(1)


class _Blocks(nn.Module):
    """The two residual blocks of a level."""

    def __init__(self, input_dim: int, width: int, condition_dim: int) -> None:
        super().__init__()
        self.first = _ResidualBlock(input_dim, width, condition_dim)
        self.second = _ResidualBlock(width, width, condition_dim)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        return self.second(self.first(x, embedded), embedded)


class _ResidualBlock(nn.Module):
    """Two convolutions, with the condition between them, beside a shortcut."""

    def __init__(self, input_dim: int, width: int, condition_dim: int) -> None:
        super().__init__()
        self.first, self.second = _convolution(input_dim, width), _convolution(width, width)
        self.condition = nn.Linear(condition_dim, width)
        self.shortcut = nn.Conv1d(input_dim, width, 1) if input_dim != width else nn.Identity()

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        """`(batch, input_dim, steps)` to `(batch, width, steps)`."""
        return self.second(self.first(x) + self.condition(embedded)[:, :, None]) + self.shortcut(x)


def _convolution(input_dim: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(input_dim, width, _KERNEL, padding=_KERNEL // 2),
        nn.GroupNorm(math.gcd(_GROUPS, width), width),
        nn.Mish(),
    )
