"""LeRobot: parquet files with a row for each frame, one episode in each file (version 2) or several (version 3).

Source: the format of `LeRobotDataset` 2.0 to 3.0: `data/chunk-000/episode_000000.parquet` or
`data/chunk-000/file-000.parquet`, and `meta/info.json`. A row holds what was observed and the action that followed it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from didi_gym.core.files import MEGABYTE, in_short, open_plain, parse_json, read_plain
from didi_gym.core.progress import progress as progress_of
from didi_gym.data.episodes import DatasetError
from didi_gym.data.importers.reading import Room
from didi_gym.data.importers.rows import Collector, Recording

STATE = "observation.state"
INFO = Path("meta", "info.json")
_ACTION, _EPISODE, _FRAME, _REWARD = "action", "episode_index", "frame_index", "next.reward"
_MOST_FILES = 1_000_000
_WIDEST = 8  # bytes of a number


def read(path: Path, *, keys: Sequence[str] = (), progress: bool = True) -> Recording:
    """Episodes of a LeRobot data set, or of one of its parquet files: `observation.state` (or `keys`), `action`,
    `episode_index`, `frame_index`, and `next.reward` where it is there. The rest, images and videos among it, is left
    alone.

    Args:
        path: The folder of the data set, or one parquet file.
        keys: Columns that make the state, in this order.

    Raises:
        ImportError: pyarrow is missing.
        DatasetError: another content, images among `keys`, or frames that are missing.
    """
    _require_pyarrow()
    info, files = _info(path), _files(path)
    chosen = tuple(keys) or (STATE,)
    collector, room = Collector(path, chosen), Room(path)
    rows: list[dict[str, np.ndarray]] = []  # of the episode that the next rows may belong to
    seen: set[int] = set()

    def close() -> None:
        if rows:
            _add(collector, {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}, seen)
            rows.clear()

    with progress_of("reading files", len(files), progress) as report:
        for done, file in enumerate(files):
            for part in _parts(file, chosen, info, room):
                if rows and (rows[0][_EPISODE][0] != part[_EPISODE][0] or rows[0].keys() != part.keys()):
                    close()
                rows.append(part)
            report(done + 1, {})
        close()
    return collector.finish(_notes(info, chosen, collector))


def _require_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ImportError("parquet files need pyarrow: pip install 'didi-gym[lerobot]'") from error


def _info(path: Path) -> dict[str, Any]:
    """`meta/info.json` of a data set's folder; nothing for a single file."""
    if not path.is_dir() or not (path / INFO).exists():
        return {}
    try:
        info = parse_json(read_plain(path / INFO, MEGABYTE))
    except ValueError as error:
        raise DatasetError(f"{path / INFO} cannot be read: {in_short(error)}") from error
    if not isinstance(info, dict) or not isinstance(info.get("features", {}), dict):
        raise DatasetError(f"{path / INFO}: expected an object with features, as a LeRobot data set has")
    return info


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path.resolve()]  # whoever names a file may name it by a link
    files = sorted(path.glob("data/*/*.parquet"))
    if not files:
        raise DatasetError(
            f"{path} has no data/chunk-000/*.parquet; expected the folder of a LeRobot data set (version 2 or 3), or "
            "one of its parquet files"
        )
    if len(files) > _MOST_FILES:
        raise DatasetError(f"{path} has {len(files):,} files, expected at most {_MOST_FILES:,}")
    return files


