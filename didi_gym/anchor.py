"""Anchoring discrete skills in the data: behaviours are found without labels, and the policy learns each from its own.

Plans that only have to differ and to be likely drift into poses that no behaviour of the data has; a policy that starts
from the data's behaviours, and is held there, does not (docs/decisions.md).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from didi_gym.assignment import Assignment, assign_windows, balanced_rows, refine
from didi_gym.checkpoints import TrainingState
from didi_gym.config import AnchorConfig, SkillConfig
from didi_gym.data import TrajectoryDataset
from didi_gym.decoding import to_dict
from didi_gym.discriminator import WindowClassifier
from didi_gym.loops import Batches, build_policy, fit_normalizer, optimize
from didi_gym.losses import Metrics, anchor_loss, recognition_loss
from didi_gym.policy import SkillPolicy
from didi_gym.progress import progress as progress_bar
from didi_gym.skills import SkillSpace

_CHUNK = 8192  # steps judged at a time
_OF_TUNING = ("weight", "tuning_steps", "tuning_rate", "residual_target")  # settings that these stages do not read


@dataclass(frozen=True)
class Anchored:
    """A policy that has learned every skill from the data assigned to it."""

    policy: SkillPolicy
    assignment: Assignment
    classifier: WindowClassifier
    """Tells the skills' windows apart; frozen."""

    def trainable_policy(self) -> SkillPolicy:
        """A copy to go on with."""
        return copy.deepcopy(self.policy).train().requires_grad_(True)

    def draw(self, batches: Batches, n: int, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Windows of `steps` steps drawn alike for all skills: states, actions, and one-hot skills `(n, skills)`."""
        return draw_own(batches, self.assignment, n, steps, generator)


def draw_own(
    batches: Batches, assignment: Assignment, n: int, steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """As `Anchored.draw`."""
    dataset = batches.dataset
    rows, skills = balanced_rows(assignment, n, generator)
    episode = np.searchsorted(dataset.starts, rows.numpy(), side="right") - 1
    last = torch.from_numpy(dataset.starts[episode] + dataset.lengths[episode] - steps)
    states, actions = batches.at(torch.minimum(rows, last), steps)
    return states, actions, F.one_hot(skills, space_of(assignment).size).to(states)


def space_of(assignment: Assignment) -> SkillSpace:
    """The skills found; a space has at least two, of which one may mean nothing."""
    return SkillSpace("discrete", max(assignment.skills, 2))


def find_behaviours(
    dataset: TrajectoryDataset,
    config: SkillConfig,
    *,
    horizon: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    checkpoints: Path | None = None,
    progress: bool = True,
) -> Assignment:
    """Find the behaviours in a data set without labels.

    1. cluster windows into `config.skill_space.size` groups (`assign_windows`);
    2. train a scout policy on them for a while, and let its errors refine the assignment (`refine`).

    Args:
        checkpoints: Folder for the stages' checkpoints; a stopped run continues there.

    Returns:
        A skill for every step. What is rare goes with what follows it, and what was cut into two becomes one again, so
        there may be fewer skills than groups.
    """
    horizon = horizon or config.horizon_for(dataset)
    batches = Batches(dataset, fit_normalizer(dataset, horizon), torch.device(device))
    rough = assign_windows(dataset, config.skill_space.size, config.anchor, seed)
    steps = config.anchor.scout_steps
    scout = _imitate("scout", batches, config, rough, steps, horizon, seed, checkpoints, progress)
    return refine(dataset, action_errors(batches, scout, rough.skills, progress), config.anchor)


def train_anchor(
    dataset: TrajectoryDataset,
    config: SkillConfig,
    *,
    horizon: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    checkpoints: Path | None = None,
    progress: bool = True,
) -> Anchored:
    """Find the behaviours in a data set and learn them, one discrete skill each.

    1. find them (`find_behaviours`);
    2. train the policy on the steps assigned to each, all skills alike often;
    3. train a classifier q(z | window of `horizon` steps) on them, the discriminator of the joint objective.

    Args:
        checkpoints: Folder for the stages' checkpoints; a stopped run continues there.

    Returns:
        Policy (averaged weights), assignment and classifier.
    """
    horizon = horizon or config.horizon_for(dataset)
    options: dict[str, Any] = {"device": device, "checkpoints": checkpoints, "progress": progress}
    assignment = find_behaviours(dataset, config, horizon=horizon, seed=seed, **options)
    batches = Batches(dataset, fit_normalizer(dataset, horizon), torch.device(device))
    steps = config.anchor.steps
    policy = _imitate("anchor", batches, config, assignment, steps, horizon, seed, checkpoints, progress)
    return Anchored(policy, assignment, _recognise(batches, config, assignment, horizon, seed, checkpoints, progress))


def _imitate(
    stage: str,
    batches: Batches,
    config: SkillConfig,
    assignment: Assignment,
    steps: int,
    horizon: int,
    seed: int,
    checkpoints: Path | None,
    progress: bool,
) -> SkillPolicy:
    """A policy that imitates each skill's data."""
    anchor: AnchorConfig = config.anchor
    torch.manual_seed(seed)
    policy = build_policy(batches, config, horizon, space_of(assignment))

    def loss(generator: torch.Generator, _: dict[str, float]) -> tuple[Tensor, Metrics]:
        return anchor_loss(policy, *draw_own(batches, assignment, anchor.batch_size, length, generator))

    length = policy.config.actions_per_plan
    network: dict[str, Any] = {"width": config.width, "depth": config.depth, "plan_length": length}
    if config.network == "unet":
        network = {"unet": to_dict(config.unet), "plan_length": length}
    run = {"data": batches.dataset.fingerprint(), "horizon": horizon, "seed": seed, "skills": config.skill_space.size}
    identity = {**run, **network, **_found_by(anchor)}
    checkpoint = None if checkpoints is None else checkpoints / f"{stage}.safetensors"
    state = TrainingState(policy, anchor.learning_rate, anchor.ema_decay, seed, identity, checkpoint)
    optimize(stage, state, loss, steps, anchor.learning_rate, progress)
    return state.averaged()


def _found_by(anchor: AnchorConfig) -> dict[str, Any]:
    """The settings that these stages depend on."""
    return {name: value for name, value in to_dict(anchor).items() if name not in _OF_TUNING}


def _recognise(
    batches: Batches,
    config: SkillConfig,
    assignment: Assignment,
    horizon: int,
    seed: int,
    checkpoints: Path | None,
    progress: bool,
) -> WindowClassifier:
    """A classifier of the windows of each skill."""
    settings = replace(config, horizon=horizon, skill_space=space_of(assignment))
    torch.manual_seed(seed)
    classifier = WindowClassifier(settings, batches.dataset.layout, batches.dataset.action_dim).to(batches.device)
    generator = torch.Generator(batches.device).manual_seed(seed)
    classifier.fit_scale(*draw_own(batches, assignment, 4096, horizon, generator)[:2])

    def loss(generator: torch.Generator, _: dict[str, float]) -> tuple[Tensor, Metrics]:
        return recognition_loss(
            classifier, *draw_own(batches, assignment, config.batch_size, horizon, generator), generator
        )

    run = {"data": batches.dataset.fingerprint(), "seed": seed, **to_dict(settings), "anchor": _found_by(config.anchor)}
    checkpoint = None if checkpoints is None else checkpoints / "classifier.safetensors"
    state = TrainingState(classifier, config.learning_rate, config.ema_decay, seed, run, checkpoint)
    optimize("classifier", state, loss, config.anchor.scout_steps, config.learning_rate, progress)
    return state.averaged()


@torch.no_grad()
def action_errors(batches: Batches, policy: SkillPolicy, skills: int, progress: bool = True) -> np.ndarray:
    """Squared error of each skill's next action at every step of the data, normalised units, `(steps, skills)`."""
    errors = np.empty((len(batches.observations), skills), np.float32)
    identity = torch.eye(policy.skill_space.size, device=batches.device)
    with progress_bar("refine", len(errors), progress) as report:
        for first in range(0, len(errors), _CHUNK):
            states, actions = batches.at(torch.arange(first, min(first + _CHUNK, len(errors))), 1)
            inputs = states[:, 0, policy.input_indices]
            for skill in range(skills):
                planned = policy(inputs, identity[skill].expand(len(inputs), -1))[0][:, 0]
                errors[first : first + len(inputs), skill] = (planned - actions[:, 0]).square().mean(-1).cpu().numpy()
            report(first + len(inputs), {})
    return errors
