"""The command `didi-gym train`: its settings, and what it runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from didi_gym.core.files import in_short, read_plain
from didi_gym.core.layout import LayoutChoice
from didi_gym.core.schema import from_dict, to_dict
from didi_gym.data.dataset import DatasetError
from didi_gym.training.config import TrainConfig

if TYPE_CHECKING:
    from didi_gym.data.dataset import TrajectoryDataset

_LONGEST_LAYOUT = 100_000  # bytes


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
    columns: Annotated[LayoutChoice, tyro.conf.arg(name="")] = field(default_factory=LayoutChoice)
    layout: Path | None = None
    """TOML file with these settings of columns, e.g. `features = [0, 1]`, in place of the options."""
    download: bool = False
    """Let Minari fetch the data set if it is not on this disk."""
    reuse: Path | None = None
    """A finished run on the same data and horizon, whose prior and dynamics model to take instead of training them."""


def train(args: Train) -> None:
    from didi_gym.data.dataset import TrajectoryDataset
    from didi_gym.models.policy import pick_device
    from didi_gym.training import hold_out, write_run
    from didi_gym.training import train as run

    choice = _choice(args)
    named = {name: columns for name, columns in to_dict(choice).items() if columns is not None}
    dataset = TrajectoryDataset.from_minari(
        args.dataset,
        keys=args.keys or None,
        indices=args.indices or None,
        layout=choice if named else None,
        download=args.download,
    )
    if not named:
        _suggest_layout(dataset)
    training, held_out, config = hold_out(dataset, _with_window(dataset, args.config))
    write_run(args.output, config, args.dataset, keys=args.keys, indices=args.indices, **named)
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


def _choice(args: Train) -> LayoutChoice:
    """What the options, or the file that stands for them, say of the columns."""
    if args.layout is None:
        return args.columns
    if args.columns != LayoutChoice():
        raise ValueError(f"columns are described by options and by --layout {args.layout}; use one of the two")
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return from_dict(LayoutChoice, tomllib.loads(read_plain(args.layout, _LONGEST_LAYOUT).decode("utf-8")))
    except ValueError as error:  # what TOML, UTF-8 or the settings refuse
        raise ValueError(f"{args.layout}: {in_short(error)}") from error


def _suggest_layout(dataset: TrajectoryDataset) -> None:
    """Say what the columns look like, where nobody has said what they are."""
    from didi_gym.data.columns import describe_columns

    layout = dataset.layout
    if layout.relative or layout.heading is not None or len(layout.features) < layout.state_dim:
        return
    found = describe_columns(dataset.observations, dataset.starts, dataset.lengths).lines()
    if found:
        print(
            f"this data set does not say what its {layout.state_dim} columns hold; as their numbers look:",
            *(f"  {line}" for line in found),
            "the policy reads them all, and skills must differ in all of them alike; --features, --relative, --angles "
            "and --heading-angle change that",
            sep="\n",
            file=sys.stderr,
        )


def _with_window(dataset: TrajectoryDataset, config: TrainConfig) -> TrainConfig:
    """The settings with the window of behaviours, as `hold_out` would choose it, after saying how."""
    from didi_gym.training.segmentation import choose_window

    if not config.learns_behaviours or config.behaviours.window is not None:
        return config
    try:
        window, scores = choose_window(dataset, config.behaviours, config.skills.skill_space.size)
    except DatasetError:  # which the search for behaviours explains
        return config
    tried = ", ".join(f"{length}: {score:.2f}" for length, score in scores.items())
    print(f"window of behaviours: {window} steps (simplified silhouette of each length: {tried})", file=sys.stderr)
    return replace(config, behaviours=replace(config.behaviours, window=window))


def _suggest_skills(dataset: TrajectoryDataset, config: TrainConfig) -> None:
    """Say where the data looks like a case for the other kind of skills."""
    from didi_gym.training.segmentation import separation

    try:
        separate = separation(dataset, config.behaviours)
    except DatasetError:  # too short to tell
        return
    if 0.35 < separate <= 0.5:
        print(
            f"it is unclear whether this data falls into groups or varies continuously (simplified silhouette "
            f"{separate:.2f}, clear groups have more than 0.5); discrete skills train faster, so try those first: "
            "--skills.skill-space.kind discrete --skills.skill-space.size 12",
            file=sys.stderr,
        )
        return
    if (separate > 0.5) == config.skills.skill_space.is_discrete:
        return
    what, other = (
        ("falls into clear groups", "--skills.skill-space.kind discrete --skills.skill-space.size 12")
        if separate > 0.5
        else ("varies continuously", "--skills.skill-space.kind ball --skills.skill-space.size 2")
    )
    print(f"this data {what} (simplified silhouette {separate:.2f}); consider {other}", file=sys.stderr)
