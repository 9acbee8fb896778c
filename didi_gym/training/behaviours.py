"""Behaviour skills: behaviours are found in the data without labels, and the policy learns each by imitation.

Skills that only have to differ and to be likely drift into poses that no behaviour of the data has; a policy that
imitates the data's own behaviours does not (docs/decisions.md).
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from didi_gym.core.progress import progress as progress_bar
from didi_gym.core.schema import to_dict
from didi_gym.core.skill_space import SkillSpace
from didi_gym.models.discriminator import WindowClassifier
from didi_gym.models.dynamics import DynamicsEnsemble
from didi_gym.models.policy import SkillPolicy
from didi_gym.models.prior import DiffusionPrior
from didi_gym.training.config import BehaviourConfig, SkillConfig
from didi_gym.training.losses import Metrics, imitation_loss, recognition_loss
from didi_gym.training.run import Run
from didi_gym.training.segmentation import Segmentation, balanced_rows, cluster_windows, refine
from didi_gym.training.stages import SkillTask, train_skills

_CHUNK = 8192  # steps judged at a time
_SAMPLE = 4096  # windows from which units are fitted
_OF_TUNING = ("weight", "tuning_steps", "tuning_rate", "residual_target")  # settings that imitation does not read


@dataclass(frozen=True)
class Behaviours:
    """Behaviours found in a data set, and a policy that has learned each from its own steps."""

    policy: SkillPolicy
    segmentation: Segmentation


def train_behaviours(run: Run, config: BehaviourConfig | None = None, skills: SkillConfig | None = None) -> Behaviours:
    """Find the behaviours in a data set and learn them by imitation, one discrete skill each.

    1. find them (`find_behaviours`);
    2. train the policy on the steps of each, all skills equally often.

    Args:
        skills: Its skill space says how many clusters to begin with, and its network is the policy's.

    Returns:
        The policy (averaged weights) and the segmentation. Clusters are merged, so there may be fewer skills than
        were asked for.
    """
    config, skills = config or BehaviourConfig(), skills or _default_skills()
    segmentation = find_behaviours(run, config, skills)
    return Behaviours(_imitate(run, "imitation", config.steps, config, skills, segmentation), segmentation)


def find_behaviours(run: Run, config: BehaviourConfig | None = None, skills: SkillConfig | None = None) -> Segmentation:
    """Find the behaviours in a data set without labels.

    1. cluster windows into `skills.skill_space.size` groups (`cluster_windows`);
    2. train a policy that imitates them for a while, and let its errors refine the segmentation (`refine`).
    """
    config, skills = config or BehaviourConfig(), skills or _default_skills()
    rough = cluster_windows(run.dataset, skills.skill_space.size, config, run.seed)
    scout = _imitate(run, "scout", config.scout_steps, config, skills, rough)
    return refine(run.dataset, action_errors(run, scout, rough.skills), config)


def tune_behaviours(
    run: Run,
    behaviours: Behaviours,
    prior: DiffusionPrior,
    dynamics: DynamicsEnsemble,
    config: BehaviourConfig,
    skills: SkillConfig,
) -> tuple[SkillPolicy, WindowClassifier]:
    """Tune a policy that imitates behaviours by DIDI's objective (`train_skills`), imitation going on beside it.

    The discriminator is a classifier of the behaviours' windows, trained first and frozen, so that policy and
    discriminator cannot agree on a code of their own.
    """
    segmentation = behaviours.segmentation
    classifier = _train_classifier(run, config, skills, segmentation)
    policy = copy.deepcopy(behaviours.policy).train().requires_grad_(True)
    length = policy.config.actions_per_plan

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        return draw_behaviours(run, segmentation, n, run.horizon, generator)

    def recognise(states: Tensor, actions: Tensor, z: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        return recognition_loss(classifier, states, actions, z, generator)

    def imitate(generator: torch.Generator) -> tuple[Tensor, Metrics]:
        own = draw_behaviours(run, segmentation, config.batch_size, length, generator)
        loss, metrics = imitation_loss(policy, *own)
        return config.weight * loss, metrics

    task = SkillTask(policy, draw, recognise, imitate=imitate)
    objective = replace(
        skills,
        steps=config.tuning_steps,
        learning_rate=config.tuning_rate,
        residual_target=config.residual_target,
    )
    return train_skills(run, prior, dynamics, objective, task)[0], classifier


def draw_behaviours(
    run: Run, segmentation: Segmentation, n: int, steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Windows of `steps` steps, each skill as often as any other: states, actions, one-hot skills `(n, skills)`."""
    dataset = run.dataset
    rows, skills = balanced_rows(segmentation, n, generator)
    episode = np.searchsorted(dataset.starts, rows.numpy(), side="right") - 1
    last = torch.from_numpy(dataset.starts[episode] + dataset.lengths[episode] - steps)
    states, actions = run.batches.at(torch.minimum(rows, last), steps)
    return states, actions, F.one_hot(skills, space_of(segmentation).size).to(states)


