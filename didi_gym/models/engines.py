"""Engines: the ways in which a policy's plans are computed. All give the same actions, to the precision they name.

| engine | for | precision |
|---|---|---|
| `NumpyEngine` | MLPs on a CPU, above all few rows | float32 |
| `TorchEngine` | any device and network | float32, or bfloat16 in the network |
| `CpuEngine` | MLPs on a CPU: numpy, and torch for more rows than numpy was measured with | float32 |
| `CudaGraphEngine` | a GPU | as `TorchEngine` |
| `RowEngine` | plans that must not depend on what else is in the batch | float32, row by row |

`SkillPolicy.engine` makes them, and `SkillPolicy.plan_actions` uses the one that measures fastest
(`benchmarks/plan_latency.py`).
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor, nn

from didi_gym.core.frames import MATH, NUMPY
from didi_gym.core.observations import all_finite
from didi_gym.models.networks import NumpyResidualMLP
from didi_gym.models.policy_network import PolicyNetwork

EngineName = Literal["auto", "numpy", "torch", "cuda-graph"]

_NUMPY_BATCH = 4096  # numpy is faster up to here, the largest batch of benchmarks/plan_latency.py on a CPU
_ROWS = 3  # up to this many rows one vector at a time beats a matrix
_WARM_UPS = 3  # runs before a capture, as PyTorch's documentation of CUDA graphs has it
_ZEROS = np.zeros(4096, np.float32)
_VERSION, _TRAINABLE = operator.attrgetter("_version"), operator.attrgetter("requires_grad")
_NUMPY_NUMBERS = (
    1 << 22
)  # larger networks have no folded copy: they are slow either way, and the copy would fill memory
_RECORDINGS = 16  # graphs an engine keeps; each holds its intermediate results


class Engine(Protocol):
    """Computes plans. It is a snapshot: after a change of the policy's weights, ask `SkillPolicy.engine` again."""

    def __call__(self, inputs: np.ndarray, skills: np.ndarray, steps: int) -> np.ndarray:
        """Plan; `SkillPolicy.plan_actions` checks the arguments, an engine does not.

        Args:
            inputs: What the policy reads, float32 `(n, len(policy_inputs))`, environment units.
            skills: float32 `(n, skill_dim)`.
            steps: Actions per plan, at most the horizon.

        Returns:
            float32 `(n, steps, action_dim)`, environment units inside the bounds; an array of the caller's own.
        """


def make_engine(
    policy: PolicyNetwork, name: EngineName, dtype: str | torch.dtype | None, batch_invariant: bool
) -> Engine:
    """What `SkillPolicy.engine` returns; see there."""
    if name not in get_args(EngineName):
        raise ValueError(f"engine: expected one of {', '.join(map(repr, get_args(EngineName)))}, got {name!r}")
    low_precision, is_mlp = _low_precision(dtype), policy.config.network == "mlp"
    if name == "numpy" and not is_mlp:
        raise ValueError("the numpy engine is for MLPs, and this policy is a U-Net; use 'auto' or 'torch'")
    if batch_invariant:
        if name not in ("auto", "numpy") or low_precision is not None:
            raise ValueError(
                f"batch_invariant=True plans row by row on the CPU in float32, got engine {name!r} and dtype {dtype}; "
                f"leave both out"
            )
        return RowEngine(policy)
    if name == "auto":
        if policy.device.type == "cpu" and low_precision is None and is_mlp:
            return CpuEngine(policy)
        name = "cuda-graph" if policy.device.type == "cuda" else "torch"
    if name == "numpy":
        if low_precision is not None:
            raise ValueError(f"the numpy engine computes in float32, got dtype {dtype}; use the 'torch' engine for it")
        return NumpyEngine(policy)
    return TorchEngine(policy, low_precision) if name == "torch" else CudaGraphEngine(policy, low_precision)


def check_arguments(policy: PolicyNetwork, inputs: Any, skills: Any) -> tuple[Any, Any]:
    """Policy inputs and skills as float32 arrays, or as tensors on the policy's device.

    Raises:
        ValueError: wrong shapes, NaN or infinity in an array, arrays beside tensors, or another device.
    """
    if isinstance(inputs, Tensor) or isinstance(skills, Tensor):
        for name, value in (("inputs", inputs), ("skills", skills)):
            _check_tensor(policy, name, value)
        inputs, skills = inputs.to(policy.low.dtype), skills.to(policy.low.dtype)
    else:
        inputs, skills = np.asarray(inputs, np.float32), np.asarray(skills, np.float32)
        if not (all_finite(inputs) and all_finite(skills)):
            raise _not_finite(policy, observations=inputs, skills=skills)
    read, skill_dim = len(policy.config.layout.policy_inputs), policy.config.skill_space.skill_dim
    if inputs.shape == (*skills.shape[:1], read) and skills.shape == (len(inputs), skill_dim):
        return inputs, skills
    for name, array, width in (("inputs", inputs, read), ("skills", skills, skill_dim)):
        if array.ndim != 2 or array.shape[1] != width:
            raise ValueError(
                f"{name} must have shape (n, {width}), got {tuple(array.shape)}"
                + "; inputs are the numbers that the policy reads, which SkillActionWrapper selects from an observation"
                * (name == "inputs")
            )
    raise ValueError(f"one skill for each row of inputs: got {len(inputs)} inputs and {len(skills)} skills")


