"""Many environments whose actions are skills, as a Gymnasium vector environment."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.async_vector_env import AsyncState
from gymnasium.vector.utils import batch_space

from didi_gym.core.env_rows import info_of
from didi_gym.core.observations import warn_of_other_step
from didi_gym.wrappers.controller import Engine, EngineName, MaskFn, ObservationFn, SkillController
from didi_gym.wrappers.executor import refuse_inside
from didi_gym.wrappers.references import check_executors, load_policy, pinned, resolve_settings, warn_of_other_units
from didi_gym.wrappers.workers import WORKER_TIMEOUT, WorkerError, Workers

if TYPE_CHECKING:
    from didi_gym.models.policy import SkillPolicy


class SkillActionVectorWrapper(VectorWrapper):
    """Makes skills the actions of a vector environment: one step runs one skill in every sub-environment.

    `didi_gym.make_vec` makes one; this class is for sub-environments that you build yourself, each of which must be a
    `SkillExecutor`. All plans of a step are computed in one batch in this process, on the GPU if there is one, and each
    sub-environment runs its chunk of actions where it lives. Transitions equal those of N `SkillActionWrapper`s, in
    every autoreset mode; stepping a plain vector environment k times instead would run skills across episode ends.

    Args:
        env: a Sync or AsyncVectorEnv whose sub-environments are `SkillExecutor`s.
        policy: see `SkillActionWrapper`.
        skill_duration: low-level steps of a skill, or several of which the agent chooses; the executors' where None.
        obs_fn, mask_fn, device, engine, batch_invariant: see `SkillActionWrapper`; both functions get single
            observations.
        worker_timeout: seconds after which a worker process that does not answer, take what it is sent, make its
            environment (in `make_vec`) or end is an error, or is killed; None waits for ever.

    Attributes:
        autoreset_mode: the vector environment's, as in `metadata`.
        low_level_steps: low-level steps taken by all sub-environments since construction.

    Raises:
        TypeError: sub-environments that do not run skills.
        ValueError: the policy does not fit them.
        WorkerError: from `reset` and `step`, where a worker crashes, hangs, or its environment raises. All workers are
            ended before.

    Infos have the keys of `SkillExecutor.finish` as arrays. The step in which NEXT_STEP resets a sub-environment runs
    no skill: reward 0 and no `skill_length` for it. A `reset_mask` is read, never changed.

    Example:
        >>> import didi_gym
        >>> envs = didi_gym.make_vec("AntMaze_Open-v5", "ant-directions", num_envs=8, vectorization_mode="async")
        >>> observations, infos = envs.reset(seed=0)
        >>> observations, rewards, terminations, truncations, infos = envs.step(envs.action_space.sample())
    """

    def __init__(
        self,
        env: VectorEnv,
        policy: str | Path | SkillPolicy,
        *,
        skill_duration: int | Sequence[int] | None = None,
        obs_fn: ObservationFn | None = None,
        mask_fn: MaskFn | None = None,
        device: str = "auto",
        engine: EngineName | Engine = "auto",
        batch_invariant: bool = False,
        worker_timeout: float | None = WORKER_TIMEOUT,
    ) -> None:
        super().__init__(env)
        refuse_inside(env)
        self.policy = load_policy(policy, device)
        longest, replan_every = check_executors(env.single_action_space, self.policy, "didi_gym.make_vec")
        mode = env.metadata.get("autoreset_mode")
        shared = getattr(env.unwrapped, "shared_memory", True)
        if mode == AutoresetMode.NEXT_STEP and not shared:
            raise ValueError(
                "AsyncVectorEnv(shared_memory=False) forgets to end its autoreset after a manual reset and would lose "
                "a skill; use shared_memory=True or another autoreset mode"
            )
        durations, _ = resolve_settings(self.policy, skill_duration or longest, False, replan_every)
        self.skill_duration, self.replan_every = longest, replan_every
        self.skill_durations = tuple(durations) or (longest,)
        self.mask_fn = mask_fn
        name = self.get_attr("env_name")[0]
        self._controller = SkillController(
            self.policy,
            env.single_observation_space,
            durations=durations,
            replan_every=replan_every,
            obs_fn=obs_fn,
            mask_fn=mask_fn,
            num_envs=env.num_envs,
            env_name=name,
            engine=engine,
            batch_invariant=batch_invariant,
        )
        self.single_action_space = self._controller.action_space
        self.action_space = batch_space(self._controller.action_space, env.num_envs)
        self.low_level_steps = 0
        self.autoreset_mode = mode
        self._inputs = np.zeros((env.num_envs, self._controller.num_inputs), np.float32)
        self._kept: Any = None
        self._ended = np.zeros(env.num_envs, dtype=bool)
        self._make: Callable[[], SkillActionVectorWrapper] | None = None
        base = env.unwrapped
        self._timeout = worker_timeout
        if isinstance(base, AsyncVectorEnv):
            self._workers = Workers(base, base.processes, _close_killed, base.error_queue)
            base.parent_pipes = self._workers.watch(base.parent_pipes, worker_timeout)
        if self.policy.config.step_seconds is not None:
            warn_of_other_step(self.get_attr("step_seconds")[0], self.policy.config.step_seconds, name)
        if self.policy.config.env_spec is not None:
            warn_of_other_units(self.policy, self.get_attr("observation_wrappers")[0], name)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all sub-environments, or those of `options["reset_mask"]`, bool `(num_envs,)`."""
        mask = None if options is None else options.get("reset_mask")
        options = copy.copy(options)  # the vector environment takes the mask out of what it is given
        observations, infos = self._ask(self.env.reset, seed=seed, options=options)
        self._check(infos)
        self._ended = np.zeros(self.num_envs, dtype=bool) if mask is None else self._ended & ~mask
        self._look(observations, np.arange(self.num_envs) if mask is None else np.flatnonzero(mask))
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Run one skill in every sub-environment.

        Args:
            actions: an element of `action_space`; numbers outside [-1, 1] are clipped.

        Returns:
            observations, rewards float64 `(num_envs,)`, terminations and truncations bool `(num_envs,)`, infos.

        Raises:
            ValueError: not one action for each sub-environment, or a number of it or of the policy's inputs that is
                not finite.
            gymnasium.error.ResetNeeded: with autoreset disabled, an episode has ended and was not reset.
        """
        if self._kept is None:
            raise gym.error.ResetNeeded("call reset() before the first step()")
        if self.autoreset_mode == AutoresetMode.DISABLED and self._ended.any():
            raise gym.error.ResetNeeded(
                f"the episodes of sub-environments {np.flatnonzero(self._ended).tolist()} have ended and autoreset is "
                'disabled: call reset(options={"reset_mask": terminations | truncations}) first'
            )
        resetting = self._idle
        schedule = self._controller.schedule(actions, self._inputs, idle=resetting)
        reset_infos: dict[str, Any] | None = None
        while True:
            observations, rewards, terminations, truncations, infos = self._ask(self.env.step, schedule.chunk())
            self._check(infos)
            if schedule.finished:
                break
            schedule.observe(observations, infos["skill_over"])
            reset_infos = infos if reset_infos is None else reset_infos
        if reset_infos is not None:
            for row in np.flatnonzero(resetting):  # what they said is in the first chunk's answer
                infos = self._add_info(infos, info_of(reset_infos, int(row)), int(row))
        self._ended = terminations | truncations
        self.low_level_steps += int(_skill_lengths(infos).sum())
        # Nothing is planned from an episode's end, which SAME_STEP alone does not show.
        same_step = self.autoreset_mode == AutoresetMode.SAME_STEP
        self._look(observations, np.arange(self.num_envs) if same_step else np.flatnonzero(~self._ended))
        return observations, rewards, terminations, truncations, infos

    def _check(self, infos: dict[str, Any]) -> None:
        """Raise `WorkerError` for what the environment of a worker raised."""
        if "skill_error" in infos:
            index = int(np.flatnonzero(infos["_skill_error"])[0])
            what, trace = infos["skill_error"][index]
            raise self._workers.fail(index, f"raised {what}") from RuntimeError(trace)

    @property
    def _idle(self) -> np.ndarray:
        """Sub-environments that the next step only resets, bool `(num_envs,)`."""
        return self._ended if self.autoreset_mode == AutoresetMode.NEXT_STEP else np.zeros(self.num_envs, dtype=bool)

    def _look(self, observations: Any, rows: np.ndarray) -> None:
        """Take from observations what the next step needs: the caller may write into the arrays it gets."""
        self._inputs[rows] = self._controller.batch_inputs(observations, rows)
        self._kept = self._controller.kept(observations)

    def _ask(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the vector environment; where it fails half-way through the workers' answers, end them."""
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            base = self.env.unwrapped
            if isinstance(base, AsyncVectorEnv) and (
                base._state != AsyncState.DEFAULT or isinstance(error, KeyboardInterrupt)
            ):
                self._workers.end()
            raise

    def close(self, **kwargs: Any) -> None:
        """End all sub-environments. A worker that fails meanwhile is ended, which is all that this is for."""
        base = self.env.unwrapped
        bounded = self._workers.closing(self._timeout) if isinstance(base, AsyncVectorEnv) else contextlib.nullcontext()
        with contextlib.suppress(WorkerError), bounded:
            super().close(**kwargs)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The attribute of this name, or the result of calling it, of every sub-environment, a `SkillExecutor`."""
        return self.env.unwrapped.call(name, *args, **kwargs)  # type: ignore[attr-defined]

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The attribute of this name of every sub-environment."""
        return self.env.unwrapped.get_attr(name)  # type: ignore[attr-defined]

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of the sub-environments to one value, or to one each in a list or tuple."""
        self.env.unwrapped.set_attr(name, values)  # type: ignore[attr-defined]

    def action_masks(self) -> np.ndarray:
        """Which discrete actions are allowed now, bool `(num_envs, actions)`."""
        return self._controller.batch_masks(self._kept, self.num_envs, np.flatnonzero(self._idle))

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """From which `gymnasium.make_vec` makes this environment again, where a factory made it."""
        return pinned(self.env.unwrapped.spec, self.policy)

    def remember(self, make: Callable[[], SkillActionVectorWrapper]) -> None:
        """Make copies and pickles of this environment anew, by `make`: processes cannot be copied."""
        self._make = make

    def __reduce__(self) -> Any:
        return super().__reduce__() if self._make is None else (self._make, ())


def _close_killed(base: AsyncVectorEnv) -> None:
    """Close after the workers were killed: nothing is asked of them any more."""
    base._state = AsyncState.DEFAULT
    base.close(terminate=True)


def _skill_lengths(infos: dict[str, Any]) -> np.ndarray:
    """Lengths `(num_envs,)` of the skills just run, 0 where none was; with SAME_STEP some are in `final_info`."""
    lengths = infos.get("skill_length", np.zeros(1, dtype=int))
    final = infos.get("final_info", {}).get("skill_length")
    return lengths if final is None else lengths + final
