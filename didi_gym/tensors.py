"""Safetensors files, written atomically and read strictly. No pickle is ever read."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor, nn

from didi_gym.files import MEGABYTE, SafeFileError, in_short, open_plain, parse_json, read_into

MAX_NUMBERS = 1 << 25
"""Numbers in the weights of one network: 128 MB in float32, seventy times what the largest bundled policy has."""
_MAX_HEADER = 16 * MEGABYTE  # of any file; a checkpoint's header holds the metrics so far
LONGEST_HEADER = MEGABYTE  # of a network that may come from anywhere; ours are of a few thousand bytes
_MAX_DIMENSIONS = 8
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}

Module = TypeVar("Module", bound=nn.Module)


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
    with _open(path, _MAX_HEADER) as file:
        return file.read(prefix)


def load_info(path: Path, longest_header: int = _MAX_HEADER) -> Any:
    """Read the `info` of a tensor file's header (None where it has none).

    Raises:
        SafeFileError: see `load_tensors`.
    """
    with _open(path, longest_header) as file:
        text = file.metadata.get("info")
    try:
        return None if text is None else parse_json(text)
    except ValueError as error:
        raise SafeFileError(f"{path} is damaged: its header information is no JSON ({in_short(error)})") from error


def load_network(make: Callable[[], Module], path: Path, prefix: str = "", what: str | None = None) -> Module:
    """Make a network and load its weights, which may come from anywhere.

    The network is first made without memory; the file's header must name its weights exactly, before one of them is
    read. They become the network's own, and no random number is drawn.

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
    expected = {name: _Form.of(tensor) for name, tensor in network.state_dict().items()}
    if (numbers := sum(math.prod(form.shape) for form in expected.values())) > MAX_NUMBERS:
        raise SafeFileError(f"{what}: the network would have {numbers:,} weights, expected at most {MAX_NUMBERS:,}")
    with _open(path, LONGEST_HEADER) as file:
        _require_same(expected, file.forms(prefix), what)
        tensors = file.read(prefix)
    _require_finite(tensors, what)
    network.load_state_dict(tensors, strict=True, assign=True)
    assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())), "a buffer has no memory"
    return network


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], what: str = "weights") -> None:
    """Load `tensors` into `module`, strictly: the same names, shapes and types, and only finite numbers.

    Raises:
        SafeFileError: the first difference.
    """
    expected = {name: _Form.of(tensor) for name, tensor in module.state_dict().items()}
    _require_same(expected, {name: _Form.of(tensor) for name, tensor in tensors.items()}, what)
    _require_finite(tensors, what)
    module.load_state_dict(dict(tensors), strict=True)


@dataclass(frozen=True)
class _Form:
    """What a tensor is like."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> _Form:
        return cls(tuple(tensor.shape), tensor.dtype)

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def _require_same(expected: Mapping[str, _Form], found: Mapping[str, _Form], what: str) -> None:
    if missing := sorted(set(expected) - set(found)):
        raise SafeFileError(f"{what}: {len(missing)} tensor(s) missing, e.g. {missing[0]}")
    if unknown := sorted(set(found) - set(expected)):
        raise SafeFileError(f"{what}: {len(unknown)} unknown tensor(s), e.g. {in_short(unknown[0])}")
    for name, want in expected.items():
        if (got := found[name]) != want:
            raise SafeFileError(
                f"{what}: {name} must be {want.shape} {want.dtype}, got {in_short(str(got.shape))} {got.dtype}"
            )


def _require_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise SafeFileError(f"{what}: {name} holds NaN or infinity")


@dataclass(frozen=True)
class _TensorFile:
    """A safetensors file whose header has been checked.

    It is read and not mapped into memory: what changes the file later neither changes the tensors nor ends the process.
    """

    path: Path
    file: BinaryIO
    metadata: dict[str, str]
    places: dict[str, tuple[_Form, int]]
    """Of each tensor its form, and where in the file it begins."""

    def forms(self, prefix: str) -> dict[str, _Form]:
        return {name[len(prefix) :]: form for name, (form, _) in self.places.items() if name.startswith(prefix)}

    def read(self, prefix: str) -> dict[str, Tensor]:
        return {
            name[len(prefix) :]: self._read(*place) for name, place in self.places.items() if name.startswith(prefix)
        }

    def _read(self, form: _Form, begin: int) -> Tensor:
        content = torch.empty(form.size, dtype=torch.uint8, device="cpu")  # aligned as torch's kernels like it
        self.file.seek(begin)
        read_into(content.numpy(), self.file, self.path)
        tensor = content.view(form.dtype).reshape(form.shape)
        if sys.byteorder == "big":
            tensor.untyped_storage().byteswap(form.dtype)
        return tensor


@contextmanager
def _open(path: Path, longest_header: int) -> Iterator[_TensorFile]:
    """Open a safetensors file and check all that its header says against the file.

    Raises:
        SafeFileError: no such file, or one that is not whole and sound.
    """
    with open_plain(path) as (file, size):
        start = _read(file, min(8, size), path)
        length = int.from_bytes(start, "little")
        try:
            if not 8 <= 8 + length <= size:
                raise ValueError(f"its header would have {length:,} bytes, the whole file has {size:,}")
            if length > longest_header:
                raise ValueError(f"its header has {length:,} bytes, expected at most {longest_header:,}")
            metadata, places = _check_header(parse_json(_read(file, length, path)), 8 + length, size)
        except SafeFileError:
            raise
        except ValueError as error:
            pickled = start.startswith((b"\x80", b"PK"))
            reason = "it looks like a pickle, which is never read" if pickled else in_short(error)
            raise SafeFileError(
                f"{path} is damaged or no safetensors file ({reason}); fetch or write it again"
            ) from error
        yield _TensorFile(path, file, metadata, places)


def _read(file: BinaryIO, count: int, path: Path) -> bytes:
    content = bytearray(count)
    read_into(content, file, path)
    return bytes(content)


def _check_header(header: Any, start: int, size: int) -> tuple[dict[str, str], dict[str, tuple[_Form, int]]]:
    """Metadata and places of the tensors, which must fill the file from byte `start` to its end without gaps.

    Raises:
        ValueError: the header is not of that kind.
    """
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its metadata are no strings")
    entries = [(name, *_check_entry(name, entry)) for name, entry in header.items()]
    places, reached = {}, start
    for name, form, begin, end in sorted(entries, key=lambda entry: entry[2:]):
        if start + begin != reached or end - begin != form.size:
            raise ValueError(f"{in_short(name)} lies where its shape or the tensor before it does not allow")
        places[name] = form, reached
        reached = start + end
    if reached != size:
        raise ValueError(f"its header speaks of {reached:,} bytes, the file has {size:,}")
    return metadata, places


def _check_entry(name: str, entry: Any) -> tuple[_Form, int, int]:
    """Form, begin and end of one tensor, as a header tells.

    Raises:
        ValueError: anything but a known type, a shape and two offsets.
    """
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{in_short(name)} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise ValueError(f"{in_short(name)} is of type {in_short(repr(dtype))}, expected one of {', '.join(_TYPES)}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"{in_short(name)} has a shape or an offset that is no count")
    if len(shape) > _MAX_DIMENSIONS or len(offsets) != 2 or max(0, *shape, *offsets) >= 1 << 63:
        raise ValueError(f"{in_short(name)} has a shape or an offset that cannot be")
    return _Form(tuple(shape), _TYPES[dtype]), offsets[0], offsets[1]
