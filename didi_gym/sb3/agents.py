"""Saved agents that say which skills they were trained on.

An agent's network chooses numbers; which movements these mean is up to the skill policy. SB3's zip does not name it,
and another policy with a skill space of the same shape would fit, silently. So a file beside the zip names it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor

from didi_gym.core.files import MEGABYTE, in_short, parse_json, read_plain, write_atomically
from didi_gym.sb3.vec_env import SkillActionVecEnvWrapper, make_vec_env
from didi_gym.version import __version__
from didi_gym.wrappers.make import is_entry_point
from didi_gym.wrappers.references import SkillPolicyMismatch as SkillPolicyMismatch
from didi_gym.wrappers.references import policy_sha256 as policy_sha256
from didi_gym.wrappers.single import SkillActionWrapper

if TYPE_CHECKING:
    from didi_gym.models.policy import SkillPolicy

Agent = TypeVar("Agent", bound=BaseAlgorithm)

FORMAT_VERSION = 1
RECORDED = frozenset({"algorithm", "policy", "skill_durations", "action_space", "env_spec"})
MONITOR = "stable_baselines3.common.monitor:Monitor"


def save_agent(agent: BaseAlgorithm, path: str | Path) -> Path:
    """Save an agent with the name and the hash of its skill policy.

    Writes SB3's zip, and beside it `<path without .zip>.skills.json`: the policy's name, revision and SHA-256,
    `skill_durations`, `replan_every`, reward and discount, and the environment's spec where that can be written down.
    The replay buffer and the statistics of a `VecNormalize` are files of their own, as ever in SB3: save the latter
    with `agent.get_vec_normalize_env().save("normalize.pkl")`, or the agent will see other numbers than in training.
    SB3's callbacks (EvalCallback, CheckpointCallback) write zips alone: `algorithm.load(path, env=env)` reads these,
    and checks nothing.

    Args:
        agent: an agent with its environment, which runs skills.
        path: as for `agent.save`; `.zip` is added where there is no suffix. Its folder is made if absent.

    Returns:
        The path of the file beside the zip.

    Raises:
        ValueError: the agent has no environment, or one that runs no skills.
    """
    record = describe_agent(agent)
    sidecar = sidecar_path(path)
    sidecar.parent.mkdir(parents=True, exist_ok=True)
    agent.save(path)
    write_atomically(sidecar, (json.dumps(record, indent=2) + "\n").encode())
    return sidecar


def load_agent(algorithm: type[Agent], path: str | Path, env: gym.Env | VecEnv | None = None, **kwargs: Any) -> Agent:
    """Load an agent saved by `save_agent`, after checking that the environment runs the skills it was trained on.

    An SB3 zip holds pickles, and an environment's spec names code to run. Both are opened without a question, as in
    SB3's own `load`: a file that you name is taken to be yours. Name none that came from somebody you do not trust;
    `load_agent_from_hub`, which fetches strangers' files, asks for that trust, and what it fetched is refused here.

    Args:
        algorithm: the agent's class, as in `SAC.load`.
        path: as given to `save_agent`.
        env: an environment or VecEnv that runs skills. Where None, one environment is made from the recorded spec.
            None is recorded around a live policy without a name, of a reward or `obs_fn` given as a function, of a
            wrapper that Gymnasium cannot describe, and with vector wrappers such as VecNormalize. The new environment
            has its Monitor inside, as with `make_vec_env`, where it counts low-level steps (but outside, where it was
            made from a registered id with more wrappers around).
        **kwargs: see `BaseAlgorithm.load` (`device`, `custom_objects`, ...).

    Raises:
        SkillPolicyMismatch: another policy, skill duration or action space; the message names both.
        FileNotFoundError: no `.skills.json` beside the zip.
        ValueError: a damaged or newer one, another algorithm, an environment without skills, or no environment at all;
            or a file in the Hub's cache.
    """
    if any(part.startswith("models--") for part in Path(path).absolute().parts):
        raise ValueError(
            f"{path} was downloaded from the Hugging Face Hub, and opening it would run code of whoever wrote it; "
            "where you trust them with that, call load_agent_from_hub(algorithm, 'owner/name', trust=True)"
        )
    record = read_record(sidecar_path(path))
    if record["algorithm"] != algorithm.__name__:
        raise ValueError(
            f"{path} holds a {record['algorithm']} agent, got the class {algorithm.__name__}; call "
            f"load_agent({record['algorithm']}, ...)"
        )
    made = None
    if env is None:
        if record["env_spec"] is None:
            raise ValueError(f"{sidecar_path(path)} does not say how to make the agent's environment; pass env=")
        env = made = make_recorded_env(record["env_spec"])
    try:
        require_same_skills(record, env, path)
        return algorithm.load(path, env=env, **kwargs)
    except Exception:
        if made is not None:
            made.close()
        raise


def describe_agent(agent: BaseAlgorithm) -> dict[str, Any]:
    """What `save_agent` writes beside the zip; JSON.

    Raises:
        ValueError: the agent has no environment, or one that runs no skills.
    """
    env = agent.get_env()
    if env is None:
        raise ValueError("the agent has no environment, which knows its skill policy; call agent.set_env(env) first")
    return {
        "format_version": FORMAT_VERSION,
        "didi_gym_version": __version__,
        "algorithm": type(agent).__name__,
        **_describe_skills(env),
        "env_spec": _describe_env(env),
    }


def policy_of(env: gym.Env | VecEnv) -> SkillPolicy:
    """The skill policy that an environment runs."""
    return _attribute(env, "policy")


def sidecar_path(path: str | Path) -> Path:
    """The file that names an agent's skills: `agent.zip` and `agent` have `agent.skills.json`."""
    return Path(f"{str(path).removesuffix('.zip')}.skills.json")