def space_of(segmentation: Segmentation) -> SkillSpace:
    """The skills found; a space has at least two, of which one may mean nothing."""
    return SkillSpace("discrete", max(segmentation.skills, 2))


def _default_skills() -> SkillConfig:
    return SkillConfig(skill_space=SkillSpace("discrete", 12))


def _imitate(
    run: Run, stage: str, steps: int, config: BehaviourConfig, skills: SkillConfig, segmentation: Segmentation
) -> SkillPolicy:
    """A policy that imitates each skill's steps."""
    with run.seeded():
        policy = run.new_policy(skills, space_of(segmentation), skills.plan_length or 1)
    length = policy.config.actions_per_plan

    def loss(generator: torch.Generator, _: dict[str, float]) -> tuple[Tensor, Metrics]:
        return imitation_loss(policy, *draw_behaviours(run, segmentation, config.batch_size, length, generator))

    network: dict[str, Any] = {"width": skills.width, "depth": skills.depth}
    if skills.network == "unet":
        network = {"unet": to_dict(skills.unet)}
    settings = {"skills": skills.skill_space.size, "plan_length": length, **network, **_read_by_imitation(config)}
    settings["behaviours"] = hashlib.sha256(segmentation.labels.tobytes()).hexdigest()
    rates = {"learning_rate": config.learning_rate, "ema_decay": config.ema_decay}
    return run.learn(stage, policy, loss, steps=steps, **rates, settings=settings)


def _read_by_imitation(config: BehaviourConfig) -> dict[str, Any]:
    return {name: value for name, value in to_dict(config).items() if name not in _OF_TUNING}


def _train_classifier(
    run: Run, config: BehaviourConfig, skills: SkillConfig, segmentation: Segmentation
) -> WindowClassifier:
    """A classifier q(z | window of the run's horizon) of the windows of each skill."""
    layout, size = run.dataset.layout, space_of(segmentation).size
    with run.seeded():
        classifier = WindowClassifier(layout, run.dataset.action_dim, size, run.horizon, **skills.discriminator_sizes)
    classifier.to(run.device)
    classifier.fit_scale(*draw_behaviours(run, segmentation, _SAMPLE, run.horizon, run.generator())[:2])

    def loss(generator: torch.Generator, _: dict[str, float]) -> tuple[Tensor, Metrics]:
        own = draw_behaviours(run, segmentation, skills.batch_size, run.horizon, generator)
        return recognition_loss(classifier, *own, generator)

    settings = {**to_dict(skills), "behaviours": _read_by_imitation(config)}
    rates = {"learning_rate": skills.learning_rate, "ema_decay": skills.ema_decay}
    return run.learn("classifier", classifier, loss, steps=config.scout_steps, **rates, settings=settings)


@torch.no_grad()
def action_errors(run: Run, policy: SkillPolicy, skills: int) -> np.ndarray:
    """Squared error of each skill's next action at every step of the data, normalised units, `(steps, skills)`."""
    batches = run.batches
    errors = np.empty((len(batches.observations), skills), np.float32)
    identity = torch.eye(policy.skill_space.size, device=batches.device, dtype=torch.float32)
    with progress_bar("refine", len(errors), run.progress) as report:
        for first in range(0, len(errors), _CHUNK):
            states, actions = batches.at(torch.arange(first, min(first + _CHUNK, len(errors))), 1)
            inputs = states[:, 0, policy.input_indices]
            for skill in range(skills):
                planned = policy(inputs, identity[skill].expand(len(inputs), -1))[0][:, 0]
                errors[first : first + len(inputs), skill] = (planned - actions[:, 0]).square().mean(-1).cpu().numpy()
            report(first + len(inputs), {})
    return errors
