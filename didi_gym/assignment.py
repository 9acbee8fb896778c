"""Finding behaviours in data without labels: windows are assigned to skills, and every step to one.

Behaviours differ in rhythm as much as in posture. So a window of observations and actions is described by mean, spread,
autocorrelation, spectrum and correlations, and the descriptions are clustered into more groups than behaviours are
expected. A mixture of policies then refines the borders: a step belongs to the skill whose policy acts as the data did
there. What is too rare to be a behaviour of its own (a start, a fall) goes with what follows it, and a behaviour that
was cut into two becomes one again.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from didi_gym.config import MIN_WINDOW, AnchorConfig
from didi_gym.data import DatasetError, TrajectoryDataset

_LAGS = (1, 2, 4, 8)  # steps at which autocorrelation is taken
_SIGNALS = 10  # principal signals whose correlations are taken
_BANDS = 7  # of the spectrum, logarithmic
_RESTARTS, _ITERATIONS = 8, 60  # of k-means
_TAKING_TURNS = 0.4  # share of the switches from each of two skills that lead to the other


@dataclass(frozen=True)
class Assignment:
    """A skill for every step of a data set."""

    labels: np.ndarray
    """Skill of each step, int64 `(steps,)`, aligned with the data set's arrays; -1 outside its episodes, and in those
    too short to tell."""
    skills: int
    """Skills in use, numbered from 0."""

    @cached_property
    def by_skill(self) -> tuple[Tensor, Tensor, Tensor]:
        """The steps in the order of their skills, and where each skill's begin there and how many they are."""
        labels = torch.from_numpy(self.labels)
        counts = torch.bincount(labels[labels >= 0], minlength=self.skills)
        return torch.argsort(labels, stable=True), (labels < 0).sum() + counts.cumsum(0) - counts, counts

    def shares(self) -> np.ndarray:
        """Share of the steps that each skill has, `(skills,)`."""
        counts = np.bincount(self.labels[self.labels >= 0], minlength=self.skills)
        return counts / counts.sum()


def assign_windows(dataset: TrajectoryDataset, skills: int, config: AnchorConfig, seed: int = 0) -> Assignment:
    """Cluster the windows of a data set, and give each step the cluster of most windows that hold it.

    Args:
        skills: Clusters: about one and a half times the behaviours that are expected.
    """
    config = _fitting(dataset, config)
    starts = _window_starts(dataset, config)
    features = _describe(dataset, starts, config)
    clusters = _k_means(_principal(features, config.components), skills, seed)
    votes = np.zeros((len(dataset.observations), skills), np.int32)
    for start, cluster in zip(starts, clusters, strict=True):
        votes[start : start + config.window, cluster] += 1
    labels = np.where(votes.any(1), votes.argmax(1), -1)  # none in episodes shorter than a window
    return _numbered(_merge_rare(dataset, labels, skills, config))