def _parts(path: Path, keys: tuple[str, ...], info: Mapping[str, Any], room: Room) -> Iterator[dict[str, np.ndarray]]:
    """The rows of a file in pieces of one episode each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_plain(path) as (raw, _):
        try:
            with pq.ParquetFile(raw) as file:
                names = _columns(path, file.schema_arrow, keys, info)
                for group in range(file.num_row_groups):
                    _take(room, file.metadata.row_group(group), names)
                    table = file.read_row_group(group, columns=names, use_threads=False)
                    found = {name: _numbers(path, name, table.column(name)) for name in names}
                    yield from _split(found)
        except (pa.ArrowException, OSError, KeyError) as error:  # KeyError: two columns of one name
            raise DatasetError(f"{path} is no parquet file, or a damaged one ({in_short(error)})") from error


def _columns(path: Path, schema: Any, keys: tuple[str, ...], info: Mapping[str, Any]) -> list[str]:
    """The columns to read, each of which holds numbers."""
    import pyarrow.types as types

    there = {field.name: field.type for field in schema}
    numeric = [name for name, type_ in there.items() if _is_numbers(type_)]
    optional = [_REWARD] if _REWARD in numeric else []
    hint = f"choose --keys among {in_short(', '.join(n for n in numeric if n.startswith('observation')) or 'none')}"
    for name in (*keys, _ACTION, _EPISODE, _FRAME):
        feature = info.get("features", {}).get(name)
        said = feature.get("dtype") if isinstance(feature, dict) else None
        if said in ("image", "video") or (name in there and types.is_struct(there[name])):
            raise DatasetError(f"{path}: {name} holds images, and skills are learned from rows of numbers; {hint}")
        if name not in there:
            have = in_short(", ".join(there) or "none")
            raise DatasetError(
                f"{path}: there is no column {name}, only {have}" + (f"; {hint}" if name in keys else "")
            )
        if name not in numeric or (name in (_EPISODE, _FRAME) and not types.is_integer(there[name])):
            raise DatasetError(
                f"{path}: {name} holds {there[name]}, expected a number or a row of numbers in each frame"
            )
        if "/" in name:
            raise DatasetError(f"{path}: expected column names without '/', got {name!r}")
    return list(dict.fromkeys((*keys, _ACTION, _EPISODE, _FRAME, *optional)))


def _is_numbers(type_: Any) -> bool:
    import pyarrow.types as types

    if types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
        type_ = type_.value_type
    return bool(types.is_floating(type_) or types.is_integer(type_) or types.is_boolean(type_))


def _take(room: Room, group: Any, names: Sequence[str]) -> None:
    """Ask for room for the columns of a row group, as its header says."""
    for i in range(group.num_columns):
        column = group.column(i)
        name = next((n for n in names if column.path_in_schema == n or column.path_in_schema.startswith(f"{n}.")), None)
        if name is not None:
            room.take(name, max(column.total_uncompressed_size, column.num_values * _WIDEST))


def _numbers(path: Path, name: str, column: Any) -> np.ndarray:
    """A column as `(rows,)` or `(rows, size)`, in its own type."""
    import pyarrow.compute as pc
    import pyarrow.types as types

    chunks = [chunk for chunk in column.chunks if len(chunk)]
    if not chunks:
        return np.empty(0)
    found = []
    for chunk in chunks:
        values, size = chunk, None
        if chunk.null_count:
            raise DatasetError(f"{path}: {name} is empty in {chunk.null_count} frames; remove or repair them")
        if not types.is_primitive(chunk.type):
            lengths = np.unique(pc.list_value_length(chunk).to_numpy(zero_copy_only=False))
            if len(lengths) > 1:
                raise DatasetError(f"{path}: expected rows of one length in {name}, got {lengths.tolist()[:5]}")
            values, size = chunk.flatten(), int(lengths[0])
            if values.null_count:
                raise DatasetError(f"{path}: {values.null_count} numbers of {name} are empty; remove or repair them")
        numbers = values.to_numpy(zero_copy_only=False)
        found.append(numbers if size is None else numbers.reshape(len(chunk), size))
    if len({part.shape[1:] for part in found}) > 1:
        raise DatasetError(f"{path}: expected rows of one length in {name}, got {sorted({p.shape[1:] for p in found})}")
    return np.concatenate(found)


def _split(found: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Runs of rows that are of the same episode."""
    episodes = found[_EPISODE]
    bounds = [0, *(np.flatnonzero(np.diff(episodes)) + 1).tolist(), len(episodes)]
    for first, end in itertools.pairwise(bounds):
        if end > first:
            yield {name: array[first:end] for name, array in found.items()}


def _add(collector: Collector, rows: dict[str, np.ndarray], seen: set[int]) -> None:
    """Check and keep the rows of one episode."""
    number, frames = int(rows[_EPISODE][0]), rows[_FRAME]
    if number in seen:
        raise DatasetError(f"{collector.path}: episode {number} is there twice; import one of them")
    seen.add(number)
    wrong = np.flatnonzero(frames != np.arange(len(frames)))
    if len(wrong):
        raise DatasetError(
            f"{collector.path}: episode {number}: expected frame {wrong[0]} in row {wrong[0]} (frame_index), got frame "
            f"{frames[wrong[0]]}; frames are missing, and a step over the gap would be false"
        )
    observed = {key: rows[key] for key in collector.keys}
    collector.add(number, observed, rows[_ACTION], rows.get(_REWARD))


def _notes(info: Mapping[str, Any], keys: tuple[str, ...], collector: Collector) -> list[str]:
    notes = [f"The state is {', '.join(keys)}."]
    if isinstance(fps := info.get("fps"), int | float):
        notes.append(f"A step is 1/{fps:g} s ({INFO.as_posix()}).")
    said, got = info.get("total_episodes"), len(collector.episodes) + collector.empty
    if isinstance(said, int) and said != got:
        notes.append(f"{INFO.as_posix()} says that there are {said:,} episodes, and the files here hold {got:,}.")
    return notes
