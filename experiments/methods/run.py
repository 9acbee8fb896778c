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
from didi_gym.checkpoints import TrainingState
from didi_gym.decoding import from_dict
from didi_gym.discriminator import Discriminator
from didi_gym.loops import Batches, build_policy, optimize
from didi_gym.losses import Metrics, diversity_loss, guidance_loss
from didi_gym.policy_folder import TRAINING_FILE
from didi_gym.tensors import load_info
from didi_gym.training import TrainConfig, load_training

Objective = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Metrics]]


@dataclass(frozen=True)
class Run:
    """A seed's data, settings, prior and dynamics model, as `didi-gym train` left them in a run folder."""

    dataset: TrajectoryDataset
    """Its training part."""
    policy: SkillPolicy
    """The folder's own, with the dynamics model attached."""
    prior: DiffusionPrior
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
        config = from_dict(TrainConfig, load_info(folder / TRAINING_FILE))
        if steps is not None:
            anchor = replace(config.skills.anchor, tuning_steps=steps)
            config = replace(config, skills=replace(config.skills, steps=steps, anchor=anchor))
        prior = load_training(folder, policy)[0]
        training = dataset.split(horizon=policy.config.horizon)[0]
        return cls(training, policy, prior, config, folder, seed, steps, progress, agents)

    @property
    def skills(self) -> SkillConfig:
        return self.config.skills

    @property
    def horizon(self) -> int:
        return self.policy.config.horizon

    def batches(self) -> Batches:
        return Batches(self.dataset, self.policy.normalizer, torch.device("cpu"))

    def fit(
        self, label: str, modules: nn.ModuleDict, loss: Callable[..., tuple[Tensor, Metrics]], steps: int
    ) -> SkillPolicy:
        """Train `modules` with the library's loop; returns the averaged `modules["policy"]`, dynamics attached."""
        rate = self.skills.learning_rate
        state = TrainingState(modules, rate, self.skills.ema_decay, self.seed, {}, None)
        optimize(label, state, loss, steps, rate, self.progress)
        policy = state.averaged()["policy"]
        assert isinstance(policy, SkillPolicy)
        if policy.config.consistency == "dynamics":
            policy.attach_dynamics(self.policy.dynamics)
        return policy

    def discriminator(self, batches: Batches, outputs: int | None = None) -> Discriminator:
        """A fresh discriminator; with `outputs`, the same network as an embedding of that many numbers."""
        config = self.skills
        if outputs is not None:
            config = replace(config, skill_space=type(config.skill_space)("ball", outputs))
        network = Discriminator(config, self.dataset.layout)
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
    batches, dynamics = run.batches(), run.policy.dynamics
    torch.manual_seed(run.seed)
    policy = build_policy(batches, config, run.horizon)
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
        guidance, more = guidance_loss(run.prior, plans, data, config.noise_range, generator)
        weight = memory.setdefault("guidance_weight", config.guidance_weight)
        excess = float(more["guidance/ratio"].detach()) - config.residual_target
        slack = float(metrics["diversity/explained"].detach()) - config.diversity_floor
        memory["guidance_weight"] = min(
            weight * math.exp(config.dual_rate * min(excess, slack)), config.guidance_weight_max
        )
        return total + weight * guidance, {**metrics, **more, "guidance/weight": torch.tensor(weight)}

    return run.fit(label, modules, loss, config.steps)
