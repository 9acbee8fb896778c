"""Many environments whose actions are skills, as a Stable-Baselines3 vector environment, built or made by id."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.env_util import make_vec_env as make_monitored
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from didi_gym.core.observations import warn_of_other_step
from didi_gym.wrappers.controller import Engine, EngineName, MaskFn, ObservationFn, Schedule, SkillController
from didi_gym.wrappers.executor import PlainSteps, SkillExecutor
from didi_gym.wrappers.ids import SKILL_ID
from didi_gym.wrappers.make import VECTOR_ONLY, EnvId, known_settings, make_wrapped, split_settings
from didi_gym.wrappers.references import (
    check_executors,
    load_policy,
    policy_reference,
    resolve_settings,
    warn_of_other_units,
)
from didi_gym.wrappers.workers import WORKER_TIMEOUT, WorkerError, Workers, start

if TYPE_CHECKING:
    from didi_gym.models.policy import SkillPolicy


class SkillActionVecEnvWrapper(VecEnvWrapper):
    """Makes skills the actions of a Stable-Baselines3 `VecEnv`: one step runs one skill in every environment.

    `didi_gym.sb3.make_vec_env` makes one; this class is for environments that you build yourself, each of which must be
    a `SkillExecutor`. It is to `VecEnv` what `SkillActionVectorWrapper` is to Gymnasium's vector environments: one
    batched plan in this process, chunks of actions in the environments, transitions equal to those of N
    `SkillActionWrapper`s in a `DummyVecEnv`, `terminal_observation` and `TimeLimit.truncated` included.

    A Monitor belongs inside (`make_vec_env` puts it there), `VecNormalize` outside.

    Args:
        venv: a DummyVecEnv or SubprocVecEnv of `SkillExecutor`s.
        policy: see `SkillActionWrapper`.
        skill_duration: low-level steps of a skill, or several of which the agent chooses; the executors' where None.
        obs_fn, mask_fn, device, engine, batch_invariant: see `SkillActionWrapper`.
        worker_timeout: see `SkillActionVectorWrapper`.

    Attributes:
        policy: the live policy; `get_attr("policy")` gives it too.
        low_level_steps: low-level steps taken by all environments since construction.

    Raises:
        TypeError: environments that do not run skills.
        ValueError: the policy does not fit them.
        WorkerError: from `reset` and `step`, where a worker crashes, hangs, or its environment raises. All workers are
            ended before.
    """

    def __init__(
        self,
        venv: VecEnv,
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
        self._make: Callable[[], SkillActionVecEnvWrapper] | None = None
        layer: Any = venv
        while isinstance(layer, VecEnvWrapper):
            if isinstance(layer, VecNormalize):
                raise ValueError(
                    "the skill policy reads observations in the environment's own units, and a VecNormalize inside "
                    "changes these: put it around the skills, VecNormalize(didi_gym.sb3.make_vec_env(...))"
                )
            layer = layer.venv
        self.policy = load_policy(policy, device)
        longest, replan_every = check_executors(venv.action_space, self.policy, "didi_gym.sb3.make_vec_env")
        durations, _ = resolve_settings(self.policy, skill_duration or longest, False, replan_every)
        name = venv.get_attr("env_name", indices=[0])[0]
        self._controller = SkillController(
            self.policy,
            venv.observation_space,
            durations=durations,
            replan_every=replan_every,
            obs_fn=obs_fn,
            mask_fn=mask_fn,
            num_envs=venv.num_envs,
            env_name=name,
            engine=engine,
            batch_invariant=batch_invariant,
        )
        # Before VecEnv's constructor, which asks for attributes: what these find here, and not in the environments.
        self._own = {
            "policy": self.policy,
            "replan_every": replan_every,
            "skill_durations": durations,
            "spec": None,
        }
        super().__init__(venv, action_space=self._controller.action_space)
        self._keys = tuple(venv.action_space.spaces)  # type: ignore[attr-defined]
        self.replan_every = replan_every
        self.low_level_steps = 0
        self._inputs: np.ndarray | None = None
        self._kept: Any = None
        self._schedule: Schedule | None = None
        base = venv.unwrapped
        self._timeout = worker_timeout
        if isinstance(base, SubprocVecEnv):
            self._workers = Workers(base, base.processes, _close_killed)
            base.remotes = tuple(self._workers.watch(base.remotes, worker_timeout))
        if self.policy.config.step_seconds is not None:
            seconds = self.venv.get_attr("step_seconds", indices=[0])[0]
            warn_of_other_step(seconds, self.policy.config.step_seconds, name)
        if self.policy.config.env_spec is not None:
            warn_of_other_units(self.policy, self.venv.get_attr("observation_wrappers", indices=[0])[0], name)

    def reset(self) -> VecEnvObs:
        self._schedule = None
        observations = self.venv.reset()
        self.reset_infos = self.venv.reset_infos
        self._check(self.reset_infos)
        self._look(observations)
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Plan one skill in every environment, `actions` `(n_envs, ...)`, and let the environments begin it."""
        if self._inputs is None:
            raise gym.error.ResetNeeded("call reset() before the first step()")
        self._schedule = self._controller.schedule(actions, self._inputs, idle=np.zeros(self.num_envs, dtype=bool))
        self._send(self._schedule)

    def step_wait(self) -> VecEnvStepReturn:
        assert self._schedule is not None, "step_async() comes before step_wait()"
        while True:
            observations, rewards, dones, infos = self.venv.step_wait()
            self._check(infos)
            if self._schedule.finished:
                break
            self._schedule.observe(observations, np.array([info["skill_over"] for info in infos]))
            self._send(self._schedule)
        self._check(self.venv.reset_infos)
        self._schedule, self.reset_infos = None, self.venv.reset_infos
        self.low_level_steps += sum(info["skill_length"] for info in infos)
        self._look(observations)
        return observations, rewards, dones, infos

    def _look(self, observations: Any) -> None:
        """Take from observations what the next step needs: the caller may write into the arrays it gets."""
        self._inputs = self._controller.batch_inputs(observations, np.arange(self.num_envs))
        self._kept = self._controller.kept(observations)

    def _check(self, infos: Sequence[dict[str, Any]]) -> None:
        """Raise `WorkerError` for what the environment of a worker raised."""
        for index, info in enumerate(infos):
            if "skill_error" in info:
                what, trace = info["skill_error"]
                raise self._workers.fail(index, f"raised {what}") from RuntimeError(trace)

    def close(self) -> None:
        """End all environments. A worker that fails meanwhile is ended, which is all that this is for."""
        base = self.venv.unwrapped
        bounded = self._workers.closing(self._timeout) if isinstance(base, SubprocVecEnv) else contextlib.nullcontext()
        with contextlib.suppress(WorkerError), bounded:
            super().close()

    def _send(self, schedule: Schedule) -> None:
        chunk = schedule.chunk()
        self.venv.step_async([{key: chunk[key][i] for key in self._keys} for i in range(self.num_envs)])  # type: ignore[arg-type]

    def action_masks(self) -> np.ndarray:
        """Which discrete actions are allowed now, bool `(n_envs, actions)`."""
        return np.stack(self._all_masks())

    def _all_masks(self) -> list[np.ndarray]:
        return list(self._controller.batch_masks(self._kept, self.num_envs))

    def _mask(self, index: int) -> np.ndarray:
        return self._all_masks()[index]

    # What the controller owns is not in the environments, so these answer before they ask there.
    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        if attr_name in self._own:
            return [self._own[attr_name] for _ in self._get_indices(indices)]
        if attr_name == "action_masks":
            return [functools.partial(self._mask, index) for index in self._get_indices(indices)]
        return self.venv.get_attr(attr_name, indices)

    def has_attr(self, attr_name: str) -> bool:
        return attr_name in {*self._own, "action_masks"} or self.venv.has_attr(attr_name)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> Any:
        if method_name == "action_masks":
            masks = self._all_masks()
            return [masks[index] for index in self._get_indices(indices)]
        return self.venv.env_method(method_name, *method_args, indices=indices, **method_kwargs)

    def remember(self, make: Callable[[], SkillActionVecEnvWrapper], spec: EnvSpec | None) -> None:
        """Make copies and pickles of this environment anew, by `make`; `spec` describes a single environment of it."""
        self._make, self._own["spec"] = make, spec

    def __reduce__(self) -> Any:
        return super().__reduce__() if self._make is None else (self._make, ())


