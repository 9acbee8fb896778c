"""Measures of what rollouts do; `docs/metrics.md` explains each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

_FLAT = 1e-4  # a column that varies by less than this share of the others tells nothing but rounding
_FARTHEST = 5.0  # standard deviations at which a probe's inputs are cut off
_DOUBT = 1e-3  # share of a classifier's answer that goes to all skills alike: no surprise costs more than this allows
_DRAWS = 1000  # of the bootstrap


class Information(NamedTuple):
    """What rollouts tell about the skill that made them."""

    bits: float
    """At least 0."""
    low: float
    high: float
    """The middle 95 % of `bits` over start states drawn anew (percentile bootstrap)."""
    accuracy: float
    """Of the classifier."""


def skill_spread(changes: np.ndarray) -> float:
    """Standard deviation over skills (axis 1) of changes `(starts, skills, features)`, mean over starts."""
    return float(np.sqrt(changes.var(axis=1).mean(-1)).mean())


def _fit(
    x: np.ndarray, outputs: int, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], y: torch.Tensor, seed: int
) -> Callable[[np.ndarray], torch.Tensor]:
    """A fresh two-layer network, fitted with early stopping on the last fifth of the rows `(n, inputs)`.

    Inputs are standardised. A rare value, such as a contact that the other half of the starts had once, would lie
    thousands of deviations out, where a network extrapolates to anything: it is cut off, and columns that did not vary
    when the network was fitted are left out.
    """
    center, spread = x.mean(0), x.std(0)
    spread = np.where(spread > _FLAT * np.median(spread), spread, np.inf)

    def standardised(rows: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(((rows - center) / spread).clip(-_FARTHEST, _FARTHEST).astype(np.float32))

    data = standardised(x)
    cut = len(data) * 4 // 5
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = nn.Sequential(nn.Linear(x.shape[1], 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, outputs))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    best, best_weights = math.inf, net.state_dict()
    for _ in range(400):
        optimizer.zero_grad()
        loss(net(data[:cut]), y[:cut]).backward()
        optimizer.step()
        with torch.no_grad():
            value = float(loss(net(data[cut:]), y[cut:]))
        if value < best:
            best, best_weights = value, {k: v.clone() for k, v in net.state_dict().items()}
    net.load_state_dict(best_weights)
    return lambda rows: net(standardised(rows)).detach()


def _halves(x: np.ndarray, y: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Rows of the first and of the second half of the starts: a probe is judged on starts it never saw."""
    half = len(x) // 2
    first, second = (x[:half], y[:half]), (x[half:], y[half:])
    return tuple((a.reshape(-1, a.shape[-1]), b.reshape(len(a) * a.shape[1], -1)) for a, b in (first, second))  # type: ignore[return-value]


def skill_probe(signatures: np.ndarray, skills: np.ndarray, seed: int) -> float:
    """R^2 of z from rollouts, two-fold over starts."""
    errors, totals = 0.0, 0.0
    halves = _halves(signatures, skills)
    for (x, y), (x_test, y_test) in (halves, halves[::-1]):
        predict = _fit(x, y.shape[1], F.mse_loss, torch.as_tensor(y), seed)
        errors += float(np.square(predict(x_test).numpy() - y_test).sum())
        totals += float(np.square(y_test - y_test.mean(0)).sum())
    return 1 - errors / totals


def mutual_information(signatures: np.ndarray, skills: int, seed: int) -> Information:
    """Lower bound of the information about the skill, from a fresh classifier, two-fold over starts."""
    labels = np.tile(np.arange(skills), (len(signatures), 1))[..., None]
    surprise, correct = [], 0
    halves = _halves(signatures, labels)
    for (x, y), (x_test, y_test) in (halves, halves[::-1]):
        predict = _fit(x, skills, F.cross_entropy, torch.as_tensor(y[:, 0]), seed)
        logits, truth = predict(x_test), torch.as_tensor(y_test[:, 0])
        chance = (1 - _DOUBT) * logits.softmax(-1).gather(1, truth[:, None])[:, 0] + _DOUBT / skills
        surprise.append(-chance.log2().reshape(-1, skills).mean(1).numpy())  # of each start
        correct += int((logits.argmax(-1) == truth).sum())
    each = math.log2(skills) - np.concatenate(surprise[::-1]).astype(np.float64)  # bits of each start
    drawn = each[np.random.default_rng(seed).integers(len(each), size=(_DRAWS, len(each)))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975]).clip(0)
    return Information(max(0.0, float(each.mean())), float(low), float(high), correct / (len(each) * skills))


