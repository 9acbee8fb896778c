"""Behaviour policies that Stable-Baselines3 saved, as files or on the Hugging Face Hub: read only if trusted."""

from __future__ import annotations

import functools
import importlib
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from didi_gym.data.generators.behaviours import BehaviourError
from didi_gym.hub.client import LIBRARY, SkillPolicyHubError, ask_hub, hub_errors, is_outage

_ALGORITHMS = dict.fromkeys(("a2c", "ddpg", "ppo", "sac", "td3"), "stable_baselines3") | dict.fromkeys(
    ("ars", "tqc", "trpo"), "sb3_contrib"
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class SB3Policy:
    """A policy saved by Stable-Baselines3, its observations normalised where `vec_normalize.pkl` lies beside it.

    It is loaded when first used, in each process, so that what passes between processes is its path.
    """

    name: str
    source: str
    path: Path
    """The zip file, named after its algorithm: sac-HalfCheetah-v3.zip."""
    inputs: int
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def action_dim(self) -> int:
        return len(self.low)

    def __call__(self, observations: np.ndarray, steps: np.ndarray) -> np.ndarray:
        model, normalize = _load_sb3(self)
        return model.predict(normalize(np.asarray(observations, np.float32)), deterministic=True)[0]

    @staticmethod
    def find(source: str, *, inputs: int, low: np.ndarray, high: np.ndarray, trust: bool) -> SB3Policy:
        """Find and load a policy by Hugging Face Hub id (`owner/name`) or as a local zip file.

        Args:
            inputs: Numbers of an observation.
            low, high: Action bounds `(action_dim,)`.
            trust: Stable-Baselines3's files hold pickles, which run code when they are read: agree to that.

        Raises:
            BehaviourError: not trusted, not found, not reachable, or of other shapes.
        """
        if not trust:
            raise BehaviourError(
                f"{source} is a Stable-Baselines3 file, which holds pickles: reading it runs code of its author; "
                "pass --trust (trust=True) if you trust it, or use plain arrays (--agents)"
            )
        path = Path(source).expanduser()
        if not path.is_file():
            path = _fetch(source)
        if (algorithm := path.stem.split("-")[0].lower()) not in _ALGORITHMS:
            raise BehaviourError(
                f"{source}: expected a name that begins with its algorithm, e.g. sac-HalfCheetah-v3, got "
                f"{algorithm!r}; known are {', '.join(_ALGORITHMS)}"
            )
        policy = SB3Policy(path.stem, source, path, inputs, tuple(map(float, low)), tuple(map(float, high)))
        try:
            policy(np.zeros((1, inputs)), np.zeros(1))
        except ImportError as error:
            raise BehaviourError(
                f"{source} needs {error.name}, which is missing; sb3_contrib comes with: "
                "pip install 'didi-gym[contrib]'"
            ) from error
        except Exception as error:  # pickles fail in every way
            raise BehaviourError(
                f"{source}: Stable-Baselines3 could not load it as {algorithm.upper()} with {inputs} inputs and "
                f"{len(low)} actions: {' '.join(str(error).split())}"
            ) from error
        return policy


def find_policies(sources: Sequence[str], trust: bool) -> Callable[[int, np.ndarray, np.ndarray], list[SB3Policy]]:
    """What `collect_from_agents` takes as `further`: `SB3Policy.find` for each of `sources`."""

    def find(inputs: int, low: np.ndarray, high: np.ndarray) -> list[SB3Policy]:
        return [SB3Policy.find(source, inputs=inputs, low=low, high=high, trust=trust) for source in sources]

    return find


def _fetch(source: str) -> Path:
    """A policy's zip file from the Hub, with `vec_normalize.pkl` beside it where there is one."""
    if not _HUB_ID.fullmatch(source) or source.endswith(".zip"):
        raise BehaviourError(f"{source} is neither a file nor a Hugging Face Hub id (owner/name)")
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    file = f"{source.partition('/')[2]}.zip"
    local = constants.HF_HUB_OFFLINE
    try:
        with hub_errors(source):
            try:
                if not local:
                    ask_hub(lambda: HfApi(**LIBRARY).model_info(source))
            except Exception as error:
                if not is_outage(error):
                    raise
                local = True  # it may be in the cache
            wanted = [file, "vec_normalize.pkl"]
            folder = snapshot_download(source, allow_patterns=wanted, local_files_only=local, **LIBRARY)
    except SkillPolicyHubError as error:
        if isinstance(error.__cause__, LocalEntryNotFoundError):
            raise BehaviourError(
                f"{source} is not in the Hub client's cache, and {constants.ENDPOINT} does not answer or "
                "HF_HUB_OFFLINE is set: check the network, or name the path of a zip file"
            ) from error
        raise BehaviourError(f"{error}; offline, name the path of a zip file") from error
    path = Path(folder) / file
    if not path.is_file():
        raise BehaviourError(f"{source} on the Hugging Face Hub has no file {file}")
    return path


class _Unpickler(pickle.Unpickler):
    """Reads pickles of the days when gymnasium was called gym."""

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(re.sub(r"^gym\b", "gymnasium", module), name)


@functools.cache
def _load_sb3(policy: SB3Policy) -> tuple[Any, Callable[[np.ndarray], np.ndarray]]:
    """The model, and the normalisation of its observations; only for files that the user trusts."""
    from gymnasium import spaces

    algorithm = policy.path.stem.split("-")[0].lower()
    cls = getattr(importlib.import_module(_ALGORITHMS[algorithm]), algorithm.upper())
    instead = {  # of what old files pickled in ways that cannot be read today, and acting does not need
        "observation_space": spaces.Box(-np.inf, np.inf, (policy.inputs,), np.float32),
        "action_space": spaces.Box(np.array(policy.low, np.float32), np.array(policy.high, np.float32)),
        "learning_rate": 0.0,
        "lr_schedule": _zero,
        "clip_range": _zero,
        "buffer_size": 1,
    }
    model = cls.load(policy.path, device="cpu", custom_objects=instead)
    statistics = policy.path.with_name("vec_normalize.pkl")
    if not statistics.is_file():
        return model, lambda observations: observations
    with statistics.open("rb") as file:
        normalizer = _Unpickler(file).load()
    if not normalizer.norm_obs:
        return model, lambda observations: observations
    return model, normalizer.normalize_obs


def _zero(_: float) -> float:
    return 0.0
