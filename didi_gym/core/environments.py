"""Environments that a file names: what a name may look like, and which names ask for trust in who wrote the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_ID = re.compile(r"(?:(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*):)?(?:[\w-]+/)?[\w.-]+")
_KNOWN_PACKAGES = ("gymnasium", "gymnasium_robotics")  # a file may always name what these register
_KNOWN_WRAPPERS = "gymnasium.wrappers"  # and these wrappers: they do nothing but wrap
_OWN_NAMESPACE = "didi_gym/"  # environments that load a skill policy, but for these:
LIGHT_HUMANOID = "didi_gym/LightHumanoid-v0"
_OWN_BODIES = (LIGHT_HUMANOID,)


def require_env_id(env_id: str) -> str | None:
    """The module that an id asks to import, `module:Name-v0`; None where it names none.

    Raises:
        ValueError: no id of that form.
    """
    match = _ID.fullmatch(env_id)
    if match is None:
        raise ValueError(f"expected an environment id such as Name-v0 or module:Name-v0, got {env_id[:100]!r}")
    return match["module"]


def asks_for_trust(env_id: str, env_kwargs: Mapping[str, Any], entry_points: Iterable[str] = ()) -> str | None:
    """What making this environment would do beyond what Gymnasium has registered; None where it does no more.

    A file that came from a stranger must not decide which modules are imported or which policies are fetched.

    Args:
        entry_points: `module:name` of its wrappers.

    Raises:
        ValueError: `env_id` is no id.
    """
    if (named := require_env_id(env_id)) is not None and named not in _KNOWN_PACKAGES:
        return f"imports the module {named!r}"
    for module in (entry.partition(":")[0] for entry in entry_points):
        if module != _KNOWN_WRAPPERS and not module.startswith(f"{_KNOWN_WRAPPERS}."):
            return f"imports the module {module!r}"
    loads = env_id.rpartition(":")[2].startswith(_OWN_NAMESPACE) and env_id not in _OWN_BODIES
    if loads or "policy" in env_kwargs:
        return f"loads another skill policy, {str(env_kwargs.get('policy', env_id))[:100]!r}"
    if other := sorted({"env_id", "id"} & env_kwargs.keys()):
        return f"makes another environment, {str(env_kwargs[other[0]])[:100]!r}"
    return None
