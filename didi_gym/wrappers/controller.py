"""Planning for environments whose actions are skills: what an agent's action means, what the policy reads, and which
chunks of low-level actions follow. One controller serves one environment or many. Imports no torch.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector.utils import batch_space, iterate

from didi_gym.core.frames import NUMPY
from didi_gym.core.observations import InputSelector, all_finite

if TYPE_CHECKING:
    from didi_gym.models.policy import SkillPolicy

ObservationFn = Callable[[Any], np.ndarray]
MaskFn = Callable[[Any], np.ndarray]
EngineName = Literal["auto", "numpy", "torch", "cuda-graph"]
Engine = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""`(inputs (n, inputs), skills (n, skill_dim), steps) -> actions (n, steps, action_dim)`, environment units."""
_FAR = 10.0
"""A first observation is odd where a number lies this many times as far from the middle of the training data as the
data reach: it has another unit, or comes from another version of the environment or through a wrapper."""


class SkillController:
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
        num_envs: environments in a batch of observations.
        env_name: what errors call the environment.
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
        num_envs: int = 1,
        env_name: str = "the environment",
        engine: EngineName | Engine = "auto",
        batch_invariant: bool = False,
    ) -> None:
        self.policy, self.replan_every = policy, replan_every
        self._env_name, self._batch = env_name, batch_space(observation_space, num_envs)
        self._looked = False
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
        """What the policy reads of one observation, `(inputs,)` float32.

        Raises:
            ValueError: NaN or infinity among it, or `obs_fn` returns something else.
        """
        inputs = self._read(observation)
        self._check(inputs)
        return inputs

    def _read(self, observation: Any) -> np.ndarray:
        inputs = np.asarray(self._select(observation), dtype=np.float32)
        if inputs.shape != (self.num_inputs,):
            if self._obs_fn is None:
                raise ValueError(
                    f"an observation of {self._env_name} is not what its observation space says: the policy reads "
                    f"{self.num_inputs} numbers and finds an array of shape {inputs.shape}; where these are many "
                    "environments in one, make them by didi_gym.make_vec"
                )
            raise ValueError(f"obs_fn must return the policy's {self.num_inputs} inputs, got shape {inputs.shape}")
        return inputs

    def _check(self, inputs: np.ndarray, rows: Sequence[int] | np.ndarray = ()) -> None:
        """Refuse NaN and infinity, which would become actions; at the first observations, look whether they are odd.

        Args:
            inputs: of one environment, or of the environments `rows` of a batch.
        """
        if not all_finite(inputs):
            place = np.argwhere(~np.isfinite(inputs))[0]
            where = self._env_name if inputs.ndim == 1 else f"sub-environment {rows[place[0]]} of {self._env_name}"
            raise ValueError(
                f"{where}: {self._place(int(place[-1]))} is {inputs[tuple(place)]}, and the skill policy plans from "
                "finite numbers only (as float32); check the simulator, wrapper or sensor that the number comes from"
            )
        if not self._looked and inputs.size:
            self._looked = True
            self._warn_if_far(np.atleast_2d(inputs))

    def _place(self, number: int) -> str:
        """Where in an observation the policy finds a number of its inputs."""
        if isinstance(self._select, InputSelector):
            return self._select.place(number)
        return f"obs_fn(observation)[{number}]"

    def _warn_if_far(self, inputs: np.ndarray) -> None:
        """Warn where inputs `(n, inputs)` lie far outside what the policy was trained on."""
        normalizer = getattr(self.policy, "normalizer", None)
        if normalizer is None:
            return
        read = list(self.policy.config.layout.policy_inputs)
        center, scale = (part.cpu().numpy()[read] for part in (normalizer.center, normalizer.scale))
        local = np.concatenate([inputs, np.zeros((len(inputs), self._skills.skill_dim), np.float32)], axis=1)
        if self.policy.frame is not None:
            self.policy.frame.enter(local.T, NUMPY)
        away = np.abs(local[:, : len(read)] - center) / scale
        row, worst = np.unravel_index(away.argmax(), away.shape)
        if away[row, worst] > _FAR:
            low, high = center[worst] - scale[worst], center[worst] + scale[worst]
            warnings.warn(
                f"{self._env_name}: {self._place(int(worst))} of a first observation is {local[row, worst]:.4g}, and "
                f"the skill policy was trained on about {low:.4g} to {high:.4g}: its skills may not work here. Is this "
                "the environment of its data, in the same version and units, without a wrapper that changes numbers?",
                stacklevel=4,
            )

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
        """What the policy reads of the observations of the environments `rows`, `(n, inputs)` float32.

        Raises:
            ValueError: as `inputs`.
        """
        if self._obs_fn is None:
            inputs = self._select(observations)[rows]
        else:
            singles = self.singles(observations) if len(rows) else []
            inputs = np.empty((len(rows), self.num_inputs), np.float32)
            for place, row in zip(inputs, rows, strict=True):
                place[:] = self._read(singles[row])
        self._check(inputs, rows)
        return inputs

    def singles(self, observations: Any) -> list[Any]:
        """The observations of all environments out of a batch of them."""
        return list(iterate(self._batch, observations))

    def kept(self, observations: Any) -> Any:
        """Observations as `masks` needs them later, whatever becomes of the arrays that were handed out."""
        return observations if self._mask_fn is None else copy.deepcopy(observations)

    def batch_masks(self, kept: Any, num_envs: int, ended: Iterable[int] = ()) -> np.ndarray:
        """`masks` for what `kept` returned of a batch. In an episode that has ended every action does nothing."""
        if self._mask_fn is None:
            return self.masks([None] * num_envs)
        return self.masks([None] * num_envs if kept is None else self.singles(kept), ended)

    def masks(self, observations: Sequence[Any], ended: Iterable[int] = ()) -> np.ndarray:
        """Which actions are allowed, bool `(n, actions)`: those of an allowed skill, at any duration.

        Args:
            ended: environments that run no skill next, in which all actions are allowed.

        Raises:
            ValueError: the skills are continuous, `mask_fn` returns something else, or it allows no skill.
            gymnasium.error.ResetNeeded: an observation is None.
        """
        if not isinstance(self.action_space, spaces.Discrete):
            raise ValueError(f"action masks are for discrete skills, these are continuous: {self._skills}")
        masks = np.ones((len(observations), self._skills.size), dtype=bool)
        if self._mask_fn is not None:
            for row in sorted(set(range(len(masks))).difference(ended)):
                if observations[row] is None:
                    raise ResetNeeded("which skills are allowed depends on the observation: call reset() first")
                masks[row] = self._mask(observations[row], row)
        return masks.repeat(len(self.durations), axis=1)

    def _mask(self, observation: Any, row: int) -> np.ndarray:
        assert self._mask_fn is not None
        mask, size = np.asarray(self._mask_fn(observation)), self._skills.size
        of_flags = mask.dtype == bool or (mask.dtype == np.int8 and np.isin(mask, (0, 1)).all())  # as in Gymnasium
        if mask.shape != (size,) or not of_flags:
            raise ValueError(
                f"mask_fn must say of each of the {size} skills whether it is allowed, as a bool array of shape "
                f"({size},), got {mask!r}; from the indices of allowed skills: np.isin(np.arange({size}), indices)"
            )
        if not mask.any():
            raise ValueError(
                f"mask_fn allows no skill in environment {row} ({self._env_name}), so there is none to choose: allow "
                "at least one, or let the environment end the episode"
            )
        return mask


