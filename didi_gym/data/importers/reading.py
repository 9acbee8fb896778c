"""Arrays out of HDF5 and NPZ files that anyone may have written: plain numbers of bounded size, and no pickles."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.lib import format as npy

from didi_gym.core.files import in_short, open_plain, read_into
from didi_gym.core.progress import progress as progress_of
from didi_gym.data.episodes import DatasetError

MOST_BYTES = 8 << 30
"""Of all arrays of a file that are read: beyond any published data set of states and actions, images left aside."""
_BLOCK = 1 << 16  # rows between two reports of progress
_HEADERS: dict[tuple[int, int], Callable[..., Any]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


class Room:
    """How many bytes of a file may still be read: they are added up before any memory is asked for, since a few
    kilobytes may unpack to gigabytes."""

    def __init__(self, path: Path) -> None:
        self.path, self.taken = path, 0

    def take(self, name: str, size: int) -> None:
        self.taken += size
        if self.taken > MOST_BYTES:
            raise DatasetError(
                f"{self.path}: up to {name}, its arrays have {self.taken:,} bytes, expected at most {MOST_BYTES:,}; "
                "split the file"
            )


def require_rows(path: Path, name: str, shape: tuple[int, ...] | None, dtype: np.dtype) -> tuple[int, ...]:
    """Refuse an array that does not hold one number, or one row of numbers, for each step; returns its shape.

    Raises:
        DatasetError: images, text, objects or a single value.
    """
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        kind = "objects or text" if dtype.kind in "OSUV" else dtype
        raise DatasetError(
            f"{path}: {name} holds {kind}, expected plain numbers of at most 64 bits; nothing else is read"
        )
    if not shape:
        raise DatasetError(f"{path}: {name} is a single value, expected one row for each step")
    if len(shape) > 2:
        raise DatasetError(
            f"{path}: {name} has the shape {shape}, as images have; skills are learned from rows of numbers, and "
            "images are not read: import the states instead"
        )
    return shape


def require_names(path: Path, names: Sequence[str], needed: Sequence[str], what: str) -> None:
    """Refuse a file in which arrays are missing that `what` has."""
    if missing := [name for name in needed if name not in names]:
        raise DatasetError(
            f"{path}: expected {', '.join(needed)}, as {what} has, but there is no {', '.join(missing)}, only "
            f"{in_short(', '.join(sorted(names)) or 'nothing')}"
        )


class Source(Protocol):
    """A file of named arrays."""

    path: Path

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array of numbers with one row for each step, for which there is room."""
        ...

    def blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """Fill the array, block by block: the rows of the block, and the array, whole after the last one."""
        ...


def read_columns(source: Source, names: Sequence[str], progress: bool) -> dict[str, np.ndarray]:
    """Arrays of equal length, as they are stored.

    Raises:
        DatasetError: one of them is not made of rows of numbers, or they differ in length.
    """
    lengths = {name: source.shape(name)[0] for name in names}
    if len(set(lengths.values())) > 1:
        raise DatasetError(
            f"{source.path}: expected as many rows in each array, got {lengths}; repair the file, or fetch it again"
        )
    found, done = {}, 0
    with progress_of("reading rows of all arrays", sum(lengths.values()), progress) as report:
        for name in names:
            for rows, array in source.blocks(name):
                found[name] = array
                done += rows
                report(done, {})
    return found


