"""Writing collected episodes as a Minari data set that says what its observations hold."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Space

from didi_gym.core.layout import Layout
from didi_gym.core.schema import to_dict

AUTHOR, CODE = "didi_gym", "didi_gym.data.generators"
LAYOUT_KEY, KEYS_KEY = "didi_gym_layout", "didi_gym_keys"  # metadata a data set may carry about itself


@dataclass(frozen=True)
class Episode:
    """One recorded episode of T steps."""

    observations: Any
    """(T + 1, ...), or a dict of such arrays, or of such dicts."""
    actions: np.ndarray
    """(T, action_dim)."""
    rewards: np.ndarray
    """(T,), the environment's own; nothing learns from them."""
    terminated: bool
    """Whether the last step ended the episode for good; otherwise it was cut there."""
    seed: int | None
    """None where it is not known."""
    labels: Mapping[str, float | int | bool | str] = field(default_factory=dict)
    """What the behaviour was, for evaluation only; kept as Minari episode metadata."""
    infos: Mapping[str, np.ndarray] = field(default_factory=dict)
    """(T + 1, ...) each, as Minari keeps infos; the entry T belongs to no action."""

    def __post_init__(self) -> None:
        steps = len(self.actions)
        lengths = {name: len(array) for name, array in {**flat(self.observations), **self.infos}.items()}
        if steps < 1 or len(self.rewards) != steps or any(n != steps + 1 for n in lengths.values()):
            raise ValueError(
                f"episode: {steps} actions need as many rewards and {steps + 1} observations and infos, "
                f"got {len(self.rewards)} rewards and {lengths}"
            )

    def __len__(self) -> int:
        return len(self.actions)

    def head(self, steps: int) -> Episode:
        """The first `steps` steps, cut there unless that is all."""
        if steps >= len(self):
            return self

        def cut(observed: Any) -> Any:
            if isinstance(observed, Mapping):
                return {key: cut(value) for key, value in observed.items()}
            return observed[: steps + 1]

        return replace(
            self,
            observations=cut(self.observations),
            actions=self.actions[:steps],
            rewards=self.rewards[:steps],
            terminated=False,
            infos={k: cut(v) for k, v in self.infos.items()},
        )


def flat(observations: Any, name: str = "") -> dict[str, Any]:
    """All arrays of observations, by their keys joined with `/`."""
    if not isinstance(observations, Mapping):
        return {name: observations}
    return {k: v for key, inner in observations.items() for k, v in flat(inner, f"{name}/{key}".lstrip("/")).items()}


def datasets_root() -> Path:
    """The folder that Minari keeps data sets in: `MINARI_DATASETS_PATH`, or its default."""
    from minari.storage import get_dataset_path

    return Path(get_dataset_path(""))


def parts_folder(dataset_id: str) -> Path:
    """Where the episodes of a recording are kept until `write_dataset` has written all of them."""
    return datasets_root() / ".didi_gym-parts" / dataset_id


def require_id(dataset_id: str) -> None:
    """Refuse what is no Minari id, such as a path: it would name a folder outside of `datasets_root`.

    Raises:
        ValueError: no id.
    """
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:  # minari's TypeError is for an id without a version
        raise ValueError(f"expected a data set id such as didi/name-v0, got {dataset_id!r}: {error}") from error


def require_writable(dataset_id: str, *, overwrite: bool) -> None:
    """Refuse, before any work is done, an id that is none, or to replace a data set that is there already.

    Raises:
        FileExistsError: `dataset_id` exists and `overwrite` is not set.
        ValueError: `dataset_id` is no Minari id.
    """
    require_id(dataset_id)
    folder = datasets_root() / dataset_id
    if folder.exists() and not overwrite:
        raise FileExistsError(
            f"data set '{dataset_id}' exists already at {folder}; pass overwrite=True to replace it, "
            "another dataset_id, or set MINARI_DATASETS_PATH to another folder"
        )


