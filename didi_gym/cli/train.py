"""The command `didi-gym train`: its settings, and what it runs."""

from __future__ import annotations

import math
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
    from didi_gym.evaluation.report import SkillReport
    from didi_gym.models.policy import SkillPolicy

_CLEAR, _CONTINUOUS = 0.5, 0.2  # simplified silhouettes above which data falls into groups, and below which it does not
_GROUPS = (12, 4, 6, 8, 16)  # numbers of groups that are tried; the first tells whether there are any
_AS_GOOD = 0.02  # silhouettes that differ by less are alike: the smaller number of groups is taken
_LEAST_PROBE, _LEAST_ACCURACY = 0.3, 0.5  # R^2, and share of skills recognised, from which on skills count as real
_MOST_FALLS = 0.25
_BAND = (0.8, 1.2)  # of real spread over planned

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
    check: bool = True
    """Roll a few skills out in the simulator afterwards, and say whether they are real there."""


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
    _in_the_simulator(policy, args.output, args.check)
    print(f"Skill policy written to {args.output}. Next: didi-gym evaluate {args.output}")


def _in_the_simulator(policy: SkillPolicy, output: Path, check: bool) -> None:
    """Record how long a step of the data's environment is, and say in one line whether skills are real in it.

    Whatever goes wrong here, the training is done and its policy written: it is said, and nothing is raised.
    """
    from didi_gym.core.files import in_short
    from didi_gym.core.observations import step_seconds_of
    from didi_gym.evaluation.report import evaluate_skills
    from didi_gym.evaluation.rollouts import make_data_env

    try:
        env = make_data_env(policy)
        policy.config = replace(policy.config, step_seconds=step_seconds_of(env, inside=True))
        policy.save_pretrained(output)
        if check:
            print("Skills are tried in the simulator (--no-check leaves this out)", file=sys.stderr)
            found = evaluate_skills(policy.to("cpu"), env, starts=16, skills=8, held_episodes=2, hold=1)[0]
            print(verdict(found, policy.skill_space.is_discrete), file=sys.stderr)
        env.close()
    except Exception as error:  # of whatever kind an environment raises
        if check:
            print(f"The skills were not tried in the simulator: {in_short(error)}", file=sys.stderr)
    except KeyboardInterrupt:
        print("The skills were not tried in the simulator: stopped", file=sys.stderr)


def verdict(report: SkillReport, discrete: bool) -> str:
    """Whether skills are real, in one line: what was measured, what is wrong with it, and what to try."""
    held = f" within {report.held_seconds:g} s" if report.held_seconds > 0 else f" within {report.held_steps} steps"
    measured = [f"real probe {report.probe:.2f}", f"falls {report.falls:.0%}{held}"]
    faults = []
    if not report.probe > (_LEAST_ACCURACY if discrete else _LEAST_PROBE):
        learn_longer = "--behaviours.steps (--skills.steps without them)" if discrete else "--skills.steps"
        faults.append(
            f"rollouts hardly show which skill made them: try more {learn_longer}, a longer --horizon, or a layout "
            "whose features are what skills should differ in"
        )
    if report.falls > _MOST_FALLS:
        faults.append(
            "many held skills fall: try more data of bodies that recover, "
            + ("more --behaviours.steps" if discrete else "more --prior.steps, or a smaller --skills.diversity-weight")
        )
    if not math.isnan(report.spread_ratio):
        measured.append(f"real/planned {report.spread_ratio:.2f}")
        if not _BAND[0] <= report.spread_ratio <= _BAND[1]:
            faults.append(
                "skills lead elsewhere than their plans, so the dynamics model does not predict this environment: try "
                "more data, or more --dynamics.steps"
            )
    judged = "the skills are not real yet, as " + "; ".join(faults) if faults else "the skills are real"
    return f"In the simulator: {', '.join(measured)}: {judged}."


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
    """Say where the data looks like a case for the other kind of skills, or for more of them."""
    from didi_gym.training.segmentation import separation

    try:
        scores = {_GROUPS[0]: separation(dataset, config.behaviours, _GROUPS[0])}
        if scores[_GROUPS[0]] >= _CONTINUOUS:  # the number of groups matters only where there are some
            scores |= {groups: separation(dataset, config.behaviours, groups) for groups in _GROUPS[1:]}
    except DatasetError:  # too short to tell
        return
    groups = min(k for k in scores if scores[k] >= max(scores.values()) - _AS_GOOD)
    score, space = scores[groups], config.skills.skill_space
    wanted = round(1.5 * groups)  # rare and duplicate groups are merged
    discrete = f"--skills.skill-space.kind discrete --skills.skill-space.size {wanted}"
    continuous = "--skills.skill-space.kind ball --skills.skill-space.size 2"
    best = f"simplified silhouette {score:.2f}, with {groups} groups"
    if score > _CLEAR:
        if not space.is_discrete:
            print(f"this data falls into clear groups ({best}); consider {discrete}", file=sys.stderr)
        elif space.size < groups:
            print(f"this data falls into more groups than {space.size} ({best}); consider {discrete}", file=sys.stderr)
    elif score < _CONTINUOUS:
        if space.is_discrete:
            print(f"this data varies continuously ({best}); consider {continuous}", file=sys.stderr)
    else:
        imitation = config.behaviours.scout_steps + config.behaviours.steps
        didi = config.prior.steps + config.dynamics.steps + config.skills.steps
        print(
            f"it is unclear whether this data falls into groups ({best}; above {_CLEAR} it does, below {_CONTINUOUS} "
            "it varies continuously): try both kinds, each into its own --output, and compare them by didi-gym "
            "evaluate. "
            f"{continuous} costs {didi:,} gradient steps, {discrete} {imitation:,}",
            file=sys.stderr,
        )
