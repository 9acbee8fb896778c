"""Files that strangers wrote, read with care: plain files inside their folder, of bounded size, of strict JSON.

Our own are written atomically.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

MEGABYTE = 1 << 20
MAX_DEPTH = 32  # our own JSON is five levels deep
_LONGEST_MESSAGE = 500
_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".zip"})
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|([\[{])|[\]}]', re.DOTALL)  # strings, opening, closing


class SafeFileError(ValueError):
    """A file that cannot be used; the message names the file and says why, and nothing in it acts on a terminal."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@contextmanager
def open_plain(path: Path, most: int | None = None) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file for reading that another may have put there; yields the file and its size in bytes.

    Nothing but a regular file is ever opened, so that a pipe or a device can neither block nor act. A link must stay in
    the file's folder; in a cache of the Hub, whose files are links, in the cache of the same repository.

    Raises:
        SafeFileError: no such file, no plain one, one elsewhere, or one of more than `most` bytes.
    """
    try:
        real = _inside(path)
        _require_plain(path, os.stat(real).st_mode)
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(real, flags), "rb", buffering=0)
    except FileNotFoundError as error:
        beside = ", only a link to nothing" if path.is_symlink() else _pickles_beside(path)
        raise SafeFileError(f"{path.parent} has no {path.name}{beside}") from error
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle; ValueError: an odd name
        if isinstance(error, SafeFileError):
            raise
        raise SafeFileError(f"{path} cannot be opened ({error})") from error
    with file:
        status = os.fstat(file.fileno())  # of what was opened, whatever has happened to the path since
        _require_plain(path, status.st_mode)
        if most is not None and status.st_size > most:
            raise SafeFileError(f"{path} has {status.st_size:,} bytes, expected at most {most:,}")
        yield file, status.st_size


def read_plain(path: Path, most: int) -> bytes:
    """The content of a file that another may have put there.

    Raises:
        SafeFileError: see `open_plain`.
    """
    with open_plain(path, most) as (file, size):
        content = bytearray(size)
        read_into(content, file, path)
    return bytes(content)


def read_into(buffer: Any, file: BinaryIO, path: Path) -> None:
    """Fill a writable `buffer` with the next bytes of `file`.

    Raises:
        SafeFileError: the file ends before.
    """
    view = memoryview(buffer).cast("B")
    filled = 0
    while filled < len(view):
        try:
            count = file.readinto(view[filled:])  # type: ignore[attr-defined]
        except OSError as error:
            raise SafeFileError(f"{path} cannot be read ({error})") from error
        if not count:
            raise SafeFileError(f"{path} is damaged: it ends {len(view) - filled} bytes early; fetch or write it again")
        filled += count


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


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Delete what `write_atomically` left where its process was killed; nobody else may be writing there.

    Args:
        name: Of the files it was to write, a pattern.
    """
    for file in folder.glob(f".{name}.*"):
        if re.fullmatch(r"\..+\.[a-z0-9_]{8}", file.name) and not file.is_dir():  # what `mkstemp` adds
            file.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Hold a lock on `folder` that other processes see. It ends with the process, however that ends.

    Args:
        doing: What the lock is for, for the message of those who meet it, e.g. "is training into".

    Raises:
        SafeFileError: another holds it; the message names that process.
    """
    path = folder / ".lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o644)
    try:
        try:
            _lock(handle)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):  # a disk that knows no locks
                yield
                return
            holder = os.read(handle, 20).decode("ascii", "replace").strip()
            raise SafeFileError(
                f"another process{f' (number {holder})' if holder else ''} {doing} {folder}: wait until it has ended, "
                f"or choose another folder"
            ) from error
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        os.close(handle)  # which gives the lock back


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, 100, os.SEEK_SET)  # a byte that is not read for the holder's number
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        os.lseek(handle, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def parse_json(content: bytes | str) -> Any:
    """Decode JSON strictly: UTF-8, no key twice, only finite numbers, at most `MAX_DEPTH` levels.

    Raises:
        ValueError: anything else; no other error, whatever the content.
    """
    text = content if isinstance(content, str) else content.decode("utf-8")
    depth = 0
    for token in _TOKEN.finditer(text):
        if token[1]:
            depth += 1
            if depth > MAX_DEPTH:  # before the parser recurses
                raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
        elif token[0] in "]}":
            depth -= 1
    data = json.loads(text, object_pairs_hook=_without_twins, parse_constant=_finite, parse_float=_finite)
    if "\\u" in text:  # half a surrogate pair cannot be printed
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    return data


def in_short(error: Exception | str) -> str:
    """A message that may quote a file: cut in the middle where it is long, and nothing in it that a terminal obeys."""
    text = str(error)
    half = _LONGEST_MESSAGE // 2
    return printable(text if len(text) <= _LONGEST_MESSAGE else f"{text[:half]} [...] {text[-half:]}")


def printable(text: str) -> str:
    """A text with escapes in place of all that is no visible letter: control codes, line breaks, marks of direction."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _inside(path: Path) -> Path:
    """Where a path leads, links resolved."""
    home, real = path.parent.resolve(strict=True), path.resolve(strict=True)
    root, shared = home, None
    if home.parent.name == "snapshots" and "--" in home.parent.parent.name:  # files there are links into ../../blobs
        root = home.parent.parent
        shared = root.parent / "blobs"  # where those may be links to, for what several repositories hold
    if root not in real.parents and (shared is None or real.parent.parent != shared):
        raise SafeFileError(f"{path} is a link that leads out of {root}, to {real}; put the file itself there")
    return real


def _require_plain(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise SafeFileError(f"{path} is {kind}, expected a file")


def _pickles_beside(path: Path) -> str:
    pickles = [p.name for p in path.parent.glob("*") if p.suffix in _PICKLES]
    return f"; {in_short(', '.join(sorted(pickles)))} is there, but pickles are never read" if pickles else ""


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twin = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {in_short(twin)!r} is there twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:  # infinite, or no number
        raise ValueError(f"{in_short(text)} is no finite number")
    return number
