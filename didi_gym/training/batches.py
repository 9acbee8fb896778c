"""Batches: normalised windows of a data set on a device."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from didi_gym.core.frames import localize
from didi_gym.data.dataset import TrajectoryDataset
from didi_gym.models.normalizer import Normalizer

_FIT_WINDOWS = 20_000  # windows from which statistics are fitted
_SPIKE = 10.0  # normalised units from the centre beyond which no state lies but by a fault: it is brought back to there
_CHUNK = 50_000  # rows that are looked at together
_NAMED = 5  # rows that a warning names


class Batches:
    """Normalised windows of a data set on a device, drawn with a generator."""

    def __init__(self, dataset: TrajectoryDataset, normalizer: Normalizer, device: torch.device) -> None:
        self.dataset, self.device = dataset, device
        self.normalizer = normalizer.to(device)
        self.observations = torch.from_numpy(dataset.observations).to(device)
        self.actions = torch.from_numpy(dataset.actions).to(device)
        low, high = dataset.action_limits
        self.low = torch.as_tensor(low, device=device)
        self.half = torch.as_tensor((high - low) / 2, device=device).clamp(min=1e-6)
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
        return self.normalizer.normalize(states).clamp(-_SPIKE, _SPIKE), actions.clamp(-1, 1)


def fit_normalizer(dataset: TrajectoryDataset, horizon: int, seed: int = 0) -> Normalizer:
    """Fit the state normaliser to random windows of the data, and warn of what lies far outside of their range."""
    dataset.require_horizon(horizon)
    dataset.require_change()
    indices = np.random.default_rng(seed).integers(dataset.num_windows(horizon), size=_FIT_WINDOWS)
    normalizer = Normalizer.fit(dataset.windows(dataset.window_starts(indices, horizon), horizon)[0], dataset.layout)
    _warn_of_spikes(dataset, normalizer)
    return normalizer


def _warn_of_spikes(dataset: TrajectoryDataset, normalizer: Normalizer) -> None:
    """Say which columns have rows that `Batches` brings back into range: usually faults of a sensor or a simulator."""
    layout, rows = dataset.layout, _rows_of(dataset)
    center, scale = normalizer.center.cpu().numpy(), normalizer.scale.cpu().numpy()
    relative, begins = list(layout.relative), np.isin(rows, dataset.starts)
    far = np.empty((len(rows), layout.state_dim), bool)
    for first in range(0, len(rows), _CHUNK):
        part = rows[first : first + _CHUNK]
        local = localize(dataset.observations[part, None], layout)[0][:, 0]
        # what is relative to a window's first state is far out, in some window, where it jumps between two steps
        jumps = dataset.observations[part][:, relative] - dataset.observations[part - 1][:, relative]
        local[:, relative] = np.where(begins[first : first + _CHUNK, None], center[relative], jumps)
        far[first : first + _CHUNK] = np.abs(local - center) > _SPIKE * scale
    for column in np.flatnonzero(far.any(0)):
        found = rows[far[:, column]]
        named = ", ".join(map(str, found[:_NAMED])) + (", ..." if len(found) > _NAMED else "")
        warnings.warn(
            f"observations[:, {column}]: {len(found)} of {len(rows)} rows lie or jump more than {_SPIKE:g} times as "
            f"far as others ({scale[column]:.3g} from {center[column]:.3g}): rows {named}, the first with "
            f"{dataset.observations[found[0], column]:.6g}; in training they count as {_SPIKE:g} times as far. Remove "
            "or repair these rows if they are faults of the recording",
            UserWarning,
            stacklevel=4,
        )


def _rows_of(dataset: TrajectoryDataset) -> np.ndarray:
    """The rows of the arrays that are part of the data set's episodes, in order."""
    before = np.cumsum(dataset.lengths) - dataset.lengths
    return np.arange(dataset.lengths.sum()) + np.repeat(dataset.starts - before, dataset.lengths)
