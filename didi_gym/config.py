"""Settings: frozen dataclasses that are the command line, `config.json` and the documentation at once."""

from __future__ import annotations

import functools
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as checked
from typing_extensions import dataclass_transform

from didi_gym.decoding import STRICT, Config, in_words
from didi_gym.layout import Layout
from didi_gym.skills import SkillSpace

if TYPE_CHECKING:
    from didi_gym.data import TrajectoryDataset

FORMAT_VERSION = 1
MODEL_TYPE = "didi"
MIN_WINDOW = 12  # steps without which no rhythm is seen

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
# What a file may ask for at most: far beyond what is of use, and what no computer is brought down by.
Width = Annotated[int, Field(ge=1, le=8_192)]
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
class PriorConfig:
    """Settings of the diffusion prior over trajectories."""

    steps: Count = 10_000
    """Gradient steps."""
    batch_size: Count = 128
    learning_rate: Rate = 1e-3
    """Peak of a cosine schedule that ends at zero."""
    network: Literal["mlp", "unet"] = "mlp"
    """The denoiser: `mlp`, over the whole trajectory at once; `unet`, the paper's, slower by far."""
    width: Width = 320
    depth: Depth = 3
    """Residual blocks of the MLP."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    diffusion_steps: Noises = 100
    """Noise levels T of the cosine schedule."""
    ema_decay: Share = 0.995


@settings
class DynamicsConfig:
    """Settings of the ensemble of one-step models that makes trajectories consistent during training."""

    steps: Count = 6_000
    batch_size: Count = 128
    learning_rate: Rate = 1e-3
    width: Width = 256
    members: Members = 3
    """Models in the ensemble; each trajectory is rolled out through one of them."""
    unroll: Count = 8
    """Environment steps a prediction is fed back into itself in the loss."""


@settings
class AnchorConfig:
    """Settings for discrete skills: how behaviours are found in the data, and how the policy is anchored in them."""

    window: Annotated[int, Field(ge=MIN_WINDOW)] = 32
    """Environment steps by which a behaviour is recognised."""
    stride: Count = 8
    """Steps from one window to the next."""
    components: Count = 32
    """Principal components of the windows' descriptions that are clustered."""
    rare: float = 0.33
    """A cluster with less than this share of an even split is no behaviour: its steps go with what follows them."""
    scout_steps: Count = 3_000
    """Gradient steps of the policy that refines the assignment."""
    twins: Annotated[float, Field(ge=1)] = 3.0
    """Two skills that take turns are one behaviour where the policy of either errs at most so many times as much on the
    other's data as its own does (geometric mean); 1: none are merged."""
    smoothing: Count = 20
    """Steps over which a policy's action error is averaged in refining."""
    stay: Annotated[float, Field(ge=0.5, le=0.999)] = 0.85
    """Probability with which a behaviour goes on from one step to the next, as refining assumes."""
    steps: int = 14_000
    """Gradient steps of the anchored policy, whose number matters more than anything else here; 0: no anchor."""
    batch_size: Count = 512
    learning_rate: Rate = 1e-3
    weight: float = 20.0
    """Weight of the anchor in the joint objective."""
    tuning_steps: Annotated[int, Field(ge=0)] = 0
    """Gradient steps of the joint objective, which only tunes an anchored policy (in place of `skills.steps`); none by
    default: they were measured to change little (docs/decisions.md)."""
    tuning_rate: Rate = 1e-4
    """Its learning rate."""
    residual_target: float = 1.0
    """In place of `skills.residual_target`: skills that act as the data does need the prior only where they no longer
    do."""
    ema_decay: Share = 0.995


