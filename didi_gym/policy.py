"""The skill policy: pi(trajectory | observation, z) in one forward pass, self-contained and deployable."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from didi_gym import hub
from didi_gym.config import PolicyConfig, from_dict, to_dict
from didi_gym.dynamics import DynamicsEnsemble
from didi_gym.frames import inputs_to_state, localize, turn, turn_skill
from didi_gym.networks import NumpyResidualMLP, ResidualMLP
from didi_gym.normalization import Normalizer
from didi_gym.skills import SkillSpace
from didi_gym.tensors import SafeFileError, load_tensors, load_weights, write_atomically, write_tensors

CONFIG_FILE, WEIGHTS_FILE, TRAINING_FILE = "config.json", "model.safetensors", "training.safetensors"
_NUMPY_BATCH = 32  # below this numpy beats torch on a CPU (benchmarks/plan_latency.py)


@dataclass(frozen=True)
class Plan:
    """What a policy imagines, in environment units."""

    actions: np.ndarray
    """`(n, horizon, action_dim)`, inside the action bounds."""
    observations: np.ndarray | None
    """Imagined states `(n, horizon, state_dim)`, relative dimensions counted from the start; None where the policy was
    loaded without its dynamics model."""


class SkillPolicy(nn.Module):
    """The contextual policy pi(trajectory | observation, z).

    `forward` speaks normalised units in the trajectory's own frame; `plan`, `plan_actions` and `act` speak environment
    units in the world's frame. Source: DIDI (Xu et al., ICML 2024, arXiv 2405.14790).
    """

    low: Tensor
    high: Tensor

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.name_or_path: str | None = None
        self.revision: str | None = None
        layout = config.layout
        self._inputs = list(layout.policy_inputs)
        self._joint = config.consistency == "joint"
        # joint: states 1..H-1 as changes from the first, then actions; actions come first to be sliced off cheaply
        outputs = config.horizon * config.action_dim
        if self._joint:
            outputs += (config.horizon - 1) * layout.state_dim
        skill_dim = config.skill_space.skill_dim
        self.net = ResidualMLP(len(self._inputs) + skill_dim, outputs, skill_dim, config.width, config.depth)
        self.normalizer = Normalizer(layout.state_dim)
        self.register_buffer("low", -torch.ones(config.action_dim))
        self.register_buffer("high", torch.ones(config.action_dim))
        self._dynamics: list[DynamicsEnsemble] = []  # in a list: no part of the policy's weights
        self._acting: _NumpyPolicy | None = None

    # -- what it is ------------------------------------------------------------------------------------------------
    @property
    def skill_space(self) -> SkillSpace:
        return self.config.skill_space

    @property
    def device(self) -> torch.device:
        return self.low.device

    @property
    def action_low(self) -> np.ndarray:
        """Lower action bounds `(action_dim,)`, environment units."""
        return self.low.cpu().numpy()

    @property
    def action_high(self) -> np.ndarray:
        """Upper action bounds `(action_dim,)`, environment units."""
        return self.high.cpu().numpy()

    @property
    def dynamics(self) -> DynamicsEnsemble | None:
        """The dynamics model it was trained with, where that was loaded; only imagined states need it."""
        return self._dynamics[0] if self._dynamics else None

    def attach_dynamics(self, model: DynamicsEnsemble | None) -> None:
        """Let `plan` imagine states through `model`, which does not become part of the policy's weights."""
        self._dynamics = [] if model is None else [model]

    # -- training ----------------------------------------------------------------------------------------------------
    def forward(self, inputs: Tensor, skills: Tensor) -> tuple[Tensor, Tensor | None]:
        """Emit trajectories for normalised policy inputs and skills in the trajectory's frame.

        Args:
            inputs: `(batch, len(policy_inputs))`.
            skills: `(batch, skill_dim)`.

        Returns:
            Actions `(batch, horizon, action_dim)` in [-1, 1]; in the joint form also states
            `(batch, horizon - 1, state_dim)` from the second on, as changes from the first; else None.
        """
        config = self.config
        output = self.net(torch.cat([inputs, skills], dim=-1), skills)
        actions = output[:, : config.horizon * config.action_dim].tanh().unflatten(1, (config.horizon, -1))
        if not self._joint:
            return actions, None
        changes = output[:, config.horizon * config.action_dim :].unflatten(1, (config.horizon - 1, -1))
        return actions, changes

    def trajectory(
        self, first: Tensor, skills: Tensor, dynamics: DynamicsEnsemble | None, replan_every: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Normalised states `(batch, horizon, state_dim)` and actions from first states `(batch, state_dim)`.

        The states follow from the actions through `dynamics`, with a new plan every `replan_every` steps (default: one
        plan for all), as the policy is executed; in the joint form they are the policy's own, in one plan.
        """
        horizon = self.config.horizon
        if self._joint:
            actions, changes = self(first[:, self._inputs], skills)
            assert changes is not None
            return torch.cat([first[:, None], first[:, None] + changes], dim=1), actions
        if dynamics is None:
            raise ValueError("this policy emits actions only: its states need the dynamics model it was trained with")
        every = replan_every or horizon
        states, actions = first[:, None], first.new_empty(len(first), 0, self.config.action_dim)
        while actions.shape[1] < horizon:
            here, turned = (first, skills) if actions.shape[1] == 0 else self._reframe(states[:, -1], skills)
            chunk = self(here[:, self._inputs], turned)[0][:, : min(every, horizon - actions.shape[1])]
            states = torch.cat([states, dynamics.rollout(states[:, -1], chunk)[:, 1:]], dim=1)
            actions = torch.cat([actions, chunk], dim=1)
        return states[:, :horizon], actions

    def _reframe(self, states: Tensor, skills: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised states and skills seen from the states' own frame."""
        if self.config.layout.heading is None:
            return states, skills  # relative positions are not read
        here, turned, _ = self._enter_frame(self.normalizer.denormalize(states), skills)
        return here, turned

    # -- acting ------------------------------------------------------------------------------------------------------
    def plan_actions(self, inputs: np.ndarray, skills: np.ndarray, steps: int | None = None) -> np.ndarray:
        """Plan the first `steps` actions (default: the whole horizon).

        Args:
            inputs: What the policy reads, `(n, len(policy_inputs))`, environment units.
            skills: `(n, skill_dim)`.

        Returns:
            float32 `(n, steps, action_dim)`, environment units inside the bounds.

        Raises:
            ValueError: wrong shapes.
        """
        inputs, skills = self._check(inputs, skills)
        steps = self.config.horizon if steps is None else steps
        if len(inputs) <= _NUMPY_BATCH and self.device.type == "cpu":
            if self._acting is None:
                self._acting = _NumpyPolicy(self)
            return self._acting(inputs, skills, steps)
        with torch.inference_mode():
            state = torch.as_tensor(inputs_to_state(inputs, self.config.layout), device=self.device)
            first, local_skills, _ = self._enter_frame(state, torch.as_tensor(skills, device=self.device))
            actions = self(first[:, self._inputs], local_skills)[0][:, :steps]
            return self._to_environment(actions).cpu().numpy()

    def act(self, observations: np.ndarray, skills: np.ndarray) -> np.ndarray:
        """The next action `(n, action_dim)` for each row: the closed loop of the paper, a new plan every step."""
        return self.plan_actions(observations, skills, 1)[:, 0]

    def plan(self, observations: np.ndarray, skills: np.ndarray) -> Plan:
        """Plan whole trajectories, with the states they lead to where a dynamics model (or the joint form) tells.

        Args:
            observations: What the policy reads, `(n, len(policy_inputs))`, environment units.
            skills: `(n, skill_dim)`.
        """
        observations, skills = self._check(observations, skills)
        if self.dynamics is None and not self._joint:
            return Plan(self.plan_actions(observations, skills), None)
        with torch.inference_mode():
            state = torch.as_tensor(inputs_to_state(observations, self.config.layout), device=self.device)
            first, local_skills, yaw = self._enter_frame(state, torch.as_tensor(skills, device=self.device))
            states, actions = self.trajectory(first, local_skills, self.dynamics)
            states = self.normalizer.denormalize(states)
            if yaw is not None:
                assert self.config.layout.heading is not None
                states = turn(states, yaw[:, None], self.config.layout.heading)
            return Plan(self._to_environment(actions).cpu().numpy(), states.cpu().numpy())

    def _enter_frame(self, states: Tensor, skills: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        local, yaw = localize(states[:, None], self.config.layout)
        if yaw is not None and not self.skill_space.is_discrete:
            skills = turn_skill(skills, -yaw)
        return self.normalizer.normalize(local[:, 0]), skills, yaw

    def _to_environment(self, actions: Tensor) -> Tensor:
        scaled = self.low + (actions + 1) / 2 * (self.high - self.low)
        return torch.minimum(torch.maximum(scaled, self.low), self.high)  # rounding must not leave the bounds

    def _check(self, inputs: Any, skills: Any) -> tuple[np.ndarray, np.ndarray]:
        inputs, skills = np.asarray(inputs, np.float32), np.asarray(skills, np.float32)
        for name, array, width in (
            ("observations", inputs, len(self._inputs)),
            ("skills", skills, self.skill_space.skill_dim),
        ):
            if array.ndim != 2 or array.shape[1] != width:
                raise ValueError(f"{name} must have shape (n, {width}), got {array.shape}")
        if len(inputs) != len(skills):
            raise ValueError(f"one skill per observation: got {len(inputs)} observations and {len(skills)} skills")
        return inputs, skills

    def _apply(self, fn: Any, recurse: bool = True) -> SkillPolicy:
        self._acting = None
        for model in self._dynamics:
            model._apply(fn)
        return super()._apply(fn, recurse)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._acting = None
        return super().load_state_dict(*args, **kwargs)

    def train(self, mode: bool = True) -> SkillPolicy:
        self._acting = None
        return super().train(mode)

    # -- folders -----------------------------------------------------------------------------------------------------
    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `config.json` and `model.safetensors` into `folder` (made if absent); each file appears whole."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / WEIGHTS_FILE, self.state_dict())
        write_atomically(folder / CONFIG_FILE, (json.dumps(to_dict(self.config), indent=2) + "\n").encode())
        return folder

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

        Only a Hub id touches the network. Loading is strict, and only safetensors are ever read.

        Args:
            device: "auto" takes a GPU where there is one.

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
        policy = cls(_read_config(folder))
        try:
            load_weights(policy, load_tensors(folder / WEIGHTS_FILE))
            if (folder / TRAINING_FILE).is_file() and policy.config.consistency == "dynamics":
                policy.attach_dynamics(DynamicsEnsemble.from_training(folder / TRAINING_FILE, policy.config))
        except SafeFileError as error:
            raise hub.SkillPolicyHubError(str(error)) from error
        policy.name_or_path = str(name_or_path) if commit is None else str(name_or_path).partition("@")[0]
        policy.revision = commit
        return policy.eval().requires_grad_(False).to(pick_device(device))


def pick_device(device: str | torch.device) -> torch.device:
    """The device meant: "auto" is a GPU where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def _read_config(folder: Path) -> PolicyConfig:
    """Read `config.json` strictly; the format is checked first, since a newer one may hold unknown keys."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise hub.SkillPolicyHubError(f"{folder} is no skill policy: it has no {CONFIG_FILE}")
    try:
        data = json.loads(path.read_text())
        if not isinstance(data, dict) or data.get("model_type") != "didi":
            raise ValueError('it does not say "model_type": "didi"')
        default = PolicyConfig.__dataclass_fields__["format_version"].default
        if not isinstance(data.get("format_version"), int) or data["format_version"] > default:
            raise hub.SkillPolicyHubError(
                f"{path}: format_version {data.get('format_version')} is newer than this didi_gym reads ({default}); "
                f"upgrade with: pip install -U didi-gym"
            )
        return from_dict(PolicyConfig, data)
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise hub.SkillPolicyHubError(f"{path} is no skill policy configuration: {error}") from error


class _NumpyPolicy:
    """The acting path for small batches: the same arithmetic as the torch path, in float32 numpy."""

    def __init__(self, policy: SkillPolicy) -> None:
        self.layout, self.action_dim = policy.config.layout, policy.config.action_dim
        self.inputs = list(self.layout.policy_inputs)
        self.net = NumpyResidualMLP(policy.net.state_dict(), policy.config.depth)
        self.center = policy.normalizer.center.numpy()[self.inputs]
        self.scale = policy.normalizer.scale.numpy()[self.inputs]
        self.low, self.high = policy.action_low, policy.action_high
        self.turns_skills = not policy.skill_space.is_discrete

    def __call__(self, inputs: np.ndarray, skills: np.ndarray, steps: int) -> np.ndarray:
        if self.layout.heading is not None:
            local, yaw = localize(inputs_to_state(inputs, self.layout)[:, None], self.layout)
            inputs = local[:, 0, self.inputs]
            if self.turns_skills:
                skills = turn_skill(skills, -yaw)
        normalized = (inputs - self.center) / self.scale
        output = self.net(np.concatenate([normalized, skills], axis=-1), skills, steps * self.action_dim)
        actions = np.tanh(output).reshape(len(inputs), steps, self.action_dim)
        scaled = self.low + (actions + np.float32(1)) / 2 * (self.high - self.low)
        return np.clip(scaled, self.low, self.high)
