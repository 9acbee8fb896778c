"""`Run`: what all stages of one training share, resolved once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from didi_gym.core.schema import to_dict
from didi_gym.core.skill_space import SkillSpace
from didi_gym.data.dataset import TrajectoryDataset
from didi_gym.models.config import PolicyConfig
from didi_gym.models.policy import SkillPolicy, pick_device
from didi_gym.models.weights import float32_by_default, tensors_sha256
from didi_gym.training.batches import Batches, fit_normalizer
from didi_gym.training.checkpoints import TrainingState, TrainingStopped
from didi_gym.training.config import SkillConfig
from didi_gym.training.loop import Loss, optimize
from didi_gym.version import __version__

Module = TypeVar("Module", bound=nn.Module)


class Run:
    """What all stages of one training share: data, horizon, normaliser, batches, seed, device, checkpoints, progress.

    Args:
        dataset: What is learned from; hold episodes out of it before (`TrajectoryDataset.split`).
        horizon: Length H of a trajectory, in environment steps; default: what the data suggests.
        seed: Of every stage. torch's global generator is left as it was.
        device: Where networks are trained.
        checkpoints: Folder in which stages keep their state; the same run continues there after a stop.
        progress: Show it.

    Raises:
        DatasetError: no episode is as long as the horizon, or the data holds no behaviour.

    Example:
        >>> run = Run(TrajectoryDataset.from_minari("didi/pointmaze-medium-v0"), seed=1)
        >>> prior, dynamics = train_prior(run), train_dynamics(run)
        >>> policy, discriminator = train_skills(run, prior, dynamics)
    """

    @float32_by_default()
    def __init__(
        self,
        dataset: TrajectoryDataset,
        *,
        horizon: int | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        checkpoints: Path | None = None,
        progress: bool = True,
    ) -> None:
        self.dataset, self.seed, self.progress = dataset, seed, progress
        self.horizon = dataset.suggest_horizon() if horizon is None else horizon
        self.device, self.checkpoints = pick_device(device), checkpoints
        self.batches = Batches(dataset, fit_normalizer(dataset, self.horizon), self.device)
        scale = None if dataset.action_range is None else dataset.action_range.tolist()
        self._identity = {
            "data": dataset.fingerprint(),
            "layout": to_dict(dataset.layout),
            "bounds": [dataset.action_low.tolist(), dataset.action_high.tolist(), *(scale or ())],
            "horizon": self.horizon,
            "seed": seed,
            # sums are added up in another order with other threads and on other devices, and runs drift apart
            "threads": torch.get_num_threads(),
            "device": self.device.type,
        }

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """Seed torch's global generator, from which layers draw their first weights, and give it back as it was."""
        with torch.random.fork_rng(devices=[]), float32_by_default():
            torch.default_generator.manual_seed(self.seed)  # torch.manual_seed would seed those of GPUs too
            yield

    def generator(self) -> torch.Generator:
        """A fresh generator on the run's device."""
        return torch.Generator(self.device).manual_seed(self.seed)

    @float32_by_default()
    def learn(
        self,
        stage: str,
        module: Module,
        loss: Loss,
        *,
        steps: int,
        learning_rate: float,
        ema_decay: float,
        settings: dict[str, Any],
        given: Any = None,
    ) -> Module:
        """Minimise a loss over a module, from the stage's checkpoint where there is one.

        Args:
            stage: Its name, also of its checkpoint.
            settings: What else makes this stage what it is: a checkpoint of others is refused.
            given: Name -> module (or None) that an earlier stage learned and the loss reads. Its weights are part of
                what this stage is, and so are those that `module` begins with.

        Returns:
            The averaged module, frozen.

        Raises:
            TrainingStopped: with the averaged module so far as its `result`.
        """
        checkpoint = None if self.checkpoints is None else self.checkpoints / f"{stage}.safetensors"
        parts = {"first weights": module, **(given or {})}
        hashes = {name: tensors_sha256(part.state_dict()) for name, part in parts.items() if part is not None}
        identity = {**self._identity, **settings, **hashes}
        state = TrainingState(module, learning_rate, ema_decay, self.seed, identity, checkpoint, steps)
        try:
            optimize(stage, state, loss, steps, learning_rate, self.progress)
        except TrainingStopped as stop:
            stop.result = state.averaged()
            raise
        return state.averaged()

    def new_policy(self, config: SkillConfig, skill_space: SkillSpace, plan_length: int) -> SkillPolicy:
        """An untrained policy for the data, with its normaliser and action bounds; draws from the global generator."""
        dataset, scale = self.dataset, self.dataset.action_range
        settings = PolicyConfig(
            horizon=self.horizon,
            action_dim=dataset.action_dim,
            layout=dataset.layout,
            skill_space=skill_space,
            skill_duration=self.horizon,
            replan_every=min(config.executed(self.horizon), plan_length),
            width=config.width,
            depth=config.depth,
            network=config.network,
            unet=config.unet,
            plan_length=None if plan_length == self.horizon else plan_length,
            consistency=config.consistency,
            discrete_actions=dataset.discrete_actions,
            action_range=None if scale is None else (tuple(scale[0].tolist()), tuple(scale[1].tolist())),
            dataset_id=dataset.dataset_id,
            env_id=dataset.env_id,
            env_kwargs=dataset.env_kwargs,
            env_spec=dataset.env_spec,
            didi_gym_version=__version__,
        )
        policy = SkillPolicy(settings).to(self.device)
        policy.normalizer.load_state_dict(self.batches.normalizer.state_dict())
        policy.low.copy_(torch.as_tensor(dataset.action_low))
        policy.high.copy_(torch.as_tensor(dataset.action_high))
        return policy
