"""Which behaviour was at work at every step of a recorded data set: for evaluation only, training never reads it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from didi_gym.core.files import printable
from didi_gym.data.generators.behaviours import Behaviour
from didi_gym.data.minari import load_minari
from didi_gym.data.writing import Episode

BEHAVIOURS_KEY, LABEL = "didi_gym_behaviours", "behaviour"
"""In a data set's metadata: names and measurements, as JSON. Of an episode's infos: `(T + 1,)`, indices into them."""
SETTLED = 80
"""Steps after which a stretch of a behaviour counts for its speed: cheetahs take 40 to 80 after a reset or a switch."""
_TOLERANCE = 1e-3  # of half the action range: float32, and sums in another order
_LARGEST = 7.0  # standard deviations that no noise exceeds


@dataclass(frozen=True)
class Measured:
    """What one behaviour did in a data set."""

    name: str
    source: str
    steps: int
    stretches: int
    """Times it was at work without a break: whole episodes, or parts of them."""
    falls: int
    """Episodes that ended while it was at work, because the environment said so or for leaving the healthy range."""
    speed: float | None
    """Mean velocity along x in m/s without the first `SETTLED` steps of stretches; None where x was not recorded."""
    speed_std: float | None
    """Standard deviation over stretches of their mean velocities."""


@dataclass(frozen=True)
class Labels:
    """The labels of a data set, aligned with the rows of `TrajectoryDataset.from_minari`."""

    steps: np.ndarray
    """Which behaviour chose the action of each step, int64 `(steps,)`; an index into `behaviours`."""
    behaviours: tuple[Measured, ...]
    settings: dict[str, Any]
    """How the data set was recorded: noise, switch_every, lead_in, ..."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(behaviour.name for behaviour in self.behaviours)


def to_metadata(measured: Sequence[Measured], settings: dict[str, Any]) -> dict[str, str]:
    """Entries for a data set's metadata, of which `read_labels` is the inverse."""
    return {BEHAVIOURS_KEY: json.dumps({"behaviours": [asdict(m) for m in measured], "settings": settings})}


def read_labels(dataset_id: str) -> Labels:
    """The labels of a data set made by `collect_from_agents`; label i belongs to row i of a `TrajectoryDataset`,
    its `split` included, so `labels.steps[dataset.window_starts(...)]` says what a window's first step was.

    Raises:
        ValueError: the data set has none.
    """
    return _labels_of(load_minari(dataset_id))


def _labels_of(dataset: Any) -> Labels:
    metadata = dataset.storage.metadata
    if BEHAVIOURS_KEY not in metadata:
        raise ValueError(
            f"data set {dataset.spec.dataset_id!r} has no labels: it was not made by didi-gym data from-agents"
        )
    about = json.loads(metadata[BEHAVIOURS_KEY])
    steps = [episode.infos[LABEL][: len(episode.actions)] for episode in dataset.iterate_episodes()]
    behaviours = tuple(Measured(**measured) for measured in about["behaviours"])
    return Labels(np.concatenate(steps).astype(np.int64), behaviours, about["settings"])


def measure(
    episodes: Sequence[Episode], behaviours: Sequence[Behaviour], *, seconds: float | None
) -> tuple[Measured, ...]:
    """Count and clock what each behaviour did.

    Args:
        seconds: One step's duration, where the first number of an observation is the position along x in m.
    """
    steps, stretches, falls = np.zeros((3, len(behaviours)), dtype=int)
    covered: list[list[tuple[float, int]]] = [[] for _ in behaviours]  # metres and steps of each stretch
    for episode in episodes:
        label = episode.infos[LABEL][: len(episode)]
        falls[label[-1]] += bool(episode.labels["fell"])
        bounds = [0, *(np.flatnonzero(np.diff(label)) + 1), len(label)]
        for begin, end in itertools.pairwise(bounds):
            behaviour = label[begin]
            steps[behaviour] += end - begin
            stretches[behaviour] += 1
            if seconds is not None and end - begin > SETTLED:
                x = episode.observations[:, 0]
                covered[behaviour].append((x[end] - x[begin + SETTLED], end - begin - SETTLED))
    result = []
    for i, behaviour in enumerate(behaviours):
        speed = std = None
        if seconds is not None and covered[i]:
            metres, counts = np.array(covered[i]).T
            speed = float(metres.sum() / counts.sum() / seconds)
            std = float(np.std(metres / counts / seconds))
        counts_of = {"steps": int(steps[i]), "stretches": int(stretches[i]), "falls": int(falls[i])}
        result.append(Measured(behaviour.name, behaviour.source, **counts_of, speed=speed, speed_std=std))
    return tuple(result)


