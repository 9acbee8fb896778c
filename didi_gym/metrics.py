"""Measures of what rollouts do: spread, fresh probes of the skill, directions, nearest neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def skill_spread(changes: np.ndarray) -> float:
    """Standard deviation over skills (axis 1) of changes `(starts, skills, features)`, mean over starts."""
    return float(np.sqrt(changes.var(axis=1).mean(-1)).mean())


def _fit(
    x: np.ndarray, outputs: int, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], y: torch.Tensor, seed: int
) -> Callable[[np.ndarray], torch.Tensor]:
    """A fresh two-layer network, fitted with early stopping on the last fifth of the rows `(n, inputs)`."""
    center, spread = x.mean(0), x.std(0) + 1e-6
    data = torch.as_tensor((x - center) / spread)
    cut = len(data) * 4 // 5
    with torch.random.fork_rng():
        torch.manual_seed(seed)
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
    return lambda rows: net(torch.as_tensor((rows - center) / spread)).detach()


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


def mutual_information(signatures: np.ndarray, skills: int, seed: int) -> tuple[float, float]:
    """Lower bound in bits, and accuracy, of a fresh classifier, two-fold over starts."""
    labels = np.tile(np.arange(skills), (len(signatures), 1))[..., None]
    entropy, correct, count = 0.0, 0, 0
    halves = _halves(signatures, labels)
    for (x, y), (x_test, y_test) in (halves, halves[::-1]):
        predict = _fit(x, skills, F.cross_entropy, torch.as_tensor(y[:, 0]), seed)
        logits, truth = predict(x_test), torch.as_tensor(y_test[:, 0])
        entropy += float(F.cross_entropy(logits, truth, reduction="sum"))
        correct += int((logits.argmax(-1) == truth).sum())
        count += len(truth)
    return math.log2(skills) - entropy / count / math.log(2), correct / count


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
