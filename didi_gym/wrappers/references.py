"""A policy for an environment: loaded by name, named for a spec, and refused where it does not fit.

Imports no torch.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from didi_gym.core.observations import is_bound
from didi_gym.wrappers.executor import UNIT_WRAPPERS, action_vectors

if TYPE_CHECKING:
    from didi_gym.models.policy import SkillPolicy

_HASHED = re.compile(r"(.+)@sha256:([0-9a-f]{64})", re.DOTALL)


class SkillPolicyMismatch(ValueError):
    """Other skills than those that were recorded, or that an agent was trained on."""


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
    if not 1 <= replan_every <= config.actions_per_plan:
        raise ValueError(
            f"replan_every must be in 1..{config.actions_per_plan}, the policy's horizon, got {replan_every}; a skill "
            "may last longer than one plan, it is then planned again on the way"
        )
    return tuple(int(duration) for duration in durations), replan_every


def load_policy(policy: Any, device: str) -> SkillPolicy:
    """The live policy meant by a bundled name, a Hub id, a folder, what `policy_reference` returned, or itself.

    Raises:
        ValueError: no policy.
        SkillPolicyMismatch: another one than a reference names.
    """
    if policy is None:
        raise ValueError(
            "policy is None. If this came from an environment's spec: it was recorded from a live policy that has no "
            "name; save_pretrained() that policy, load it with from_pretrained(), and wrap again"
        )
    if not isinstance(policy, (str, Path)):
        return policy
    from didi_gym.models.policy import SkillPolicy  # torch loads here, so that importing the wrappers stays quick

    reference = _HASHED.fullmatch(str(policy))
    if reference is None:
        return SkillPolicy.from_pretrained(policy, device=device)
    live = SkillPolicy.from_pretrained(reference[1], device=device)
    if (found := policy_sha256(live)) != reference[2]:
        raise SkillPolicyMismatch(
            f"the skill policy {reference[1]} is no longer the one that was recorded: expected sha256 {reference[2]}, "
            f"got {found}. Put that policy back, or make the environment with the new one by name"
        )
    return live


def policy_reference(policy: SkillPolicy) -> str | None:
    """A string from which `load_policy` loads `policy` again and no other; None where it has no name.

    It is `owner/name@commit` for a policy from the Hub, and `name@sha256:...` for a bundled name or a folder.
    """
    if policy.name_or_path is None:
        return None
    if policy.revision is None:
        return f"{policy.name_or_path}@sha256:{policy_sha256(policy)}"
    return f"{policy.name_or_path.partition('@')[0]}@{policy.revision}"


def policy_sha256(policy: SkillPolicy) -> str:
    """The hash of what a skill policy does: configuration and weights, not where it is stored or on which device.

    Returns:
        64 hexadecimal digits: SHA-256 of the configuration as canonical JSON, without versions, hashes and defaults,
        then of name, shape, type and little-endian bytes of every tensor, in the order of their names.
    """
    config = {key: value for key, value in _chosen(policy.config).items() if not key.endswith(("_version", "sha256"))}
    digest = hashlib.sha256(_canonical(config))
    for name, tensor in sorted(policy.state_dict().items()):
        array = tensor.detach().cpu().numpy()
        digest.update(_canonical([name, list(array.shape), str(array.dtype)]))
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _chosen(value: Any) -> Any:
    """A dataclass as JSON types, without what has its default: a setting added by a later version changes no hash."""
    if dataclasses.is_dataclass(value):
        chosen = {}
        for field in dataclasses.fields(value):
            make = field.default_factory
            default = field.default if make is dataclasses.MISSING else make()
            if (setting := getattr(value, field.name)) != default:
                chosen[field.name] = _chosen(setting)
        return chosen
    return [_chosen(item) for item in value] if isinstance(value, (list, tuple)) else value


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


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


def warn_of_other_units(policy: SkillPolicy, wrappers: Sequence[str], name: str) -> None:
    """Warn where an environment's observations do not pass the wrappers that those of the policy's data have passed.

    Args:
        wrappers: `SkillExecutor.observation_wrappers` of the environment, which is called `name`.
    """
    if policy.config.env_spec is None:  # nothing is known of the data's wrappers
        return
    recorded = [wrapper for wrapper in UNIT_WRAPPERS if f'"{wrapper}"' in policy.config.env_spec]
    if recorded != list(wrappers):
        warnings.warn(
            f"observations of {name} have passed {' and '.join(wrappers) or 'no wrapper that changes units'}, those of "
            f"the skill policy's data {' and '.join(recorded) or 'none'}, so the policy may read other numbers than in "
            "training; give the environment the wrappers of the data (wrappers=)",
            stacklevel=1,
        )


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
            "didi_gym.wrappers.executor.SkillExecutor"
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