class Hdf5:
    """An open HDF5 file, in which links are not followed: they may lead to any file of this computer."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self._file, self._room = path, file, Room(path)

    def names(self, *where: str) -> list[str]:
        """What lies in a group, in the file's order; nothing where that is no group."""
        import h5py  # type: ignore[import-untyped]

        group = self.find(*where)
        return list(group) if isinstance(group, h5py.Group) else []

    def find(self, *where: str) -> Any:
        """A group or an array by the names that lead to it, or None."""
        import h5py

        here = self._file
        for name in where:
            if not isinstance(here, h5py.Group) or not here.id.links.exists(name.encode()):
                return None
            if here.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
                raise DatasetError(
                    f"{self.path}: {'/'.join(where)} is a link, which is not followed; store the array itself"
                )
            here = here[name]
        return here

    def item(self, name: str) -> Any:
        """The `h5py.Dataset` of a name or a path such as data/demo_0/actions, whose numbers lie in this file."""
        import h5py

        item = self.find(*name.split("/"))
        if not isinstance(item, h5py.Dataset):
            raise DatasetError(f"{self.path}: {name} is {'missing' if item is None else 'a group'}, expected an array")
        if item.is_virtual or item.external:
            raise DatasetError(f"{self.path}: {name} lies in another file, which is not read; store the array itself")
        return item

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Source`."""
        item = self.item(name)
        shape = require_rows(self.path, name, item.shape, item.dtype)
        chunk = item.chunks or (1,)  # is unpacked whole, however small the array
        self._room.take(name, max(math.prod(shape), math.prod(chunk)) * item.dtype.itemsize)
        return shape

    def blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """See `Source`."""
        item = self.item(name)
        array = np.empty(item.shape, item.dtype)
        for first in range(0, max(len(array), 1), _BLOCK):
            rows = np.s_[first : min(first + _BLOCK, len(array))]
            try:
                if array.size:
                    item.read_direct(array, rows, rows)
            except (OSError, RuntimeError) as error:
                raise DatasetError(f"{self.path}: {name} cannot be read ({in_short(error)}); fetch it again") from error
            yield rows.stop - rows.start, array

    def array(self, name: str) -> np.ndarray:
        """An array, whole."""
        self.shape(name)
        *_, (_, array) = self.blocks(name)
        return array

    def last_row(self, name: str, rows: int) -> np.ndarray:
        """The last one of `rows` rows of an array, `(1, ...)`."""
        if (length := self.shape(name)[0]) != rows:
            raise DatasetError(f"{self.path}: expected {rows} rows in {name}, as there are actions, got {length}")
        return np.asarray(self.item(name)[-1:])


@contextmanager
def open_hdf5(path: Path) -> Iterator[Hdf5]:
    """Open an HDF5 file.

    Raises:
        SafeFileError: no such file, or no plain one.
        DatasetError: no HDF5 file.
    """
    import h5py

    with open_plain(path.resolve()) as (raw, _):
        try:
            file = h5py.File(raw, "r")
        except (OSError, RuntimeError, ValueError) as error:
            raise DatasetError(f"{path} is no HDF5 file, or a damaged one ({in_short(error)})") from error
        with file:
            yield Hdf5(path, file)


class Npz:
    """An open NPZ file."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self._archive, self._room = path, archive, Room(path)

    def names(self) -> list[str]:
        return [name.removesuffix(".npy") for name in self._archive.namelist()]

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Source`."""
        with self._open(name) as (_, shape, _, dtype):
            require_rows(self.path, name, shape, dtype)
            self._room.take(name, math.prod(shape) * dtype.itemsize)
        return shape

    def blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """See `Source`."""
        with self._open(name) as (file, shape, by_column, dtype):
            stored = np.empty(shape[::-1] if by_column else shape, dtype)
            array = stored.T if by_column else stored
            step = len(stored) if by_column else _BLOCK
            for first in range(0, max(len(stored), 1), max(step, 1)):
                rows = stored[first : first + step]
                try:
                    if rows.size:
                        read_into(rows, file, self.path)
                except (zipfile.BadZipFile, EOFError, ValueError) as error:
                    raise DatasetError(f"{self.path}: {name} cannot be read ({in_short(error)})") from error
                yield len(array) if by_column else len(rows), array

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple[Any, tuple[int, ...], bool, np.dtype]]:
        """The file of an array behind its header, and what that says: shape, whether columns come first, dtype."""
        with self._archive.open(f"{name}.npy") as file:
            try:
                shape, by_column, dtype = _HEADERS[npy.read_magic(file)](file)
            except (ValueError, KeyError, EOFError) as error:
                raise DatasetError(f"{self.path}: {name} is no array of numpy ({in_short(error)})") from error
            yield file, shape, by_column, dtype


@contextmanager
def open_npz(path: Path) -> Iterator[Npz]:
    """Open an NPZ file.

    Raises:
        SafeFileError: no such file, or no plain one.
        DatasetError: no NPZ file, or an encrypted one.
    """
    with open_plain(path.resolve()) as (raw, _):
        try:
            archive = zipfile.ZipFile(raw)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise DatasetError(f"{path} is no NPZ file, or a damaged one ({in_short(error)})") from error
        with archive:
            if any(member.flag_bits & 1 for member in archive.infolist()):
                raise DatasetError(f"{path} is encrypted; store it without a password")
            yield Npz(path, archive)
