"""Agents over skills on the Hugging Face Hub, with the skill policy that they were trained on: id, commit and hash.

SB3's zip holds pickles, which run code when they are opened: loading asks for trust, and checks all else before.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from didi_gym.core.files import in_short, read_plain
from didi_gym.hub.download import SkillPolicyHubError, fetch, list_pretrained
from didi_gym.hub.upload import CARD_FILE, marked, push_files, read_to_push
from didi_gym.models.card_text import code, plain
from didi_gym.models.policy import SkillPolicy
from didi_gym.sb3.agents import (
    Agent,
    describe_agent,
    make_recorded_env,
    policy_of,
    policy_sha256,
    read_record,
    require_same_skills,
)
from didi_gym.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

AGENT_FILE, SPEC_FILE = "agent.zip", "env_spec.json"
_MAX_AGENT = 1 << 30
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def push_agent_to_hub(
    agent: BaseAlgorithm,
    repo_id: str,
    *,
    extra: Mapping[str, str | Path] | None = None,
    tag: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Publish an agent over skills on the Hugging Face Hub in one commit: `agent.zip`, `env_spec.json` and a card.

    `env_spec.json` holds what `save_agent` writes beside a zip, the environment's spec with the policy's commit among
    it, and the zip's hash. A card on the Hub that was edited by hand stays.

    Args:
        agent: An agent with its environment, whose skill policy is bundled or came from the Hub.
        repo_id: `owner/name`, made if absent.
        extra: Further files, path in the repository -> file. An agent with a `VecNormalize` needs its statistics:
            `agent.get_vec_normalize_env().save("normalize.pkl")`, `extra={"normalize.pkl": "normalize.pkl"}`.
        tag, private, token, branch, create_pr: see `SkillPolicy.push_to_hub`.

    Raises:
        SkillPolicyHubError: a skill policy that others cannot load, or nothing could be pushed; it says what to do.
        ValueError: the agent has no environment, or one that runs no skills.
    """
    record = describe_agent(agent)
    env = agent.get_env()
    assert env is not None, "describe_agent has refused it"
    _require_public(policy_of(env), record, token)
    if agent.get_vec_normalize_env() is not None and not extra:
        raise SkillPolicyHubError(
            "the agent sees what a VecNormalize makes of observations: publish its statistics too. Write them with "
            'agent.get_vec_normalize_env().save("normalize.pkl") and pass extra={"normalize.pkl": "normalize.pkl"}'
        )
    files = {path: _read_extra(path, file) for path, file in (extra or {}).items()}
    content = io.BytesIO()
    agent.save(content)
    record["agent_sha256"] = hashlib.sha256(content.getvalue()).hexdigest()
    files |= {
        AGENT_FILE: content.getvalue(),
        SPEC_FILE: (json.dumps(record, indent=2) + "\n").encode(),
        CARD_FILE: _make_card(agent, record, repo_id, tuple(files)).encode(),
    }
    return push_files(
        files,
        repo_id,
        tag=tag,
        private=private,
        token=token,
        branch=branch,
        create_pr=create_pr,
        message=f"{record['algorithm']} agent over skills, written by didi_gym {__version__}",
        needed=(AGENT_FILE, SPEC_FILE),
    ).commit


