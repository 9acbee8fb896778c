"""What `config.json` of a policy folder records, and how settings are declared: with bounds, checked when made."""

from __future__ import annotations

import functools
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as checked
from typing_extensions import dataclass_transform

from didi_gym.core.layout import Layout
from didi_gym.core.schema import STRICT, Config, in_words
from didi_gym.core.skill_space import SkillSpace

FORMAT_VERSION = 1
MODEL_TYPE = "didi"

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
# What a file may ask for at most: far beyond what is of use, and what no computer is brought down by.
MAX_WIDTH = 8_192
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]
Depth = Annotated[int, Field(ge=1, le=256)]
Levels = Annotated[tuple[Width, ...], Field(min_length=1, max_length=8)]
Members = Annotated[int, Field(ge=1, le=256)]
Noises = Annotated[int, Field(ge=2, le=100_000)]
Steps = Annotated[int, Field(ge=1, le=10_000)]


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def settings(cls: type[Config]) -> type[Config]:
    """A frozen dataclass that checks types and bounds of its fields when it is made."""
    made: Any = checked(frozen=True, config=STRICT)(cls)
    check = made.__init__

    @functools.wraps(check)
    def __init__(*args: Any, **kwargs: Any) -> None:
        with in_words(cls):
            check(*args, **kwargs)

    made.__init__ = __init__
    return made


@settings
class UNetConfig:
    """Sizes of a temporal U-Net, where that is the network; as in DIDI's released code."""

    channels: Width = 32
    """Channels that the multipliers multiply, and size of the embedded condition."""
    multipliers: Levels = (1, 4, 8)
    """One for each level. Between levels the horizon is halved, so each further one more than doubles how far a step
    sees: three see 141 steps to either side."""


@settings
class PolicyConfig:
    """What `config.json` of a policy folder records."""

    horizon: Steps
    action_dim: Annotated[int, Field(ge=1, le=4_096)]
    layout: Layout
    skill_space: SkillSpace
    skill_duration: Annotated[int, Field(ge=1, le=1_000_000)]
    """Default environment steps per skill."""
    replan_every: Count
    """Default environment steps executed of each plan."""
    width: Width
    depth: Depth
    plan_length: int | None = None
    """Actions emitted by one pass of the network: the whole horizon where None (the paper's form), 1 for a feedback
    policy a = pi(observation, z)."""
    consistency: Literal["dynamics", "joint"] = "dynamics"
    network: Literal["mlp", "unet"] = "mlp"
    """`mlp`: of `width` and `depth`; `unet`: the paper's temporal U-Net, of the sizes in `unet`."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    discrete_actions: bool = False
    """The environment's actions are `Discrete(action_dim)`: of an action's numbers, the largest names what is done."""
    action_range: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """The lowest and the highest actions that the network scales to [-1, 1], environment units, where they are not the
    action bounds: actions of data that uses a small part of wide bounds. The bounds then only clip."""
    dataset_id: str | None = None
    env_id: str | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    env_spec: Annotated[str, Field(max_length=100_000)] | None = None
    """The data's environment with its wrappers, as JSON of Gymnasium's `EnvSpec`; `env_id` and `env_kwargs` do not
    tell the wrappers."""
    step_seconds: Rate | None = None
    """Simulated seconds of one environment step, where the environment of the data says it."""
    weights_sha256: str | None = field(default=None, compare=False)
    """Of the weights beside it (`didi_gym.models.weights.tensors_sha256`), written when the policy is saved and checked
    when it is loaded; None in folders that were written before this was recorded."""
    model_type: str = MODEL_TYPE
    format_version: int = FORMAT_VERSION
    didi_gym_version: str = ""

    def __post_init__(self) -> None:
        for name in ("dataset_id", "env_id", "didi_gym_version"):
            if not (getattr(self, name) or "").isprintable():  # they are printed, and go into model cards
                raise ValueError(f"{name} holds what cannot be printed: {getattr(self, name)!r}")
        if not 1 <= self.actions_per_plan <= self.horizon:
            raise ValueError(f"plan_length must be in 1..{self.horizon}, the horizon, got {self.plan_length}")
        if self.replan_every > self.actions_per_plan:
            raise ValueError(f"replan_every {self.replan_every} exceeds the {self.actions_per_plan} actions of a plan")
        if self.consistency == "joint" and self.actions_per_plan != self.horizon:
            raise ValueError('consistency="joint" emits whole trajectories: leave plan_length out')
        if self.action_range is not None:
            low, high = self.action_range
            if self.discrete_actions or not len(low) == len(high) == self.action_dim:
                raise ValueError(
                    f"action_range: expected {self.action_dim} lowest and as many highest actions, and none where "
                    f"actions are discrete, got {len(low)} and {len(high)}"
                )
            if any(a > b for a, b in zip(low, high, strict=True)):
                raise ValueError("action_range: each lowest action must be at most the highest")
        if self.layout.heading is not None:
            self.skill_space.require_rotatable()

    @property
    def actions_per_plan(self) -> int:
        """`plan_length`, or the horizon where that is None."""
        return self.horizon if self.plan_length is None else self.plan_length
