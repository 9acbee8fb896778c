"""The command `didi-gym train`: its settings, and what it runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from didi_gym.data.dataset import DatasetError
from didi_gym.training.config import TrainConfig

if TYPE_CHECKING:
    from didi_gym.data.dataset import TrajectoryDataset


@dataclass(frozen=True)
class Train:
    """Learn a skill policy from a Minari data set, without rewards.

    Continuous skills need a diffusion prior, a dynamics model, then the skills themselves; discrete skills are found in
    the data and imitated. The same command continues a run that was stopped, to the same result.
    """

    dataset: str
    """Minari data set id, e.g. didi/ant-directions-v0."""
    output: Path
    """Folder for the policy (config.json, model.safetensors), training.safetensors and checkpoints."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
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
    from didi_gym.data.dataset import TrajectoryDataset
    from didi_gym.models.policy import pick_device
    from didi_gym.training import hold_out, write_run
    from didi_gym.training import train as run

    dataset = TrajectoryDataset.from_minari(
        args.dataset, keys=args.keys or None, indices=args.indices or None, download=args.download
    )
    training, held_out, config = hold_out(dataset, args.config)
    write_run(args.output, config, args.dataset, keys=args.keys, indices=args.indices)
    _suggest_skills(training, config)
    short = int((dataset.lengths < config.horizon).sum())
    print(
        f"{args.dataset}: horizon {config.horizon}, {len(training.lengths)} episodes for training, "
        + ("the same one for evaluation" if short == len(dataset.lengths) - 1 else f"{len(held_out.lengths)} held out")
        + (f", {short} left out as shorter than the horizon" if short else ""),
        file=sys.stderr,
    )
    policy = run(dataset, config, args.output, reuse=args.reuse, device=pick_device(args.device))
    if config.learns_behaviours:
        found, clusters = policy.skill_space.size, config.skills.skill_space.size
        print(f"{found} skills were found, starting from {clusters} clusters", file=sys.stderr)
    print(f"Skill policy written to {args.output}. Next: didi-gym evaluate {args.output}")


def _suggest_skills(dataset: TrajectoryDataset, config: TrainConfig) -> None:
    """Say where the data looks like a case for the other kind of skills."""
    from didi_gym.training.segmentation import separation

    try:
        separate = separation(dataset, config.behaviours)
    except DatasetError:  # too short to tell
        return
    if (separate > 0.5) == config.skills.skill_space.is_discrete:
        return
    what, other = (
        ("falls into clear groups", "--skills.skill-space.kind discrete --skills.skill-space.size 12")
        if separate > 0.5
        else ("varies continuously", "--skills.skill-space.kind ball --skills.skill-space.size 2")
    )
    print(f"this data {what} (simplified silhouette {separate:.2f}); consider {other}", file=sys.stderr)