def make_vec_env(
    env_id: EnvId,
    policy: str | Path | SkillPolicy | None = None,
    n_envs: int = 1,
    *,
    seed: int | None = None,
    vec_env_cls: type[DummyVecEnv | SubprocVecEnv] = DummyVecEnv,
    vec_env_kwargs: dict[str, Any] | None = None,
    monitor_dir: str | None = None,
    monitor_kwargs: dict[str, Any] | None = None,
    wrappers: Sequence[Callable[[gym.Env], gym.Env]] = (),
    env_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> SkillActionVecEnvWrapper:
    """Make a Stable-Baselines3 `VecEnv` whose actions are skills, planned for all environments in one batch.

    A Monitor is inside each environment, so episode lengths and returns are those of the low-level task. Put
    `VecNormalize` around the result.

    Args:
        env_id, policy: see `didi_gym.make`.
        n_envs: environments.
        seed: of the environments, seed + i for the i-th.
        vec_env_cls: `DummyVecEnv`, or `SubprocVecEnv` for a process each. The policy stays in this process.
        vec_env_kwargs: for `vec_env_cls`, such as `{"start_method": "fork"}`.
        monitor_dir, monitor_kwargs: see `stable_baselines3.common.env_util.make_vec_env`.
        wrappers: put around each low-level environment, inside its Monitor.
        env_kwargs: see `didi_gym.make`.
        **kwargs: settings of `SkillActionWrapper` and `SkillActionVecEnvWrapper` go there, all others to
            `gymnasium.make`.

    Example:
        >>> env = make_vec_env("AntMaze_Open-v5", "ant-directions", 8, vec_env_cls=SubprocVecEnv, discount=0.99)
        >>> agent = SkillPPO("MultiInputPolicy", env, gamma=0.99)

    Programs with a `SubprocVecEnv` belong under `if __name__ == "__main__":`. Mazes say `success` where SB3 looks for
    `is_success`: `monitor_kwargs={"info_keywords": ("success",)}` records it.
    """
    if "num_envs" in kwargs:
        raise TypeError("Stable-Baselines3 calls it n_envs: make_vec_env(env_id, policy, n_envs=...)")
    env_id, policy, wrappers, env_kwargs, kwargs = known_settings(env_id, policy, wrappers, env_kwargs, kwargs)
    live = load_policy(policy, kwargs.get("device", "auto"))
    settings = split_settings(live, env_id, env_kwargs, kwargs)
    timeout = settings.planning.get("worker_timeout", WORKER_TIMEOUT)
    own_process = issubclass(vec_env_cls, SubprocVecEnv)
    venv = make_monitored(
        functools.partial(make_wrapped, env_id, (*wrappers, PlainSteps), settings.low_level),
        n_envs,
        seed=seed,
        monitor_dir=monitor_dir,
        wrapper_class=SkillExecutor,
        vec_env_cls=functools.partial(start, vec_env_cls, timeout=timeout),  # type: ignore[arg-type]
        vec_env_kwargs=vec_env_kwargs,
        monitor_kwargs=monitor_kwargs,
        wrapper_kwargs={**settings.executor, "report_errors": own_process},
    )
    try:
        envs = SkillActionVecEnvWrapper(venv, live, **settings.planning)
    except BaseException:
        venv.close()
        raise
    reference = policy_reference(live)
    again: dict[str, Any] = {
        "n_envs": n_envs,
        "seed": seed,
        "vec_env_cls": vec_env_cls,
        "vec_env_kwargs": vec_env_kwargs,
        "monitor_dir": monitor_dir,
        "monitor_kwargs": monitor_kwargs,
        "wrappers": wrappers,
        "env_kwargs": env_kwargs,
    }
    single = copy.deepcopy(gym.spec(SKILL_ID))
    single.kwargs = {"env_id": env_id, "policy": reference}
    if env_kwargs:
        single.kwargs["env_kwargs"] = dict(env_kwargs)
    single.kwargs |= {name: value for name, value in kwargs.items() if name not in VECTOR_ONLY}
    describable = isinstance(env_id, str) and not wrappers
    make = functools.partial(make_vec_env, env_id, reference or live, **again, **kwargs)
    envs.remember(make, single if describable else None)
    return envs


def _close_killed(base: SubprocVecEnv) -> None:
    """Close after the workers were killed: nothing is asked of them any more."""
    for remote in base.remotes:
        remote.close()
    base.waiting, base.closed = False, True
