"""The method itself, and the method with a part left out."""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from didi_gym import SkillConfig, SkillPolicy, train_skills
from didi_gym.core.files import SafeFileError
from didi_gym.training import Behaviours, train_behaviours, tune_behaviours
from methods.run import Run, train_joint

_IMITATION_WEIGHT = 3.0  # of {1, 3, 10}; see bc_anchor


def didi(run: Run) -> SkillPolicy:
    """The policy of the run folder, as `didi-gym train` made it."""
    return run.policy


def no_prior(run: Run) -> SkillPolicy:
    """Diversity alone: the guidance weight is zero, and stays there."""
    behaviours = replace(run.config.behaviours, residual_target=0.0)
    return _train(run, replace(run.skills, guidance_weight=0.0, residual_target=0.0), behaviours=behaviours)


def sharper(run: Run, estimate_steps: int) -> SkillPolicy:
    """The prior's estimate in several steps of DDIM, which ends at one mode, in place of one step, which averages."""
    return _train(run, replace(run.skills, estimate_steps=estimate_steps))


def no_diversity(run: Run) -> SkillPolicy:
    """The prior alone: the diversity weight is zero, and the guidance weight stays at its first value."""
    return _train(run, replace(run.skills, diversity_weight=0.0, residual_target=0.0))


def bc_anchor(run: Run) -> SkillPolicy:
    """Behaviour cloning in place of the prior: every plan is regressed to the data window of its start.

    The weight is one of {1, 3, 10}, compared on the ant's seed 0 after 300 steps: with 10 skills collapse; with 1 the
    probe is better (.57, with 3 it is .38), with 3 the execution gap (spread ratio 1.0, with 1 it is .64).
    """
    return train_joint(run, "bc-anchor", imitation_weight=_IMITATION_WEIGHT)


def imitation_only(run: Run) -> SkillPolicy:
    """Behaviour skills as they are imitated, before any tuning by DIDI."""
    policy = _behaviours(run).policy
    policy.attach_dynamics(run.policy.dynamics)
    return policy


def _train(run: Run, skills: SkillConfig, **changes: object) -> SkillPolicy:
    config = replace(run.config, skills=skills, **changes)
    if not config.learns_behaviours:
        return train_skills(run.training(), run.require_prior(), run.policy.dynamics, skills)[0]
    assert run.policy.dynamics is not None, "tuned behaviour skills have a dynamics model"
    found, prior = _behaviours(run), run.require_prior()
    return tune_behaviours(run.training(), found, prior, run.policy.dynamics, config.behaviours, skills)[0]


def _behaviours(run: Run) -> Behaviours:
    """What the run imitated, out of its checkpoints (copies: a run folder is only read)."""
    if not run.config.learns_behaviours:
        raise ValueError(f"{run.folder} has continuous skills, which imitate no behaviours")
    with tempfile.TemporaryDirectory() as copies:
        for stage in ("scout", "imitation", "classifier"):
            file = run.folder / "checkpoints" / f"{stage}.safetensors"
            if file.is_file():
                shutil.copy(file, copies)
        try:
            return train_behaviours(run.training(Path(copies)), run.config.behaviours, run.skills)
        except SafeFileError as error:  # of a version with fewer settings
            print(f"{run.folder}: its behaviours are imitated anew, since {error}", file=sys.stderr)
    return train_behaviours(run.training(), run.config.behaviours, run.skills)
