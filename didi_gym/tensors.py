"""Safetensors files, written atomically and read strictly. No pickle is ever read."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn


class SafeFileError(ValueError):
    """A tensor file that cannot be used; the message names the file and says why."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds either the old or the new bytes, whatever happens."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_tensors(path: Path, tensors: Mapping[str, Tensor], info: Any = None) -> None:
    """Write tensors, with `info` (JSON types) in the header."""
    # one entry only: safetensors writes several in random order, and equal runs should give equal files
    metadata = {"format": "pt"} if info is None else {"info": json.dumps(info)}
    write_atomically(path, save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata))


def load_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Read the tensors whose names start with `prefix`, which is cut off.

    Raises:
        SafeFileError: no such file (pickles beside it are named but never read), or a damaged one.
    """
    with _open(path) as file:
        return {name[len(prefix) :]: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118


def load_info(path: Path) -> Any:
    """Read the `info` of a tensor file's header (None where it has none)."""
    with _open(path) as file:
        text = (file.metadata() or {}).get("info")
    try:
        return None if text is None else json.loads(text)
    except ValueError as error:
        raise SafeFileError(f"{path} is damaged: its header information is no JSON") from error


class _open:
    """`safe_open` with its failures in words."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            pickles = [p.name for p in path.parent.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".pkl", ".zip"}]
            beside = f"; {', '.join(sorted(pickles))} is there, but pickles are never read" if pickles else ""
            raise SafeFileError(f"{path.parent} has no {path.name}{beside}")
        self.path = path

    def __enter__(self) -> Any:
        try:
            self._file = safe_open(self.path, framework="pt", device="cpu")
            return self._file.__enter__()
        except (SafetensorError, OSError) as error:
            raise self._damaged(error) from error

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._file.__exit__(kind, error, trace)
        if isinstance(error, SafetensorError):
            raise self._damaged(error) from error

    def _damaged(self, error: BaseException) -> SafeFileError:
        return SafeFileError(f"{self.path} is damaged or no safetensors file ({error}); fetch or write it again")


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], what: str = "weights") -> None:
    """Load `tensors` into `module`, strictly: the same names, shapes and types, and only finite numbers.

    Raises:
        SafeFileError: the first difference.
    """
    expected = module.state_dict()
    if missing := sorted(set(expected) - set(tensors)):
        raise SafeFileError(f"{what}: {len(missing)} tensor(s) missing, e.g. {missing[0]}")
    if unknown := sorted(set(tensors) - set(expected)):
        raise SafeFileError(f"{what}: {len(unknown)} unknown tensor(s), e.g. {unknown[0]}")
    for name, tensor in tensors.items():
        want = expected[name]
        if tensor.shape != want.shape or tensor.dtype != want.dtype:
            raise SafeFileError(
                f"{what}: {name} must be {tuple(want.shape)} {want.dtype}, got {tuple(tensor.shape)} {tensor.dtype}"
            )
        if not torch.isfinite(tensor).all():
            raise SafeFileError(f"{what}: {name} holds NaN or infinity")
    module.load_state_dict(dict(tensors), strict=True)
