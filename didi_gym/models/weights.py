"""Safetensors files, written atomically and read within bounds. No pickle is ever read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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

_CHECKSUM = "sha256"  # a key of our own in the information of a header

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class TensorFile:
    """What one reading of a safetensors file gave: all of it is of the same moment, whoever writes the file anew."""

    path: Path
    tensors: dict[str, Tensor]
    info: Any
    """Of its header; None where it has none."""
    checked: bool
    """It holds a checksum, which was right."""

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with `prefix`, which is cut off."""
        return {name[len(prefix) :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Make networks of float32, whatever `torch.set_default_dtype` says: it is the type of all our files."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def tensors_sha256(tensors: Mapping[str, Tensor], info: Any = None) -> str:
    """SHA-256 of name, type, shape and bytes of every tensor, in the order of their names, and of `info` (JSON types).

    Unlike the hash of a file it does not depend on the order in which the file holds them.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{json.dumps(name)} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    if info is not None:
        digest.update(json.dumps(info, sort_keys=True).encode())
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], info: Mapping[str, Any] | None = None) -> None:
    """Write tensors, with `info` (JSON types) in the header, and beside it a checksum of both."""
    # one entry only: safetensors writes several in random order, and equal runs should give equal files
    metadata = {"format": "pt"}
    if info is not None:
        metadata = {"info": json.dumps({**info, _CHECKSUM: tensors_sha256(tensors, info)})}
    write_atomically(path, save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata))


def read_tensors(path: Path, longest_header: int = _CHECKPOINT_HEADER, most: int = _CHECKPOINT_BYTES) -> TensorFile:
    """Read a safetensors file of at most `most` bytes, once, with its tensors sorted by name.

    The file is read and not mapped into memory: what changes it later neither changes the tensors nor ends the process.

    Raises:
        SafeFileError: no such file (pickles beside it are named but never read), or a damaged one.
    """
    content, metadata = _read(path, longest_header, most)
    info, checksum = _parse_info(path, metadata)
    try:
        found = load(content)
    except Exception as error:  # the parser's own, and torch's for a type or a shape that it does not have
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    del content  # no more than two copies are in memory at any time
    # `load` leaves the numbers where Python put the bytes; a copy is aligned as torch's kernels like it
    tensors = {name: found.pop(name).clone() for name in sorted(found)}
    if checksum is not None and checksum != tensors_sha256(tensors, info):
        raise _damaged(path, "its checksum is that of another content")
    return TensorFile(path, tensors, info, checksum is not None)


def read_training(path: Path) -> TensorFile:
    """Read a `training.safetensors`: up to three networks, which may come from anywhere, under prefixes."""
    return read_tensors(path, LONGEST_HEADER, _NETWORK_BYTES * _NETWORKS)


def load_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a file whose names start with `prefix`, which is cut off.

    Raises:
        SafeFileError: see `read_tensors`.
    """
    return read_tensors(path).part(prefix)


def load_info(path: Path, longest_header: int = _CHECKPOINT_HEADER) -> Any:
    """Read the `info` of a tensor file's header (None where it has none), and nothing else of the file.

    Raises:
        SafeFileError: see `read_tensors`.
    """
    return _parse_info(path, _read(path, longest_header)[1])[0]


def _parse_info(path: Path, metadata: Mapping[str, str]) -> tuple[Any, Any]:
    """Information and checksum out of a header's metadata; None for what is not there."""
    text = metadata.get("info")
    try:
        info = None if text is None else parse_json(text)
    except ValueError as error:
        raise SafeFileError(f"{path} is damaged: its header information is no JSON ({in_short(error)})") from error
    return info, info.pop(_CHECKSUM, None) if isinstance(info, dict) else None


def load_network(
    make: Callable[[], Module],
    source: Path | TensorFile,
    prefix: str = "",
    what: str | None = None,
    sha256: str | None = None,
) -> Module:
    """Make a network and load its weights, which may come from anywhere.

    The network is first made without memory, and the file must hold its weights exactly. They become the network's
    own, and no random number is drawn.

    Args:
        make: What makes it; buffers that are not among the weights must say `device="cpu"`.
        source: The file, or what was read of it before.
        prefix: What the names of its weights begin with in the file; where empty, the file may hold no others.
        what: How messages name the weights; default: the path.
        sha256: What `tensors_sha256` must give of the weights, where that is known.

    Raises:
        SafeFileError: a network that is too large, other names, shapes or types, numbers that are not finite or not
            those of the hash, or no readable file.
    """
    what = what or str(source.path if isinstance(source, TensorFile) else source)
    try:
        with torch.device("meta"), float32_by_default():
            network = make()
    except ValueError as error:
        raise SafeFileError(f"{what}: {in_short(error)}") from error
    expected = network.state_dict()
    if (numbers := sum(tensor.numel() for tensor in expected.values())) > MAX_NUMBERS:
        raise SafeFileError(f"{what}: the network would have {numbers:,} weights, expected at most {MAX_NUMBERS:,}")
    if isinstance(source, Path):
        source = read_training(source) if prefix else read_tensors(source, LONGEST_HEADER, _NETWORK_BYTES)
    tensors = source.part(prefix)
    require_tensors(expected, tensors, what)
    if sha256 is not None and (found := tensors_sha256(tensors)) != sha256:
        raise SafeFileError(
            f"{what} is damaged or of another policy: its weights have the sha256 {found}, expected "
            f"{in_short(sha256)}; fetch or write it again"
        )
    network.load_state_dict(tensors, strict=True, assign=True)
    assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())), "a buffer has no memory"
    return network


def require_tensors(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], what: str) -> None:
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
