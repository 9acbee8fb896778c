"""Per-dimension normalisation, kept as buffers so that a policy folder holds all it needs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from didi_gym.core.frames import localize
from didi_gym.core.layout import Layout

_TAIL = 0.0005  # share of samples beyond each limit: one outlier must not squeeze the rest
_EDGE = 0.01  # share of samples beyond either edge of what is certain to be no outlier
_REACH = 10.0  # half widths between the edges and a limit from which on the limit itself is an outlier
_CONSTANT = 1e-6  # a dimension that moves less than this is constant and is only centred


class Normalizer(nn.Module):
    """Affine map of environment units to about [-1, 1], per dimension."""

    center: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    @classmethod
    def from_limits(cls, low: np.ndarray, high: np.ndarray) -> Normalizer:
        """Map `[low, high]` to [-1, 1]; dimensions with `low == high` keep their unit."""
        normalizer = cls(len(low))
        half = (np.asarray(high, np.float64) - np.asarray(low, np.float64)) / 2
        normalizer.center.copy_(torch.as_tensor(low + half, dtype=torch.float32))
        normalizer.scale.copy_(torch.as_tensor(np.where(half > _CONSTANT, half, 1.0), dtype=torch.float32))
        return normalizer

    @classmethod
    def fit(cls, windows: np.ndarray, layout: Layout) -> Normalizer:
        """Fit to state windows `(n, horizon, state_dim)` in environment units.

        Vectors that turn with a heading keep their direction: one scale for both coordinates, and centre zero.
        Differences from the first state are centred at zero too.
        """
        states = localize(np.asarray(windows, np.float32), layout)[0].reshape(-1, layout.state_dim)
        low, first, last, high = np.quantile(states, [_TAIL, _EDGE, 1 - _EDGE, 1 - _TAIL], axis=0)
        reach = _REACH * (last - first) / 2
        moves = reach > _REACH * _CONSTANT  # else what is rare is all that happens there
        low, high = (
            np.where(moves & (low < first - reach), first, low),
            np.where(moves & (high > last + reach), last, high),
        )
        pairs = () if layout.heading is None else layout.heading.vectors
        for group in (*((i,) for i in layout.relative), *pairs):
            limit = max(np.abs(low[list(group)]).max(), np.abs(high[list(group)]).max())
            low[list(group)], high[list(group)] = -limit, limit
        return cls.from_limits(low, high)

    def normalize(self, x: Tensor) -> Tensor:
        return (x - self.center) / self.scale

    def denormalize(self, x: Tensor) -> Tensor:
        return x * self.scale + self.center
