"""D4RL: an HDF5 file with all transitions end to end, an observation and the action that followed it in each row.

Source: Fu et al., 2020, and `d4rl.qlearning_dataset`, which says where an episode ends.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from didi_gym.data.episodes import DatasetError
from didi_gym.data.importers.reading import open_hdf5, read_columns, require_names
from didi_gym.data.importers.rows import Collector, Recording, flags, in_rows

NEEDED = ("observations", "actions", "terminals")
_OPTIONAL = ("rewards", "timeouts", "next_observations")
_SINGLE = 0.5  # share of rows that must not follow from the row before for a file to be one of single transitions


def read(path: Path, *, episode_steps: int | None = None, progress: bool = True) -> Recording:
    """Episodes of a D4RL file: `observations`, `actions`, `terminals`, and where they are there `timeouts`, `rewards`
    and `next_observations`. The rest (`infos/...`, `metadata/...`) is left alone.

    An episode ends where a terminal or a timeout is flagged. Where `next_observations` are there, it also ends where
    they differ from the next row's observation, so that no step leads from one episode into another.

    Args:
        episode_steps: The time limit with which the data was recorded; needed where neither timeouts nor next
            observations tell where an episode was cut.

    Raises:
        DatasetError: another content, or ends that nothing tells.
    """
    with open_hdf5(path) as file:
        names = file.names()
        require_names(path, names, NEEDED, "a D4RL file")
        found = read_columns(file, [*NEEDED, *(name for name in _OPTIONAL if name in names)], progress)
    observed, after = in_rows(found["observations"]), found.get("next_observations")
    terminals, timeouts = flags(path, "terminals", found["terminals"]), found.get("timeouts")
    ends, notes = terminals.copy(), []
    if timeouts is not None:
        if episode_steps is not None:
            raise DatasetError(f"{path} has timeouts, which say where episodes were cut; leave --episode-steps out")
        ends |= flags(path, "timeouts", timeouts)
        if not ends.any():
            notes.append("No terminal and no timeout is flagged, so all rows are taken as one episode.")
    elif episode_steps is not None:
        ends = _cut_every(ends, episode_steps)
        notes.append(
            f"The file has no timeouts: episodes are taken to end at terminals and after {episode_steps} steps, as "
            "--episode-steps says."
        )
    elif after is None:
        raise DatasetError(
            f"{path} has neither timeouts nor next_observations, so nothing tells where a time limit cut an episode; "
            "pass --episode-steps with the time limit that the data was recorded with (more than any episode has, if "
            "terminals flag the end of every episode)"
        )
    else:
        notes.append("The file has no timeouts: episodes end at terminals and where the next row does not follow.")
    if after is not None:
        after = in_rows(after)
        if after.shape != observed.shape:
            raise DatasetError(f"{path}: expected next_observations of the shape {observed.shape}, got {after.shape}")
        breaks = _breaks(path, observed, after, ends)
        if len(breaks) and timeouts is not None:
            notes.append(
                f"At {len(breaks):,} rows without a flag the next row does not follow, so episodes were split there."
            )
        ends[breaks] = True
    collector = Collector(path, ("observations",))
    rewards = found.get("rewards")
    bounds = [0, *(np.flatnonzero(ends[:-1]) + 1).tolist(), len(ends)]
    for number, (first, end) in enumerate(itertools.pairwise(bounds)):
        collector.add(
            number,
            {"observations": observed[first:end]},
            found["actions"][first:end],
            None if rewards is None else rewards[first:end],
            None if after is None else {"observations": after[end - 1 : end]},
            bool(terminals[end - 1 : end].any()),
        )
    return collector.finish(notes)


def _cut_every(ends: np.ndarray, steps: int) -> np.ndarray:
    """Ends where they are flagged, and after every `steps` rows of an episode."""
    if steps < 1:
        raise DatasetError(f"expected --episode-steps of at least 1, got {steps}")
    ends = ends.copy()
    bounds = [0, *(np.flatnonzero(ends) + 1).tolist(), len(ends)]
    for first, end in itertools.pairwise(bounds):
        ends[first + steps - 1 : end : steps] = True
    return ends


def _breaks(path: Path, observed: np.ndarray, after: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Rows that are not flagged as an end, and after which the next row's observation is another than was recorded."""
    inside = ~ends[:-1]
    breaks = np.flatnonzero((after[:-1] != observed[1:]).any(1) & inside)
    if len(breaks) > 1 and len(breaks) > _SINGLE * inside.sum():
        raise DatasetError(
            f"{path}: {len(breaks):,} of {inside.sum():,} rows do not lead to the next row (next_observations differ "
            "from the next row's observations): these are single transitions, and skills are learned from episodes"
        )
    return breaks