def _not_finite(policy: PolicyNetwork, **arrays: np.ndarray) -> ValueError:
    name = next(name for name, array in arrays.items() if not all_finite(array))
    place = np.argwhere(~np.isfinite(arrays[name]))[0]
    return ValueError(
        f"{name}{place.tolist()} is {arrays[name][tuple(place)]}, and the skill policy "
        f"{getattr(policy, 'name_or_path', None) or '(without a name)'} plans from finite numbers only (as float32); "
        "check the simulator or the sensor that the number comes from"
    )


def _check_tensor(policy: PolicyNetwork, name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(
            f"inputs and skills must both be arrays or both be tensors, got {name} of type "
            f"{type(value).__name__} beside a tensor"
        )
    if value.device != policy.device:
        raise ValueError(f"{name} are on {value.device}, the policy is on {policy.device}; move one of them with .to()")


class NonFinitePlan(ValueError):
    """A policy planned NaN or infinity, which must reach no simulator and no robot."""


def require_finite(actions: np.ndarray, policy: str, inputs: np.ndarray, skills: np.ndarray) -> np.ndarray:
    """The actions, where they are finite. For one row it costs less than a microsecond.

    Args:
        policy: Its name, for the message.
        inputs: What they were planned from.

    Raises:
        NonFinitePlan: the message says whether that is for the inputs or for the weights.
    """
    flat = actions.reshape(-1)
    n = len(flat)
    if n <= 32:  # three ways to the same answer, each the cheapest for its size
        finite = math.isfinite(sum(flat.tolist()))
    elif n <= len(_ZEROS):
        finite = flat.dot(_ZEROS[:n]) == 0  # 0 times a number is 0, unless that is infinite or NaN
    else:
        finite = np.isfinite(flat).all()
    if finite:
        return actions
    for name, given in (("observations", inputs), ("skills", skills)):
        if not np.isfinite(given).all():
            row, column = np.argwhere(~np.isfinite(given))[0].tolist()
            raise NonFinitePlan(
                f"{policy} was given {name} with {given[row, column]} in row {row}, column {column}, so its plan would "
                f"not be finite; expected finite numbers"
            )
    row = int(np.argwhere(~np.isfinite(actions.reshape(len(inputs), -1)).all(1))[0, 0])
    raise NonFinitePlan(
        f"{policy} plans NaN or infinity for row {row}, whose observation and skill are finite: its weights are too "
        f"extreme to compute with, so they are damaged, or its training diverged; load or train another policy"
    )


def policy_name(policy: PolicyNetwork) -> str:
    """How messages name a policy."""
    return f"the skill policy {getattr(policy, 'name_or_path', None) or '(made in this program)'}"


class NumpyEngine:
    """Plans in float32 numpy with folded weights; one row has a path of its own. Threads may share it."""

    def __init__(self, policy: PolicyNetwork) -> None:
        config = policy.config
        inputs, self._skill_dim = list(config.layout.policy_inputs), config.skill_space.skill_dim
        skills = np.zeros(self._skill_dim, np.float32)
        self._frame = policy.frame
        # The centre is subtracted, not folded into a bias: far from zero that difference would lose digits.
        self._center = np.concatenate([policy.normalizer.center.cpu().numpy()[inputs], skills])
        scale = np.concatenate([policy.normalizer.scale.cpu().numpy()[inputs], skills + 1])
        self._net = NumpyResidualMLP(policy.net.state_dict(), config.depth, scale)
        self._low, self._high, self._action_dim = policy.action_low, policy.action_high, config.action_dim
        self._range = tuple(limit.cpu().numpy() for limit in policy.action_range)
        self._discrete, self._name = config.discrete_actions, policy_name(policy)
        self._bounds: dict[int, tuple[np.ndarray, ...]] = {}

    def __call__(self, inputs: np.ndarray, skills: np.ndarray, steps: int) -> np.ndarray:
        if len(inputs) == 1:
            return require_finite(self._row(inputs[0], skills[0], steps)[None], self._name, inputs, skills)
        if len(inputs) <= _ROWS:
            return self.rows(inputs, skills, steps)
        joined = np.concatenate((inputs, skills), axis=1)
        if self._frame is not None:
            self._frame.enter(joined.T, NUMPY)
        plans = self._actions(joined, steps).reshape(len(inputs), steps, self._action_dim)
        return require_finite(plans, self._name, inputs, skills)

    def rows(self, inputs: np.ndarray, skills: np.ndarray, steps: int) -> np.ndarray:
        """As calling the engine, with each row computed alone."""
        plans = np.empty((len(inputs), steps, self._action_dim), np.float32)
        for i in range(len(plans)):
            plans[i] = self._row(inputs[i], skills[i], steps)
        return require_finite(plans, self._name, inputs, skills)

    def _row(self, inputs: np.ndarray, skill: np.ndarray, steps: int) -> np.ndarray:
        if self._frame is None:
            joined = np.concatenate((inputs, skill))
        else:
            numbers = inputs.tolist() + skill.tolist()
            self._frame.enter(numbers, MATH)  # on a few numbers, Python's floats are ten times as fast as arrays
            joined = np.array(numbers, np.float32)
        return self._actions(joined, steps).reshape(steps, self._action_dim)

    def _actions(self, joined: np.ndarray, steps: int) -> np.ndarray:
        joined -= self._center
        outputs = steps * self._action_dim
        actions = self._net(joined, joined[..., -self._skill_dim :], outputs)
        if self._discrete:
            choices = actions.reshape(*actions.shape[:-1], steps, self._action_dim)
            chosen = np.where(np.arange(self._action_dim) == choices.argmax(-1)[..., None], self._high, self._low)
            if not np.isfinite(choices).all():  # the largest of these would be some action nevertheless
                chosen[~np.isfinite(choices).all(-1)] = np.nan
            return chosen
        low, high, middle, half = self._bounds.get(steps) or self._tile_bounds(steps)
        np.tanh(actions, out=actions)
        actions *= half
        actions += middle
        np.minimum(actions, high, out=actions)  # rounding must not leave the bounds
        return np.maximum(actions, low, out=actions)

    def _tile_bounds(self, steps: int) -> tuple[np.ndarray, ...]:
        low, high = (limit.astype(np.float64) for limit in self._range)
        kinds = (self._low, self._high, (low + high) / 2, (high - low) / 2)
        self._bounds[steps] = tuple(np.tile(kind, steps).astype(np.float32) for kind in kinds)
        return self._bounds[steps]


class TorchEngine:
    """Plans in eager torch on the policy's device, with `dtype` for the network's arithmetic."""

    def __init__(self, policy: PolicyNetwork, dtype: torch.dtype | None = None) -> None:
        self._policy, self._name = _rounded(policy, dtype), policy_name(policy)

    def __call__(self, inputs: np.ndarray, skills: np.ndarray, steps: int) -> np.ndarray:
        with torch.inference_mode():
            joined = torch.from_numpy(np.concatenate((inputs, skills), axis=1)).to(self._policy.device)
            plans = self._policy.emit(joined, steps).cpu().numpy()
        return require_finite(plans, self._name, inputs, skills)

    def rows(self, inputs: np.ndarray, skills: np.ndarray, steps: int) -> np.ndarray:
        """As calling the engine, with each row computed alone."""
        plans = np.empty((len(inputs), steps, self._policy.config.action_dim), np.float32)
        for i in range(len(plans)):
            plans[i] = self(inputs[i : i + 1], skills[i : i + 1], steps)[0]
        return plans


class CpuEngine:
    """Numpy up to the batch size to which it was measured to be faster, then torch; torch alone for huge networks."""

    def __init__(self, policy: PolicyNetwork) -> None:
        self._torch = TorchEngine(policy)
        self._numpy = NumpyEngine(policy) if _is_small(policy) else self._torch

    def __call__(self, inputs: np.ndarray, skills: np.ndarray, steps: int) -> np.ndarray:
        return (self._numpy if len(inputs) <= _NUMPY_BATCH else self._torch)(inputs, skills, steps)


class RowEngine:
    """Plans each row alone: a plan for n environments is, bit for bit, n plans for one, on whatever device.

    In numpy for MLPs, for U-Nets and huge networks in torch on the CPU.
    """

    def __init__(self, policy: PolicyNetwork) -> None:
        in_numpy = policy.config.network == "mlp" and _is_small(policy)
        self._engine = NumpyEngine(policy) if in_numpy else TorchEngine(copy.deepcopy(policy).cpu())

    def __call__(self, inputs: np.ndarray, skills: np.ndarray, steps: int) -> np.ndarray:
        return self._engine.rows(inputs, skills, steps)


@dataclass(frozen=True)
class Recording:
    """A plan of fixed size that can be made again: write `staged`, call `replay`, read `actions`."""

    staged: np.ndarray
    """`(size, len(policy_inputs) + skill_dim)`."""
    actions: np.ndarray
    """`(size, steps, action_dim)`."""
    replay: Callable[[], None]
    """Returns when `actions` is written."""


class CudaGraphEngine:
    """Plans on a GPU with one graph launch between two copies, and one wait, per plan; for one thread.

    A graph has a fixed batch size, so batches are padded to the next power of two, and each size and number of steps
    is recorded when it is first asked for. Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    _device_type = "cuda"

    def __init__(self, policy: PolicyNetwork, dtype: torch.dtype | None = None) -> None:
        if policy.device.type != self._device_type:
            raise ValueError(
                f"the 'cuda-graph' engine needs the policy on a CUDA device, got {policy.device}; "
                f"move it with policy.to('cuda'), or use the 'auto' engine"
            )
        self._policy, self._name = _rounded(policy, dtype), policy_name(policy)
        self._recordings: dict[tuple[int, int], Recording] = {}

    def __call__(self, inputs: np.ndarray, skills: np.ndarray, steps: int) -> np.ndarray:
        n, read = inputs.shape
        key = (1 << max(n - 1, 0).bit_length(), steps)
        if key not in self._recordings:
            if len(self._recordings) == _RECORDINGS:
                del self._recordings[next(iter(self._recordings))]
            self._recordings[key] = self._record(*key)
        recording = self._recordings[key]
        recording.staged[:n, :read], recording.staged[:n, read:] = inputs, skills
        recording.replay()
        return require_finite(recording.actions[:n].copy(), self._name, inputs, skills)

    def _record(self, size: int, steps: int) -> Recording:
        policy, config = self._policy, self._policy.config
        width = len(config.layout.policy_inputs) + config.skill_space.skill_dim
        staged = torch.zeros(
            size, width, dtype=torch.float32, pin_memory=True
        )  # only pinned memory is copied while the host goes on
        actions = torch.zeros(size, steps, config.action_dim, dtype=torch.float32, pin_memory=True)
        with torch.cuda.device(policy.device), torch.no_grad():
            joined, side = staged.to(policy.device), torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    policy.emit(joined, steps)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                planned = policy.emit(joined, steps).contiguous()

        def replay() -> None:
            with torch.cuda.device(policy.device):
                joined.copy_(staged, non_blocking=True)
                graph.replay()
                actions.copy_(planned, non_blocking=True)
                torch.cuda.current_stream().synchronize()

        return Recording(staged.numpy(), actions.numpy(), replay)


class WeightWatch:
    """Notices that a module's weights were written to or replaced since this watch began, at a cost of a few us.

    Writes to a tensor raise its version, `Parameter.data = ...` changes where it lies, and replacing a parameter or a
    submodule changes the module's own tables. What none of these shows is a write through `Parameter.data`, and a step
    of a fused optimiser: so weights that require a gradient always count as changed.
    """

    def __init__(self, module: nn.Module) -> None:
        tables = [table for part in module.modules() for table in (part._parameters, part._buffers, part._modules)]
        places = [(table, name, entry) for table in tables for name, entry in table.items()]
        self._tables, self._names, self._entries = zip(*places, strict=True)
        self._parameters, self._buffers = list(module.parameters()), list(module.buffers())
        self._state = self._read()

    @property
    def changed(self) -> bool:
        """Whether a plan made from a copy of the weights could differ from one made from the module."""
        return (
            any(map(_TRAINABLE, self._parameters))
            or self._read() != self._state
            or not all(map(operator.is_, map(dict.get, self._tables, self._names), self._entries))
        )

    def _read(self) -> tuple[list[int], list[int], list[int]]:
        versions, places = map(_VERSION, self._parameters), map(Tensor.data_ptr, self._parameters)
        return list(versions), list(places), list(map(_VERSION, self._buffers))


class _Rounded(nn.Module):
    """A network that computes in `dtype` between float32 inputs and outputs."""

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.dtype = net.to(dtype), dtype

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.net(x.to(self.dtype), condition.to(self.dtype)).float()


def _rounded(policy: PolicyNetwork, dtype: torch.dtype | None) -> PolicyNetwork:
    """The policy itself, or a copy whose network computes in `dtype`."""
    if dtype is None:
        return policy
    policy = copy.deepcopy(policy)
    policy.net = _Rounded(policy.net, dtype)
    return policy


def _is_small(policy: PolicyNetwork) -> bool:
    return sum(parameter.numel() for parameter in policy.parameters()) <= _NUMPY_NUMBERS


def _low_precision(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The dtype where it is not float32, which every network already has."""
    known = {"float32": None, "bfloat16": torch.bfloat16}
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in known:
        raise ValueError(f"dtype: expected one of {', '.join(map(repr, known))}, got {dtype!r}")
    return known[name]
