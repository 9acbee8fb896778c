"""The method itself, and the method with a part left out."""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from didi_gym import SkillConfig, SkillPolicy, train_skills
from didi_gym.anchor import Anchored, train_anchor
from didi_gym.tensors import SafeFileError
from methods.run import Run, train_joint

_IMITATION_WEIGHT = 3.0  # of {1, 3, 10}; see bc_anchor


def didi(run: Run) -> SkillPolicy:
    """The policy of the run folder, as `didi-gym train` made it."""
    return run.policy


def no_prior(run: Run) -> SkillPolicy:
    """Diversity alone: the guidance weight is zero, and stays there."""
    anchor = replace(run.skills.anchor, residual_target=0.0)
    return _train(run, replace(run.skills, guidance_weight=0.0, residual_target=0.0, anchor=anchor))


def no_diversity(run: Run) -> SkillPolicy:
    """The prior alone: the diversity weight is zero, and the guidance weight stays at its first value."""
    return _train(run, replace(run.skills, diversity_weight=0.0, residual_target=0.0))


def bc_anchor(run: Run) -> SkillPolicy:
    """Behaviour cloning in place of the prior: every plan is regressed to the data window of its start.

    The weight is one of {1, 3, 10}, compared on the ant's seed 0 after 300 steps: with 10 skills collapse; with 1 the
    probe is better (.57, with 3 it is .38), with 3 the execution gap (spread ratio 1.0, with 1 it is .64).
    """
    return train_joint(run, "bc-anchor", imitation_weight=_IMITATION_WEIGHT)


def anchor_only(run: Run) -> SkillPolicy:
    """Discrete skills as anchored in the data, without the joint objective."""
    policy = _anchored(run).policy
    policy.attach_dynamics(run.policy.dynamics)
    return policy


def _train(run: Run, config: SkillConfig) -> SkillPolicy:
    anchored = _anchored(run) if config.is_anchored else None
    return train_skills(
        run.dataset, run.prior, run.policy.dynamics, config, anchored, seed=run.seed, progress=run.progress
    )[0]


def _anchored(run: Run) -> Anchored:
    """What the run began its skills from, out of its checkpoints (copies: a run folder is only read)."""
    if not run.skills.is_anchored:
        raise ValueError(f"{run.folder} has continuous skills, which are not anchored")
    # the stages' settings are those of the folder: a trial's tuning steps are none of theirs
    config = Run.load(run.dataset, run.folder, run.seed).skills
    settings: dict[str, Any] = {"horizon": run.horizon, "seed": run.seed, "progress": run.progress}
    with tempfile.TemporaryDirectory() as copies:
        for stage in ("scout", "anchor", "classifier"):
            file = run.folder / "checkpoints" / f"{stage}.safetensors"
            if file.is_file():
                shutil.copy(file, copies)
        try:
            return train_anchor(run.dataset, config, checkpoints=Path(copies), **settings)
        except SafeFileError as error:  # of a version with fewer settings
            print(f"{run.folder}: the anchor is trained anew, since {error}", file=sys.stderr)
    return train_anchor(run.dataset, config, **settings)
