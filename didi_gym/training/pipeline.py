"""From a data set to a policy folder: the stages that the settings ask for, and the files of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from didi_gym.core.files import (
    MEGABYTE,
    SafeFileError,
    in_short,
    locked,
    parse_json,
    read_plain,
    remove_leftovers,
    write_atomically,
)
from didi_gym.core.schema import from_dict, to_dict
from didi_gym.data.dataset import TrajectoryDataset
from didi_gym.models.discriminator import Discriminator, WindowClassifier
from didi_gym.models.dynamics import DynamicsEnsemble
from didi_gym.models.folder import POLICY_FILES, TRAINING_FILE
from didi_gym.models.policy import SkillPolicy
from didi_gym.models.prior import DiffusionPrior
from didi_gym.models.weights import TensorFile, float32_by_default, load_network, read_training, write_tensors
from didi_gym.training.behaviours import train_behaviours, tune_behaviours
from didi_gym.training.checkpoints import TrainingStopped
from didi_gym.training.config import TrainConfig
from didi_gym.training.run import Run
from didi_gym.training.segmentation import decide_lengths, fitting_window
from didi_gym.training.stages import train_dynamics, train_prior, train_skills

RUN_FILE = "run.json"
_TRAINS = "is training into"

Module = TypeVar("Module", bound=nn.Module)


def hold_out(
    dataset: TrajectoryDataset, config: TrainConfig, share: float = 0.1
) -> tuple[TrajectoryDataset, TrajectoryDataset, TrainConfig]:
    """Decide the window of behaviours and the horizon, and split the data as `train` and `evaluate_skills` do.

    Args:
        share: Of the episodes, for evaluation; 0 keeps none back.

    Returns:
        What is trained on, what is held out, and the settings with what they leave to the data in them, and with no
        more `feature_times` than the horizon has.

    Raises:
        DatasetError: nothing can be learned from the data with these settings.
    """
    dataset.require_horizon(2)
    dataset.require_change()
    skills = config.skills.skill_space.size
    if config.learns_behaviours:
        fitting_window(dataset, config.behaviours, skills)  # what the last stage would refuse is refused now
    config = decide_lengths(dataset, config)
    assert config.horizon is not None
    instants = min(config.skills.feature_times, config.horizon - 1)  # a horizon of three steps has two changes to see
    training, held_out = dataset.split(share, horizon=config.horizon) if share > 0 else (dataset, dataset)
    if config.learns_behaviours:
        fitting_window(training, config.behaviours, skills)
    return training, held_out, replace(config, skills=replace(config.skills, feature_times=instants))


def train(
    dataset: TrajectoryDataset,
    config: TrainConfig,
    output: Path,
    *,
    held_out: float = 0.1,
    reuse: Path | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> SkillPolicy:
    """Train all that the settings need and write the policy folder `output`; called again after a stop, it continues.

    Args:
        held_out: Share of the episodes that is kept for evaluation.
        reuse: A finished run on the same data and horizon, whose prior and dynamics model are taken instead of training
            them: for further seeds, or other settings of the skills.

    On Ctrl-C the current stage's checkpoint is written, and the policy folder with what the skills stage has so far,
    before TrainingStopped (a KeyboardInterrupt) is raised.

    Raises:
        SafeFileError: another process is training into `output`, or a checkpoint there is damaged or another run's.
    """
    training, _, config = hold_out(dataset, config, held_out)
    checkpoints = output / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    with locked(output, _TRAINS), float32_by_default():
        remove_leftovers(checkpoints)
        for name in (*POLICY_FILES, TRAINING_FILE):
            remove_leftovers(output, name)
        return _train(training, config, output, checkpoints, reuse, device, progress)


def _train(
    training: TrajectoryDataset,
    config: TrainConfig,
    output: Path,
    checkpoints: Path,
    reuse: Path | None,
    device: str | torch.device,
    progress: bool,
) -> SkillPolicy:
    run = Run(
        training,
        horizon=config.horizon,
        seed=config.seed,
        device=device,
        checkpoints=checkpoints,
        progress=progress,
    )
    prior: DiffusionPrior | None = None
    dynamics: DynamicsEnsemble | None = None
    if reuse is not None:
        prior, dynamics, config = _take(reuse, run, config)
    else:
        prior = train_prior(run, config.prior) if config.needs_prior else None
        dynamics = train_dynamics(run, config.dynamics) if config.needs_dynamics else None
    stopped, discriminator = None, None
    try:
        if not config.learns_behaviours:
            assert prior is not None
            policy, discriminator = train_skills(run, prior, dynamics, config.skills)
        else:
            behaviours = train_behaviours(run, config.behaviours, config.skills)
            policy = behaviours.policy
            policy.attach_dynamics(dynamics)
            if config.behaviours.tuning_steps > 0:
                assert prior is not None and dynamics is not None
                tuned = tune_behaviours(run, behaviours, prior, dynamics, config.behaviours, config.skills)
                policy, discriminator = tuned
    except TrainingStopped as stop:
        if not isinstance(stop.result, tuple):  # in an earlier stage, which leaves no policy
            raise
        stopped, (policy, discriminator) = stop, stop.result
    parts: dict[str, nn.Module | None] = {"prior": prior, "dynamics": dynamics, "discriminator": discriminator}
    tensors = {
        f"{name}.{k}": v for name, part in parts.items() if part is not None for k, v in part.state_dict().items()
    }
    record = {"config": to_dict(config), "parts": [name for name, part in parts.items() if part is not None]}
    write_tensors(output / TRAINING_FILE, tensors, record)
    policy.save_pretrained(output)
    if stopped is not None:
        raise stopped
    return policy


def _take(folder: Path, run: Run, config: TrainConfig) -> tuple[DiffusionPrior, DynamicsEnsemble | None, TrainConfig]:
    """Prior and dynamics model of a finished run, and the settings with those that they were trained with."""
    if not config.needs_prior:
        raise ValueError(
            f"nothing of {folder} can be reused: behaviour skills that are not tuned need neither a prior nor, for "
            f"themselves, a dynamics model; leave reuse out, or set behaviours.tuning_steps"
        )
    policy = SkillPolicy.from_pretrained(folder, device=run.device)
    theirs, ours = (policy.config.dataset_id, policy.config.horizon), (run.dataset.dataset_id, run.horizon)
    if theirs != ours or policy.config.layout != run.dataset.layout:
        raise ValueError(
            f"{folder} was trained on {theirs[0]} with horizon {theirs[1]}; this run has {ours[0]}, {ours[1]}"
        )
    file = read_training(folder / TRAINING_FILE)
    trained, prior = _parse_record(file)[0], _load_parts(file, policy)[0]
    if prior is None:
        raise ValueError(f"{folder} has no prior (its skills were imitated); train without reuse")
    if config.needs_dynamics and policy.dynamics is None:
        raise ValueError(f"{folder} has no dynamics model; train without reuse")
    return prior.to(run.device), policy.dynamics, replace(config, prior=trained.prior, dynamics=trained.dynamics)


def read_record(folder: Path) -> tuple[TrainConfig, tuple[str, ...]]:
    """The settings of a finished run, and which of prior, dynamics and discriminator it has left.

    Raises:
        SafeFileError: absent or damaged.
    """
    return _parse_record(read_training(folder / TRAINING_FILE))


def _parse_record(file: TensorFile) -> tuple[TrainConfig, tuple[str, ...]]:
    record = file.info
    try:
        if not isinstance(record, dict) or not isinstance(record.get("parts"), list):
            raise ValueError("its header does not say what it holds")
        return from_dict(TrainConfig, record.get("config")), tuple(record["parts"])
    except ValueError as error:
        raise SafeFileError(f"{file.path}: {in_short(error)}") from error


def load_training(
    folder: Path, policy: SkillPolicy
) -> tuple[DiffusionPrior | None, Discriminator | WindowClassifier | None]:
    """The prior and the discriminator of a finished run, frozen; None for what it did not train.

    Raises:
        SafeFileError: absent or damaged.
    """
    return _load_parts(read_training(folder / TRAINING_FILE), policy)


def _load_parts(
    file: TensorFile, policy: SkillPolicy
) -> tuple[DiffusionPrior | None, Discriminator | WindowClassifier | None]:
    config, parts = _parse_record(file)
    horizon, layout, action_dim = policy.config.horizon, policy.config.layout, policy.config.action_dim
    sizes, skill_dim = config.skills.discriminator_sizes, policy.skill_space.skill_dim

    def blank_prior() -> DiffusionPrior:
        return DiffusionPrior(horizon, layout.state_dim, action_dim, **config.prior.sizes)

    def blank_discriminator() -> Discriminator | WindowClassifier:
        if config.learns_behaviours:
            return WindowClassifier(layout, action_dim, skill_dim, horizon, **sizes)
        return Discriminator(layout, skill_dim, horizon, **sizes)

    def load(name: str, blank: Callable[[], Module]) -> Module | None:
        if name not in parts:
            return None
        return load_network(blank, file, f"{name}.", f"{file.path}: {name}").eval().requires_grad_(False)

    return load("prior", blank_prior), load("discriminator", blank_discriminator)


def write_run(output: Path, config: TrainConfig, dataset_id: str, **selection: Sequence[Any]) -> None:
    """Write `run.json`, and refuse to continue a folder that another run began.

    Args:
        selection: What was taken of each observation, `keys` or `indices`; empty ones count as not given.

    Raises:
        FileExistsError: the folder holds a run with other settings.
        SafeFileError: another process is training into it, or its `run.json` is damaged.
    """
    chosen = {name: list(values) for name, values in selection.items() if values}
    content = json.dumps({"dataset": dataset_id, **chosen, **to_dict(config)}, indent=2)
    output.mkdir(parents=True, exist_ok=True)
    with locked(output, _TRAINS):
        path = output / RUN_FILE
        remove_leftovers(output, RUN_FILE)
        if os.path.lexists(path):
            try:
                there = parse_json(read_plain(path, MEGABYTE))
            except ValueError as error:
                raise SafeFileError(
                    f"{path} does not say with which settings this run began ({in_short(error)}); delete it to "
                    f"continue with the present ones, or choose another --output"
                ) from error
            if there != json.loads(content):
                raise FileExistsError(
                    f"{output} holds a run with other settings ({path.name} tells which); continue with those, or "
                    f"choose another --output"
                )
        write_atomically(path, f"{content}\n".encode())
