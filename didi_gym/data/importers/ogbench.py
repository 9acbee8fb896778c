"""OGBench: an NPZ file with all trajectories end to end, each with the state that it ended in.

Source: Park et al., 2024, and `ogbench.utils.load_dataset`. A trajectory of T steps has T + 1 rows, the last of which
`terminals` flags; the action of that row belongs to no step. In files that `load_dataset(compact_dataset=True)` gave,
`terminals` flags the last two rows, and `valids` is 0 in the last one.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from didi_gym.data.episodes import DatasetError
from didi_gym.data.importers.reading import open_npz, read_columns, require_names
from didi_gym.data.importers.rows import Collector, Recording, flags

NEEDED = ("observations", "actions", "terminals")


def read(path: Path, *, progress: bool = True) -> Recording:
    """Trajectories of an OGBench file: `observations`, `actions`, `terminals`, and `valids` where it is there. The rest
    (`qpos`, `qvel`, `button_states`) is left alone.

    Raises:
        DatasetError: another content, or no end of any trajectory.
    """
    with open_npz(path) as file:
        names = file.names()
        require_names(path, names, NEEDED, "an OGBench file")
        if "next_observations" in names:
            raise DatasetError(
                f"{path} has next_observations, which OGBench's files do not have, and ends may be flagged in another "
                "row then; import the file as it was downloaded"
            )
        found = read_columns(file, [*NEEDED, *(name for name in ("valids",) if name in names)], progress)
    ends = flags(path, "terminals", found["terminals"])
    if "valids" in found:
        ends = ~flags(path, "valids", found["valids"])
    if not ends.any():
        flag = "valids" if "valids" in found else "terminals"
        raise DatasetError(
            f"{path}: {flag} flags no row as the last of its trajectory, so they cannot be told from each other"
        )
    collector = Collector(path, ("observations",))
    bounds = sorted({0, *(np.flatnonzero(ends) + 1).tolist(), len(ends)})
    for number, (first, end) in enumerate(itertools.pairwise(bounds)):
        collector.add(number, {"observations": found["observations"][first:end]}, found["actions"][first:end])
    return collector.finish(
        ["The format has no rewards, so zeros are written; nothing learns from them."],
        why="in this format the action beside a trajectory's last state belongs to no step",
    )
