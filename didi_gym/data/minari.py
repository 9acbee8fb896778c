"""Minari data sets on the Hugging Face Hub, `hf://owner/namespace/name-v0`: Minari itself fetches and stores them."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from didi_gym.hub.client import ask_hub, clean_token, without_secrets

SCHEME = "hf://"
_DEFAULT = "hf://farama-minari"  # Minari's own
_REMOTE = re.compile(r"hf://[\w.-]+")
_REMOTE_ID = re.compile(rf"({_REMOTE.pattern})/(.+)")


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

    Minari keeps a data set under its id without the owner: two owners' data sets of one id exclude each other.

    Raises:
        FileNotFoundError: not on this disk, and `download` is not set.
        RemoteDataError: it could not be fetched.
        ValueError: no Minari id.
    """
    import minari

    remote, local_id = split_id(dataset_id)
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
