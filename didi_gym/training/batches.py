"""Batches: normalised windows of a data set on a device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from didi_gym.core.frames import localize
from didi_gym.data.dataset import TrajectoryDataset
from didi_gym.models.normalizer import Normalizer

_FIT_WINDOWS = 20_000  # windows from which statistics are fitted


class Batches:
    """Normalised windows of a data set on a device, drawn with a generator."""

    def __init__(self, dataset: TrajectoryDataset, normalizer: Normalizer, device: torch.device) -> None:
        self.dataset, self.device = dataset, device
        self.normalizer = normalizer.to(device)
        self.observations = torch.from_numpy(dataset.observations).to(device)
        self.actions = torch.from_numpy(dataset.actions).to(device)
        self.low = torch.as_tensor(dataset.action_low, device=device)
        self.half = torch.as_tensor((dataset.action_high - dataset.action_low) / 2, device=device).clamp(min=1e-6)
        self._windows: dict[int, tuple[int, Tensor, Tensor]] = {}  # by horizon

    def draw(self, n: int, horizon: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """States `(n, horizon, state_dim)` in the windows' own frames and actions `(n, horizon, action_dim)`."""
        if horizon not in self._windows:
            self._windows[horizon] = self._number_windows(horizon)
        count, ends, shifts = self._windows[horizon]
        indices = torch.randint(count, (n,), generator=generator, device=generator.device).to(self.device)
        return self.at(indices + shifts[torch.searchsorted(ends, indices, right=True)], horizon)

    def _number_windows(self, horizon: int) -> tuple[int, Tensor, Tensor]:
        """How many windows there are, and by episode: the number after its last, and from a number to the first step.

        It is `TrajectoryDataset.window_starts` as tables on the device, so that a draw costs the same for any data.
        """
        counts = np.maximum(self.dataset.lengths - horizon + 1, 0)
        ends = counts.cumsum()
        shifts = self.dataset.starts - (ends - counts)
        return int(counts.sum()), torch.from_numpy(ends).to(self.device), torch.from_numpy(shifts).to(self.device)

    def at(self, starts: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
        """The windows that begin at the steps `starts` `(n,)` of the data set, as `draw` gives them."""
        starts = starts.to(self.device)
        steps = starts[:, None] + torch.arange(horizon, device=self.device)
        states = localize(self.observations[steps], self.dataset.layout)[0]
        actions = (self.actions[steps] - self.low) / self.half - 1
        return self.normalizer.normalize(states), actions.clamp(-1, 1)


def fit_normalizer(dataset: TrajectoryDataset, horizon: int, seed: int = 0) -> Normalizer:
    """Fit the state normaliser to random windows of the data."""
    dataset.require_horizon(horizon)
    dataset.require_change()
    indices = np.random.default_rng(seed).integers(dataset.num_windows(horizon), size=_FIT_WINDOWS)
    return Normalizer.fit(dataset.windows(dataset.window_starts(indices, horizon), horizon)[0], dataset.layout)
