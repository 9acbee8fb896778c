"""Holding skills in the simulator, from starts that can be visited again."""

from __future__ import annotations

import contextlib
import json
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, WrapperSpec, load_env_creator

from didi_gym.core.environments import asks_for_trust, require_env_id
from didi_gym.core.files import in_short
from didi_gym.core.observations import (
    InputSelector,
    choose_numbers,
    recover_numbers,
    step_seconds_of,
    warn_of_other_step,
)
from didi_gym.core.progress import progress as progress_bar
from didi_gym.data.dataset import TrajectoryDataset
from didi_gym.data.minari import load_minari
from didi_gym.models.policy import SkillPolicy
from didi_gym.wrappers.executor import old_api, refuse_inside, to_actions
from didi_gym.wrappers.make import make_low_level

_FIRST_SEED = 1_000_000  # far from the seeds that data sets are made with
_BURN_IN = 64  # starts lie up to this many steps of random skills after a reset
_ENDED_IN_A_ROW = 20  # such walks to a start that ended their episode, before the part of one is taken that did not
_HELD_SECONDS, _HELD_STEPS = 4.8, 96  # for how long skills are held: of simulated time, where a step's is known
_MOST_HELD_STEPS = 2_000
_FAR_AWAY = 1e4  # from here on float32 rounds by more than a thousandth
_DRAWING = "gymnasium.wrappers.rendering"  # module of the wrappers that only show or film


@dataclass(frozen=True)
class Rollout:
    """One skill held in the simulator."""

    states: np.ndarray
    """`(steps + 1, state_dim)`, environment units."""
    actions: np.ndarray
    """`(steps, action_dim)`, as sent to the environment; discrete ones one-hot, as in the data."""
    terminated: bool
    """The environment ended the episode: a fall, where episodes end for that."""
    contact: float
    """Share of the steps in contact with a geom that was asked for."""
    truncated: bool = False
    """The environment ended the episode for its length: no fall, but no further step is defined either."""

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated


@dataclass(frozen=True)
class Start:
    """A state of the simulator that can be visited again: a reset, then a state to put it in or actions to replay."""

    seed: int
    actions: np.ndarray | None = None
    """`(n, action_dim)`."""
    state: np.ndarray | None = None
    """`(state_dim,)`; only where the state is MuJoCo's positions and velocities."""


@dataclass(frozen=True)
class HeldSkills:
    """Skills held from resets of the environment, for pictures."""

    paths: np.ndarray
    """The features over time `(n, steps + 1, features)`, environment units; an ended episode stays where it ended."""
    skills: np.ndarray
    """`(n, skill_dim)`."""
    terminated: np.ndarray
    """Whether the environment ended the episode as one does after a fall `(n,)`."""
    truncated: np.ndarray | None = None
    """Whether it ended the episode for its length, so that the skill was held for fewer steps than asked for `(n,)`."""