def table(measured: Sequence[Measured]) -> str:
    """A line for each behaviour: share of the steps, stretches, falls, and speed."""
    total, width = sum(m.steps for m in measured), max(len(printable(m.name)) for m in measured) + 2
    lines = [f"{'behaviour':{width}} {'steps':>8} {'share':>6} {'stretches':>9} {'falls':>5} {'m/s':>6} {'std':>5}"]
    for m in measured:
        speed = "" if m.speed is None or m.speed_std is None else f" {m.speed:6.2f} {m.speed_std:5.2f}"
        lines.append(
            f"{printable(m.name):{width}} {m.steps:8} {m.steps / total:6.1%} {m.stretches:9} {m.falls:5}{speed}"
        )
    return "\n".join(lines)


def check_recording(
    dataset_id: str,
    behaviours: Sequence[Behaviour],
    *,
    replays: int = 2,
    reads: Callable[[Any], np.ndarray] | None = None,
) -> None:
    """Make sure that a data set holds what it says.

    Every recorded action must be what the behaviour of its label does in the recorded observation, up to the noise;
    and the first `replays` episodes that begin with a reset must repeat themselves when their actions are replayed.

    Args:
        reads: what behaviours read of the environment, where that is not recorded (`Recorder.reads`): actions are then
            judged in the replayed episodes only.

    Raises:
        ValueError: it does not; the message says where.
    """
    dataset = load_minari(dataset_id)
    settings = _labels_of(dataset).settings
    env = dataset.recover_environment()
    low, high = env.action_space.low, env.action_space.high
    half = np.where(np.isfinite(high - low), (high - low) / 2, 1)

    def require_actions(episode: Any, seen: np.ndarray, first: int) -> None:
        label, clock = episode.infos[LABEL][:-1], first + np.arange(len(seen))
        for i in np.unique(label):
            here = label == i
            wanted = np.clip(behaviours[i](padded(seen[here], behaviours[i].inputs), clock[here]), low, high)
            error = (np.abs(episode.actions[here] - wanted) / half).max(1)
            if error.max() > _LARGEST * settings["noise"] + _TOLERANCE:
                step = int(np.flatnonzero(here)[error.argmax()])
                raise ValueError(
                    f"data set {dataset_id!r}, episode {episode.id}, step {step}: the action is not that of "
                    f"{behaviours[i].name}, it differs by {error.max():.3g} of half the action range"
                )

    metadata = dataset.storage.get_episode_metadata(range(dataset.total_episodes))
    for episode, about in zip(dataset.iterate_episodes(), metadata, strict=True):
        if reads is None:
            require_actions(episode, episode.observations[:-1, settings["hidden"] :], int(about["lead_in"]))
        if replays > 0 and about["lead_in"] == 0:
            replays -= 1
            observations, seen = [env.reset(seed=int(about["seed"]))[0]], []
            for action in episode.actions:
                if reads is not None:
                    seen.append(reads(env))
                observations.append(env.step(action)[0])
            if reads is not None:
                require_actions(episode, np.array(seen), 0)
            if not np.allclose(observations, episode.observations, rtol=1e-5, atol=1e-5):
                raise ValueError(
                    f"data set {dataset_id!r}, episode {episode.id}: replayed actions do not lead where they were "
                    "recorded to lead; the environment must repeat itself from a seed"
                )
    env.close()


def padded(observations: np.ndarray, inputs: int) -> np.ndarray:
    """Observations `(n, m)` filled up with zeros to `(n, inputs)`."""
    return np.pad(observations, ((0, 0), (0, inputs - observations.shape[1])))
