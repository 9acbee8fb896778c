"""What all stages of training share: batches of normalised windows, and the optimisation loop."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from didi_gym.checkpoints import Interrupts, TrainingState, TrainingStopped
from didi_gym.config import PolicyConfig, SkillConfig
from didi_gym.data import TrajectoryDataset
from didi_gym.frames import localize
from didi_gym.losses import Metrics
from didi_gym.normalization import Normalizer
from didi_gym.policy import SkillPolicy
from didi_gym.progress import progress as progress_bar
from didi_gym.skills import SkillSpace
from didi_gym.version import __version__

_FIT_WINDOWS = 20_000  # windows from which statistics are fitted
_REPORT_EVERY = 50  # steps between readings of metrics, each of which waits for the device
_GRADIENT_LIMIT = 1.0


class Batches:
    """Normalised windows of a data set on a device, drawn with a generator."""

    def __init__(self, dataset: TrajectoryDataset, normalizer: Normalizer, device: torch.device) -> None:
        self.dataset, self.device = dataset, device
        self.normalizer = normalizer.to(device)
        self.observations = torch.from_numpy(dataset.observations).to(device)
        self.actions = torch.from_numpy(dataset.actions).to(device)
        self.low = torch.as_tensor(dataset.action_low, device=device)
        self.half = torch.as_tensor((dataset.action_high - dataset.action_low) / 2, device=device).clamp(min=1e-6)
        self._windows: dict[int, tuple[int, Tensor, Tensor]] = {}  # by horizon

    def draw(self, n: int, horizon: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """States `(n, horizon, state_dim)` in the windows' own frames and actions `(n, horizon, action_dim)`."""
        if horizon not in self._windows:
            self._windows[horizon] = self._number_windows(horizon)
        count, ends, shifts = self._windows[horizon]
        indices = torch.randint(count, (n,), generator=generator, device=generator.device).to(self.device)
        return self.at(indices + shifts[torch.searchsorted(ends, indices, right=True)], horizon)

    def _number_windows(self, horizon: int) -> tuple[int, Tensor, Tensor]:
        """How many windows there are, and by episode: the number after its last, and from a number to the first step.

        It is `TrajectoryDataset.window_starts` as tables on the device, so that a draw costs the same for any data.
        """
        counts = np.maximum(self.dataset.lengths - horizon + 1, 0)
        ends = counts.cumsum()
        shifts = self.dataset.starts - (ends - counts)
        return int(counts.sum()), torch.from_numpy(ends).to(self.device), torch.from_numpy(shifts).to(self.device)

    def at(self, starts: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
        """The windows that begin at the steps `starts` `(n,)` of the data set, as `draw` gives them."""
        starts = starts.to(self.device)
        steps = starts[:, None] + torch.arange(horizon, device=self.device)
        states = localize(self.observations[steps], self.dataset.layout)[0]
        actions = (self.actions[steps] - self.low) / self.half - 1
        return self.normalizer.normalize(states), actions.clamp(-1, 1)


def fit_normalizer(dataset: TrajectoryDataset, horizon: int, seed: int = 0) -> Normalizer:
    """Fit the state normaliser to random windows of the data."""
    dataset.require_horizon(horizon)
    dataset.require_change()
    indices = np.random.default_rng(seed).integers(dataset.num_windows(horizon), size=_FIT_WINDOWS)
    return Normalizer.fit(dataset.windows(dataset.window_starts(indices, horizon), horizon)[0], dataset.layout)


def build_policy(
    batches: Batches, config: SkillConfig, horizon: int, skill_space: SkillSpace | None = None
) -> SkillPolicy:
    """An untrained policy for a data set, with its normaliser and action bounds."""
    dataset = batches.dataset
    plan_length = config.plan_length_of(horizon)
    settings = PolicyConfig(
        horizon=horizon,
        action_dim=dataset.action_dim,
        layout=dataset.layout,
        skill_space=skill_space or config.skill_space,
        skill_duration=horizon,
        replan_every=1,
        width=config.width,
        depth=config.depth,
        network=config.network,
        unet=config.unet,
        plan_length=None if plan_length == horizon else plan_length,
        consistency=config.consistency,
        discrete_actions=dataset.discrete_actions,
        dataset_id=dataset.dataset_id,
        env_id=dataset.env_id,
        env_kwargs=dataset.env_kwargs,
        didi_gym_version=__version__,
    )
    policy = SkillPolicy(settings).to(batches.device)
    policy.normalizer.load_state_dict(batches.normalizer.state_dict())
    policy.low.copy_(batches.low)
    policy.high.copy_(torch.as_tensor(dataset.action_high))
    return policy


def optimize(
    label: str,
    state: TrainingState,
    loss: Callable[[torch.Generator, dict[str, float]], tuple[Tensor, Metrics]],
    steps: int,
    learning_rate: float,
    progress: bool,
) -> None:
    """The training loop: Adam, cosine learning rate, clipped gradients, averaged weights, checkpoints."""
    parameters = [p for p in state.module.parameters() if p.requires_grad]
    shown: dict[str, float] = {}
    with progress_bar(label, steps, progress) as report, Interrupts() as interrupts:
        while state.step < steps:
            state.optimizer.param_groups[0]["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * state.step / steps))
            value, metrics = loss(state.generator, state.memory)
            state.optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(parameters, _GRADIENT_LIMIT)
            state.optimizer.step()
            state.finish_step()
            if state.step % _REPORT_EVERY == 0 or state.step == steps:
                shown = {name: float(number.detach()) for name, number in metrics.items()}
                if not math.isfinite(sum(shown.values())):
                    raise FloatingPointError(
                        f"{label}: the loss became {shown} at step {state.step}; lower learning_rate"
                    )
                state.log(shown)
            report(state.step, shown)
            if interrupts.requested:
                state.save()
                raise TrainingStopped(f"{label} at step {state.step} of {steps}.")
            state.save_if_due()
    state.save()