class SkillSimulator:
    """Holds skills in an environment, from starts that can be visited again.

    Args:
        env: An environment whose observation holds the policy's whole state; a `TimeLimit` around it is taken off.
        contact_geoms: Regular expression of MuJoCo geom names; contacts with them are counted.

    Raises:
        ValueError: Its observations cannot be compared with the data, or a NormalizeObservation has changed them.
    """

    def __init__(self, policy: SkillPolicy, env: gym.Env, contact_geoms: str | None = None) -> None:
        layout = policy.config.layout
        if layout.state_source is None:
            raise ValueError("this policy's layout has no state_source, so rollouts cannot be compared with its data")
        refuse_inside(env)
        self.policy = policy
        warn_of_other_step(step_seconds_of(env, inside=True), policy.config.step_seconds)
        self.env = _without_time_limit(env)
        self._inputs = list(layout.policy_inputs)
        state_layout = type(layout).flat(layout.state_dim)
        self._select = InputSelector(
            env.observation_space,
            type(layout)(**{**vars(state_layout), "sources": (layout.state_source,)}),
            exact=True,
        )
        self._relative = np.isin(np.arange(layout.state_dim), layout.relative)
        self._origin = np.zeros(layout.state_dim)
        self._source = layout.state_source
        self._touches = None if contact_geoms is None else _contact_counter(env, contact_geoms)

    def starts(self, n: int, dataset: TrajectoryDataset | None, generator: np.random.Generator) -> list[Start]:
        """`n` states of `dataset` where that is possible, else states after random skills."""
        found = [] if dataset is None else self.data_starts(n, dataset, generator)
        return found or self.random_starts(n, generator)

    def data_starts(self, n: int, dataset: TrajectoryDataset, generator: np.random.Generator) -> list[Start]:
        """`n` states of the data as starts, or an empty list where the simulator cannot be put into a state.

        It can where the state is the positions and velocities of a MuJoCo model, which is found out by comparing.
        """
        state = self.visit(Start(_FIRST_SEED))
        inner = self.env.unwrapped
        data = getattr(inner, "data", None)
        if (
            data is None
            or data.qpos.size + data.qvel.size != len(recover_numbers(state, self._source))
            or not np.allclose(
                choose_numbers(
                    np.concatenate([data.qpos, data.qvel]), replace(self._source, size=len(data.qpos) + len(data.qvel))
                ),
                state,
                atol=1e-5,
            )
        ):
            return []
        steps = dataset.window_starts(generator.integers(dataset.num_windows(1), size=n), 1)
        seeds = _FIRST_SEED + generator.integers(1_000_000, size=n)
        return [Start(int(seed), state=dataset.observations[step]) for seed, step in zip(seeds, steps, strict=True)]

    def random_starts(self, n: int, generator: np.random.Generator, burn_in: int = _BURN_IN) -> list[Start]:
        """`n` starts up to `burn_in` steps of random skills after a reset.

        A walk that ended its episode leads to no start. Where that happens many times in a row, as in environments
        whose episodes are short, the start lies before the skill that ended it.
        """
        starts: list[Start] = []
        seed, lost = _FIRST_SEED + int(generator.integers(1_000_000)), 0
        while len(starts) < n:
            seed += 1
            state, ended = self.visit(Start(seed)), False
            actions: list[np.ndarray] = []
            for _ in range(0, int(generator.integers(burn_in + 1)), self.policy.config.horizon):
                skill = self.policy.skill_space.sample(1, generator)[0]
                rollout = self.hold(state, skill, self.policy.config.horizon)
                ended = rollout.ended
                if ended:  # further steps would be undefined
                    break
                actions.append(rollout.actions)
                state = rollout.states[-1]
            lost = lost + 1 if ended else 0
            if not ended or lost > _ENDED_IN_A_ROW:
                starts.append(Start(seed, np.concatenate(actions) if actions else None))
        return starts

    def visit(self, start: Start) -> np.ndarray:
        """Go to a start and return its state `(state_dim,)`."""
        observation = self._reset(start.seed)
        if start.state is not None:
            inner: Any = self.env.unwrapped
            numbers = recover_numbers(start.state, self._source)
            _set_mujoco_state(inner, numbers[: inner.model.nq], numbers[inner.model.nq :])
            return start.state
        for action in () if start.actions is None else start.actions:
            observation, _, terminated, truncated, _ = self._step(action)
            if terminated or truncated:  # the environment does not repeat itself; the reset is still a start
                observation = self._reset(start.seed)
                break
        return self._state(observation)

    def hold(self, state: np.ndarray, skill: np.ndarray, steps: int, replan_every: int | None = None) -> Rollout:
        """Hold `skill` for `steps` environment steps from the present `state`, or until the episode ends."""
        every = replan_every or self.policy.config.replan_every
        states, touching, terminated, truncated = [state], 0, False, False
        actions: list[np.ndarray] = []
        while len(actions) < steps and not (terminated or truncated):
            chunk = min(every, steps - len(actions))
            for action in self.policy.plan_actions(states[-1][None, self._inputs], skill[None], chunk)[0]:
                observation, _, terminated, truncated, _ = self._step(action)
                states.append(self._state(observation))
                actions.append(action)
                touching += 0 if self._touches is None else self._touches()
                if terminated or truncated:
                    break
        contact = touching / len(actions) if self._touches else math.nan
        fell, cut = bool(terminated), bool(truncated) and not terminated
        return Rollout(np.stack(states), np.stack(actions), fell, contact, cut)

    def _reset(self, seed: int) -> Any:
        answer = self.env.reset(seed=seed)
        if not (isinstance(answer, tuple) and len(answer) == 2):
            raise old_api(self.env, "reset", answer)
        first = self._select(answer[0])
        self._origin = np.where(self._relative & (np.abs(first) >= _FAR_AWAY), first, 0)
        return answer[0]

    def _state(self, observation: Any) -> np.ndarray:
        """The state `(state_dim,)` in an observation, float32. Of relative numbers only changes count: where float32
        would lose these, they are counted from the reset, as in the data."""
        return (self._select(observation) - self._origin).astype(np.float32)

    def _step(self, action: np.ndarray) -> Any:
        answer = self.env.step(to_actions(action, self.env.action_space))
        if len(answer) != 5:
            raise old_api(self.env, "step", answer)
        return answer


