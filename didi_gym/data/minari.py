"""Minari data sets on this disk, and on the Hugging Face Hub, `hf://owner/namespace/name-v0`: Minari itself fetches
and stores them."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from didi_gym.core.progress import Report
from didi_gym.core.progress import progress as progress_of
from didi_gym.data.episodes import DatasetError
from didi_gym.data.writing import require_id
from didi_gym.hub.client import ask_hub, clean_token, without_secrets

SCHEME = "hf://"
_DEFAULT = "hf://farama-minari"  # Minari's own
_REMOTE = re.compile(r"hf://[\w.-]+")
_REMOTE_ID = re.compile(rf"({_REMOTE.pattern})/(.+)")
_PATIENCE = 3.0  # seconds of loading before progress is shown


class RemoteDataError(ValueError):
    """A data set that could not be fetched or stored; the message says why."""


def split_id(dataset_id: str) -> tuple[str | None, str]:
    """`hf://owner/namespace/name-v0` as `hf://owner` and the id that Minari keeps it under; other ids have no remote.

    Raises:
        RemoteDataError: `hf://`, and no owner or no id behind it.
    """
    if not dataset_id.startswith(SCHEME):
        return None, dataset_id
    match = _REMOTE_ID.fullmatch(dataset_id)
    if match is None:
        raise RemoteDataError(f"expected a data set such as hf://owner/namespace/name-v0, got {dataset_id!r}")
    return match[1], match[2]


def load_minari(dataset_id: str, *, download: bool = False) -> Any:
    """The `MinariDataset` of a local id or `hf://owner/...`; where it is on this disk, nothing is fetched.

    The id is checked before any path is made of it: one with `..` or `/` in front would leave Minari's folder.
    Minari keeps a data set under its id without the owner: two owners' data sets of one id exclude each other.

    Raises:
        FileNotFoundError: not on this disk, and `download` is not set.
        RemoteDataError: it could not be fetched.
        ValueError: no Minari id.
    """
    import minari

    remote, local_id = split_id(dataset_id)
    require_id(local_id)
    with _minari_remote(remote):
        try:
            return minari.load_dataset(local_id)
        except FileNotFoundError:
            if not download:
                raise
        try:
            if not _is_on_hub(local_id):
                raise RemoteDataError(f"there is no {_repository(local_id)} on the Hub, or your token cannot see it")
            return minari.load_dataset(local_id, download=True)
        except Exception as error:  # Minari's errors, the client's and the network's have no common base
            raise RemoteDataError(f"could not fetch data set {dataset_id}: {_first_line(error)}") from error


def open_dataset(dataset: Any, *, download: bool = False) -> Any:
    """The `MinariDataset` meant by an id, by the path of its folder, or by itself.

    Raises:
        TypeError: neither of these.
        FileNotFoundError, RemoteDataError, ValueError: as `load_minari`.
    """
    from minari import MinariDataset

    if isinstance(dataset, MinariDataset):
        return dataset
    if isinstance(dataset, str):
        return load_minari(dataset, download=download)
    if not isinstance(dataset, os.PathLike):
        raise TypeError(f"expected a data set's id, its folder as a Path, or a MinariDataset, got {dataset!r}")
    folder = Path(dataset).expanduser()
    return MinariDataset(folder / "data" if (folder / "data").is_dir() else folder)


def read_episodes(
    dataset: Any, keys: tuple[str, ...], *, progress: bool = True
) -> Iterator[tuple[int, Any, np.ndarray, np.ndarray]]:
    """Each episode of a `MinariDataset`: its number, its observations (a dict of arrays where there are `keys`), its
    actions, and whether a step ended an episode, `(steps,)`.

    Raises:
        DatasetError: an episode cannot be read.
    """
    total, began = len(dataset.episode_indices), time.monotonic()
    report: Report | None = None
    with ExitStack() as stack:
        for done, episode in enumerate(_read_hdf5(dataset, keys) or _read_any(dataset)):
            yield episode
            if report is None and time.monotonic() - began > _PATIENCE:
                report = stack.enter_context(progress_of("loading episodes", total, progress))
            if report is not None:
                report(done + 1, {})


def _read_any(dataset: Any) -> Iterator[tuple[int, Any, np.ndarray, np.ndarray]]:
    for episode in dataset.iterate_episodes():
        ended = np.logical_or(episode.terminations, episode.truncations)
        yield episode.id, episode.observations, episode.actions, ended


def _read_hdf5(dataset: Any, keys: tuple[str, ...]) -> Iterator[tuple[int, Any, np.ndarray, np.ndarray]] | None:
    """As `_read_any`, without what is not needed (rewards, infos) and five times as fast; None for other formats."""
    path = Path(dataset.storage.data_path) / "main_data.hdf5"
    if dataset.storage.FORMAT != "hdf5" or not path.is_file():
        return None

    def read() -> Iterator[tuple[int, Any, np.ndarray, np.ndarray]]:
        import h5py  # type: ignore[import-untyped]

        with h5py.File(path, "r") as file:

            def array(episode: int, name: str) -> np.ndarray:
                try:
                    stored = h5py.h5d.open(file.id, f"episode_{episode}/{name}".encode())
                    found = np.empty(stored.shape, stored.dtype)
                    stored.read(h5py.h5s.ALL, h5py.h5s.ALL, found)
                except (KeyError, OSError, TypeError) as error:
                    raise DatasetError(f"episode {episode}: {name} cannot be read from {path} ({error})") from error
                return found

            for index in map(int, dataset.episode_indices):
                observations: Any = (
                    {key: array(index, f"observations/{key}") for key in keys} if keys else array(index, "observations")
                )
                ended = np.logical_or(array(index, "terminations"), array(index, "truncations"))
                yield index, observations, array(index, "actions"), ended

    return read()


def upload_dataset(dataset_id: str, remote: str, token: str | None = None) -> str:
    """Store a local data set on the Hub through Minari; who already has one of that id keeps it.

    Minari makes several commits: the namespace, then the data.

    Args:
        dataset_id: Local id, e.g. didi/ant-directions-v0.
        remote: `hf://owner`.
        token: With write access; default: the one of `hf auth login` or HF_TOKEN.

    Returns:
        The id under which others load it, `hf://owner/didi/ant-directions-v0`.

    Raises:
        RemoteDataError: not on this disk, there already, or refused.
    """
    import minari

    token = clean_token(token)
    if not _REMOTE.fullmatch(remote):
        raise RemoteDataError(f"expected where to store the data set as hf://owner, got {remote!r}")
    try:
        require_id(dataset_id)
        minari.load_dataset(dataset_id)
    except (FileNotFoundError, ValueError) as error:
        raise RemoteDataError(f"no data set {dataset_id!r} on this disk to upload: {_first_line(error)}") from error
    with _minari_remote(remote), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            _is_on_hub(dataset_id, token)
            minari.upload_dataset(dataset_id, token)
        except Exception as error:  # as above
            reason = without_secrets(_first_line(error), token)
            raise RemoteDataError(
                f"could not upload {dataset_id} to {remote}: {reason}. It needs a token with write access "
                f"(`hf auth login`, or HF_TOKEN)"
            ) from error
    if any("Upload aborted" in str(warning.message) for warning in said):
        raise RemoteDataError(
            f"{remote} has a data set {dataset_id} already, which stays; upload under another version"
        )
    return f"{remote}/{dataset_id}"


def _repository(local_id: str) -> str:
    """Where Minari, as it is pointed now, keeps a data set: `owner/namespace`."""
    owner = os.environ.get("MINARI_REMOTE", _DEFAULT).removeprefix(SCHEME)
    return f"{owner}/{local_id.partition('/')[0]}"


def _is_on_hub(local_id: str, token: str | None = None) -> bool:
    """Whether the Hub has the repository; asked first, since Minari repeats its own question for 23 seconds."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    if not os.environ.get("MINARI_REMOTE", _DEFAULT).startswith(SCHEME):
        return True  # another kind of storage
    try:
        ask_hub(lambda: HfApi(token=token).dataset_info(_repository(local_id), timeout=60))
    except RepositoryNotFoundError:
        return False
    return True


@contextmanager
def _minari_remote(remote: str | None) -> Iterator[None]:
    """Point Minari to a remote for a while: a variable is the only way that all its parts obey."""
    before = os.environ.get("MINARI_REMOTE")
    if remote is not None:
        os.environ["MINARI_REMOTE"] = remote
    try:
        yield
    finally:
        if before is not None:
            os.environ["MINARI_REMOTE"] = before
        elif remote is not None:
            del os.environ["MINARI_REMOTE"]


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