def _describe_skills(env: gym.Env | VecEnv) -> dict[str, Any]:
    """What makes an environment's skills what they are; all of it JSON."""
    try:
        policy, durations, replan_every, rule = (
            _attribute(env, name) for name in ("policy", "skill_durations", "replan_every", "reward_rule")
        )
        sha256 = policy_sha256(policy)
    except AttributeError as error:
        raise ValueError(
            f"expected an environment that runs skills of a SkillPolicy, got one without ({error}); wrap it in a "
            "SkillActionWrapper, or use agent.save and load, which check nothing"
        ) from error
    name = policy.name_or_path
    return {
        "policy": {"name_or_path": None if name is None else str(name), "revision": policy.revision, "sha256": sha256},
        "skill_durations": list(durations),
        "replan_every": replan_every,
        "reward": None if callable(rule.reward) else rule.reward,
        "discount": rule.discount,
        "action_space": str(env.action_space),
    }


def _attribute(env: gym.Env | VecEnv, name: str) -> Any:
    return env.get_attr(name, indices=[0])[0] if isinstance(env, VecEnv) else env.get_wrapper_attr(name)


def _describe_env(env: VecEnv) -> dict[str, Any] | None:
    """The spec of one environment, without the Monitor that SB3 puts around it; None where it has none."""
    while isinstance(env, VecMonitor):  # it only reports
        env = env.venv
    changes_more = isinstance(env, VecEnvWrapper) and not isinstance(env, SkillActionVecEnvWrapper)
    spec = _attribute(env, "spec")
    if changes_more or spec is None or _attribute(env, "policy").name_or_path is None:
        return None
    wrappers = tuple(wrapper for wrapper in spec.additional_wrappers if wrapper.entry_point != MONITOR)
    if any(wrapper.kwargs is None for wrapper in wrappers):  # gymnasium cannot make them again
        return None
    try:
        return json.loads(dataclasses.replace(spec, additional_wrappers=wrappers).to_json())
    except (TypeError, ValueError):  # functions among the settings
        return None


def make_recorded_env(recorded: dict[str, Any], policy: SkillPolicy | None = None) -> gym.Env | VecEnv:
    """The recorded environment, with a Monitor inside the skills, as `make_vec_env` has: it counts low-level steps.

    Args:
        policy: Runs in place of the one that is named in the specification.
    """
    spec = EnvSpec.from_json(json.dumps(recorded))
    if policy is not None:
        for settings in (spec.kwargs, *(wrapper.kwargs or {} for wrapper in spec.additional_wrappers)):
            if "policy" in settings:
                settings["policy"] = policy
    wrappers = spec.additional_wrappers
    if is_entry_point(spec.entry_point) and not wrappers:
        limit = {} if spec.max_episode_steps is None else {"max_episode_steps": spec.max_episode_steps}
        return make_vec_env(**{**limit, **spec.kwargs})
    classes: list[Any] = [load_env_creator(wrapper.entry_point) for wrapper in wrappers]
    skills = [isinstance(cls, type) and issubclass(cls, SkillActionWrapper) for cls in classes]
    if not any(skills):  # an id that makes skills itself
        return gym.make(spec)
    first = skills.index(True)
    env: gym.Env = Monitor(gym.make(dataclasses.replace(spec, additional_wrappers=wrappers[:first])))
    try:
        for cls, wrapper in zip(classes[first:], wrappers[first:], strict=True):
            env = cls(env=env, **(wrapper.kwargs or {}))
    except BaseException:
        env.close()
        raise
    return env


def read_record(path: Path) -> dict[str, Any]:
    """Read what `describe_agent` said.

    Raises:
        FileNotFoundError, ValueError: absent, damaged or newer.
    """
    if not os.path.lexists(path):
        raise FileNotFoundError(
            f"{path} is missing: expected the file that save_agent writes beside the zip, which names the agent's "
            "skills. If you know that the environment's are the same, load the zip with algorithm.load(path, env=env) "
            "and save it again with save_agent"
        )
    try:
        record = parse_json(read_plain(path, MEGABYTE))
        version = int(record["format_version"])
        if version <= FORMAT_VERSION and (missing := RECORDED - record.keys()):
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except (ValueError, TypeError, KeyError) as error:
        reason = in_short(error)
        raise ValueError(f"{path} is damaged or not a file of save_agent ({reason}); save the agent again") from error
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version {version} is newer than this didi_gym reads ({FORMAT_VERSION}); upgrade with: "
            "pip install -U didi-gym"
        )
    return record


def require_same_skills(record: dict[str, Any], env: gym.Env | VecEnv, path: str | Path) -> None:
    """Raise SkillPolicyMismatch where `env` runs other skills than an agent's record names."""
    ours, differences = _describe_skills(env), []
    if record["policy"]["sha256"] != ours["policy"]["sha256"]:
        differences.append(f"the policy {_name(record['policy'])}, got {_name(ours['policy'])}")
    for key in ("skill_durations", "action_space"):
        if record[key] != ours[key]:
            differences.append(f"{key} {record[key]}, got {ours[key]}")
    if differences:
        raise SkillPolicyMismatch(
            f"the agent in {path} was trained on other skills than those of the environment: expected "
            f"{'; '.join(differences)}. Wrap the environment with what the agent was trained on"
        )


def _name(policy: dict[str, Any]) -> str:
    name = policy["name_or_path"] or "without a name"
    revision = f"@{policy['revision']}" if policy["revision"] else ""
    return f"{name}{revision} (sha256 {policy['sha256']})"
