"""Episodes are kept on disk until their data set is whole, so that a recording that was stopped goes on."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from didi_gym.core.files import SafeFileError, read_plain, write_atomically
from didi_gym.data.generators.parallel import OrderedMap
from didi_gym.data.writing import Episode, flat, parts_folder
from didi_gym.version import __version__

_MOST_BYTES = 1 << 30  # of one episode
_ABOUT = "about"


def resumable(run: OrderedMap, dataset_id: str) -> OrderedMap:
    """`run` for functions that make episodes: those that an earlier recording of the same data set kept are read.

    What counts as the same is the function and its items, by a hash of their pickled form; nothing is ever unpickled.
    `write_dataset` deletes the episodes once the data set is whole.
    """

    def run_rest(function: Callable[[Any], Episode], items: Sequence[Any]) -> Iterable[Episode]:
        try:
            identity = pickle.dumps((__version__, _named(function), list(items)), protocol=4)
        except (pickle.PicklingError, TypeError, AttributeError):  # a behaviour of the caller's own, in this process
            return run(function, items)
        work = hashlib.sha256(identity).hexdigest()[:16]
        folder = parts_folder(dataset_id) / work
        folder.mkdir(parents=True, exist_ok=True)
        return _rest(run, function, items, folder)

    return run_rest


def _rest(run: OrderedMap, function: Callable[[Any], Episode], items: Sequence[Any], folder: Path) -> Iterator[Episode]:
    done = 0
    for number in range(len(items)):
        try:
            episode = _read(folder / f"{number}.npz")
        except (
            OSError,
            ValueError,
            KeyError,
            zipfile.BadZipFile,
        ):  # absent, or cut short: recorded again, with all that follow
            break
        done += 1
        yield episode
    for number, episode in enumerate(run(function, items[done:]), done):
        _write(folder / f"{number}.npz", episode)
        yield episode


def _named(function: Any) -> Any:
    """A function as what tells it apart: where it is, and what is bound to it."""
    if isinstance(function, functools.partial):
        return [_named(function.func), function.args, function.keywords]
    return f"{function.__module__}:{function.__qualname__}"


def _write(path: Path, episode: Episode) -> None:
    arrays = {f"observation/{k}".rstrip("/"): v for k, v in flat(episode.observations).items()}
    arrays |= {"actions": episode.actions, "rewards": episode.rewards}
    arrays |= {f"info/{k}": v for k, v in episode.infos.items()}
    about = {"terminated": episode.terminated, "seed": episode.seed, "labels": _plain(episode.labels)}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays, **{_ABOUT: np.array(json.dumps(about))})
    write_atomically(path, file.getvalue())


def _read(path: Path) -> Episode:
    try:
        content = read_plain(path, _MOST_BYTES)
    except SafeFileError as error:
        raise ValueError(str(error)) from error
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = dict(file)
    about = json.loads(str(arrays.pop(_ABOUT)))
    observed: Any = arrays.get("observation", {})
    for key, value in arrays.items():
        first, *names = key.split("/")
        if first == "observation" and names:
            inner = functools.reduce(lambda found, name: found.setdefault(name, {}), names[:-1], observed)
            inner[names[-1]] = value
    infos = {k.removeprefix("info/"): v for k, v in arrays.items() if k.startswith("info/")}
    return Episode(
        observed,
        arrays["actions"],
        arrays["rewards"],
        about["terminated"],
        about["seed"],
        about["labels"],
        infos,
    )


def _plain(labels: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in labels.items()}
