"""The command `didi-gym train`: its settings, and what it runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from didi_gym.config import DynamicsConfig, PriorConfig, SkillConfig
from didi_gym.data import DatasetError

if TYPE_CHECKING:
    from didi_gym.data import TrajectoryDataset


@dataclass(frozen=True)
class Train:
    """Learn a skill policy from a Minari data set, without rewards: prior, dynamics model, then skills.

    The same command continues a run that was stopped, to the same result.
    """

    dataset: str
    """Minari data set id, e.g. didi/ant-directions-v0."""
    output: Path
    """Folder for the policy (config.json, model.safetensors), training.safetensors and checkpoints."""
    skills: SkillConfig = field(default_factory=SkillConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    seed: int = 0
    device: str = "auto"
    """cpu, cuda, or auto: a GPU where there is one."""
    keys: tuple[str, ...] = ()
    """Keys of a Dict observation to join; default: what the data set says, else `observation`, else all."""
    indices: tuple[int, ...] = ()
    """Which numbers of the observation to keep as the state; default: all."""
    download: bool = False
    """Let Minari fetch the data set if it is not on this disk."""
    reuse: Path | None = None
    """A finished run on the same data and horizon, whose prior and dynamics model to take instead of training them."""


def train(args: Train) -> None:
    from didi_gym.data import TrajectoryDataset
    from didi_gym.policy import pick_device
    from didi_gym.training import TrainConfig, write_run
    from didi_gym.training import train as run

    dataset = TrajectoryDataset.from_minari(
        args.dataset, keys=args.keys or None, indices=args.indices or None, download=args.download
    )
    dataset.require_horizon(2)
    dataset.require_change()
    horizon = args.skills.horizon_for(dataset)
    config = TrainConfig(replace(args.skills, horizon=horizon), args.prior, args.dynamics, args.seed)
    training, held_out = dataset.split(horizon=horizon)
    write_run(args.output, config, args.dataset, keys=args.keys, indices=args.indices)
    _suggest_skills(training, config.skills)
    short = int((dataset.lengths < horizon).sum())
    print(
        f"{args.dataset}: horizon {horizon}, {len(training.lengths)} episodes for training, "
        + ("the same one for evaluation" if short == len(dataset.lengths) - 1 else f"{len(held_out.lengths)} held out")
        + (f", {short} left out as shorter than the horizon" if short else ""),
        file=sys.stderr,
    )
    policy = run(training, config, args.output, reuse=args.reuse, device=pick_device(args.device))
    if config.skills.is_anchored:
        found, clusters = policy.skill_space.size, config.skills.skill_space.size
        print(f"{found} skills were found, starting from {clusters} clusters", file=sys.stderr)
    print(f"Skill policy written to {args.output}. Next: didi-gym evaluate {args.output}")


def _suggest_skills(dataset: TrajectoryDataset, config: SkillConfig) -> None:
    """Say where the data looks like a case for the other kind of skills."""
    from didi_gym.assignment import separation

    try:
        separate = separation(dataset, config.anchor)
    except DatasetError:  # too short to tell
        return
    if (separate > 0.5) == config.skill_space.is_discrete:
        return
    what, other = (
        ("falls into clear groups", "--skills.skill-space.kind discrete --skills.skill-space.size 12")
        if separate > 0.5
        else ("varies continuously", "--skills.skill-space.kind ball --skills.skill-space.size 2")
    )
    print(f"this data {what} (simplified silhouette {separate:.2f}); consider {other}", file=sys.stderr)
