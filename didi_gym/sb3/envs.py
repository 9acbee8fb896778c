"""Stable-Baselines3 vector environments whose actions are skills, by id."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env as make_monitored
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from didi_gym.execution import SkillExecutor
from didi_gym.ids import SKILL_ID
from didi_gym.matching import load_policy, policy_reference
from didi_gym.registration import VECTOR_ONLY, EnvId, known_pair, make_wrapped, split_settings
from didi_gym.wrappers.sb3 import SkillActionVecEnvWrapper
from didi_gym.wrappers.workers import start

if TYPE_CHECKING:
    from didi_gym.policy import SkillPolicy


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
    env_id, policy = known_pair(env_id, policy)
    live = load_policy(policy, kwargs.get("device", "auto"))
    settings = split_settings(live, env_id, env_kwargs, kwargs)
    own_process = issubclass(vec_env_cls, SubprocVecEnv)
    venv = make_monitored(
        functools.partial(make_wrapped, env_id, wrappers, settings.low_level),
        n_envs,
        seed=seed,
        monitor_dir=monitor_dir,
        wrapper_class=SkillExecutor,
        vec_env_cls=functools.partial(start, vec_env_cls),  # type: ignore[arg-type]
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
