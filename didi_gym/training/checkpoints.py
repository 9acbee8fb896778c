"""The state of a training stage, saved whole and restored bit for bit; stopping on Ctrl-C between two steps."""

from __future__ import annotations

import copy
import json
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from didi_gym.core.files import SafeFileError, in_short
from didi_gym.core.schema import from_dict
from didi_gym.models.weights import read_tensors, require_tensors, write_tensors

_SAVE_SECONDS = 15.0

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class _Record:
    """What the header of a checkpoint says beside its tensors."""

    step: int
    memory: dict[str, float]
    history: list[dict[str, float]]
    identity: dict[str, Any]


class TrainingState(Generic[Module]):
    """Module, averaged copy, Adam, generator, step and a memory of numbers, restored from `checkpoint` if it is there.

    Args:
        identity: What makes the run this run; a checkpoint of another is refused.
        steps: How many steps there will be; a checkpoint of more is refused.

    Raises:
        SafeFileError: the checkpoint is damaged, or another run's; the message says what to do.
    """

    def __init__(
        self,
        module: Module,
        learning_rate: float,
        ema_decay: float,
        seed: int,
        identity: dict[str, Any],
        checkpoint: Path | None,
        steps: int | None = None,
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
        if checkpoint is not None and os.path.lexists(checkpoint):
            self._restore(checkpoint, steps)

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

    def _restore(self, path: Path, steps: int | None) -> None:
        try:
            file = read_tensors(path)
            if not file.checked or not isinstance(file.info, dict):
                raise ValueError(f"{path} has no checksum")
            # before all else: whoever has changed the settings must not be told that the file is damaged
            if (theirs := file.info.get("identity")) != self._identity and isinstance(theirs, dict):
                raise _OtherRun(_differing(theirs, self._identity))
            record = from_dict(_Record, file.info)
            if not 0 < record.step <= (steps or record.step):
                raise ValueError(f"{path}: step {record.step} is not in 1..{steps}")
            for name, module in (("module", self.module), ("average", self.average)):
                require_tensors(module.state_dict(), file.part(f"{name}."), f"{path}: {name}")
            moments = self._moments(file.part("optimizer."), path)
            generator = {"generator": self.generator.get_state()}
            require_tensors(generator, {"generator": file.tensors.get("generator", torch.empty(0))}, str(path))
        except _OtherRun as other:
            raise SafeFileError(
                f"{path} belongs to a run with other settings or other data (it differs in {other}); continue with "
                f"those, or choose another output folder"
            ) from None
        except ValueError as error:
            raise SafeFileError(
                f"the checkpoint cannot be continued from: {in_short(error)}. Delete {path}, and its stage begins anew"
            ) from error
        self.module.load_state_dict(file.part("module."))
        self.average.load_state_dict(file.part("average."))
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.generator.set_state(file.tensors["generator"])
        self.step, self.memory, self.history = (file.info[key] for key in ("step", "memory", "history"))

    def _moments(self, tensors: dict[str, Tensor], path: Path) -> dict[int, dict[str, Tensor]]:
        """Adam's state by the number of the parameter; its kernel reads past the end of what has another shape."""
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, _, key = name.partition(".")
            moments.setdefault(int(index), {})[key] = tensor
        for i, found in moments.items():
            if not 0 <= i < len(self._weights):
                raise ValueError(f"{path}: optimizer.{i} is of no weight")
            weight, step = self._weights[i].detach(), torch.zeros((), dtype=torch.float32)
            require_tensors({"exp_avg": weight, "exp_avg_sq": weight, "step": step}, found, f"{path}: optimizer.{i}")
        if missing := [i for i, weight in enumerate(self._weights) if weight.requires_grad and i not in moments]:
            raise ValueError(f"{path}: optimizer.{missing[0]} is missing")
        return moments


class _OtherRun(Exception):
    """A checkpoint of a run that differs in what the message names."""


def _differing(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """The settings in which two runs differ, short ones with their values."""
    said = []
    for key in sorted(theirs.keys() | ours.keys()):
        there, here = (json.dumps(each.get(key)) for each in (theirs, ours))
        if there != here:
            short = len(there) + len(here) < 60 and key != "data"  # which is a checksum
            said.append(in_short(f"{key}: {there} there, {here} here" if short else key))
    return "; ".join(said[:5])


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
