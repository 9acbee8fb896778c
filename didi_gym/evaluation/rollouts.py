"""Holding skills in the simulator, from starts that can be visited again."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np

from didi_gym.core.observations import InputSelector, choose_numbers, recover_numbers
from didi_gym.core.progress import progress as progress_bar
from didi_gym.data.dataset import TrajectoryDataset
from didi_gym.models.policy import SkillPolicy
from didi_gym.wrappers.executor import to_actions
from didi_gym.wrappers.make import make_low_level

_FIRST_SEED = 1_000_000  # far from the seeds that data sets are made with
_BURN_IN = 64  # starts lie up to this many steps of random skills after a reset


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
    """Whether the environment ended the episode `(n,)`."""


class SkillSimulator:
    """Holds skills in an environment, from starts that can be visited again.

    Args:
        env: An environment whose observation holds the policy's whole state; its time limit is taken off.
        contact_geoms: Regular expression of MuJoCo geom names; contacts with them are counted.
    """

    def __init__(self, policy: SkillPolicy, env: gym.Env, contact_geoms: str | None = None) -> None:
        layout = policy.config.layout
        if layout.state_source is None:
            raise ValueError("this policy's layout has no state_source, so rollouts cannot be compared with its data")
        self.policy = policy
        self.env = _without_time_limit(env)
        self._inputs = list(layout.policy_inputs)
        state_layout = type(layout).flat(layout.state_dim)
        self._select = InputSelector(
            env.observation_space, type(layout)(**{**vars(state_layout), "sources": (layout.state_source,)})
        )
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
        """`n` starts up to `burn_in` steps of random skills after a reset."""
        starts: list[Start] = []
        seed = _FIRST_SEED + int(generator.integers(1_000_000))
        while len(starts) < n:
            seed += 1
            state, ended = self.visit(Start(seed)), False
            actions: list[np.ndarray] = []
            for _ in range(0, int(generator.integers(burn_in + 1)), self.policy.config.horizon):
                skill = self.policy.skill_space.sample(1, generator)[0]
                rollout = self.hold(state, skill, self.policy.config.horizon)
                actions.append(rollout.actions)
                state, ended = rollout.states[-1], rollout.terminated
                if ended:  # further steps would be undefined
                    break
            if not ended:
                starts.append(Start(seed, np.concatenate(actions) if actions else None))
        return starts

    def visit(self, start: Start) -> np.ndarray:
        """Go to a start and return its state `(state_dim,)`."""
        observation, _ = self.env.reset(seed=start.seed)
        if start.state is not None:
            inner: Any = self.env.unwrapped
            numbers = recover_numbers(start.state, self._source)
            _set_mujoco_state(inner, numbers[: inner.model.nq], numbers[inner.model.nq :])
            return start.state
        for action in () if start.actions is None else start.actions:
            observation = self._step(action)[0]
        return self._select(observation)

    def hold(self, state: np.ndarray, skill: np.ndarray, steps: int, replan_every: int | None = None) -> Rollout:
        """Hold `skill` for `steps` environment steps from the present `state`, or until the episode ends."""
        every = replan_every or self.policy.config.replan_every
        states, touching, terminated = [state], 0, False
        actions: list[np.ndarray] = []
        while len(actions) < steps and not terminated:
            chunk = min(every, steps - len(actions))
            for action in self.policy.plan_actions(states[-1][None, self._inputs], skill[None], chunk)[0]:
                observation, _, terminated, _, _ = self._step(action)
                states.append(self._select(observation))
                actions.append(action)
                touching += 0 if self._touches is None else self._touches()
                if terminated:
                    break
        contact = touching / len(actions) if self._touches else math.nan
        return Rollout(np.stack(states), np.stack(actions), bool(terminated), contact)

    def _step(self, action: np.ndarray) -> Any:
        return self.env.step(to_actions(action, self.env.action_space))


def hold_skills(
    policy: SkillPolicy,
    env: gym.Env | None = None,
    *,
    skills: int = 8,
    episodes: int = 16,
    steps: int = 96,
    replan_every: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> HeldSkills:
    """Hold each of `skills` evenly spread skills for `steps` environment steps, from the same `episodes` resets."""
    simulator = SkillSimulator(policy, env or make_data_env(policy))
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
    return HeldSkills(paths, np.tile(grid, (episodes, 1)), np.array([r.terminated for r in rollouts]))


def data_env_id(policy: SkillPolicy) -> tuple[str, dict[str, Any]]:
    """Id and settings of the environment that the policy's data set was recorded in.

    Raises:
        ValueError: the data set did not say.
    """
    if policy.config.env_id is None:
        raise ValueError(
            "the policy's data set names no environment; pass env= (--env), one whose observation is its state"
        )
    return policy.config.env_id, policy.config.env_kwargs


def make_data_env(policy: SkillPolicy) -> gym.Env:
    """The environment that the policy's data set was recorded in."""
    env_id, kwargs = data_env_id(policy)
    return make_low_level(env_id, **kwargs)


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