def direction_error(skills: np.ndarray, changes: np.ndarray) -> float:
    """Worst angle in degrees between mean directions and even spacing, after the best turn (and mirror image).

    Args:
        skills: Directions on a circle `(n, 2)`.
        changes: `(episodes, n, 2)`.
    """
    if skills.shape[-1] != 2 or changes.shape[-1] != 2:
        return math.nan
    mean = changes.mean(0)
    direction = np.arctan2(mean[:, 1], mean[:, 0])
    angle = np.arctan2(skills[:, 1], skills[:, 0])
    worst = []
    for mirror in (1, -1):
        offset = np.angle(np.exp(1j * (direction - mirror * angle)).mean())
        worst.append(np.abs(np.angle(np.exp(1j * (direction - mirror * angle - offset)))).max())
    return float(np.degrees(min(worst)))


def nearest_distance(x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.cdist(part, reference).amin(1) for part in x.split(256)])


def vendi_score(features: np.ndarray, scale: float) -> float:
    """Effective number of different rows, between 1 (all the same) and n (all far apart).

    The exponential of the entropy of the eigenvalues of K / n, with K_ij = exp(-|x_i - x_j|^2 / (2 scale^2)).
    Source: Friedman & Dieng 2023, arXiv 2210.02410.

    Args:
        features: `(n, d)`.
        scale: Distance that counts as different, in the units of `features`. Scores of different scales do not compare,
            so it is taken from the data: the median distance between its windows.
    """
    if not scale > 0:
        raise ValueError(f"the scale of a Vendi score is a positive distance, got {scale}")
    rows = np.asarray(features, np.float64)
    distances = np.linalg.norm(rows[:, None] - rows, axis=-1)  # (n, n)
    values = np.linalg.eigvalsh(np.exp(-np.square(distances / scale) / 2) / len(rows))
    values = values[values > 0]  # rounding leaves some below zero, and the score up to 1e-14 outside its range
    return float(np.exp(-(values * np.log(values)).sum()).clip(1, len(rows)))


def coverage(points: np.ndarray, data: np.ndarray, cells: int) -> float:
    """Share of the grid cells holding data that points visit.

    The count of visited cells of METRA (arXiv 2310.08887), as a share of the data's. What lies outside the box, of data
    or points, counts for nothing. In more than two dimensions nearly every point would have a cell of its own, so there
    both are seen in the plane of the data's first two principal axes.

    Args:
        points: `(n, d)`.
        data: `(m, d)`, the same units; its 1st to 99th percentile on each axis is the box.
        cells: Cells of the regular grid along each axis.
    """
    if data.shape[1] > 2:
        plane = np.linalg.eigh(np.cov(data.astype(np.float64), rowvar=False))[1][:, -2:]
        points, data = points @ plane, data @ plane
    low, high = np.percentile(data.astype(np.float64), [1, 99], axis=0, method="inverted_cdf")
    width = np.where(high > low, high - low, 1)

    def visited(rows: np.ndarray) -> set[tuple[int, ...]]:
        inside = rows[((rows >= low) & (rows <= high)).all(axis=1)].astype(np.float64)
        places = np.minimum((inside - low) / width * cells, cells - 1).astype(int)  # the upper edge: in the last cell
        return set(map(tuple, np.unique(places, axis=0).tolist()))

    occupied = visited(data)
    return len(visited(points) & occupied) / len(occupied)


def smoothness(actions: Sequence[np.ndarray], half_range: np.ndarray) -> float:
    """Mean squared change between consecutive actions: 0 is constant, 4 jumps from bound to bound at every step.

    Args:
        actions: Of each rollout `(steps, action_dim)`; NaN where none has two steps.
        half_range: Half the distance between the bounds `(action_dim,)`, the unit of the change.
    """
    changes = np.concatenate([np.diff(a, axis=0) for a in actions]) / half_range
    return float(np.square(changes).mean()) if len(changes) else math.nan
