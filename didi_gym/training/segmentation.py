"""Segmentation: every step of a data set is given to one behaviour, without labels.

Behaviours differ in rhythm as much as in posture. So a window of observations and actions is described by mean, spread,
autocorrelation, spectrum and correlations, and the descriptions are clustered into more groups than behaviours are
expected. The errors of a policy that imitates the clusters then refine the borders: a step belongs to the cluster whose
actions are most like those of the data there. Clusters that are too rare to be behaviours, or that are how several
begin or end (starts, falls), are dissolved into the behaviours that follow them, and two clusters of one behaviour are
merged.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from didi_gym.data.dataset import DatasetError, TrajectoryDataset
from didi_gym.data.windows import MIN_WINDOW, describe_windows, principal_axes
from didi_gym.training.config import BehaviourConfig, TrainConfig

_SIGNALS = 10  # principal signals whose correlations are taken
_RESTARTS, _ITERATIONS = 8, 60  # of k-means
_WINDOWS = (16, 32, 64, 128, 256)  # lengths among which one is chosen
_USUAL = 32  # taken where no other is clearly better
_NEARLY = 0.92  # of the best silhouette: lengths that reach it tell behaviours apart as well
_LONGEST_HORIZON = 64  # of behaviour skills; training costs grow with it
_ALTERNATING = 0.4  # share of the switches from each of two skills that lead to the other


@dataclass(frozen=True)
class Segmentation:
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


def cluster_windows(dataset: TrajectoryDataset, skills: int, config: BehaviourConfig, seed: int = 0) -> Segmentation:
    """Cluster the windows of a data set, and give each step the cluster of most windows that hold it.

    Args:
        skills: Clusters: about one and a half times the behaviours that are expected.
    """
    config = fitting_window(dataset, config, skills)
    assert config.window is not None
    starts = _window_starts(dataset, config)
    features = _describe(dataset, starts, config)
    clusters = _k_means(_principal(features, config.components), skills, seed)
    votes = np.zeros((len(dataset.observations), skills), np.int32)
    for start, cluster in zip(starts, clusters, strict=True):
        votes[start : start + config.window, cluster] += 1
    labels = np.where(votes.any(1), votes.argmax(1), -1)  # none in episodes shorter than a window
    return _numbered(_merge_rare(dataset, labels, skills, config))


def separation(dataset: TrajectoryDataset, config: BehaviourConfig | None = None, clusters: int = 12) -> float:
    """How clearly windows fall into groups: the median simplified silhouette 1 - a / b (Hruschka et al. 2004).

    a is a window's distance to its cluster's centre, b that to the next one's. Mixtures of gaits have 0.66 to 0.72,
    directions and goals, which vary continuously, 0.17 to 0.29; above 0.5 discrete skills suit.

    Raises:
        DatasetError: no episode is as long as a window.
    """
    config = fitting_window(dataset, config or BehaviourConfig(), clusters)
    return _silhouette(dataset, config, clusters)


def choose_window(
    dataset: TrajectoryDataset, config: BehaviourConfig | None = None, clusters: int = 12
) -> tuple[int, dict[int, float]]:
    """The length of window by which behaviours are told apart best, and the silhouette (`separation`) of each tried.

    A rhythm has to fit in, and how many steps it takes depends on the body and on how long a step is. Tried are 16 to
    256 steps, as far as two windows fit into half of the episodes, and 32 in any case. Longer windows blur the borders
    between behaviours: so 32 is kept where its silhouette is within 8 % of the best, else the shortest window of which
    that is true is taken.

    Raises:
        DatasetError: half of the episodes are too short for any window.
    """
    config = replace(config or BehaviourConfig(), window=_USUAL)
    usual, median = fitting_window(dataset, config, clusters).window, int(np.median(dataset.lengths))
    assert usual is not None
    tried = sorted({usual, *(window for window in _WINDOWS if 2 * window <= median)})
    scores = {window: _silhouette(dataset, replace(config, window=window), clusters) for window in tried}
    enough = [window for window in tried if scores[window] >= _NEARLY * max(scores.values())]
    return usual if usual in enough else enough[0], scores


def decide_lengths(dataset: TrajectoryDataset, config: TrainConfig) -> TrainConfig:
    """These settings with what they leave to the data: the window of behaviours (`choose_window`) and the horizon.

    The horizon is half of the window for behaviour skills, if half of the episodes are as long, else what
    `TrajectoryDataset.suggest_horizon` finds.
    """
    behaviours = config.behaviours
    suits = config.learns_behaviours and float(np.median(dataset.lengths)) >= MIN_WINDOW
    if suits and behaviours.window is None:
        clusters = config.skills.skill_space.size
        behaviours = replace(behaviours, window=choose_window(dataset, behaviours, clusters)[0])
        config = replace(config, behaviours=behaviours)
    if config.horizon is not None:
        return config
    rhythm = min((behaviours.window or 0) // 2, _LONGEST_HORIZON)
    suits = suits and (dataset.lengths >= rhythm).mean() >= 0.5
    return replace(config, horizon=rhythm if suits else dataset.suggest_horizon())


def _silhouette(dataset: TrajectoryDataset, config: BehaviourConfig, clusters: int) -> float:
    starts = _window_starts(dataset, config)
    points = _principal(_describe(dataset, starts[:: max(len(starts) // 6000, 1)], config), config.components)
    labels = _k_means(points, min(clusters, len(points)), seed=0)
    centers = np.stack([points[labels == cluster].mean(0) for cluster in np.unique(labels)])
    nearest = np.sort(torch.cdist(torch.as_tensor(points), torch.as_tensor(centers)).numpy(), axis=1)
    return float(np.median(1 - nearest[:, 0] / np.maximum(nearest[:, 1], 1e-9)))


def refine(dataset: TrajectoryDataset, errors: np.ndarray, config: BehaviourConfig) -> Segmentation:
    """Give every step to the skill whose policy acts most like the data there, with switches made unlikely.

    Two skills are merged where they are one behaviour: switches mostly lead from one to the other, and their policies
    act nearly alike.

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
    return _numbered(_merge_duplicates(dataset, _merge_rare(dataset, labels, skills, config), errors, config))


