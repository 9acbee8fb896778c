"""A seeded quality-diversity search for gaits that walk in every direction, sped up by the Ant's symmetry.

Nothing is rewarded but what the archive asks for: steady, upright motion in *some* direction of the body.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from didi_gym.data.generators.gaits import (
    ANKLE_AMPLITUDE,
    ANKLE_OFFSET,
    ANKLE_PHASE,
    GAIT_SIZE,
    HIP_AMPLITUDE,
    HIP_OFFSET,
    HIP_PHASE,
    LEG_PARAMETERS,
    LEGS,
    Motion,
    mirrored,
    turned,
)

FALL_SCORE = -1.0
YAW_COST, TILT_COST, LEAP_COST = 0.5, 1.0, 3.0
"""What a trial's speed is lowered by, in m/s: per rad/s of turning, per unit of tilt, per m above `LEAP_HEIGHT`."""
ENOUGH_SPEED = 1.9
"""Speed in m/s above which only steadiness counts: what is faster leaps, falls, and is hard to predict."""
LEAP_HEIGHT = 0.78
"""Torso height in m that a gait should stay under; Ant-v5 ends an episode at 1 m, and most falls were leaps."""


@dataclass(frozen=True)
class Elite:
    """A gait of the archive with every trial it went through."""

    gait: np.ndarray
    trials: tuple[Motion, ...]

    @property
    def score(self) -> float:
        """Mean over trials of the speed, less turning, tilting and leaping; a fall counts as `FALL_SCORE`."""
        return float(np.mean([trial_score(trial) for trial in self.trials]))

    @property
    def direction(self) -> float:
        """Mean direction of motion in the body's frame, in rad."""
        return float(np.angle(sum(t.speed * np.exp(1j * t.direction) for t in self.trials)))

    @property
    def speed(self) -> float:
        """Mean speed in m/s of the trials without a fall."""
        return float(np.mean([t.speed for t in self.trials if not t.fell] or [0.0]))


def trial_score(trial: Motion) -> float:
    if trial.fell:
        return FALL_SCORE
    return (
        min(trial.speed, ENOUGH_SPEED)
        - YAW_COST * abs(trial.yaw_rate)
        - TILT_COST * (1 - trial.upright)
        - LEAP_COST * max(0.0, trial.peak - LEAP_HEIGHT)
    )


def folded(gait: np.ndarray, direction: float) -> tuple[np.ndarray, float]:
    """Of the eight symmetric images of a gait, the one that moves between 0 and 45 degrees, and its direction."""
    quarters = int(np.floor(direction / (np.pi / 2)))
    gait, direction = turned(gait, -quarters), direction - quarters * np.pi / 2
    return (gait, direction) if direction <= np.pi / 4 else (turned(mirrored(gait), 1), np.pi / 2 - direction)


MUTATION = np.append(np.tile([0.25, 0.5, 0.2, 0.25, 0.5, 0.2], LEGS), 0.25)
"""Standard deviation of each parameter's change: half ranges, rad, Hz."""


def random_gait(rng: np.random.Generator) -> np.ndarray:
    legs = np.empty((LEGS, LEG_PARAMETERS))
    legs[:, [HIP_AMPLITUDE, ANKLE_AMPLITUDE]] = rng.uniform(0, 1.3, (LEGS, 2))
    legs[:, [HIP_PHASE, ANKLE_PHASE]] = rng.uniform(0, 2 * np.pi, (LEGS, 2))
    legs[:, [HIP_OFFSET, ANKLE_OFFSET]] = rng.normal(0, 0.4, (LEGS, 2))
    return np.append(legs.ravel(), rng.uniform(1.0, 3.5))