class Schedule:
    """The chunks that execute one skill in each of n environments, as `SkillExecutor` takes them.

    Ask for a `chunk`, have it executed, `observe` what it led to, until `finished`.

    Args:
        controller: what plans.
        skills: `(n, skill_dim)`.
        durations: low-level steps of each skill `(n,)`.
        inputs: what the first chunk is planned from, `(n, inputs)`.
        idle: environments that run no skill, bool `(n,)`.
    """

    def __init__(
        self,
        controller: SkillController,
        skills: np.ndarray,
        durations: np.ndarray,
        inputs: np.ndarray,
        idle: np.ndarray,
    ) -> None:
        self._controller, self._skills = controller, skills
        self._begin = np.where(idle, 0, durations)
        self._left = self._begin.copy()
        self._rows = np.flatnonzero(self._left)  # of the environments whose skills go on
        self._inputs = inputs[self._rows]
        self.finished = False
        """Whether the last chunk was the skills' last."""

    def chunk(self) -> dict[str, np.ndarray]:
        """The next chunk for every environment."""
        controller, rows = self._controller, self._rows
        n = np.minimum(self._left, controller.replan_every)
        actions = controller.no_actions(len(n))
        if rows.size:
            actions[rows] = controller.plan(self._inputs, self._skills[rows])
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
        self._inputs = self._controller.batch_inputs(observations, self._rows)
