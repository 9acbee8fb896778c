"""The state of a training stage, saved whole and restored bit for bit; stopping on Ctrl-C between two steps."""

from __future__ import annotations

import copy
import json
import signal
import threading
import time
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from didi_gym.core.files import SafeFileError
from didi_gym.models.weights import load_info, load_tensors, write_tensors

_SAVE_SECONDS = 15.0

Module = TypeVar("Module", bound=nn.Module)


class TrainingState(Generic[Module]):
    """Module, averaged copy, Adam, generator, step and a memory of numbers, restored from `checkpoint` if it is there.

    Args:
        identity: What makes the run this run; a checkpoint of another is refused.
    """

    def __init__(
        self,
        module: Module,
        learning_rate: float,
        ema_decay: float,
        seed: int,
        identity: dict[str, Any],
        checkpoint: Path | None,
    ) -> None:
        self.module = module
        device = next(module.parameters()).device
        self.average = copy.deepcopy(module)
        self._averages: list[Tensor] = list(self.average.parameters())
        self._weights: list[Tensor] = list(module.parameters())
        self._ema_decay = ema_decay
        self.optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate, fused=True)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.step = 0
        self.memory: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self._identity = json.loads(json.dumps(identity))
        self._path = checkpoint
        self._saved_at = time.monotonic()
        if checkpoint is not None and checkpoint.is_file():
            self._restore(checkpoint)

    @torch.no_grad()
    def finish_step(self) -> None:
        """Count a step; the exponential average begins with the weights after the first one."""
        if self.step == 0:
            torch._foreach_copy_(self._averages, self._weights)
        else:
            torch._foreach_lerp_(self._averages, self._weights, 1 - self._ema_decay)
        self.step += 1

    def log(self, metrics: dict[str, float]) -> None:
        self.history.append({"step": self.step, **metrics})

    def averaged(self) -> Module:
        """The averaged module, frozen, for use."""
        return self.average.eval().requires_grad_(False)

    def save_if_due(self) -> None:
        if time.monotonic() - self._saved_at >= _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the checkpoint, if there is to be one, atomically; the file beside it holds the metrics so far."""
        if self._path is None:
            return
        tensors = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in moments.items()}
        tensors["generator"] = self.generator.get_state()
        info = {"step": self.step, "memory": self.memory, "history": self.history, "identity": self._identity}
        write_tensors(self._path, tensors, info)
        self._saved_at = time.monotonic()

    def _restore(self, path: Path) -> None:
        info = load_info(path)
        if info["identity"] != self._identity:
            raise SafeFileError(
                f"{path} belongs to a run with other settings or other data; choose another output folder"
            )
        self.module.load_state_dict(load_tensors(path, "module."))
        self.average.load_state_dict(load_tensors(path, "average."))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in load_tensors(path, "optimizer.").items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.generator.set_state(load_tensors(path, "generator")[""])
        self.step, self.memory, self.history = info["step"], info["memory"], info["history"]


class TrainingStopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during training, raised between two steps, after the checkpoint was written."""

    result: Any = None
    """What the stage had learned so far, where that is of use."""


class Interrupts:
    """Notes Ctrl-C and SIGTERM instead of raising in the middle of a step; a second Ctrl-C raises at once."""

    requested = False

    def __enter__(self) -> Interrupts:
        self._main = threading.current_thread() is threading.main_thread()  # handlers can be set only there
        if self._main:
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_: Any) -> None:
        if self._main:
            for number, handler in self._before.items():
                signal.signal(number, handler)
