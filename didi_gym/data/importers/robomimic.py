"""robomimic: an HDF5 file with a group for each demonstration, and in it a group for the parts of its observations.

Source: Mandlekar et al., 2021, and robomimic's page "Dataset Structure".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from didi_gym.core.files import in_short
from didi_gym.core.progress import progress as progress_of
from didi_gym.data.episodes import DatasetError
from didi_gym.data.importers.reading import Hdf5, open_hdf5
from didi_gym.data.importers.rows import Collector, Recording

_MOST_NAMES = 1 << 24  # bytes of the list of a filter key
DEMO = re.compile(r"demo_(\d+)")


def read(path: Path, *, keys: Sequence[str] = (), mask: str | None = None, progress: bool = True) -> Recording:
    """Demonstrations of a robomimic file: `data/demo_N/actions`, `rewards`, `obs/KEY` and the last row of
    `next_obs/KEY`, the latter three where they are there. `states` and `dones` are left alone: `dones` flags success
    or the end, as whoever wrote the file chose.

    Args:
        keys: Parts of the observation to read, in this order; default: all that are no images.
        mask: Only the demonstrations that `mask/MASK` lists (robomimic calls it a filter key).

    Raises:
        DatasetError: another content, images among `keys`, or lengths that contradict each other.
    """
    with open_hdf5(path) as file:
        demos = sorted((n for n in file.names("data") if DEMO.fullmatch(n)), key=lambda n: int(n.removeprefix("demo_")))
        if not demos:
            raise DatasetError(
                f"{path}: expected demonstrations data/demo_0, data/demo_1, ..., as a robomimic file has, got "
                f"{in_short(', '.join(file.names('data') or file.names()) or 'nothing')}"
            )
        demos = _listed(file, mask, demos)
        chosen, images = _choose(file, demos[0], keys)
        collector = Collector(path, chosen)
        with progress_of("reading demonstrations", len(demos), progress) as report:
            for done, demo in enumerate(demos):
                _add(collector, file, demo)
                report(done + 1, {})
    notes = [f"The state is {', '.join(chosen)}."]
    if images:
        notes.append(f"Images are not read: {', '.join(images)}.")
    return collector.finish(notes)


def _listed(file: Hdf5, mask: str | None, demos: list[str]) -> list[str]:
    """The demonstrations that a filter key lists."""
    if mask is None:
        return demos
    if mask not in file.names("mask"):
        there = in_short(", ".join(file.names("mask")) or "none")
        raise DatasetError(
            f"{file.path}: expected --mask to name an entry of the group mask, got {mask!r}; it has {there}"
        )
    stored = file.item(f"mask/{mask}")
    if stored.dtype.kind != "S" or stored.ndim != 1 or stored.nbytes > _MOST_NAMES:
        raise DatasetError(f"{file.path}: expected mask/{mask} to be a list of names, as bytes of fixed length")
    names = {name.decode("utf-8", "replace") for name in stored[()]}
    if unknown := sorted(names - set(demos)):
        raise DatasetError(
            f"{file.path}: mask/{mask} lists {in_short(unknown[0])}, which is not among the demonstrations"
        )
    if not names:
        raise DatasetError(f"{file.path}: mask/{mask} lists no demonstration")
    return [demo for demo in demos if demo in names]


def _choose(file: Hdf5, demo: str, keys: Sequence[str]) -> tuple[list[str], list[str]]:
    """The keys to read, and those of images that a default leaves out."""
    there = file.names("data", demo, "obs")
    if not there:
        raise DatasetError(
            f"{file.path}: data/{demo} has no obs; where it holds states only, robomimic's dataset_states_to_obs.py "
            "adds observations"
        )
    sizes = {key: getattr(file.find("data", demo, "obs", key), "ndim", 0) for key in there}
    rows, images = [k for k in there if 1 <= sizes[k] <= 2], [k for k in there if sizes[k] > 2]
    if unknown := [key for key in keys if key not in there]:
        raise DatasetError(
            f"{file.path}: obs has no {unknown[0]!r}; choose --keys among {in_short(', '.join(rows) or 'none')}"
        )
    if named := [key for key in keys if key in images]:
        raise DatasetError(
            f"{file.path}: {', '.join(named)} holds images, and skills are learned from rows of numbers; choose --keys "
            f"among {in_short(', '.join(rows) or 'none')}"
        )
    if not keys and not rows:
        raise DatasetError(f"{file.path}: obs holds images only ({', '.join(images)}), and images are not read")
    return (list(keys), []) if keys else (rows, images)


def _add(collector: Collector, file: Hdf5, demo: str) -> None:
    """Read one demonstration."""
    here = f"data/{demo}"
    group, stored = file.find("data", demo), file.names("data", demo)
    if missing := [key for key in collector.keys if key not in file.names("data", demo, "obs")]:
        raise DatasetError(f"{file.path}: {here}/obs has no {missing[0]}, which other demonstrations have")
    actions = file.array(f"{here}/actions")
    said = group.attrs.get("num_samples") if "num_samples" in group.attrs else len(actions)
    if np.ndim(said) or not np.issubdtype(np.asarray(said).dtype, np.integer) or said != len(actions):
        raise DatasetError(
            f"{file.path}: {here} says that it has {in_short(str(said))} samples (num_samples), got "
            f"{len(actions)} actions"
        )
    after = set(collector.keys) <= set(file.names("data", demo, "next_obs")) and len(actions) > 0
    collector.add(
        demo,
        {key: file.array(f"{here}/obs/{key}") for key in collector.keys},
        actions,
        file.array(f"{here}/rewards") if "rewards" in stored else None,
        {key: file.last_row(f"{here}/next_obs/{key}", len(actions)) for key in collector.keys} if after else None,
    )
