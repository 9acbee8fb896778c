"""Safetensors files, written atomically and read within bounds. No pickle is ever read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from didi_gym.core.files import MEGABYTE, SafeFileError, in_short, open_plain, parse_json, read_into, write_atomically

MAX_NUMBERS = 1 << 25
"""Numbers in the weights of one network: 128 MB in float32, seventy times what the largest bundled policy has."""
LONGEST_HEADER = MEGABYTE  # of a network that may come from anywhere; ours are of a few thousand bytes
_NETWORK_BYTES = 4 * MAX_NUMBERS + LONGEST_HEADER  # of its file
_NETWORKS = 3  # that one file may hold under prefixes: prior, dynamics model and discriminator
_CHECKPOINT_HEADER = 16 * MEGABYTE  # of any file; a checkpoint's header holds the metrics so far
_CHECKPOINT_BYTES = 1 << 32  # of any file: weights, their average and Adam's moments of a network eight times as large

Module = TypeVar("Module", bound=nn.Module)


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
    return _load(path, prefix, _CHECKPOINT_HEADER, _CHECKPOINT_BYTES)


def load_info(path: Path, longest_header: int = _CHECKPOINT_HEADER) -> Any:
    """Read the `info` of a tensor file's header (None where it has none).

    Raises:
        SafeFileError: see `load_tensors`.
    """
    _, metadata = _read(path, longest_header)
    text = metadata.get("info")
    try:
        return None if text is None else parse_json(text)
    except ValueError as error:
        raise SafeFileError(f"{path} is damaged: its header information is no JSON ({in_short(error)})") from error


def load_network(make: Callable[[], Module], path: Path, prefix: str = "", what: str | None = None) -> Module:
    """Make a network and load its weights, which may come from anywhere.

    The network is first made without memory, and the file must hold its weights exactly. They become the network's
    own, and no random number is drawn.

    Args:
        make: What makes it; buffers that are not among the weights must say `device="cpu"`.
        prefix: What the names of its weights begin with in the file; where empty, the file may hold no others.
        what: How messages name the weights; default: the path.

    Raises:
        SafeFileError: a network that is too large, other names, shapes or types, numbers that are not finite, or no
            readable file.
    """
    what = what or str(path)
    try:
        with torch.device("meta"):
            network = make()
    except ValueError as error:
        raise SafeFileError(f"{what}: {in_short(error)}") from error
    expected = network.state_dict()
    if (numbers := sum(tensor.numel() for tensor in expected.values())) > MAX_NUMBERS:
        raise SafeFileError(f"{what}: the network would have {numbers:,} weights, expected at most {MAX_NUMBERS:,}")
    tensors = _load(path, prefix, LONGEST_HEADER, _NETWORK_BYTES * (_NETWORKS if prefix else 1))
    _require(expected, tensors, what)
    network.load_state_dict(tensors, strict=True, assign=True)
    assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())), "a buffer has no memory"
    return network


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], what: str = "weights") -> None:
    """Load `tensors` into `module`, strictly: the same names, shapes and types, and only finite numbers.

    Raises:
        SafeFileError: the first difference.
    """
    _require(module.state_dict(), tensors, what)
    module.load_state_dict(dict(tensors), strict=True)


def _require(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise SafeFileError unless `tensors` have the names, shapes and types of `expected`, and only finite numbers."""
    if missing := sorted(set(expected) - set(tensors)):
        raise SafeFileError(f"{what}: {len(missing)} tensor(s) missing, e.g. {missing[0]}")
    if unknown := sorted(set(tensors) - set(expected)):
        raise SafeFileError(f"{what}: {len(unknown)} unknown tensor(s), e.g. {in_short(unknown[0])}")
    for name, want in expected.items():
        shape, dtype = tuple(want.shape), want.dtype
        if (found := tuple(tensors[name].shape)) != shape or tensors[name].dtype != dtype:
            raise SafeFileError(
                f"{what}: {name} must be {shape} {dtype}, got {in_short(str(found))} {tensors[name].dtype}"
            )
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise SafeFileError(f"{what}: {name} holds NaN or infinity")


def _load(path: Path, prefix: str, longest_header: int, most: int) -> dict[str, Tensor]:
    """The tensors of a file of at most `most` bytes, sorted by name.

    The file is read and not mapped into memory: what changes it later neither changes the tensors nor ends the process.
    """
    content, _ = _read(path, longest_header, most)
    try:
        found = load(content)
    except Exception as error:  # the parser's own, and torch's for a type or a shape that it does not have
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    del content  # no more than two copies are in memory at any time
    # `load` leaves the numbers where Python put the bytes; a copy is aligned as torch's kernels like it
    return {name[len(prefix) :]: found.pop(name).clone() for name in sorted(found) if name.startswith(prefix)}


def _read(path: Path, longest_header: int, most: int | None = None) -> tuple[bytes, dict[str, str]]:
    """The bytes of a safetensors file, or only its header's where `most` does not bound the file; and its metadata.

    Raises:
        SafeFileError: no such file, a larger one, or one whose header is no JSON of bounded length and depth.
    """
    with open_plain(path, most) as (file, size):
        start = _read_bytes(file, min(8, size), path)
        length = int.from_bytes(start, "little")
        try:
            if not 8 <= 8 + length <= size:
                raise ValueError(f"its header would have {length:,} bytes, the whole file has {size:,}")
            if length > longest_header:
                raise ValueError(f"its header has {length:,} bytes, expected at most {longest_header:,}")
            text = _read_bytes(file, length, path)
            header = parse_json(text)  # within bounds that the library's parser does not have
            metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
            if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
                raise ValueError("its header is no mapping with metadata of strings")
        except SafeFileError:
            raise
        except ValueError as error:
            pickled = start.startswith((b"\x80", b"PK"))
            raise _damaged(path, "it looks like a pickle, which is never read" if pickled else str(error)) from error
        rest = b"" if most is None else _read_bytes(file, size - 8 - length, path)
        return b"".join([start, text, rest]), metadata


def _read_bytes(file: BinaryIO, count: int, path: Path) -> bytes:
    content = bytearray(count)
    read_into(content, file, path)
    return bytes(content)


def _damaged(path: Path, reason: str) -> SafeFileError:
    return SafeFileError(f"{path} is damaged or no safetensors file ({in_short(reason)}); fetch or write it again")