@settings
class SkillConfig:
    """Settings of the joint DIDI objective: contextual policy and discriminator under the diffusion prior."""

    horizon: Annotated[int, Field(ge=2, le=10_000)] | None = None
    """Length H of a trajectory, in environment steps; default: for anchored skills half of `anchor.window`, else what
    `TrajectoryDataset.suggest_horizon` finds."""
    skill_space: SkillSpace = field(default_factory=lambda: SkillSpace("ball", 2))
    """Continuous skills for data that varies continuously (directions, goals); `discrete` for a mixture of behaviours
    (gaits): about one and a half times as many as expected, since what is rare or was cut in two is merged."""
    anchor: AnchorConfig = field(default_factory=AnchorConfig)
    """For discrete skills: how behaviours are found in the data and anchor the policy."""
    plan_length: int | None = None
    """Actions one pass of the policy emits; default: the horizon, for anchored skills 1 (feedback)."""
    consistency: Literal["dynamics", "joint"] = "dynamics"
    """`dynamics`: states follow from the actions through the learned dynamics; `joint`: the paper's form, the policy
    emits states beside actions."""
    steps: Count = 2_500
    batch_size: Count = 128
    learning_rate: Rate = 1e-3
    network: Literal["mlp", "unet"] = "mlp"
    """The policy's: see `PriorConfig.network`."""
    width: Width = 256
    depth: Depth = 3
    unet: UNetConfig = field(default_factory=UNetConfig)
    plans: Annotated[tuple[Count, ...], Field(min_length=1)] = (8, 4, 2, 1)
    """Plans that make up one trajectory in training, drawn from these per batch: plans are trained as they are
    executed, each to its first part. 1 is the paper's single pass; `consistency="joint"` always has one."""
    diversity_weight: Weight = 1.0
    """Weight of the mutual-information lower bound."""
    residual_target: Weight = 0.6
    """Dual ascent holds the policy's denoising residual at this multiple of the data's own; 0 keeps the weight."""
    diversity_floor: float = 0.75
    """Share of z that the discriminator must explain (R^2, or mutual information over its ceiling) for dual ascent to
    raise the guidance weight: below it, a stronger prior would buy fidelity with collapsed skills."""
    guidance_weight: Weight = 3.0
    """Weight of the diffusion regulariser, at the start where dual ascent tunes it."""
    guidance_weight_max: float = 100.0
    dual_rate: Weight = 0.05
    noise_range: tuple[float, float] = (0.1, 0.7)
    """Noise levels at which the prior judges, as fractions of T."""
    feature_noise: Weight = 0.25
    """Noise on the discriminator's input, in standard deviations of the data's features: what cannot be told apart at
    this resolution does not count as different."""
    feature_times: Count = 4
    """Instants, evenly spaced over the horizon, at which the discriminator looks."""
    discriminator_width: Width = 128
    ema_decay: Share = 0.99

    def __post_init__(self) -> None:
        longest = (self.horizon or 8) - 1
        if self.feature_times > longest:
            raise ValueError(f"feature_times must be in 1..{longest}, got {self.feature_times}")
        low, high = self.noise_range
        if not 0 <= low < high <= 1:
            raise ValueError(f"noise_range must satisfy 0 <= low < high <= 1, got {self.noise_range}")

    @property
    def is_anchored(self) -> bool:
        """Whether skills are behaviours found in the data: discrete ones are, unless `anchor.steps` is 0."""
        return self.skill_space.is_discrete and self.anchor.steps > 0 and self.consistency == "dynamics"

    def horizon_for(self, dataset: TrajectoryDataset) -> int:
        """`horizon`, or its default, which for anchored skills asks that most episodes are as long."""
        if self.horizon is not None:
            return self.horizon
        rhythm = self.anchor.window // 2
        longer = (dataset.lengths >= rhythm).mean() >= 0.5
        return rhythm if self.is_anchored and longer else dataset.suggest_horizon()

    def plan_length_of(self, horizon: int) -> int:
        """`plan_length`, or its default."""
        return self.plan_length or (1 if self.is_anchored else horizon)


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
    dataset_id: str | None = None
    env_id: str | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    model_type: str = MODEL_TYPE
    format_version: int = FORMAT_VERSION
    didi_gym_version: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.actions_per_plan <= self.horizon:
            raise ValueError(f"plan_length must be in 1..{self.horizon}, the horizon, got {self.plan_length}")
        if self.replan_every > self.actions_per_plan:
            raise ValueError(f"replan_every {self.replan_every} exceeds the {self.actions_per_plan} actions of a plan")
        if self.consistency == "joint" and self.actions_per_plan != self.horizon:
            raise ValueError('consistency="joint" emits whole trajectories: leave plan_length out')
        if self.layout.heading is not None:
            self.skill_space.require_rotatable()

    @property
    def actions_per_plan(self) -> int:
        """`plan_length`, or the horizon where that is None."""
        return self.horizon if self.plan_length is None else self.plan_length
