"""Planning for environments whose actions are skills: what an agent's action means, what the policy reads, and which
chunks of low-level actions follow. One planner serves one environment or many. Imports no torch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded

from didi_gym.config import Layout, ObservationSource
from didi_gym.data import is_bound
from didi_gym.execution import action_vectors

if TYPE_CHECKING:
    from didi_gym.policy import SkillPolicy

ObservationFn = Callable[[Any], np.ndarray]
MaskFn = Callable[[Any], np.ndarray]
EngineName = Literal["auto", "numpy", "torch", "cuda-graph"]
Engine = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""`(inputs (n, inputs), skills (n, skill_dim), steps) -> actions (n, steps, action_dim)`, environment units."""


class SkillPlanner:
    """Turns agents' actions into skills, and skills into low-level actions.

    Args:
        policy: a live policy.
        observation_space: of a single environment.
        durations: low-level steps of a skill; the agent chooses where there are several. A continuous action then ends
            with one more coordinate, whose range [-1, 1] is cut into equal parts; a discrete action is
            `skill * len(durations) + choice`.
        replan_every: low-level steps run of each plan.
        obs_fn: a function from one observation to the policy's inputs `(inputs,)`.
        mask_fn: a function from one observation to the discrete skills allowed in it, bool `(skills,)`.
        engine, batch_invariant: see `SkillPolicy.engine`; `engine` may also be what that returns.

    Attributes:
        action_space: the agent's, of a single environment.
        num_inputs: numbers that the policy reads.

    Raises:
        ValueError: the policy cannot read the observations, or a setting is out of range.
    """

    def __init__(
        self,
        policy: SkillPolicy,
        observation_space: spaces.Space,
        *,
        durations: Sequence[int],
        replan_every: int,
        obs_fn: ObservationFn | None = None,
        mask_fn: MaskFn | None = None,
        engine: EngineName | Engine = "auto",
        batch_invariant: bool = False,
    ) -> None:
        self.policy, self.replan_every = policy, replan_every
        self.durations = np.array(durations)
        self._skills = policy.skill_space
        self._obs_fn, self._mask_fn = obs_fn, mask_fn
        self.num_inputs = len(policy.config.layout.policy_inputs)
        self._select = obs_fn or InputSelector(observation_space, policy.config.layout)
        self._plan: Engine = policy.plan_actions
        if callable(engine):
            self._plan = engine
        elif engine != "auto" or batch_invariant:
            self._plan = policy.engine(engine, batch_invariant=batch_invariant)
        if mask_fn is not None and not self._skills.is_discrete:
            raise ValueError(
                f"mask_fn says which discrete skills are allowed, but these are continuous: {self._skills}"
            )
        choices, space = len(durations), self._skills.gym_space
        if choices > 1:
            more = isinstance(space, spaces.Discrete)
            space = (
                spaces.Discrete(self._skills.size * choices)
                if more
                else spaces.Box(-1.0, 1.0, (self._skills.size + 1,), np.float32)
            )
        self.action_space: spaces.Box | spaces.Discrete = space
        self._action_shape: tuple[int, ...] = space.shape or ()
        self._chunk_shape = (replan_every, *policy.action_low.shape)

    def decode(self, actions: Any) -> tuple[np.ndarray, np.ndarray]:
        """Skills `(..., skill_dim)` and their durations `(...)` for actions of one or more agents.

        Raises:
            ValueError: an action outside the space in shape or kind, or not finite.
        """
        choices = len(self.durations)
        if self._skills.is_discrete:
            index = np.asarray(actions)
            if choices == 1:
                return self._skills.to_skill(index), np.full(index.shape, self.durations[0])
            size = self._skills.size * choices
            if not np.issubdtype(index.dtype, np.integer) or np.any((index < 0) | (index >= size)):
                raise ValueError(f"an action must be an integer in 0..{size - 1}, got {actions!r}")
            return self._skills.to_skill(index // choices), self.durations[index % choices]
        numbers = np.asarray(actions, dtype=np.float32)
        if choices == 1:
            return self._skills.to_skill(numbers), np.full(numbers.shape[:-1], self.durations[0])
        size = self._skills.size + 1
        if numbers.ndim == 0 or numbers.shape[-1] != size:
            raise ValueError(f"an action must have shape (..., {size}), a skill and its duration; got {numbers.shape}")
        skills = self._skills.to_skill(numbers[..., :-1])
        if not np.isfinite(numbers).all():
            raise ValueError(f"an action must be finite, got {numbers}")
        part = ((np.clip(numbers[..., -1], -1, 1) + 1) / 2 * choices).astype(np.int64)
        return skills, self.durations[np.minimum(part, choices - 1)]

    def inputs(self, observation: Any) -> np.ndarray:
        """What the policy reads of one observation, `(inputs,)` float32."""
        inputs = np.asarray(self._select(observation), dtype=np.float32)
        if inputs.shape != (self.num_inputs,):
            raise ValueError(f"obs_fn must return the policy's {self.num_inputs} inputs, got shape {inputs.shape}")
        return inputs

    def plan(self, inputs: np.ndarray, skills: np.ndarray) -> np.ndarray:
        """Action vectors `(n, replan_every, action_dim)` for inputs `(n, inputs)` and skills `(n, skill_dim)`.

        Always that many steps: asked for fewer, a network's last product may round its numbers differently.
        """
        return self._plan(inputs, skills, self.replan_every)

    def no_actions(self, n: int) -> np.ndarray:
        """Room for the plans of n environments, zeros `(n, replan_every, action_dim)`."""
        return np.zeros((n, *self._chunk_shape), np.float32)

    def schedule(self, actions: Any, inputs: np.ndarray, idle: np.ndarray) -> Schedule:
        """One skill in each of n environments, for actions `(n, ...)`, planned from `inputs` `(n, inputs)`.

        Those `idle` `(n,)` run none.

        Raises:
            ValueError: as `decode`, or not n actions.
        """
        skills, durations = self.decode(actions)
        if durations.shape != idle.shape:
            raise ValueError(
                f"one action per environment: expected actions of shape {idle.shape + self._action_shape}, got "
                f"{np.shape(actions)}"
            )
        return Schedule(self, skills, durations, inputs, idle)

    def batch_inputs(self, observations: Any, rows: np.ndarray) -> np.ndarray:
        """What the policy reads of the observations of the environments `rows`, `(n, inputs)` float32."""
        if self._obs_fn is None:
            return self._select(observations)[rows]
        inputs = np.empty((len(rows), self.num_inputs), np.float32)
        for place, row in zip(inputs, rows, strict=True):
            place[:] = self.inputs(row_of(observations, row))
        return inputs

    def kept(self, observations: Any) -> Any:
        """Observations as `masks` needs them later, whatever becomes of the arrays that were handed out."""
        return observations if self._mask_fn is None else copy.deepcopy(observations)

    def masks(self, observations: Sequence[Any]) -> np.ndarray:
        """Which actions are allowed, bool `(n, actions)`: those of an allowed skill, at any duration.

        Raises:
            ValueError: the skills are continuous.
            gymnasium.error.ResetNeeded: an observation is None.
        """
        if not isinstance(self.action_space, spaces.Discrete):
            raise ValueError(f"action masks are for discrete skills, these are continuous: {self._skills}")
        masks = np.ones((len(observations), self._skills.size), dtype=bool)
        if self._mask_fn is not None:
            for mask, observation in zip(masks, observations, strict=True):
                if observation is None:
                    raise ResetNeeded("which skills are allowed depends on the observation: call reset() first")
                mask[:] = self._mask_fn(observation)
        return masks.repeat(len(self.durations), axis=1)


class Schedule:
    """The chunks that execute one skill in each of n environments, as `SkillExecutor` takes them.

    Ask for a `chunk`, have it executed, `observe` what it led to, until `finished`.

    Args:
        planner: what plans.
        skills: `(n, skill_dim)`.
        durations: low-level steps of each skill `(n,)`.
        inputs: what the first chunk is planned from, `(n, inputs)`.
        idle: environments that run no skill, bool `(n,)`.
    """

    def __init__(
        self,
        planner: SkillPlanner,
        skills: np.ndarray,
        durations: np.ndarray,
        inputs: np.ndarray,
        idle: np.ndarray,
    ) -> None:
        self._planner, self._skills = planner, skills
        self._begin = np.where(idle, 0, durations)
        self._left = self._begin.copy()
        self._rows = np.flatnonzero(self._left)  # of the environments whose skills go on
        self._inputs = inputs[self._rows]
        self.finished = False
        """Whether the last chunk was the skills' last."""

    def chunk(self) -> dict[str, np.ndarray]:
        """The next chunk for every environment."""
        planner, rows = self._planner, self._rows
        n = np.minimum(self._left, planner.replan_every)
        actions = planner.no_actions(len(n))
        if rows.size:
            actions[rows] = planner.plan(self._inputs, self._skills[rows])
        self._left -= n
        self.finished = not self._left.any()
        chunk = {
            "actions": actions,
            "n": n,
            "duration": self._begin,
            "last": np.full(len(n), self.finished, dtype=np.int64),
            "skill": self._skills,
        }
        self._begin = np.zeros_like(self._begin)
        return chunk

    def observe(self, observations: Any, over: np.ndarray) -> None:
        """Plan the next chunk from these observations, with no more actions where skills are `over` `(n,)`."""
        self._left[over] = 0
        self._rows = np.flatnonzero(self._left)
        self._inputs = self._planner.batch_inputs(observations, self._rows)


def row_of(observations: Any, row: int) -> Any:
    """One environment's observation out of a batch of them."""
    if isinstance(observations, dict):
        return {key: row_of(part, row) for key, part in observations.items()}
    if isinstance(observations, tuple):
        return tuple(row_of(part, row) for part in observations)
    return observations[row]


def rows_of(observations: Any, n: int) -> list[Any]:
    """The observations of n environments out of a batch of them; None for each where there is no batch yet."""
    return [None] * n if observations is None else [row_of(observations, row) for row in range(n)]


def resolve_settings(
    policy: SkillPolicy, skill_duration: int | Sequence[int] | None, until_done: bool, replan_every: int | None
) -> tuple[tuple[int, ...], int]:
    """The durations an agent can choose from (none where the environment's time limit decides), and `replan_every`.

    Raises:
        ValueError: a setting out of range.
    """
    config = policy.config
    durations: tuple[int, ...]
    if skill_duration is None:
        durations = () if until_done else (config.skill_duration,)
    else:
        durations = tuple(skill_duration) if isinstance(skill_duration, Sequence) else (skill_duration,)
    if any(not isinstance(duration, (int, np.integer)) or duration < 1 for duration in durations) or (
        skill_duration is not None and not durations
    ):
        raise ValueError(f"skill_duration must be a number of low-level steps, or several, got {skill_duration!r}")
    if len(set(durations)) < len(durations) or (until_done and len(durations) > 1):
        raise ValueError(f"until_done takes one skill_duration or none, and durations differ; got {skill_duration!r}")
    if replan_every is None:
        replan_every = min((config.replan_every, *durations))
    if not 1 <= replan_every <= config.horizon:
        raise ValueError(
            f"replan_every must be in 1..{config.horizon}, the policy's horizon, got {replan_every}; a skill may last "
            "longer than one plan, it is then planned again on the way"
        )
    return tuple(int(duration) for duration in durations), replan_every


def load_policy(policy: Any, device: str) -> SkillPolicy:
    """The live policy meant by a bundled name, a Hub id, a folder, or itself."""
    if policy is None:
        raise ValueError(
            "policy is None. If this came from an environment's spec: it was recorded from a live policy that has no "
            "name; save_pretrained() that policy, load it with from_pretrained(), and wrap again"
        )
    if not isinstance(policy, (str, Path)):
        return policy
    from didi_gym.policy import SkillPolicy  # torch loads here, so that importing the wrappers stays quick

    return SkillPolicy.from_pretrained(policy, device=device)


def policy_reference(policy: SkillPolicy) -> str | None:
    """A string from which `policy` can be loaded again, pinned to its revision; None where there is none."""
    if policy.name_or_path is None or policy.revision is None:
        return policy.name_or_path and str(policy.name_or_path)
    return f"{policy.name_or_path.partition('@')[0]}@{policy.revision}"


def pinned(spec: EnvSpec | None, policy: SkillPolicy) -> EnvSpec | None:
    """A spec whose keyword arguments name a policy, with this one named, pinned to its revision."""
    if spec is None or "policy" not in spec.kwargs:
        return spec
    spec = copy.deepcopy(spec)
    spec.kwargs["policy"] = policy_reference(policy)
    return spec


def check_actions(space: spaces.Space, policy: SkillPolicy) -> None:
    """Raise ValueError where an environment's actions are not those that `policy` was trained on."""
    vectors, ours = action_vectors(space), (policy.action_low, policy.action_high)
    same_kind = isinstance(space, spaces.Discrete) == policy.config.discrete_actions
    same = vectors.shape == ours[0].shape and all(
        # the policy's bound is the data's extreme where the space has none
        np.array_equal(own[is_bound(bound)], bound[is_bound(bound)].astype(np.float32))
        for own, bound in zip(ours, (vectors.low, vectors.high), strict=True)
    )
    if not (same_kind and same):
        raise _other_actions(space, policy)


def check_executors(space: spaces.Space, policy: SkillPolicy, factory: str) -> tuple[int, int]:
    """The longest skill and `replan_every` of environments with this action space, which must be `SkillExecutor`s'.

    Raises:
        TypeError: they run no skills; the message names the `factory` that makes such environments.
        ValueError: their low-level actions are not those that `policy` was trained on.
    """
    if not isinstance(space, spaces.Dict) or not {"actions", "n", "duration", "last"} <= set(space.spaces):
        raise TypeError(
            f"stepping environments together would run skills across episode ends, so each must be a SkillExecutor: "
            f"got environments with the action space {space}; use {factory}, or wrap each in "
            "didi_gym.execution.SkillExecutor"
        )
    chunk, duration = space["actions"], space["duration"]
    assert isinstance(duration, spaces.Discrete)
    if isinstance(chunk, spaces.MultiBinary):
        low_level: spaces.Space = spaces.Discrete(chunk.shape[-1])
    else:
        assert isinstance(chunk, spaces.Box)
        low_level = spaces.Box(chunk.low[0], chunk.high[0], dtype=chunk.dtype)
    check_actions(low_level, policy)
    return int(duration.n) - 1, chunk.shape[0]


def _other_actions(space: spaces.Space, policy: SkillPolicy) -> ValueError:
    low, high = policy.action_low, policy.action_high
    expected = spaces.Discrete(len(low)) if policy.config.discrete_actions else spaces.Box(low, high)
    return ValueError(
        f"the environment's actions are not those the policy was trained on: expected {expected}, got {space}; use the "
        f"policy's environment ({policy.config.env_id or 'not recorded'}) or, where only units differ, "
        "gymnasium.wrappers.RescaleAction inside"
    )


class InputSelector:
    """Picks what the policy reads out of an environment's observations.

    The first of the layout's sources that fits the observation space is chosen, once, at construction.

    Args:
        space: the observation space of a single environment.
        layout: the policy's layout.

    Raises:
        ValueError: no source fits.
    """

    def __init__(self, space: spaces.Space, layout: Layout) -> None:
        fitting = [source for source in layout.sources if _fits(space, source)]
        if not fitting:
            expected = " or ".join(_describe_source(source) for source in layout.sources) or "nothing it knows"
            raise ValueError(
                f"the policy cannot read this environment's observations: expected {expected}, got "
                f"{_describe_space(space)}; pass obs_fn=, a function from an observation to the "
                f"{len(layout.policy_inputs)} numbers the policy reads"
            )
        self.source: ObservationSource = fitting[0]
        self._indices = np.array(self.source.indices)

    def __call__(self, observation: Any) -> np.ndarray:
        """Select from one observation, or from many with the same leading dimensions.

        Returns:
            The policy's inputs, a new float32 array `(..., inputs)`.
        """
        keys = self.source.keys
        if not keys:
            joined = observation
        elif len(keys) == 1:
            joined = observation[keys[0]]
        else:
            joined = np.concatenate([observation[key] for key in keys], axis=-1)
        return joined[..., self._indices].astype(np.float32)


def _fits(space: spaces.Space, source: ObservationSource) -> bool:
    if not source.keys:
        parts: list[spaces.Space] = [space]
    elif isinstance(space, spaces.Dict) and set(source.keys) <= set(space.spaces):
        parts = [space[key] for key in source.keys]
    else:
        return False
    return all(isinstance(part, spaces.Box) and len(part.shape) == 1 for part in parts) and source.size == sum(
        part.shape[0] for part in parts if part.shape
    )


def _describe_source(source: ObservationSource) -> str:
    if not source.keys:
        return f"a Box of {source.size} numbers"
    return f"a Dict whose {' + '.join(map(repr, source.keys))} has {source.size} numbers"


def _describe_space(space: spaces.Space) -> str:
    if isinstance(space, spaces.Dict):
        return "a Dict of " + ", ".join(f"{key!r} {part.shape}" for key, part in space.spaces.items())
    return f"a {type(space).__name__} of shape {space.shape}"