def fitting_window(dataset: TrajectoryDataset, config: BehaviourConfig, clusters: int) -> BehaviourConfig:
    """The settings with a window: chosen where none is given, and shorter where half of the episodes are shorter."""
    median = int(np.median(dataset.lengths))
    if median < MIN_WINDOW:
        raise DatasetError(
            f"behaviours are told apart by windows of at least {MIN_WINDOW} steps, but half of the episodes have at "
            f"most {median}; record longer episodes, or learn discrete skills by DIDI alone (behaviours.steps=0)"
        )
    return replace(config, window=min(config.window or choose_window(dataset, config, clusters)[0], median))


def _window_starts(dataset: TrajectoryDataset, config: BehaviourConfig) -> np.ndarray:
    """First steps of overlapping windows that lie within one episode."""
    assert config.window is not None
    parts = [
        np.arange(first, first + length - config.window + 1, config.stride)
        for first, length in zip(dataset.starts, dataset.lengths, strict=True)
    ]
    return np.concatenate(parts)


def _describe(dataset: TrajectoryDataset, starts: np.ndarray, config: BehaviourConfig) -> np.ndarray:
    """Descriptions of a data set's windows `(n, features)`, each feature with mean 0 and variance 1."""
    signals = np.concatenate([dataset.observations[:, list(dataset.layout.policy_inputs)], dataset.actions], axis=1)
    signals = (signals - signals.mean(0)) / np.maximum(signals.std(0), 1e-6)
    axes = principal_axes(signals, _SIGNALS)
    parts = np.array_split(starts, max(len(starts) // 2000, 1))
    assert config.window is not None
    features = np.concatenate(
        [describe_windows(signals[part[:, None] + np.arange(config.window)], axes) for part in parts]
    )
    return (features - features.mean(0)) / np.maximum(features.std(0), 1e-6)


def _principal(features: np.ndarray, components: int) -> np.ndarray:
    """The first principal components, not whitened: directions of much variance are what tells behaviours apart."""
    return features @ principal_axes(features, components).T


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


def _merge_rare(dataset: TrajectoryDataset, labels: np.ndarray, skills: int, config: BehaviourConfig) -> np.ndarray:
    """Give the steps of rare and of passing skills to what follows in their episode (else to what came before)."""
    inside = np.zeros(len(labels), bool)
    for first, length in zip(dataset.starts, dataset.lengths, strict=True):
        inside[first : first + length] = True
    counts = np.bincount(labels[inside & (labels >= 0)], minlength=skills)
    second = np.sort(counts)[-min(2, skills)]  # two are kept where there are two: one skill is no choice
    kept = (counts >= min(config.rare * inside.sum() / skills, second)) & (counts > 0)
    lasting = kept & ~_passing(dataset, labels, skills, 2 * (config.window or _USUAL))
    if lasting.sum() >= min(2, kept.sum()):
        kept = lasting
    found = np.full(len(labels), -1, np.int64)
    for first, length in zip(dataset.starts, dataset.lengths, strict=True):
        own = labels[first : first + length]
        known = np.flatnonzero((own >= 0) & kept[own])
        if len(known):
            after = np.searchsorted(known, np.arange(length))
            found[first : first + length] = own[known[np.minimum(after, len(known) - 1)]]
    return found


def _passing(dataset: TrajectoryDataset, labels: np.ndarray, skills: int, steps: int) -> np.ndarray:
    """Which skills are no behaviours but how several begin or end: most of their steps lie in stretches of fewer than
    `steps` steps at an episode's start or end, `(skills,)`. Where there are many behaviours these are not rare."""
    passing, total = np.zeros((2, skills), np.int64)
    for first, length in zip(dataset.starts, dataset.lengths, strict=True):
        own = labels[first : first + length]
        borders = [0, *(np.flatnonzero(np.diff(own)) + 1), length]
        for begin, end in itertools.pairwise(borders):
            if (skill := own[begin]) >= 0:
                total[skill] += end - begin
                if (begin == 0) != (end == length) and end - begin < steps:
                    passing[skill] += end - begin
    return passing > total / 2


def _merge_duplicates(
    dataset: TrajectoryDataset, labels: np.ndarray, errors: np.ndarray, config: BehaviourConfig
) -> np.ndarray:
    """Merge two skills between which the data alternates and whose policies act nearly alike; two skills are kept."""
    labels, errors = labels.copy(), errors.copy()
    while len(used := np.unique(labels[labels >= 0])) > 2:
        each = np.stack([errors[labels == skill][:, used].mean(0) for skill in used]) + 1e-9
        relative = each / each.diagonal()[:, None]  # errors on a skill's data, relative to those of its own policy
        turns = _switches(dataset, labels, errors.shape[1])[np.ix_(used, used)].astype(np.float64)
        turns /= np.maximum(turns.sum(1, keepdims=True), 1)
        alike = np.sqrt(relative * relative.T)
        alike[(np.minimum(turns, turns.T) < _ALTERNATING) | np.eye(len(used), dtype=bool)] = np.inf
        one, other = np.unravel_index(alike.argmin(), alike.shape)
        if alike[one, other] > config.merge_ratio:
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


def _numbered(labels: np.ndarray) -> Segmentation:
    """The skills in use, numbered from 0."""
    used, numbers = np.unique(labels, return_inverse=True)
    unknown = int((used < 0).any())
    return Segmentation(numbers - unknown, len(used) - unknown)


def balanced_rows(segmentation: Segmentation, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw `n` steps, each skill as often as any other: their numbers `(n,)` and their skills `(n,)`."""
    order, begins, counts = segmentation.by_skill
    skills = torch.randint(segmentation.skills, (n,), generator=generator)
    within = (torch.rand(n, generator=generator) * counts[skills]).long()
    return order[begins[skills] + within], skills