def load_agent_from_hub(
    algorithm: type[Agent],
    repo_id: str,
    env: gym.Env | VecEnv | None = None,
    *,
    revision: str | None = None,
    trust: bool = False,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    **kwargs: Any,
) -> Agent:
    """Load an agent that `push_agent_to_hub` published, with the skill policy it was trained on.

    An SB3 zip holds pickles, and an environment's spec names code to run: both run with your rights. So nothing is
    fetched without `trust=True`. The zip is opened last: after its hash, and after the environment's skill policy was
    loaded at the recorded commit and has the recorded hash.

    Args:
        algorithm: The agent's class, as in `SAC.load`.
        repo_id: `owner/name`, or `owner/name@revision`.
        env: An environment or VecEnv that runs the same skills; default: one made from the published spec.
        revision: A branch, tag or commit; default: main. Pin the commit that you have looked at.
        trust: Say True where you trust the owner of that repository as you trust a program of theirs.
        token, cache_dir, local_files_only, force_download: see `SkillPolicy.from_pretrained`.
        **kwargs: See `BaseAlgorithm.load` (`device`, `custom_objects`, ...).

    Raises:
        SkillPolicyHubError: no trust, nothing there, something else than was published, or no agent that SB3 can load.
        SkillPolicyMismatch: `env` runs other skills than those the agent was trained on.
    """
    name, _, pinned = repo_id.partition("@")
    if not trust:
        raise SkillPolicyHubError(
            f"{repo_id} was not fetched: an agent of Stable-Baselines3 is a zip of pickles, which run code of whoever "
            f"wrote them when they are opened. Where you trust {name.partition('/')[0]} with that, pass trust=True"
        )
    if not _HUB_ID.fullmatch(name):
        raise SkillPolicyHubError(f"expected a Hub id (owner/name), got {repo_id!r}; load_agent reads agents on disk")
    if revision and pinned and revision != pinned:
        raise SkillPolicyHubError(f"{repo_id!r} names revision {pinned!r}, but revision={revision!r} was asked for")
    source: dict[str, Any] = {
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "force_download": force_download,
    }
    asked = revision or pinned or None
    folder = fetch(name, asked, files=(AGENT_FILE, SPEC_FILE), what="agent", **source)
    where = f"{name} at commit {folder.name}"
    try:
        record = read_record(folder / SPEC_FILE)
        content = read_plain(folder / AGENT_FILE, _MAX_AGENT)
    except ValueError as error:
        raise SkillPolicyHubError(str(error)) from error
    _check_record(record, where)
    if record["algorithm"] != algorithm.__name__:
        raise SkillPolicyHubError(
            f"{where} is a {in_short(record['algorithm'])} agent, got the class {algorithm.__name__}; call "
            f"load_agent_from_hub({in_short(record['algorithm'])}, ...)"
        )
    if (found := hashlib.sha256(content).hexdigest()) != record["agent_sha256"]:
        raise SkillPolicyHubError(
            f"{AGENT_FILE} of {where} is not the one its {SPEC_FILE} names (sha256 {found}, expected "
            f"{in_short(record['agent_sha256'])}), so it was not opened: ask its owner to publish the agent again"
        )
    made = None
    if env is None:
        if record["env_spec"] is None:
            raise SkillPolicyHubError(f"{where} does not say how to make the agent's environment; pass env=")
        policy = _recorded_policy(record, where, device=kwargs.get("device", "auto"), **source)
        try:
            env = made = make_recorded_env(record["env_spec"], policy)
        except Exception as error:  # whatever the code that the specification names may raise
            raise SkillPolicyHubError(
                f"the environment that {where} was trained in could not be made ({in_short(error)}); install what it "
                f"needs, or pass env="
            ) from error
    try:
        require_same_skills(record, env, where)
        try:
            return algorithm.load(io.BytesIO(content), env=env, **kwargs)
        except Exception as error:  # whatever a zip of another version, or of another thing, may lead to
            raise SkillPolicyHubError(
                f"Stable-Baselines3 could not load the agent {where}: {type(error).__name__}: {in_short(error)}"
            ) from error
    except BaseException:
        if made is not None:
            made.close()
        raise


def _require_public(policy: SkillPolicy, record: dict[str, Any], token: str | None) -> None:
    """Raise SkillPolicyHubError where another computer could not load the very policy of an agent."""
    name, commit = policy.name_or_path, policy.commit_hash
    publish = "publish it with push_to_hub, load it from there, and train or save the agent with that"
    if name is None:
        raise SkillPolicyHubError(f"the agent's skill policy is a live object that nobody else can load: {publish}")
    if commit is None and (name not in list_pretrained() or Path(name).is_dir()):
        raise SkillPolicyHubError(f"the agent's skill policy is a folder on this disk ({name}): {publish}")
    reference = name if commit is None else f"{name}@{commit}"
    public = SkillPolicy.from_pretrained(reference, device="cpu", token=token)
    if policy_sha256(public) != record["policy"]["sha256"]:
        raise SkillPolicyHubError(f"the agent's skill policy is no longer what {reference} holds: {publish}")


def _check_record(record: dict[str, Any], where: str) -> None:
    """Raise SkillPolicyHubError where a record that can be read does not say what loading needs."""
    policy = record["policy"]
    texts = [record["algorithm"], record.get("agent_sha256")]
    if isinstance(policy, dict):
        texts += [policy.get("name_or_path"), policy.get("sha256"), policy.get("revision") or ""]
    sound = isinstance(policy, dict) and all(isinstance(text, str) for text in texts)
    if not sound or not isinstance(record["env_spec"], (dict, type(None))):
        raise SkillPolicyHubError(f"{SPEC_FILE} of {where} is damaged: it does not name agent, policy and their hashes")