def hold_skills(
    policy: SkillPolicy,
    env: gym.Env | None = None,
    *,
    skills: int = 8,
    episodes: int = 16,
    steps: int | None = None,
    replan_every: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> HeldSkills:
    """Hold each of `skills` evenly spread skills for `steps` environment steps, from the same `episodes` resets.

    Args:
        steps: Default: 4.8 s of simulated time where the environment says how long a step is, else 96 steps.
    """
    simulator = SkillSimulator(policy, env or make_data_env(policy))
    steps = held_steps_for(policy, simulator.env) if steps is None else steps
    grid = policy.skill_space.grid(skills)
    resets = simulator.random_starts(episodes, np.random.default_rng(seed), burn_in=0)
    rollouts = []
    with progress_bar("hold skills", episodes * len(grid), progress) as report:
        for start in resets:
            for z in grid:
                rollouts.append(simulator.hold(simulator.visit(start), z, steps, replan_every))
                report(len(rollouts), {})
    features = list(policy.config.layout.features)
    paths = np.stack([_padded(r.states[:, features], steps + 1) for r in rollouts])
    cut = np.array([r.truncated and len(r.actions) < steps for r in rollouts])
    if cut.any():
        least = min(len(r.actions) for r in rollouts if r.truncated)
        warnings.warn(
            f"{cut.mean():.0%} of the held rollouts were ended by a limit of the environment's own, the first after "
            f"{least} of {steps} steps; distances and pictures show the steps that they had, so hold skills for at "
            f"most {least}",
            stacklevel=2,
        )
    return HeldSkills(paths, np.tile(grid, (episodes, 1)), np.array([r.terminated for r in rollouts]), cut)


def held_steps_for(policy: SkillPolicy, env: gym.Env) -> int:
    """Steps for which skills are held by default: 4.8 s of simulated time, or 96 where a step's time is not known.

    Where steps are very long or short, at least a horizon, and at most 2,000 steps.
    """
    seconds = step_seconds_of(env)
    if seconds is None:
        return _HELD_STEPS
    return max(policy.config.horizon, round(min(_HELD_SECONDS / seconds, _MOST_HELD_STEPS)))


def make_data_env(policy: SkillPolicy, *, spec: EnvSpec | None = None, trust: bool = False) -> gym.Env:
    """The environment that the policy's data set was recorded in, with the wrappers that it was recorded with.

    What is known of it is taken from the first of these: `spec`; the `env_spec` of the policy's config; the data set,
    where it is on this disk; `env_id` and `env_kwargs` of the config, which know no wrappers.

    Args:
        spec: Of the environment, with its wrappers as `additional_wrappers`. Modules that it names are imported.
        trust: Import modules and load policies that the policy's folder or its data set names.

    Raises:
        ValueError: nothing says which environment it was; it cannot be made or stepped; or making it would import a
            module that a file names, and `trust` is not set.
    """
    if spec is not None:
        return make_from_spec(spec)
    recorded = _recorded_spec(policy)
    entry_points = [wrapper.entry_point for wrapper in recorded.additional_wrappers]
    danger = asks_for_trust(recorded.id, recorded.kwargs, entry_points)
    if danger and not trust:
        raise ValueError(
            f"making {in_short(recorded.id)!r}, the environment of this policy's data, {in_short(danger)}; only the "
            "policy's files ask for that. Pass trust=True (--trust) if you trust their author, or name the environment "
            "yourself: env= (--env)"
        )
    try:
        return make_from_spec(replace(recorded, entry_point=None))
    except gym.error.UnregisteredEnv as error:
        if not isinstance(recorded.entry_point, str):
            raise
        if trust:
            return make_from_spec(recorded)
        raise gym.error.UnregisteredEnv(
            f"{error} The data set says that it is made by {in_short(recorded.entry_point)!r}: trust=True (--trust) "
            "imports that, as Minari's recover_environment() does."
        ) from error


def make_from_spec(spec: EnvSpec) -> gym.Env:
    """The environment of a spec with its wrappers, without those that only show or film it.

    Without an `entry_point` the environment is the registered one of that id.

    Raises:
        ValueError: it cannot be made, reset or stepped.
    """
    kwargs = {name: value for name, value in spec.kwargs.items() if name != "render_mode"}
    wrappers = tuple(each for each in spec.additional_wrappers if each.entry_point.partition(":")[0] != _DRAWING)
    try:
        if spec.entry_point is not None:
            env = make_low_level(replace(spec, kwargs=kwargs, additional_wrappers=wrappers))
        else:
            if twice := {"env_id", "id"} & kwargs.keys():
                raise TypeError(f"its arguments name an environment once more: {sorted(twice)[0]}")
            env = make_named_env(spec.id, **kwargs)
            for wrapper in wrappers:
                env = _wrapped(env, wrapper)
        if kwargs or wrappers:  # some faults in arguments show only when it runs
            env.reset(seed=0)
            env.action_space.seed(0)
            env.step(env.action_space.sample())
    except (ImportError, gym.error.Error):
        raise
    except Exception as error:  # of whatever kind an environment raises for arguments that it cannot take
        raise ValueError(
            f"the environment {in_short(spec.id)!r} cannot be made and stepped with the arguments "
            f"{in_short(str(kwargs))}{' and its recorded wrappers' if wrappers else ''}: {type(error).__name__}: "
            f"{in_short(error)}; name another one: env= (--env)"
        ) from error
    return env


def make_named_env(env_id: str, **kwargs: Any) -> gym.Env:
    """The environment of an id `Name-v0`, or of `module:Name-v0` after the module was imported.

    Raises:
        ValueError: no id of that form.
        UnregisteredEnv: nobody has registered it.
    """
    require_env_id(env_id)
    try:
        return make_low_level(env_id, **kwargs)
    except gym.error.UnregisteredEnv as error:
        raise type(error)(
            f"{error} Where a module of yours registers {env_id!r}, name both: --env module:{env_id} (or import the "
            "module and pass env=); where a Minari data set recorded it, pass env=dataset.recover_environment()"
        ) from error


def env_spec_from_json(text: str, where: str) -> EnvSpec:
    """The spec in the JSON that `EnvSpec.to_json` writes; of its keys only `id` is needed.

    Raises:
        ValueError: no such JSON; the message begins with `where`.
    """
    try:
        values = {"additional_wrappers": [], **json.loads(text)}
        derived = {"namespace", "name", "version"}  # from the id, anew
        spec = EnvSpec.from_json(json.dumps({key: value for key, value in values.items() if key not in derived}))
        require_env_id(spec.id)
    except (ValueError, TypeError, gym.error.Error) as error:
        raise ValueError(f"{where} is no JSON of an environment's spec (EnvSpec.to_json): {in_short(error)}") from error
    return spec


def _recorded_spec(policy: SkillPolicy) -> EnvSpec:
    """What is known of the environment of the data: from the policy's config, else from the data set."""
    config = policy.config
    if (stored := getattr(config, "env_spec", None)) is not None:
        return env_spec_from_json(stored if isinstance(stored, str) else json.dumps(stored), "env_spec of config.json")
    spec: EnvSpec | None = None
    if config.dataset_id is not None:
        with contextlib.suppress(ValueError, OSError, KeyError):  # not on this disk, or unreadable
            spec = load_minari(config.dataset_id).env_spec
    if spec is not None and config.env_id in (None, spec.id):
        return replace(spec, kwargs={**spec.kwargs, **config.env_kwargs})
    if config.env_id is None:
        raise ValueError(
            "the policy's data set names no environment; pass env= (--env), one whose observation is its state"
        )
    require_env_id(config.env_id)
    return EnvSpec(config.env_id, kwargs=dict(config.env_kwargs))


def _wrapped(env: gym.Env, wrapper: WrapperSpec) -> gym.Env:
    found: Any = load_env_creator(wrapper.entry_point)
    if not (isinstance(found, type) and issubclass(found, gym.Wrapper)):
        raise TypeError(f"{wrapper.entry_point} is no wrapper")
    if wrapper.kwargs is None:
        raise TypeError(f"the wrapper {wrapper.name} recorded no arguments (it is no RecordConstructorArgs)")
    return env if found.__module__ == _DRAWING else found(env, **wrapper.kwargs)


def _set_mujoco_state(inner: Any, qpos: np.ndarray, qvel: np.ndarray) -> None:
    import mujoco

    mujoco.mj_resetData(inner.model, inner.data)
    inner.data.qpos[:], inner.data.qvel[:] = qpos, qvel
    mujoco.mj_forward(inner.model, inner.data)


def _padded(states: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([states, np.repeat(states[-1:], length - len(states), axis=0)])


def _without_time_limit(env: gym.Env) -> gym.Env:
    """The environment with its TimeLimit wrappers taken off: a held skill must not be cut by the clock."""
    if isinstance(env, gym.wrappers.TimeLimit):
        return _without_time_limit(env.env)
    if isinstance(env, gym.Wrapper):
        env.env = _without_time_limit(env.env)
    return env


def _contact_counter(env: gym.Env, pattern: str) -> Callable[[], int]:
    """A function that tells whether any MuJoCo geom whose name matches is touched now (1) or not (0)."""
    inner = env.unwrapped
    if not hasattr(inner, "data"):
        raise ValueError(f"contacts are counted in MuJoCo environments only, got {inner}")
    model = inner.model  # type: ignore[attr-defined]
    chosen = {i for i in range(model.ngeom) if re.search(pattern, model.geom(i).name)}
    if not chosen:
        raise ValueError(f"no geom of the environment matches {pattern!r}")
    return lambda: int(any(set(pair) & chosen for pair in inner.data.contact.geom[: inner.data.ncon].tolist()))