def offspring(rng: np.random.Generator, parent: np.ndarray, other: np.ndarray) -> np.ndarray:
    """A mutated gait, half the time also moved along the line to or from another."""
    gait = parent + (rng.random() < 0.5) * 0.3 * rng.normal() * (other - parent)
    gait = gait + (rng.random(GAIT_SIZE) < 0.4) * rng.choice([0.3, 1.0]) * MUTATION * rng.normal(size=GAIT_SIZE)
    legs = gait[:-1].reshape(LEGS, LEG_PARAMETERS)
    legs[:, [HIP_AMPLITUDE, ANKLE_AMPLITUDE]] = np.clip(legs[:, [HIP_AMPLITUDE, ANKLE_AMPLITUDE]], -1.5, 1.5)
    legs[:, [HIP_OFFSET, ANKLE_OFFSET]] = np.clip(legs[:, [HIP_OFFSET, ANKLE_OFFSET]], -1, 1)
    return np.append(legs.ravel(), np.clip(gait[-1], 0.8, 3.5))


Trial = tuple[np.ndarray, int, int, int, float]
"""Arguments of one `measure`: gait, seed, steps, warmup, noise."""
QUICK, THOROUGH = (70, 30, 0.12), (120, 30, 0.18)
"""Steps, warm-up and action noise of a first trial and of those that decide."""


def search_gaits(
    run_trials: Callable[[list[Trial]], Iterable[Motion]],
    seed: int,
    *,
    search_steps: int,
    sectors: int = 3,
    elites: int = 6,
    batch: int = 96,
    random_batches: int = 4,
    report: Callable[[int, float], None] = lambda spent, speed: None,
) -> list[list[Elite]]:
    """A MAP-Elites archive over the direction of motion, for directions from 0 to 45 degrees.

    The other 315 degrees follow by symmetry. Trials are noisy and gaits fragile, so a gait that looks good is tried
    thrice more before it may enter, and elites are tried again now and then: a lucky one does not stay.

    Args:
        run_trials: maps trials to their outcome, in order; where they run does not matter.
        search_steps: environment steps to spend, approximately.
        sectors: equal slices of the 45 degrees, with up to `elites` gaits each.
        report: called with the number of steps spent so far and the mean speed of the gaits kept, in m/s.
    """
    rng = np.random.default_rng(seed)
    archive: list[list[Elite]] = [[] for _ in range(sectors)]
    spent = batches = 0

    def run(gaits: list[np.ndarray], settings: tuple[int, int, float]) -> list[Motion]:
        nonlocal spent
        spent += len(gaits) * (settings[0] + settings[1])
        return list(run_trials([(gait, int(rng.integers(2**31)), *settings) for gait in gaits]))

    def retried(candidates: list[Elite], repeats: int) -> list[Elite]:
        motions = run([c.gait for c in candidates for _ in range(repeats)], THOROUGH)
        return [Elite(c.gait, (*c.trials, *motions[i * repeats : (i + 1) * repeats])) for i, c in enumerate(candidates)]

    def file(candidates: list[Elite]) -> None:
        for members in archive:  # one that was tried again replaces its former self
            members[:] = [e for e in members if not any(e.gait is c.gait for c in candidates)]
        for candidate in candidates:
            archive[sector(candidate.direction)].append(candidate)
        for i, members in enumerate(archive):
            archive[i] = sorted(members, key=lambda e: -e.score)[:elites]

    def sector(direction: float) -> int:
        return int(np.clip(direction / (np.pi / 4) * sectors, 0, sectors - 1))

    def promising(score: float, direction: float) -> bool:
        members = archive[sector(direction)]
        return score > (members[-1].score if len(members) == elites else 0.0)

    while spent < search_steps:
        parents = [elite.gait for members in archive for elite in members]
        if batches < random_batches or not parents:
            gaits = [random_gait(rng) for _ in range(batch)]
        else:
            gaits = [offspring(rng, *(parents[i] for i in rng.integers(len(parents), size=2))) for _ in range(batch)]
        candidates = []
        for gait, motion in zip(gaits, run(gaits, QUICK), strict=True):
            gait, direction = folded(gait, motion.direction)
            if promising(trial_score(motion), direction):
                candidates.append(Elite(gait, ()))  # the first trial was of another image: only later ones count
        again = [elite for members in archive for elite in members] if batches % 4 == 3 else []
        for repeats in (1, 2):
            candidates = [c for c in retried(candidates, repeats) if promising(c.score, c.direction)]
        file(candidates + retried(again, 1))
        batches += 1
        report(spent, float(np.mean([elite.speed for members in archive for elite in members] or [0.0])))
    return [retried(members, 4) for members in archive]
