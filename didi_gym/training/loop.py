"""The training loop that every stage goes through."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from didi_gym.core.progress import progress as progress_bar
from didi_gym.training.checkpoints import Interrupts, TrainingState, TrainingStopped
from didi_gym.training.losses import Metrics

_REPORT_EVERY = 50  # steps between readings of metrics, each of which waits for the device
_GRADIENT_LIMIT = 1.0

Loss = Callable[[torch.Generator, dict[str, float]], tuple[Tensor, Metrics]]
"""`(generator, carried) -> (loss, metrics)`; `carried` holds numbers that stay from step to step (dual weights)."""


def optimize(label: str, state: TrainingState, loss: Loss, steps: int, learning_rate: float, progress: bool) -> None:
    """Adam, cosine learning rate, clipped gradients, averaged weights, checkpoints.

    Raises:
        FloatingPointError: a loss that is not finite.
        TrainingStopped: Ctrl-C or SIGTERM, after the checkpoint was written.
    """
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