def write_dataset(
    dataset_id: str,
    episodes: Sequence[Episode],
    *,
    env_spec: Any,
    layout: Layout | None,
    keys: Sequence[str] = (),
    algorithm_name: str,
    description: str,
    requirements: Sequence[str] = (),
    about: Mapping[str, str] | None = None,
    overwrite: bool = False,
    spaces: tuple[Space, Space] | None = None,
    author: str = AUTHOR,
    code: str = CODE,
) -> Any:
    """Write episodes as the local Minari data set `dataset_id` and load it.

    The data set is built in a folder beside its place and moved there when whole: a crash leaves none, or the old one.

    Args:
        env_spec: `gymnasium.envs.registration.EnvSpec` from which `dataset.recover_environment()` builds; None where no
            environment is known, which needs `spaces`.
        layout: what a state holds, kept in the metadata under `didi_gym_layout`; None where nothing is known of it.
        keys: Dict observation keys that make the state, kept under `didi_gym_keys`.
        about: further metadata.
        overwrite: replace an existing data set.
        spaces: of observations and actions; default: the environment's.
        author: who recorded the data.
        code: what wrote it.

    Raises:
        FileExistsError: `dataset_id` exists and `overwrite` is not set.
    """
    import minari
    from minari.data_collector import EpisodeBuffer

    require_writable(dataset_id, overwrite=overwrite)
    root = datasets_root()
    observation_space, action_space = spaces or (None, None)
    buffers = [
        EpisodeBuffer(
            seed=episode.seed,
            observations=episode.observations,
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=_ending(len(episode), episode.terminated),
            truncations=_ending(len(episode), not episode.terminated),
            infos=dict(episode.infos) or None,
        )
        for episode in episodes
    ]
    with tempfile.TemporaryDirectory(prefix=".didi_gym-", dir=root) as folder:
        building = Path(folder)
        with _datasets_path(building), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*author_email.*")  # a program has none
            if env_spec is None:
                warnings.filterwarnings("ignore", ".*(env_spec is None|`eval_env` is set to None).*")  # as was asked
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                env=env_spec,
                eval_env=env_spec,
                algorithm_name=algorithm_name,
                author={author},
                code_permalink=code,
                observation_space=observation_space,
                action_space=action_space,
                description=description,
                requirements=list(requirements),
                data_format="hdf5",
            )
            dataset.storage.update_episode_metadata([dict(episode.labels) for episode in episodes])
            known = {KEYS_KEY: json.dumps(list(keys))}
            if layout is not None:
                known[LAYOUT_KEY] = json.dumps(to_dict(layout))
            dataset.storage.update_metadata({**(about or {}), **known})
            _compress(building / dataset_id / "data" / "main_data.hdf5")
            dataset.storage.update_metadata({"dataset_size": dataset.storage.get_size()})
        _make_namespace(dataset_id)
        place, replaced = root / dataset_id, building / "replaced"
        if place.exists():
            place.rename(replaced)
        try:
            (building / dataset_id).rename(place)
        except BaseException:
            if replaced.exists():
                replaced.rename(place)
            raise
    shutil.rmtree(parts_folder(dataset_id), ignore_errors=True)
    return minari.load_dataset(dataset_id)


def _compress(file: Path) -> None:
    """Write an HDF5 file of Minari's again with every array compressed; values and attributes stay as they are."""
    import h5py  # type: ignore[import-untyped]

    smaller = file.with_suffix(".compressed")
    with h5py.File(file, "r") as source, h5py.File(smaller, "w") as target:
        target.attrs.update(source.attrs)

        def copy(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and item.shape and item.dtype.kind in "biuf":
                written = target.create_dataset(name, data=item[()], compression="gzip", shuffle=True)
            elif isinstance(item, h5py.Dataset):
                source.copy(item, target, name)
                return
            else:
                written = target.require_group(name)
            written.attrs.update(item.attrs)

        source.visititems(copy)
    smaller.replace(file)


def _ending(steps: int, value: bool) -> np.ndarray:
    flags = np.zeros(steps, dtype=bool)
    flags[-1] = value
    return flags


@contextlib.contextmanager
def _datasets_path(folder: Path) -> Iterator[None]:
    """Make Minari keep its data sets in `folder` for a while; the variable is all it offers."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


def _make_namespace(dataset_id: str) -> None:
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.namespace import create_namespace, list_local_namespaces

    namespace = parse_dataset_id(dataset_id)[0]
    if namespace is not None and namespace not in list_local_namespaces():
        create_namespace(namespace)
