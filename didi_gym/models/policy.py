"""The skill policy: pi(trajectory | observation, z) in one forward pass, self-contained and deployable."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from didi_gym import hub
from didi_gym.core.files import SafeFileError
from didi_gym.core.frames import turn
from didi_gym.models.config import PolicyConfig
from didi_gym.models.dynamics import DynamicsEnsemble
from didi_gym.models.engines import (
    Engine,
    EngineName,
    TorchEngine,
    WeightWatch,
    check_arguments,
    make_engine,
    policy_name,
    require_finite,
)
from didi_gym.models.folder import TRAINING_FILE, WEIGHTS_FILE, read_config, write_policy
from didi_gym.models.policy_network import PolicyNetwork
from didi_gym.models.publishing import push_policy
from didi_gym.models.weights import load_network

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True)
class Plan(Generic[Array]):
    """What a policy imagines, in environment units: arrays where arrays were given, tensors where tensors were."""

    actions: Array
    """`(n, horizon, action_dim)`, inside the action bounds; without imagined states only those of one pass of the
    policy, `(n, actions_per_plan, action_dim)`."""
    observations: Array | None
    """Imagined states `(n, horizon, state_dim)`, relative dimensions counted from the start; None where the policy was
    loaded without its dynamics model."""


class SkillPolicy(PolicyNetwork):
    """The contextual policy pi(trajectory | observation, z).

    `forward` speaks normalised units in the trajectory's own frame; `plan`, `plan_actions` and `act` speak environment
    units in the world's frame. These take arrays and return arrays, or take tensors on the policy's device and return
    tensors there, without waiting for the device: NaN or infinity in an array is an error, but a tensor that holds one
    is not looked into and makes NaN actions. Source: DIDI (Liu et al., ICML 2024, arXiv 2405.14790).
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__(config)
        self.name_or_path: str | None = None
        self.revision: str | None = None  # the commit of the weights, where they came from the Hub
        self._dynamics: list[DynamicsEnsemble] = []  # in a list: no part of the policy's weights
        self._engine: tuple[Engine, WeightWatch] | None = None  # a snapshot, and whether it still holds

    # -- what it is ------------------------------------------------------------------------------------------------
    @property
    def commit_hash(self) -> str | None:
        """The commit on the Hub that the weights came from, 40 hex digits; None where they did not."""
        return self.revision

    @property
    def dynamics(self) -> DynamicsEnsemble | None:
        """The dynamics model it was trained with, where that was loaded; only imagined states need it."""
        return self._dynamics[0] if self._dynamics else None

    def attach_dynamics(self, model: DynamicsEnsemble | None) -> None:
        """Let `plan` imagine states through `model`, which does not become part of the policy's weights."""
        self._dynamics = [] if model is None else [model]

    # -- acting ------------------------------------------------------------------------------------------------------
    def plan_actions(self, inputs: Array, skills: Array, steps: int | None = None) -> Array:
        """Plan the first `steps` actions (default: all that one pass emits, the horizon or `plan_length`).

        Args:
            inputs: What the policy reads, `(n, len(policy_inputs))`, environment units; an array, or a tensor on the
                policy's device.
            skills: `(n, skill_dim)`, of the same kind.

        Returns:
            float32 `(n, steps, action_dim)`, environment units inside the bounds, of the same kind.

        Raises:
            ValueError: wrong shapes, more steps than the horizon, NaN or infinity in an array, arrays beside tensors,
                or another device; of arrays, a plan that is not finite.
        """
        inputs, skills = check_arguments(self, inputs, skills)
        most = self.config.actions_per_plan
        if steps is None:
            steps = most
        elif not 1 <= steps <= most:
            raise ValueError(f"steps must be in 1..{most}, the policy's horizon or plan_length, got {steps}")
        if isinstance(inputs, Tensor):
            with torch.no_grad():
                return self.emit(torch.cat([inputs, skills], dim=-1), steps)
        if self._engine is None or self._engine[1].changed:
            watch = WeightWatch(self)
            if watch.changed:  # in training: no snapshot would hold
                self._engine = None
                return TorchEngine(self)(inputs, skills, steps)
            self._engine = self.engine(), watch
        return self._engine[0](inputs, skills, steps)

    def act(self, inputs: Array, skills: Array) -> Array:
        """The next action `(n, action_dim)` for each row: the closed loop of the paper, a new plan every step."""
        return self.plan_actions(inputs, skills, 1)[:, 0]

    def plan(self, inputs: Array, skills: Array, *, replan_every: int | None = None) -> Plan[Array]:
        """Plan whole trajectories, with the states they lead to where a dynamics model (or the joint form) tells.

        Args:
            inputs: What the policy reads, `(n, len(policy_inputs))`, environment units; an array, or a tensor on the
                policy's device.
            skills: `(n, skill_dim)`, of the same kind.
            replan_every: Imagine that the policy plans again after so many steps, from the imagined state, as it is
                executed; default: one plan for all. Without imagined states there is nothing to plan again from.
        """
        inputs, skills = check_arguments(self, inputs, skills)
        if self.dynamics is None and not self._joint:
            return Plan(self.plan_actions(inputs, skills), None)
        if isinstance(inputs, Tensor):
            return Plan(*self._imagine(torch.cat([inputs, skills], dim=-1), replan_every))
        joined = torch.from_numpy(np.concatenate([inputs, skills], axis=-1)).to(self.device)
        planned = [part.cpu().numpy() for part in self._imagine(joined, replan_every)]
        for part in planned:
            require_finite(part, policy_name(self), inputs, skills)
        return Plan(*planned)

    def engine(
        self, name: EngineName = "auto", *, dtype: str | torch.dtype | None = None, batch_invariant: bool = False
    ) -> Engine:
        """A function `(inputs, skills, steps) -> actions` that plans in a given way; see `didi_gym.models.engines`.

        It is a snapshot of the policy: ask again after a change of weights or device. (`plan_actions` and `act` notice
        such a change by themselves.)

        Args:
            name: "numpy", "torch" or "cuda-graph"; "auto" is the one that `plan_actions` uses: numpy on a CPU
                (torch for many thousands of rows and for U-Nets), a CUDA graph on a GPU.
            dtype: Arithmetic of the network, "float32" (default) or "bfloat16" (torch and CUDA graphs only).
            batch_invariant: Plan each row alone, on the CPU: slower for many rows, but a row's plan is then the same
                bit for bit whatever else is in the batch, and on whatever device the policy is.

        Raises:
            ValueError: an unknown name or dtype, or a combination that cannot be; the message says what to do.
        """
        return make_engine(self, name, dtype, batch_invariant)

    @torch.no_grad()
    def _imagine(self, joined: Tensor, replan_every: int | None) -> tuple[Tensor, Tensor]:
        """Actions and states of whole trajectories, environment units, from policy inputs and skills side by side."""
        inputs, skills, yaw = self.localize(joined)
        first = inputs.new_zeros(len(inputs), self.config.layout.state_dim)
        first[:, self.input_indices] = inputs  # what the policy does not read is relative, hence zero at the start
        states, actions = self.trajectory(self.normalizer.normalize(first), skills, self.dynamics, replan_every)
        states = self.normalizer.denormalize(states)
        if yaw is not None:
            assert self.config.layout.heading is not None
            states = turn(states, yaw[:, None], self.config.layout.heading)
        return self.to_environment(actions), states

    def _apply(self, fn: Any, recurse: bool = True) -> SkillPolicy:
        self._engine = None
        for model in self._dynamics:
            model._apply(fn)
        return super()._apply(fn, recurse)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._engine = None
        return super().load_state_dict(*args, **kwargs)

    def train(self, mode: bool = True) -> SkillPolicy:
        self._engine = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engine": None}  # made again where it is needed; a CUDA graph cannot be copied

    # -- folders -----------------------------------------------------------------------------------------------------
    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `config.json` and `model.safetensors` into `folder` (made if absent); each file appears whole."""
        return write_policy(self, folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: str | Path | None = None,
        extra: Mapping[str, str | Path] | None = None,
        license: str | None = None,
        tag: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Publish this policy on the Hugging Face Hub in one commit, and compare what comes back bit for bit.

        Where the Hub has all of it already, nothing is committed.

        Args:
            repo_id: `owner/name`, made if absent.
            card: Model card as text, or the file (a Path) that holds it; default: one made from the policy, unless the
                card on the Hub was edited by hand, which then stays.
            extra: Further files, path in the repository -> file. A `results.json` goes into the card too, and a
                `skill_map.png` and a `replay.mp4` are shown in it.
            license: Of the weights, for the card, as the Hub names it, e.g. mit.
            tag: Name for the commit, which the card then loads; one that names another policy is refused.
            private: Of a repository that this makes; None: the owner's default. One that is otherwise is refused.
            token: Default: the one of `hf auth login`, or HF_TOKEN.
            branch: Default: main; made if absent.
            create_pr: Open a pull request instead of committing to main.

        Returns:
            The commit (`oid`, `commit_url`, `pr_url`), or the present one where nothing had changed.

        Raises:
            SkillPolicyHubError: nothing was pushed, unless the message says so; it also says what to do.
        """
        return push_policy(
            self,
            repo_id,
            check=partial(SkillPolicy.from_pretrained, device="cpu"),
            card=card,
            extra=extra,
            license=license,
            tag=tag,
            private=private,
            token=token,
            branch=branch,
            create_pr=create_pr,
        ).commit

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device = "auto",
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> SkillPolicy:
        """Load a skill policy from a bundled name, a folder, or the Hugging Face Hub (`owner/name[@revision]`).

        Only a Hub id touches the network, for one commit with all files, which `commit_hash` tells; a commit that is in
        the cache costs no request. Loading is strict, and only safetensors are ever read.

        Args:
            revision: On the Hub: a branch, a tag, `refs/pr/1` or a commit, which alone always means the same weights.
                Default: the branch main.
            device: "auto" takes a GPU where there is one.
            token: For private and gated models; default: the one of `hf auth login`, or HF_TOKEN.
            cache_dir: Where downloads are kept; default: the Hub client's cache.
            local_files_only: Take what is in the cache, without a network.
            force_download: Fetch the files again, e.g. where the cache is damaged.

        Raises:
            SkillPolicyHubError: nothing there, or not a readable skill policy; the message says what to do.
        """
        folder, commit = hub.resolve(
            name_or_path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        config = read_config(folder)
        try:
            policy = load_network(lambda: cls(config), folder / WEIGHTS_FILE, sha256=config.weights_sha256)
            _require_sound(policy, folder / WEIGHTS_FILE)
            if os.path.lexists(folder / TRAINING_FILE) and config.consistency == "dynamics":
                policy.attach_dynamics(DynamicsEnsemble.from_training(folder / TRAINING_FILE, policy.config))
        except SafeFileError as error:
            raise hub.SkillPolicyHubError(str(error)) from error
        local = os.path.abspath(Path(name_or_path).expanduser())  # of the folder that is the present one now
        given = local if commit is None and os.path.isdir(local) else str(name_or_path)
        policy.name_or_path = given if commit is None else given.partition("@")[0]
        policy.revision = commit
        return policy.eval().requires_grad_(False).to(pick_device(device))


def pick_device(device: str | torch.device) -> torch.device:
    """The device meant: "auto" is a GPU where there is one.

    Raises:
        ValueError: no device of torch, or one that this computer does not have.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: expected auto, cpu, cuda, cuda:1 or mps, got {device!r}") from error
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    count = there.get(chosen.type)
    if count is not None and (chosen.index or 0) >= count:
        raise ValueError(
            f"device: {chosen} was asked for, but torch finds {count or 'no'} {chosen.type} device"
            f"{'' if count == 1 else 's'} on this computer; use cpu or auto"
        )
    try:
        torch.empty(0, device=chosen)
    except Exception as error:  # each kind of device has its own
        raise ValueError(f"device: torch cannot use {chosen} here ({error}); use cpu or auto") from error
    return chosen


def _require_sound(policy: SkillPolicy, path: Path) -> None:
    """Raise SafeFileError for finite weights that no policy can have."""
    if not (policy.normalizer.scale > 0).all():
        raise SafeFileError(f"{path} is damaged: normalizer.scale must be positive; fetch or write it again")
    if not (policy.low <= policy.high).all():
        raise SafeFileError(f"{path} is damaged: action bounds low exceed high; fetch or write it again")
    least, most = policy.action_range
    if not (policy.low <= least).all() or not (most <= policy.high).all():
        raise SafeFileError(f"{path}: the action bounds in it must hold action_range of config.json; fetch both again")
