"""Behaviour policies to record data with: what they are, and those that are plain arrays in `.npz` files."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.lib import format as npy

from didi_gym.core.files import MEGABYTE, open_plain

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "lrelu": lambda x: np.where(x > 0, x, 0.01 * x),
}
TIME_LIMIT = 1000
"""Steps over which the time feature of a policy falls from 1 to 0."""
_MOST_BYTES = 64 * MEGABYTE  # a file's size, and that of its arrays: far beyond any policy that is a few layers
_HEADERS: dict[tuple[int, int], Callable[..., Any]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}
_REQUIRED = {"n_layers", "activation", "squash", "time_feature", "env"}
_OPTIONAL = {"source", "obs_mean", "obs_std", "obs_clip", "log_std"}


class BehaviourError(ValueError):
    """A behaviour policy that cannot be used; the message says which file, what was expected and what came."""


class Behaviour(Protocol):
    """A policy without memory: actions `(n, action_dim)`, in environment units and not yet clipped to the bounds, from
    observations `(n, inputs)` and the steps `(n,)` of their episodes that they were seen at."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def inputs(self) -> int: ...
    @property
    def action_dim(self) -> int: ...
    def __call__(self, observations: np.ndarray, steps: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class ArrayPolicy:
    """A multilayer perceptron in plain arrays: `x = clip((x - mean) / std, -clip, clip)`, then layers `x @ W + b`."""

    name: str
    env: str
    """The body that it moves, e.g. HalfCheetah."""
    source: str
    """Where it comes from."""
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    """Weights `(in, out)` and biases `(out,)`."""
    activation: str
    """tanh, relu or lrelu, after all layers but the last."""
    squash: bool
    """Take the tanh of the output."""
    time_feature: bool
    """Append `1 - step / 1000` to what is read, before it is normalised."""
    mean: np.ndarray
    std: np.ndarray
    clip: float

    @property
    def inputs(self) -> int:
        return len(self.layers[0][0]) - self.time_feature

    @property
    def action_dim(self) -> int:
        return len(self.layers[-1][1])

    def __call__(self, observations: np.ndarray, steps: np.ndarray) -> np.ndarray:
        x = np.asarray(observations, np.float64)
        if self.time_feature:
            x = np.concatenate([x, 1 - np.asarray(steps)[:, None] / TIME_LIMIT], axis=1)
        x = np.clip((x - self.mean) / self.std, -self.clip, self.clip)
        for weights, biases in self.layers[:-1]:
            x = ACTIVATIONS[self.activation](x @ weights + biases)
        weights, biases = self.layers[-1]
        x = x @ weights + biases
        return np.tanh(x) if self.squash else x

    @staticmethod
    def read(path: Path) -> ArrayPolicy:
        """Read a policy from an `.npz` file, in which pickled objects are refused.

        Entries: `n_layers`; `W0, b0, W1, ...` with `W` of shape (in, out); `activation` (tanh, relu or lrelu) of the
        hidden layers; `squash`, a tanh on the output; `time_feature`; `env`, e.g. HalfCheetah. Optional: `source`;
        `obs_mean` and `obs_std`, together, and `obs_clip`; `log_std`, which is not used.

        Raises:
            BehaviourError: no such file, or another content.
        """
        try:
            found = _load_arrays(path)
        except Exception as error:  # those of archives, compression and numpy have no common base
            raise BehaviourError(f"{path}: expected plain arrays in an .npz file without pickles: {error}") from error
        if missing := _REQUIRED - found.keys():
            raise BehaviourError(f"{path}: expected the entries {sorted(_REQUIRED)}, {sorted(missing)} are missing")
        count = int(_scalar(path, found, "n_layers", "iu"))
        names = [f"{kind}{i}" for i in range(min(count, len(found))) for kind in "Wb"]
        unknown = found.keys() - _REQUIRED - _OPTIONAL - set(names)
        if count < 1 or unknown or not set(names) <= found.keys():
            raise BehaviourError(
                f"{path}: expected weights and biases of {count} layers, {names}, and no other entries; "
                f"missing {sorted(set(names) - found.keys())}, unknown {sorted(unknown)}"
            )
        layers = tuple((_numbers(path, found, f"W{i}", 2), _numbers(path, found, f"b{i}", 1)) for i in range(count))
        width = len(layers[0][0])
        for i, (weights, biases) in enumerate(layers):
            if weights.shape != (width, len(biases)):
                raise BehaviourError(
                    f"{path}: expected W{i} of shape (in, out) = {(width, len(biases))}, got {weights.shape}"
                )
            width = len(biases)
        mean, std = np.zeros(()), np.ones(())
        if "obs_mean" in found or "obs_std" in found:
            mean, std = (_numbers(path, found, key, 0, 1) for key in ("obs_mean", "obs_std"))
        read = layers[0][0].shape[:1]
        if not {mean.shape, std.shape} <= {(), read} or not (std > 0).all():
            raise BehaviourError(
                f"{path}: expected obs_mean and obs_std > 0, single numbers or as many as W0 reads, {read}, "
                f"got shapes {mean.shape} and {std.shape}, least std {std.min():g}"
            )
        activation = str(_scalar(path, found, "activation", "U"))
        if activation not in ACTIVATIONS:
            raise BehaviourError(f"{path}: expected activation {' or '.join(ACTIVATIONS)}, got {activation!r}")
        return ArrayPolicy(
            path.stem,
            str(_scalar(path, found, "env", "U")),
            str(found.get("source", path.name)),
            layers,
            activation,
            bool(_scalar(path, found, "squash", "b")),
            bool(_scalar(path, found, "time_feature", "b")),
            mean,
            std,
            float(_scalar(path, found, "obs_clip", "f")) if "obs_clip" in found else np.inf,
        )


def read_folder(folder: Path, env_id: str) -> list[ArrayPolicy]:
    """The policies of a folder that move the body of `env_id`, whatever the version, in the order of their names.

    Raises:
        BehaviourError: none does, or a file is no policy.
    """
    if not folder.is_dir():
        raise BehaviourError(f"{folder} is no folder; expected one with a policy in each of its .npz files")
    policies = [ArrayPolicy.read(path) for path in sorted(folder.glob("*.npz"))]
    chosen = [policy for policy in policies if body_of(policy.env) == body_of(env_id)]
    if not chosen:
        others = sorted({policy.env for policy in policies})
        raise BehaviourError(
            f"{folder} has no policy for {body_of(env_id)} (the entry `env`), "
            + (f"only for {', '.join(others)}" if others else "and no .npz file at all")
        )
    return chosen


def find_gaits(folder: Path | str, gaits: Sequence[str]) -> list[str]:
    """The names of a folder's policies that are these gaits: each is called as the gait is, or ends in `-GAIT`.

    Raises:
        BehaviourError: a gait has no policy, or several.
    """
    stems = sorted(path.stem for path in Path(folder).expanduser().glob("*.npz"))
    found = {gait: [stem for stem in stems if stem == gait or stem.endswith(f"-{gait}")] for gait in gaits}
    if wrong := {gait: names for gait, names in found.items() if len(names) != 1}:
        raise BehaviourError(
            f"{folder}: expected one policy for each gait, a file GAIT.npz or ANYTHING-GAIT.npz, found "
            + "; ".join(f"{', '.join(names) or 'none'} for {gait}" for gait, names in wrong.items())
        )
    return [names[0] for names in found.values()]


def body_of(env_id: str) -> str:
    """HalfCheetah, of HalfCheetah, HalfCheetah-v5 or some_module:HalfCheetah-v5."""
    return re.sub(r"-v\d+$", "", env_id.rpartition(":")[2])


def require_fit(policies: Sequence[Behaviour], inputs: int, action_dim: int, *, zero_padding: bool) -> None:
    """Refuse behaviours that read or act otherwise than the environment, and two of one name.

    Args:
        inputs: Numbers of the environment's observation that behaviours read.
        zero_padding: Fill what behaviours read beyond that with zeros.
    """
    for policy in policies:
        fits = policy.inputs == inputs or (zero_padding and policy.inputs > inputs)
        if not fits or policy.action_dim != action_dim:
            raise BehaviourError(
                f"{policy.name}: expected {inputs} inputs and {action_dim} actions, as the environment has, got "
                f"{policy.inputs} and {policy.action_dim}; use the version of the environment it was trained in, "
                "--env-kwargs, or --zero-padding for inputs that were always zero"
            )
    names = [policy.name for policy in policies]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BehaviourError(f"expected one behaviour of each name, got several of {', '.join(twice)}; rename a file")


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file that anyone may have written: their sizes are added up before any memory is asked
    for, since a few kilobytes may unpack to gigabytes.

    Raises:
        Exception: no such file, or another content; the message need not name the file.
    """
    with open_plain(path, _MOST_BYTES) as (raw, _), zipfile.ZipFile(raw) as archive:
        if (size := sum(member.file_size for member in archive.infolist())) > _MOST_BYTES:
            raise ValueError(f"its arrays unpack to {size:,} bytes, expected at most {_MOST_BYTES:,}")
        for member in archive.infolist():
            with archive.open(member) as array:
                version = npy.read_magic(array)
                if version not in _HEADERS:
                    raise ValueError(f"{member.filename} is of version {version} of the format, expected 1.0 or 2.0")
                shape, _, dtype = _HEADERS[version](array)
                if (size := math.prod(shape) * dtype.itemsize) > member.file_size:
                    raise ValueError(f"{member.filename} says that it has {size:,} bytes and has {member.file_size:,}")
    with open_plain(path, _MOST_BYTES) as (raw, _), np.load(raw, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def _scalar(path: Path, found: dict[str, np.ndarray], key: str, kinds: str) -> Any:
    value = found[key]
    if value.shape != () or value.dtype.kind not in kinds:
        raise BehaviourError(f"{path}: expected a single value for {key}, got {value.dtype} of shape {value.shape}")
    return value[()]


def _numbers(path: Path, found: dict[str, np.ndarray], key: str, *dimensions: int) -> np.ndarray:
    value = found.get(key, np.empty(0))
    if value.ndim not in dimensions or value.dtype.kind not in "fiu" or value.size == 0 or not np.isfinite(value).all():
        raise BehaviourError(
            f"{path}: expected {key} to be finite numbers with {' or '.join(map(str, dimensions))} dimensions, "
            f"got {value.dtype} of shape {value.shape}"
        )
    return value.astype(np.float64)