def separation(dataset: TrajectoryDataset, config: AnchorConfig | None = None, clusters: int = 12) -> float:
    """How clearly windows fall into groups: the median simplified silhouette 1 - a / b (Hruschka et al. 2004).

    a is a window's distance to its cluster's centre, b that to the next one's. Mixtures of gaits have 0.66 to 0.72,
    directions and goals, which vary continuously, 0.17 to 0.29; above 0.5 discrete skills suit.

    Raises:
        DatasetError: no episode is as long as a window.
    """
    config = _fitting(dataset, config or AnchorConfig())
    starts = _window_starts(dataset, config)
    points = _principal(_describe(dataset, starts[:: max(len(starts) // 6000, 1)], config), config.components)
    labels = _k_means(points, min(clusters, len(points)), seed=0)
    centers = np.stack([points[labels == cluster].mean(0) for cluster in np.unique(labels)])
    nearest = np.sort(torch.cdist(torch.as_tensor(points), torch.as_tensor(centers)).numpy(), axis=1)
    return float(np.median(1 - nearest[:, 0] / np.maximum(nearest[:, 1], 1e-9)))


def refine(dataset: TrajectoryDataset, errors: np.ndarray, config: AnchorConfig) -> Assignment:
    """Assign every step to the skill whose policy acts most like the data there, with switches made unlikely.

    A behaviour that was cut into two skills becomes one again: they take turns, and act nearly alike.

    Args:
        errors: Squared error of each skill's action at each step, `(steps, skills)`.
    """
    skills = errors.shape[1]
    unit = 2 * np.median(errors.min(1))  # twice the variance of what no policy explains: a negative log likelihood
    labels = np.full(len(errors), -1, np.int64)
    for first, length in zip(dataset.starts, dataset.lengths, strict=True):
        own = errors[first : first + length] / max(unit, 1e-9)
        kernel = np.ones(min(config.smoothing, length)) / min(config.smoothing, length)
        smooth = np.stack([np.convolve(column, kernel, "same") for column in own.T], axis=1)
        labels[first : first + length] = _viterbi(smooth, config.stay)
    return _numbered(_merge_twins(dataset, _merge_rare(dataset, labels, skills, config), errors, config))


def _fitting(dataset: TrajectoryDataset, config: AnchorConfig) -> AnchorConfig:
    """The settings, with a shorter window where half of the episodes are shorter than that."""
    median = int(np.median(dataset.lengths))
    if median < MIN_WINDOW:
        raise DatasetError(
            f"behaviours are told apart by windows of at least {MIN_WINDOW} steps, but half of the episodes have at "
            f"most {median}; record longer episodes, or learn discrete skills without an anchor (anchor.steps=0)"
        )
    return replace(config, window=min(config.window, median))


def _window_starts(dataset: TrajectoryDataset, config: AnchorConfig) -> np.ndarray:
    """First steps of overlapping windows that lie within one episode."""
    parts = [
        np.arange(first, first + length - config.window + 1, config.stride)
        for first, length in zip(dataset.starts, dataset.lengths, strict=True)
    ]
    return np.concatenate(parts)


def _describe(dataset: TrajectoryDataset, starts: np.ndarray, config: AnchorConfig) -> np.ndarray:
    """Descriptions of a data set's windows `(n, features)`, each feature with mean 0 and variance 1."""
    signals = np.concatenate([dataset.observations[:, list(dataset.layout.policy_inputs)], dataset.actions], axis=1)
    signals = (signals - signals.mean(0)) / np.maximum(signals.std(0), 1e-6)
    axes = principal_axes(signals, _SIGNALS)
    parts = np.array_split(starts, max(len(starts) // 2000, 1))
    features = np.concatenate(
        [describe_windows(signals[part[:, None] + np.arange(config.window)], axes) for part in parts]
    )
    return (features - features.mean(0)) / np.maximum(features.std(0), 1e-6)


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


def _principal(features: np.ndarray, components: int) -> np.ndarray:
    """The first principal components, not whitened: directions of much variance are what tells behaviours apart."""
    return features @ principal_axes(features, components).T


def principal_axes(rows: np.ndarray, components: int) -> np.ndarray:
    """Principal axes `(components, d)` of rows `(n, d)`, found on a sample."""
    return np.linalg.svd(rows[:: max(len(rows) // 8000, 1)], full_matrices=False)[2][:components]


def _k_means(points: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """The best of several runs of k-means from k-means++ starts (Arthur & Vassilvitskii 2007), `(n,)`."""
    x, generator = torch.as_tensor(points), torch.Generator().manual_seed(seed)
    best, labels = float("inf"), torch.zeros(len(x), dtype=torch.long)
    for _ in range(_RESTARTS):
        centers = x[torch.randint(len(x), (1,), generator=generator)]
        while len(centers) < clusters:
            distance = torch.cdist(x, centers).amin(1).square().double()
            centers = torch.cat([centers, x[torch.multinomial(distance + 1e-12, 1, generator=generator)]])
        for _ in range(_ITERATIONS):
            nearest = torch.cdist(x, centers).argmin(1)
            members = F.one_hot(nearest, clusters).to(x.dtype)
            counts = members.sum(0)[:, None]
            moved = torch.where(counts > 0, members.T @ x / counts.clamp(min=1), centers)
            if torch.allclose(moved, centers, atol=1e-5):
                break
            centers = moved
        distance, found = torch.cdist(x, centers).min(1)
        if float(distance.square().sum()) < best:
            best, labels = float(distance.square().sum()), found
    return labels.numpy()


def _viterbi(costs: np.ndarray, stay: float) -> np.ndarray:
    """The cheapest path through costs `(steps, skills)` where a skill goes on with probability `stay`."""
    steps, skills = costs.shape
    keep, switch = -np.log(stay), -np.log((1 - stay) / max(skills - 1, 1))
    came_from = np.zeros((steps, skills), np.int64)
    total, own = costs[0].astype(np.float64), np.arange(skills)
    for step in range(1, steps):
        best = int(total.argmin())
        switching = total[best] + switch < total + keep
        came_from[step] = np.where(switching, best, own)
        total = np.where(switching, total[best] + switch, total + keep) + costs[step]
    path = np.empty(steps, np.int64)
    path[-1] = total.argmin()
    for step in range(steps - 1, 0, -1):
        path[step - 1] = came_from[step, path[step]]
    return path


def _merge_rare(dataset: TrajectoryDataset, labels: np.ndarray, skills: int, config: AnchorConfig) -> np.ndarray:
    """Give the steps of rare skills to what follows in their episode (else to what came before)."""
    inside = np.zeros(len(labels), bool)
    for first, length in zip(dataset.starts, dataset.lengths, strict=True):
        inside[first : first + length] = True
    counts = np.bincount(labels[inside & (labels >= 0)], minlength=skills)
    second = np.sort(counts)[-min(2, skills)]  # two are kept where there are two: one skill is no choice
    kept = (counts >= min(config.rare * inside.sum() / skills, second)) & (counts > 0)
    found = np.full(len(labels), -1, np.int64)
    for first, length in zip(dataset.starts, dataset.lengths, strict=True):
        own = labels[first : first + length]
        known = np.flatnonzero((own >= 0) & kept[own])
        if len(known):
            after = np.searchsorted(known, np.arange(length))
            found[first : first + length] = own[known[np.minimum(after, len(known) - 1)]]
    return found


def _merge_twins(
    dataset: TrajectoryDataset, labels: np.ndarray, errors: np.ndarray, config: AnchorConfig
) -> np.ndarray:
    """Make one of two skills that take turns and whose policies act nearly alike; two skills are kept."""
    labels, errors = labels.copy(), errors.copy()
    while len(used := np.unique(labels[labels >= 0])) > 2:
        each = np.stack([errors[labels == skill][:, used].mean(0) for skill in used]) + 1e-9
        stranger = each / each.diagonal()[:, None]  # by how much the others err more on a skill's data than its own
        turns = _switches(dataset, labels, errors.shape[1])[np.ix_(used, used)].astype(np.float64)
        turns /= np.maximum(turns.sum(1, keepdims=True), 1)
        alike = np.sqrt(stranger * stranger.T)
        alike[(np.minimum(turns, turns.T) < _TAKING_TURNS) | np.eye(len(used), dtype=bool)] = np.inf
        one, other = np.unravel_index(alike.argmin(), alike.shape)
        if alike[one, other] > config.twins:
            break
        labels[labels == used[other]] = used[one]
        errors[:, used[one]] = errors[:, used[[one, other]]].min(1)
    return labels


def _switches(dataset: TrajectoryDataset, labels: np.ndarray, skills: int) -> np.ndarray:
    """How often a skill is followed by another within an episode, `(skills, skills)`."""
    counts = np.zeros((skills, skills), np.int64)
    for first, length in zip(dataset.starts, dataset.lengths, strict=True):
        before, after = labels[first : first + length - 1], labels[first + 1 : first + length]
        changes = (before != after) & (before >= 0)
        np.add.at(counts, (before[changes], after[changes]), 1)
    return counts


def _numbered(labels: np.ndarray) -> Assignment:
    """The skills in use, numbered from 0."""
    used, numbers = np.unique(labels, return_inverse=True)
    unknown = int((used < 0).any())
    return Assignment(numbers - unknown, len(used) - unknown)


def balanced_rows(assignment: Assignment, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw `n` steps with every skill alike: their numbers `(n,)` and their skills `(n,)`."""
    order, begins, counts = assignment.by_skill
    skills = torch.randint(assignment.skills, (n,), generator=generator)
    within = (torch.rand(n, generator=generator) * counts[skills]).long()
    return order[begins[skills] + within], skills
