"""What all methods of one seed share, and the joint objective with one of its parts replaced."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from didi_gym import DiffusionPrior, SkillConfig, SkillPolicy, TrajectoryDataset
from didi_gym.models.discriminator import Discriminator
from didi_gym.training import Run as Training
from didi_gym.training import TrainConfig, load_training
from didi_gym.training.batches import Batches
from didi_gym.training.losses import Metrics, diversity_loss, guidance_loss
from didi_gym.training.pipeline import read_record

Objective = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Metrics]]


@dataclass(frozen=True)
class Run:
    """A seed's data, settings, prior and dynamics model, as `didi-gym train` left them in a run folder."""

    dataset: TrajectoryDataset
    """Its training part."""
    policy: SkillPolicy
    """The folder's own, with the dynamics model attached."""
    prior: DiffusionPrior | None
    """None where the run's skills needed none."""
    config: TrainConfig
    folder: Path
    seed: int
    steps: int | None = None
    """Gradient steps of any method, for trials."""
    progress: bool = True
    agents: Path | None = None
    """Folder of the behaviours that the data set was recorded from."""

    @classmethod
    def load(
        cls,
        dataset: TrajectoryDataset,
        folder: Path,
        seed: int,
        steps: int | None = None,
        progress: bool = True,
        agents: Path | None = None,
    ) -> Run:
        """Read a run folder.

        Args:
            steps: Gradient steps in place of the run's own, for trials.
        """
        policy = SkillPolicy.from_pretrained(folder, device="cpu")
        config = read_record(folder)[0]
        if steps is not None:
            behaviours = replace(config.behaviours, tuning_steps=steps)
            config = replace(config, skills=replace(config.skills, steps=steps), behaviours=behaviours)
        prior = load_training(folder, policy)[0]
        training = dataset.split(horizon=policy.config.horizon)[0]
        return cls(training, policy, prior, config, folder, seed, steps, progress, agents)

    @property
    def skills(self) -> SkillConfig:
        return self.config.skills

    @property
    def horizon(self) -> int:
        return self.policy.config.horizon

    def require_prior(self) -> DiffusionPrior:
        if self.prior is None:
            raise ValueError(
                f"{self.folder} has no prior: train it with --behaviours.tuning-steps, or continuous skills"
            )
        return self.prior

    def training(self, checkpoints: Path | None = None) -> Training:
        """The library's run on the same data, horizon and seed."""
        return Training(
            self.dataset, horizon=self.horizon, seed=self.seed, checkpoints=checkpoints, progress=self.progress
        )

    def fit(
        self,
        training: Training,
        label: str,
        modules: nn.ModuleDict,
        loss: Callable[..., tuple[Tensor, Metrics]],
        steps: int,
    ) -> SkillPolicy:
        """Train `modules` with the library's loop; returns the averaged `modules["policy"]`, dynamics attached."""
        rates = {"learning_rate": self.skills.learning_rate, "ema_decay": self.skills.ema_decay}
        policy = training.learn(label, modules, loss, steps=steps, **rates, settings={})["policy"]
        assert isinstance(policy, SkillPolicy)
        if policy.config.consistency == "dynamics":
            policy.attach_dynamics(self.policy.dynamics)
        return policy

    def discriminator(self, batches: Batches, outputs: int | None = None) -> Discriminator:
        """A fresh discriminator; with `outputs`, the same network as an embedding of that many numbers."""
        size = outputs or self.skills.skill_space.skill_dim
        network = Discriminator(self.dataset.layout, size, self.horizon, **self.skills.discriminator_sizes)
        sample = batches.draw(4096, self.horizon, torch.Generator().manual_seed(self.seed))[0]
        network.fit_scale(batches.normalizer.denormalize(sample))
        return network


def train_joint(
    run: Run,
    label: str,
    *,
    objective: Callable[[Run, Batches], nn.Module] | None = None,
    imitation_weight: float | None = None,
    skills_per_start: int = 1,
) -> SkillPolicy:
    """The joint objective as `train_skills` has it for continuous skills, with one part replaced.

    Args:
        objective: Makes a module that takes states in environment units, skills and a generator, and returns a loss and
            metrics; it replaces the discriminator's regression. A discriminator is trained beside it all the same,
            whose gradient does not reach the policy: the weight of the prior follows one rule for all objectives.
        imitation_weight: In place of the prior, regress every plan to the data window of its start with this weight.
        skills_per_start: Skills that each start state of a batch is given; batches are as large as ever.
    """
    config, space = run.skills, run.skills.skill_space
    if space.is_discrete:
        raise ValueError(f"{label} is for continuous skills; {run.folder} has discrete ones")
    training, prior, dynamics = run.training(), run.require_prior(), run.policy.dynamics
    batches = training.batches
    with training.seeded():
        policy = training.new_policy(config, space, config.plan_length or run.horizon)
        discriminator = run.discriminator(batches)
        modules = nn.ModuleDict({"policy": policy, "discriminator": discriminator})
        if objective is not None:
            modules["objective"] = objective(run, batches)

    def loss(generator: torch.Generator, memory: dict[str, float]) -> tuple[Tensor, Metrics]:
        states, actions = batches.draw(config.batch_size // skills_per_start, run.horizon, generator)
        data = torch.cat([states, actions], dim=-1).repeat_interleave(skills_per_start, dim=0)
        skills = space.sample(len(data), generator)
        choice = torch.randint(len(config.plans), (), generator=generator)
        every = max(run.horizon // config.plans[int(choice)], 1)
        states, actions = policy.trajectory(data[:, 0, : states.shape[-1]], skills, dynamics, every, generator)
        plans = torch.cat([states, actions], dim=-1)
        seen = batches.normalizer.denormalize(states)
        judged = seen if objective is None else seen.detach()
        total, metrics = diversity_loss(discriminator, judged, skills, space, generator)
        if objective is not None:
            value, more = modules["objective"](seen, skills, generator)
            total, metrics = total + value, {**metrics, **more}
        if imitation_weight is not None:
            error = F.mse_loss(plans, data)
            return total + imitation_weight * error, {**metrics, "imitation/error": error}
        guidance, more = guidance_loss(prior, plans, data, config.noise_range, generator)
        weight = memory.setdefault("guidance_weight", config.guidance_weight)
        excess = float(more["guidance/ratio"].detach()) - config.residual_target
        slack = float(metrics["diversity/explained"].detach()) - config.diversity_floor
        memory["guidance_weight"] = min(
            weight * math.exp(config.dual_rate * min(excess, slack)), config.guidance_weight_max
        )
        return total + weight * guidance, {**metrics, **more, "guidance/weight": torch.tensor(weight)}

    return run.fit(training, label, modules, loss, config.steps)
