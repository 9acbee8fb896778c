"""The files of a policy folder: written whole, and its `config.json`, which may come from anywhere, read strictly."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from didi_gym import hub
from didi_gym.core.files import MEGABYTE, SafeFileError, in_short, parse_json, read_plain, write_atomically
from didi_gym.core.schema import from_dict, to_dict
from didi_gym.models.config import FORMAT_VERSION, PolicyConfig
from didi_gym.models.policy_network import PolicyNetwork
from didi_gym.models.weights import tensors_sha256, write_tensors

CONFIG_FILE, WEIGHTS_FILE, TRAINING_FILE = "config.json", "model.safetensors", "training.safetensors"
POLICY_FILES = (CONFIG_FILE, WEIGHTS_FILE)


def write_policy(policy: PolicyNetwork, folder: str | Path) -> Path:
    """Write `config.json` and `model.safetensors` into `folder` (made if absent); each file appears whole."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = policy.state_dict()
    config = replace(policy.config, weights_sha256=tensors_sha256(weights))
    write_tensors(folder / WEIGHTS_FILE, weights)
    write_atomically(folder / CONFIG_FILE, (json.dumps(to_dict(config), indent=2) + "\n").encode())
    return folder


def read_config(folder: Path) -> PolicyConfig:
    """Read `config.json` strictly; the format is checked first, since a newer one may hold unknown keys."""
    path = folder / CONFIG_FILE
    if not os.path.lexists(path):
        raise hub.SkillPolicyHubError(f"{folder} is no skill policy: it has no {CONFIG_FILE}")
    try:
        data = parse_json(read_plain(path, MEGABYTE))
        if not isinstance(data, dict) or data.get("model_type") != "didi":
            raise ValueError('it does not say "model_type": "didi"')
        version = data.get("format_version")
        if type(version) is not int or version < 1:
            raise ValueError(f"format_version must be a number from 1 on, got {version!r}")
        if version > FORMAT_VERSION:
            raise hub.SkillPolicyHubError(
                f"{path}: format_version {in_short(str(version))} is newer than this didi_gym reads "
                f"({FORMAT_VERSION}); upgrade with: pip install -U didi-gym"
            )
        return from_dict(PolicyConfig, data)
    except SafeFileError as error:
        raise hub.SkillPolicyHubError(str(error)) from error
    except ValueError as error:
        raise hub.SkillPolicyHubError(f"{path} is no skill policy configuration: {in_short(error)}") from error