def _recorded_policy(record: dict[str, Any], where: str, **settings: Any) -> SkillPolicy:
    """The skill policy that a record names, from the Hub at its commit or from this installation; never from a folder.

    Raises:
        SkillPolicyHubError: it cannot be had, or is another.
    """
    name, revision, sha256 = (record["policy"].get(key) for key in ("name_or_path", "revision", "sha256"))
    on_hub = _HUB_ID.fullmatch(name) and _COMMIT.fullmatch(revision or "") and not Path(name).is_absolute()
    if not on_hub and (revision or name not in list_pretrained()):
        raise SkillPolicyHubError(
            f"{where} was trained on the skill policy {in_short(name)!r}, which is neither bundled with didi_gym "
            f"{__version__} nor a commit on the Hub; upgrade with pip install -U didi-gym, or pass env="
        )
    reference = f"{name}@{revision}" if on_hub else name
    try:
        policy = SkillPolicy.from_pretrained(reference, **settings)
    except SkillPolicyHubError as error:
        raise SkillPolicyHubError(f"{where} needs its skill policy {reference}, but: {error}") from error
    if (found := policy_sha256(policy)) != sha256:
        raise SkillPolicyHubError(
            f"{where} was trained on the skill policy {reference} of sha256 {in_short(sha256)}, but what is there has "
            f"{found}: its agent was not opened"
        )
    return policy


def _read_extra(path: str, file: str | Path) -> bytes:
    if path in (AGENT_FILE, SPEC_FILE, CARD_FILE):
        raise SkillPolicyHubError(f"extra: {path} is written by the push itself")
    return read_to_push(path, file)


def _make_card(agent: BaseAlgorithm, record: dict[str, Any], repo_id: str, extra: tuple[str, ...]) -> str:
    """Front matter and Markdown; it can be kept up to date until somebody edits it by hand."""
    from huggingface_hub import ModelCardData

    policy, spec = record["policy"], record["env_spec"]
    reference = f"{policy['name_or_path']}@{policy['revision']}" if policy["revision"] else policy["name_or_path"]
    env_id = None if spec is None else spec["kwargs"].get("env_id", spec["id"])
    data = ModelCardData(
        library_name="didi_gym",
        pipeline_tag="reinforcement-learning",
        base_model=policy["name_or_path"] if policy["revision"] else None,
        tags=["reinforcement-learning", "stable-baselines3", "skills", *([env_id] if env_id else [])],
    )
    durations = " or ".join(str(duration) for duration in record["skill_durations"])
    task = f" in {code(env_id)}" if env_id else ""
    beside = f"\nBeside them: {', '.join(map(code, extra))}.\n" if extra else ""
    arguments = f"{json.dumps(repo_id)}, trust=True" if spec else f"{json.dumps(repo_id)}, env, trust=True"
    need = (
        "" if spec else "\nIts environment could not be written down: make `env`, with the skill policy above, first.\n"
    )
    return marked(
        f"""---
{data.to_yaml()}
---
# {plain(record["algorithm"])} over skills

A [Stable-Baselines3](https://stable-baselines3.readthedocs.io) agent that acts{task} by picking skills of the policy
{code(reference)} (sha256 `{policy["sha256"]}`), each for {durations} steps of the environment. It is of use with these
skills only; loading checks them.

**Warning.** `{AGENT_FILE}` is a zip of pickles, and `{SPEC_FILE}` names code to run: both run code of whoever wrote
them when they are loaded. Load an agent only from an owner whom you trust as you trust a program of theirs, and pin a
commit that you have looked at with `revision=`.
{need}
```python
from {_home(type(agent))} import {record["algorithm"]}
from didi_gym.sb3 import load_agent_from_hub

agent = load_agent_from_hub({record["algorithm"]}, {arguments})
```
{beside}
Written by didi_gym {__version__}."""
    )


def _home(algorithm: type[BaseAlgorithm]) -> str:
    """The module to import a class from."""
    for name in ("stable_baselines3", "didi_gym.sb3", "sb3_contrib"):
        if getattr(sys.modules.get(name), algorithm.__name__, None) is algorithm:
            return name
    return algorithm.__module__
