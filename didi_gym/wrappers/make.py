"""Making skill-action environments by id: one, or many with one controller."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.metadata
import inspect
import json
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, VectorizeMode, load_env_creator
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from didi_gym.wrappers.executor import SkillExecutor, time_limits_around
from didi_gym.wrappers.ids import SKILL_ID
from didi_gym.wrappers.references import load_policy, pinned, policy_reference, resolve_settings
from didi_gym.wrappers.single import SkillActionWrapper
from didi_gym.wrappers.vector import SkillActionVectorWrapper
from didi_gym.wrappers.workers import WORKER_TIMEOUT, start

if TYPE_CHECKING:
    from didi_gym.models.policy import SkillPolicy

AUTORESET_MODES = {
    "next_step": AutoresetMode.NEXT_STEP,
    "same_step": AutoresetMode.SAME_STEP,
    "disabled": AutoresetMode.DISABLED,
}
MUJOCO = ">=3.3,<3.12"  # as in pyproject.toml
_BREAKS_FETCH_AND_KITCHEN = (3, 12)
EnvWrapper = Callable[[gym.Env], gym.Env]
EnvId = str | EnvSpec | Callable[..., gym.Env]


def _settings_of(cls: type) -> frozenset[str]:
    return frozenset(inspect.signature(cls).parameters) - {"env", "policy"}


WRAPPER_SETTINGS = _settings_of(SkillActionWrapper)
_EXECUTOR_SETTINGS = (_settings_of(SkillExecutor) & WRAPPER_SETTINGS) - {"skill_duration", "replan_every"}
_VECTOR_SETTINGS = _settings_of(SkillActionVectorWrapper)
VECTOR_ONLY = _VECTOR_SETTINGS - WRAPPER_SETTINGS


def make(
    env_id: EnvId,
    policy: str | Path | SkillPolicy | None = None,
    *,
    wrappers: Sequence[EnvWrapper] = (),
    env_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> SkillActionWrapper:
    """Make an environment whose actions are skills.

    Args:
        env_id: anything `gymnasium.make` takes, or a function that makes an environment; ids of gymnasium-robotics need
            no import. An id of this package (`didi_gym/AntMaze_Open-v0`) names a policy too.
        policy: see `SkillActionWrapper`.
        wrappers: put around the low-level environment, inside the skills, the first innermost.
        env_kwargs: the environment's own arguments, for `gymnasium.make`.
        **kwargs: settings of `SkillActionWrapper` go to it, all others (`max_episode_steps`, `render_mode`, the
            environment's own) to `gymnasium.make`, which puts its TimeLimit inside.

    Raises:
        TypeError: an argument that is given twice, or that both the wrapper and the environment's constructor take:
            the environment's belongs into `env_kwargs`.

    Example:
        >>> import didi_gym
        >>> env = didi_gym.make("PointMaze_Medium-v3", "pointmaze-medium", skill_duration=8, max_episode_steps=400)
    """
    caller = sys._getframe(1)
    cls, limit = SkillActionWrapper, None
    if caller.f_code is gym.make.__code__:  # which does not pass its max_episode_steps on
        cls, limit = RegisteredSkillEnv, caller.f_locals["max_episode_steps"]
        limit = caller.f_locals["env_spec"].max_episode_steps if limit is None else limit
    env_id, policy, wrappers, env_kwargs, kwargs = known_settings(env_id, policy, wrappers, env_kwargs, kwargs)
    if limit is not None:
        kwargs["max_episode_steps"] = limit
    settings = {name: kwargs.pop(name) for name in WRAPPER_SETTINGS & kwargs.keys()}
    env = make_wrapped(env_id, wrappers, merge_env_kwargs(env_id, env_kwargs, kwargs, settings))
    try:
        made = cls(env, policy, **settings)
    except BaseException:
        env.close()
        raise
    if isinstance(made, RegisteredSkillEnv):
        made.outer_limit = limit
    return made


def make_vec(
    env_id: EnvId,
    policy: str | Path | SkillPolicy | None = None,
    num_envs: int = 1,
    vectorization_mode: Literal["sync", "async"] | VectorizeMode = "sync",
    *,
    autoreset_mode: str | AutoresetMode = "next_step",
    wrappers: Sequence[EnvWrapper] = (),
    env_kwargs: Mapping[str, Any] | None = None,
    vector_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> SkillActionVectorWrapper:
    """Make a Gymnasium vector environment whose actions are skills, planned for all sub-environments in one batch.

    Args:
        env_id, policy: see `make`.
        num_envs: sub-environments.
        vectorization_mode: `sync` steps them in this process, `async` each in a process of its own. The policy stays in
            this process (and on the GPU, if there is one) either way. `gymnasium.make_vec`, which keeps that name for
            itself, takes it as `backend`.
        autoreset_mode: `next_step`, `same_step` or `disabled`, as in Gymnasium.
        wrappers: put around each low-level environment, inside the skills: RecordEpisodeStatistics, TimeLimit, ...
        env_kwargs: see `make`.
        vector_kwargs: for `SyncVectorEnv` or `AsyncVectorEnv`, such as `{"context": "forkserver"}`; an `autoreset_mode`
            in it counts, as in `gymnasium.make_vec`.
        **kwargs: settings of `SkillActionWrapper` and `SkillActionVectorWrapper` go there, all others to
            `gymnasium.make`.

    Example:
        >>> import didi_gym
        >>> envs = didi_gym.make_vec("AntMaze_Open-v5", "ant-directions", num_envs=8, vectorization_mode="async")

    The spec (`envs.spec`) rebuilds the environment with `gymnasium.make_vec`, from JSON too. A program that starts
    processes by spawning belongs under `if __name__ == "__main__":`.
    """
    if "n_envs" in kwargs:
        raise TypeError("Gymnasium calls it num_envs: make_vec(env_id, policy, num_envs=...)")
    env_id, policy, wrappers, env_kwargs, kwargs = known_settings(env_id, policy, wrappers, env_kwargs, kwargs)
    vectorization_mode = kwargs.pop("backend", vectorization_mode)
    classes: dict[str, type[VectorEnv]] = {"sync": SyncVectorEnv, "async": AsyncVectorEnv}
    backend: Any = vectorization_mode.value if isinstance(vectorization_mode, VectorizeMode) else vectorization_mode
    if backend not in classes:
        raise ValueError(f"vectorization_mode must be 'sync' or 'async', got {vectorization_mode!r}")
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}")
    vector_kwargs = dict(vector_kwargs or {})
    mode = _autoreset_mode(vector_kwargs.pop("autoreset_mode", autoreset_mode))
    kwargs = {name: value.item() if isinstance(value, np.generic) else value for name, value in kwargs.items()}  # JSON
    live = load_policy(policy, kwargs.get("device", "auto"))
    settings = split_settings(live, env_id, env_kwargs, kwargs)
    settings.executor["report_errors"] = backend == "async"
    make_one = functools.partial(make_executor, env_id, settings, wrappers)
    timeout = settings.planning.get("worker_timeout", WORKER_TIMEOUT)
    vector = start(classes[backend], [make_one] * num_envs, timeout=timeout, autoreset_mode=mode, **vector_kwargs)
    try:
        envs = SkillActionVectorWrapper(vector, live, **settings.planning)
    except BaseException:
        vector.close()
        raise
    recipe = {
        "env_id": env_id,
        "num_envs": num_envs,
        "autoreset_mode": next(name for name, value in AUTORESET_MODES.items() if value == mode),
        **({"env_kwargs": dict(env_kwargs)} if env_kwargs else {}),
        **kwargs,
    }
    extra: dict[str, Any] = {"wrappers": wrappers, "vector_kwargs": vector_kwargs}
    reference = policy_reference(live)
    envs.remember(functools.partial(make_vec, policy=reference or live, vectorization_mode=backend, **recipe, **extra))
    vector.spec = copy.deepcopy(gym.spec(SKILL_ID))
    # Names differ where `gymnasium.make_vec` would take an argument for itself and refuse it.
    vector.spec.kwargs = {
        **recipe,
        "policy": reference,
        "backend": backend,
        "vectorization_mode": "vector_entry_point",
        **{f"low_level_{name}": value for name, value in extra.items() if value},
    }
    return envs


def _autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    """The mode meant by a name, ours or Gymnasium's ("SameStep")."""
    if isinstance(mode, str) and mode in AUTORESET_MODES:
        return AUTORESET_MODES[mode]
    try:
        return AutoresetMode(mode)
    except ValueError:
        raise ValueError(f"autoreset_mode must be one of {', '.join(AUTORESET_MODES)}, got {mode!r}") from None


@dataclass(frozen=True)
class SplitSettings:
    """Where the keyword arguments of a factory go."""

    executor: dict[str, Any]
    planning: dict[str, Any]
    """Of the vector wrapper."""
    low_level: dict[str, Any]
    """Of `gymnasium.make`."""


def split_settings(
    policy: SkillPolicy, env_id: EnvId, env_kwargs: Mapping[str, Any] | None, kwargs: Mapping[str, Any]
) -> SplitSettings:
    """Tell apart settings of `SkillExecutor`, of a vector wrapper, and of the low-level environment."""
    rest = {name: value for name, value in kwargs.items() if name != "device"}
    chosen = rest.pop("skill_duration", None)
    durations, replan_every = resolve_settings(
        policy, chosen, rest.get("until_done", False), rest.pop("replan_every", None)
    )
    executor = {name: rest.pop(name) for name in _EXECUTOR_SETTINGS & rest.keys()}
    executor |= {"skill_duration": max(durations, default=None), "replan_every": replan_every}
    executor["skill_dim"] = policy.skill_space.skill_dim
    planning = {name: rest.pop(name) for name in _VECTOR_SETTINGS & rest.keys()}
    low_level = merge_env_kwargs(env_id, env_kwargs, rest, kwargs.keys() - rest.keys())
    return SplitSettings(executor, {**planning, "skill_duration": durations or None}, low_level)


def merge_env_kwargs(
    env_id: EnvId, env_kwargs: Mapping[str, Any] | None, rest: Mapping[str, Any], taken: Collection[str]
) -> dict[str, Any]:
    """The arguments of the low-level environment: `env_kwargs`, and what is left of the plain ones.

    Args:
        taken: plain arguments that were taken as settings of ours.

    Raises:
        TypeError: an argument given twice, or one that was taken and that the environment has too.
    """
    given = dict(env_kwargs or {})
    if twice := sorted(given.keys() & rest.keys()):
        raise TypeError(f"{twice[0]} is given twice: in env_kwargs and beside it; leave one out")
    if both := sorted((set(taken) - given.keys()) & (_parameters_of(env_id) if taken else set())):
        raise TypeError(
            f"{both[0]}= may mean the environment's own argument or the setting of the skills: give the environment's "
            f"as env_kwargs={{{both[0]!r}: ...}}; {both[0]}= beside it is then the skills'"
        )
    return {**rest, **given}


def _parameters_of(env_id: EnvId | dict[str, Any]) -> set[str]:
    """Names of an environment's own arguments; none where they cannot be known before the environment is made."""
    entry: Any = env_id
    if not callable(entry):
        spec: Any = _spec_from(env_id) if isinstance(env_id, dict) else env_id
        if isinstance(spec, str):
            if spec not in gym.registry and ":" not in spec:
                with contextlib.suppress(ImportError):
                    _register_robotics()
            spec = gym.registry.get(spec.rpartition(":")[2])
        entry = None if spec is None else spec.entry_point
    try:
        parameters = inspect.signature(load_env_creator(entry) if isinstance(entry, str) else entry).parameters
    except (ImportError, AttributeError, TypeError, ValueError):
        return set()  # whoever makes it says what is wrong
    return {name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD}


def make_executor(env_id: EnvId, settings: SplitSettings, wrappers: Sequence[EnvWrapper]) -> SkillExecutor:
    """One sub-environment of a vector environment, made where it will run."""
    return SkillExecutor(make_wrapped(env_id, wrappers, settings.low_level), **settings.executor)


def make_wrapped(env_id: EnvId, wrappers: Sequence[EnvWrapper], kwargs: dict[str, Any]) -> gym.Env:
    """A low-level environment with wrappers around it, the first innermost."""
    env = make_low_level(env_id, **kwargs)
    for wrapper in wrappers:
        env = wrapper(env)
    return env


class RegisteredSkillEnv(SkillActionWrapper):
    """A `SkillActionWrapper` made by `gymnasium.make` from an id: its spec is that id's, with the policy pinned.

    A `max_episode_steps` of `gymnasium.make` or of the id counts low-level steps, inside. Gymnasium puts a TimeLimit
    around as well, which is kept, since it writes the spec, but ends no episode.
    """

    outer_limit: int | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        for layer in time_limits_around(self):
            if layer._max_episode_steps == self.outer_limit:
                layer._elapsed_steps = -math.inf  # type: ignore[assignment]  # it counts from here
        return super().reset(seed=seed, options=options)

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        return pinned(self.unwrapped.spec, self.policy)


make_registered = make
"""What `gymnasium.make` calls for the ids of this package."""


def is_entry_point(entry: Any) -> bool:
    """Whether ids with this entry point make environments with skills: `make`, by one of its names, or itself."""
    module, _, name = (
        entry.partition(":") if isinstance(entry, str) else (make.__module__, "", getattr(entry, "__name__", ""))
    )
    ours = module in ("didi_gym", make.__module__) and name in ("make", "make_registered")
    return ours and (isinstance(entry, str) or entry is make)


def make_registered_vec(
    num_envs: int,
    env_id: str,
    policy: Any,
    backend: Literal["sync", "async"] = "sync",
    low_level_wrappers: Sequence[EnvWrapper] = (),
    low_level_vector_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> SkillActionVectorWrapper:
    """What `gymnasium.make_vec` calls for the ids of this package; see `make_vec`."""
    return make_vec(
        env_id,
        policy,
        num_envs,
        backend,
        wrappers=low_level_wrappers,
        vector_kwargs=low_level_vector_kwargs,
        **kwargs,
    )


def known_settings(
    env_id: Any,
    policy: Any,
    wrappers: Sequence[EnvWrapper],
    env_kwargs: Mapping[str, Any] | None,
    kwargs: Mapping[str, Any],
) -> tuple[Any, Any, Sequence[EnvWrapper], dict[str, Any], dict[str, Any]]:
    """The arguments of `make`, with those of an id whose entry point it is in place of that id; given ones count."""
    spec = env_id
    if isinstance(env_id, str):
        module, _, name = env_id.rpartition(":")
        if module and name not in gym.registry:
            importlib.import_module(module)
        spec = gym.registry.get(name)
    if not isinstance(spec, EnvSpec) or not is_entry_point(spec.entry_point):
        return env_id, policy, wrappers, dict(env_kwargs or {}), dict(kwargs)
    own = copy.copy(spec.kwargs)
    if spec.max_episode_steps is not None:
        own.setdefault("max_episode_steps", spec.max_episode_steps)
    low_level, named = own.pop("env_id", env_id), own.pop("policy", None)
    inside, theirs = own.pop("wrappers", ()), own.pop("env_kwargs", {})
    return (
        low_level,
        named if policy is None else policy,
        wrappers or inside,
        {**theirs, **(env_kwargs or {})},
        {**own, **kwargs},
    )


@contextlib.contextmanager
def _mujoco_explained() -> Iterator[None]:
    """Say which MuJoCo is needed where an environment could not be made for want of it, or for a newer one."""
    try:
        yield
    except gym.error.DependencyNotInstalled as error:
        if "mujoco" not in str(error).lower():
            raise
        raise gym.error.DependencyNotInstalled(
            f"MuJoCo is missing, or cannot be imported; install a version that all environments work with "
            f"(mujoco{MUJOCO}): pip install 'didi-gym[envs]'"
        ) from error
    except AssertionError as error:  # all that gymnasium-robotics says of a newer one
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version("mujoco")
            if tuple(map(int, version.split(".")[:2])) >= _BREAKS_FETCH_AND_KITCHEN:
                raise gym.error.Error(
                    f"the environment could not be made ({error or 'AssertionError'}), and mujoco {version} is "
                    f"installed, with which Fetch, Kitchen and hand environments fail; expected mujoco{MUJOCO}: "
                    f"pip install 'didi-gym[envs]'"
                ) from error
        raise


@_mujoco_explained()
def make_low_level(env_id: EnvId | dict[str, Any], **kwargs: Any) -> gym.Env:
    """`gymnasium.make`, which knows the ids of gymnasium-robotics without an import, and specs out of a spec's JSON.

    A function is called instead.
    """
    if callable(env_id):
        return env_id(**kwargs)
    if isinstance(env_id, dict):
        env_id = _spec_from(env_id)
    try:
        return gym.make(env_id, **kwargs)
    except gym.error.UnregisteredEnv as unknown:
        try:
            _register_robotics()
        except ImportError:
            raise gym.error.UnregisteredEnv(
                f"{unknown} If {env_id!r} is an environment of gymnasium-robotics (mazes, Adroit, Fetch, kitchen), "
                "install it with: pip install 'didi-gym[envs]'"
            ) from unknown
    return gym.make(env_id, **kwargs)


def _register_robotics() -> None:
    gym.register_envs(importlib.import_module("gymnasium_robotics"))


def _spec_from(json_dict: dict[str, Any]) -> EnvSpec:
    derived = {"namespace", "name", "version"}
    return EnvSpec.from_json(json.dumps({key: json_dict[key] for key in json_dict.keys() - derived}))
