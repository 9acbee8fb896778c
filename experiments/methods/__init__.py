"""Rivals and ablations of the method, one function each: a `Run` (data, prior, dynamics, seed) to a skill policy."""

from collections.abc import Callable
from functools import partial

from didi_gym import SkillPolicy
from methods.ablations import bc_anchor, didi, imitation_only, no_diversity, no_prior, sharper
from methods.diversity import contrastive, entropy, metra
from methods.recorded import behaviours
from methods.released import released
from methods.run import Run
from methods.untrained import prior_sampling, random_skills
from methods.vae import vae

METHODS: dict[str, Callable[[Run], SkillPolicy]] = {
    "didi": didi,
    "no-prior": no_prior,
    "no-diversity": no_diversity,
    "imitation-only": imitation_only,
    "bc-anchor": bc_anchor,
    "vae": vae,
    "released": released,
    "prior-sampling": prior_sampling,
    "random-skills": random_skills,
    "contrastive": contrastive,
    "metra": metra,
    "entropy": entropy,
    "behaviours": behaviours,
    **{f"ddim-{steps}": partial(sharper, estimate_steps=steps) for steps in (3, 5, 10)},
}

__all__ = ["METHODS", "Run"]
