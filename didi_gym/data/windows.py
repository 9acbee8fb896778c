"""What windows of signals look like: numbers by which rhythms and postures can be compared."""

from __future__ import annotations

import itertools

import numpy as np

MIN_WINDOW = 12
"""Steps below which a window is too short to show a rhythm."""
_LAGS = (1, 2, 4, 8)  # steps at which autocorrelation is taken
_BANDS = 7  # of the spectrum, logarithmic
_EDGE, _REACH = (
    0.01,
    10.0,
)  # share of a signal beyond either edge; half widths from there on which nothing but faults lie


def describe_windows(windows: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Mean, spread, autocorrelation, spectrum and correlations of signals.

    Args:
        windows: normalised signals `(n, window, signals)`.
        axes: directions in which correlations are taken, `(m, signals)`.

    Returns:
        float32 `(n, features)`.
    """
    length = windows.shape[1]
    edges = np.unique(np.round(np.geomspace(1, length // 2 + 1, _BANDS + 1)).astype(int))
    mean = windows.mean(1)
    centered = windows - mean[:, None]
    variance = np.square(centered).mean(1)
    lagged = [(centered[:, lag:] * centered[:, :-lag]).mean(1) / (variance + 1e-3) for lag in _LAGS]
    power = np.square(np.abs(np.fft.rfft(centered, axis=1))) / length
    bands = [np.log(power[:, a:b].mean(1) + 1e-2) for a, b in itertools.pairwise(edges)]
    together = _correlations(windows @ axes.T)
    return np.concatenate([mean, np.sqrt(variance), *lagged, *bands, together], axis=1).astype(np.float32)


def usual_rows(signals: np.ndarray) -> np.ndarray:
    """Which rows `(n,)` of signals `(n, m)` hold no number far outside of its signal's usual range: a single one would
    decide over a regression. A signal that hardly ever changes has no such range."""
    first, last = np.quantile(signals, [_EDGE, 1 - _EDGE], axis=0)
    reach = np.where(last - first > 1e-6, _REACH * (last - first) / 2, np.inf)
    return ((signals >= first - reach) & (signals <= last + reach)).all(1)


def _correlations(windows: np.ndarray) -> np.ndarray:
    """How signals move together, at once and two steps apart: what tells a turn to the left from one to the right.

    Args:
        windows: `(n, window, signals)`.
    """
    centered = windows - windows.mean(1, keepdims=True)
    scale = np.sqrt(np.square(centered).mean(1)) + 1e-2
    parts = []
    for lag in (0, 2):
        product = np.einsum("nti,ntj->nij", centered[:, lag:], centered[:, : centered.shape[1] - lag])
        correlation = product / centered.shape[1] / (scale[:, :, None] * scale[:, None, :])
        parts.append(correlation.reshape(len(windows), -1))
    return np.concatenate(parts, axis=1)


def principal_axes(rows: np.ndarray, components: int) -> np.ndarray:
    """Principal axes `(components, d)` of rows `(n, d)`, found on a sample."""
    return np.linalg.svd(rows[:: max(len(rows) // 8000, 1)], full_matrices=False)[2][:components]
