"""A file of another format becomes a Minari data set."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from didi_gym.core.environments import require_env_id
from didi_gym.core.files import in_short
from didi_gym.data.episodes import DatasetError
from didi_gym.data.importers import d4rl, lerobot, ogbench, robomimic
from didi_gym.data.importers.fitting import fit
from didi_gym.data.importers.reading import open_hdf5
from didi_gym.data.importers.rows import Recording
from didi_gym.data.writing import require_writable, write_dataset

if TYPE_CHECKING:
    import gymnasium as gym

FORMATS: dict[str, tuple[Callable[..., Recording], frozenset[str]]] = {  # how each is read, and with which settings
    "d4rl": (d4rl.read, frozenset({"episode_steps"})),
    "ogbench": (ogbench.read, frozenset()),
    "robomimic": (robomimic.read, frozenset({"keys", "mask"})),
    "lerobot": (lerobot.read, frozenset({"keys"})),
}
IMPORT_KEY = "didi_gym_import"  # metadata: the file's name and format, and what was assumed and left out
_HDF5 = frozenset({".hdf5", ".h5", ".hdf"})


def import_file(
    path: Path | str,
    format: str | None = None,
    env: gym.Env | str | None = None,
    dataset_id: str | None = None,
    *,
    keys: Sequence[str] = (),
    env_keys: Sequence[str] = (),
    mask: str | None = None,
    episode_steps: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Any:
    """Write the episodes of a D4RL, OGBench, robomimic or LeRobot file as a Minari data set.

    Numbers are kept as they are stored. An action after which the file holds no observation of the same episode is left
    out, so that no step leads from one episode into another. What was assumed and left out stands, in sentences, in the
    metadata under `didi_gym_import`. Files may come from anyone: nothing in them is unpickled, imported or followed.

    Args:
        path: The file; of a LeRobot data set also its folder.
        format: d4rl, ogbench, robomimic or lerobot; default: what the file looks like.
        env: The environment that the data was recorded in, or its id, `Name-v0` or `module:Name-v0`, whose spaces the
            data must fit. Without one, the spaces are made from the data.
        dataset_id: default `imported/NAME-v0`, after the file; a version in its name is kept.
        keys: What makes the state, in this order: names in `obs` of robomimic (default: all but images), columns of
            LeRobot (default: `observation.state`).
        env_keys: Keys of the environment's Dict observation whose numbers the data holds side by side, in this order.
        mask: Only the demonstrations that this filter key of a robomimic file lists.
        episode_steps: The time limit with which a D4RL file without timeouts was recorded.
        env_kwargs: Settings of the environment, where `env` is an id.

    Returns:
        The `minari.MinariDataset`.

    Raises:
        DatasetError: a file of another content, or one that does not fit the environment.
        SafeFileError: no such file, or no plain one.
        FileExistsError: the data set exists and `overwrite` is not set.
        ImportError: pyarrow is missing, which parquet files need.
    """
    path = Path(path).expanduser()
    name = dataset_id or _id_of(path.resolve().stem)
    require_writable(name, overwrite=overwrite)
    if not path.exists():
        raise DatasetError(f"there is no file or folder {path}")
    if twice := {key for key in keys if list(keys).count(key) > 1}:
        raise DatasetError(f"expected each of --keys once, got {', '.join(sorted(twice))} twice")
    made = _make(env, dict(env_kwargs or {}))
    looks_like = guess_format(path)
    chosen = format or looks_like
    if chosen not in FORMATS:
        raise DatasetError(
            f"expected a format among {', '.join(FORMATS)}, got {format!r}"
            if format
            else f"{path} does not show its format; say which one it is: --format {'|'.join(FORMATS)}"
        )
    if looks_like not in (None, chosen):
        raise DatasetError(f"{path} looks like {looks_like}, not {chosen}; pass --format {looks_like}, or leave it out")
    read, settings = FORMATS[chosen]
    given = {"keys": keys, "mask": mask, "episode_steps": episode_steps}
    if unused := [key for key, value in given.items() if value and key not in settings]:
        of = " and ".join(known for known, (_, theirs) in FORMATS.items() if unused[0] in theirs)
        raise DatasetError(f"--{unused[0].replace('_', '-')} is for {of} files, and this one is read as {chosen}")
    recording = read(path, **{key: given[key] for key in settings}, progress=progress)
    fitted = fit(recording, made, env_keys)
    notes = [] if format else [f"The format is taken to be {chosen}, after the file's name and content."]
    about = {"format": chosen, "file": path.name, "notes": [*notes, *recording.notes, *fitted.notes]}
    return write_dataset(
        name,
        fitted.episodes,
        env_spec=None if made is None else made.spec,
        layout=None,  # nothing is known of the columns, and training says what they look like
        keys=fitted.keys,
        spaces=(fitted.observation_space, fitted.action_space),
        about={IMPORT_KEY: json.dumps(about)},
        algorithm_name=f"imported from {chosen}",
        description=" ".join([f"Imported from the {chosen} file {path.name}.", *about["notes"]]),
        author=f"unknown; imported from {chosen}",
        code="didi_gym.data.importers",
        overwrite=overwrite,
    )


def guess_format(path: Path) -> str | None:
    """What a file's name and its outermost names say it is; None where they leave it open.

    Raises:
        DatasetError, SafeFileError: it is named as an HDF5 file, and is none.
    """
    if path.suffix == ".npz":
        return "ogbench"
    if path.suffix == ".parquet" or (path.is_dir() and ((path / lerobot.INFO).exists() or (path / "data").is_dir())):
        return "lerobot"
    if path.suffix not in _HDF5:
        return None
    with open_hdf5(path) as file:
        found = {
            "d4rl": set(d4rl.NEEDED) <= set(file.names()),
            "robomimic": any(robomimic.DEMO.fullmatch(name) for name in file.names("data")),
        }
    likely = [name for name, fits in found.items() if fits]
    return likely[0] if len(likely) == 1 else None


def _id_of(stem: str) -> str:
    """The data set id of a file's name: only letters, digits, dashes and underscores may stand in one."""
    name = re.sub(r"[^a-zA-Z0-9_-]+", "-", stem).strip("-") or "data"
    return f"imported/{name}" if re.search(r".-v\d+$", name) else f"imported/{name}-v0"


def _make(env: gym.Env | str | None, env_kwargs: dict[str, Any]) -> gym.Env | None:
    if not isinstance(env, str):
        if env_kwargs:
            raise ValueError("env_kwargs are for an environment that is named by its id; leave them out")
        return env
    import gymnasium as gym

    require_env_id(env)
    try:
        return gym.make(env, **env_kwargs)
    except TypeError as error:
        raise ValueError(f"{env} does not take these settings (env_kwargs): {in_short(error)}") from error
