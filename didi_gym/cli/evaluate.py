"""The command `didi-gym evaluate`: its settings, and what it runs."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import gymnasium as gym
import tyro

from didi_gym.core.files import in_short
from didi_gym.data.dataset import DatasetError

if TYPE_CHECKING:
    import numpy as np

    from didi_gym.evaluation.report import SkillReport
    from didi_gym.models.card_text import Headline
    from didi_gym.models.policy import SkillPolicy


@dataclass(frozen=True)
class Evaluate:
    """Roll skills out in the simulator and write results.json, skill_map.png and replay.mp4."""

    policy: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="POLICY")]
    """Bundled name, folder, or Hub id."""
    output: Path | None = None
    """Folder to write to; default: the policy's own folder, or ./NAME-evaluation for others."""
    env: str | None = None
    """Environment to roll out in, as Name-v0 or module:Name-v0; default: the one its data set was recorded in, with the
    wrappers that it was recorded with."""
    env_spec: Path | None = None
    """File with the JSON of an environment's spec (env.spec.to_json()), whose wrappers are put around it."""
    trust: bool = False
    """Import modules and load policies that the policy's folder or its data set names, to make its environment."""
    dataset: str | None = None
    """Data set to measure fidelity against; default: the policy's own, where it is on this disk."""
    starts: int = 64
    """Start states."""
    skills: int = 16
    """Skills compared from each start."""
    held_steps: int | None = None
    """Environment steps for which a skill is held in the picture and for distances and falls; default: 4.8 s of
    simulated time where the environment says how long a step is, else 96."""
    replan_every: int | None = None
    """Environment steps executed of each plan; default: the policy's."""
    contact_geoms: str | None = None
    """Regular expression of MuJoCo geom names to count contacts with, e.g. block."""
    seed: int = 0
    video: bool = True
    """Write replay.mp4."""


def evaluate(args: Evaluate) -> None:
    from didi_gym.data.dataset import TrajectoryDataset
    from didi_gym.evaluation.plots import plot_skill_map
    from didi_gym.evaluation.report import evaluate_skills
    from didi_gym.evaluation.video import make_rendered_env
    from didi_gym.models.policy import SkillPolicy

    policy = SkillPolicy.from_pretrained(args.policy, device="cpu")
    here = Path(args.policy).expanduser()
    output = args.output or (here if here.is_dir() else Path(f"{here.name}-evaluation"))
    output.mkdir(parents=True, exist_ok=True)
    layout, dataset = policy.config.layout, None
    if (name := args.dataset or policy.config.dataset_id) is not None:
        source = layout.state_source
        keys, indices = (None, None) if source is None else (source.keys or None, source.indices)
        try:
            dataset = TrajectoryDataset.from_minari(name, keys=keys, indices=indices, layout=layout)
        except DatasetError as error:
            if args.dataset is not None:
                raise
            print(f"Fidelity, Vendi score and coverage are left out: {in_short(error)}", file=sys.stderr)
    env = _environment(args, policy)
    spec = env.spec  # before its time limit is taken off
    report, held = evaluate_skills(
        policy,
        env,
        dataset,
        starts=args.starts,
        skills=args.skills,
        held_steps=args.held_steps,
        replan_every=args.replan_every,
        contact_geoms=args.contact_geoms,
        seed=args.seed,
    )
    report.save(output / "results.json")
    print_report(report, policy.skill_space.is_discrete)
    held_for = f"{report.held_steps} steps" + (f" ({held_s:g} s)" if (held_s := report.held_seconds) > 0 else "")
    if (picture := _picture(policy, held.paths)) is not None:
        paths, how = picture
        title = f"{output.resolve().name}: skills held for {held_for} in the simulator"
        with _where_possible("skill_map.png"):
            plot_skill_map(paths, held.skills, policy.skill_space, output / "skill_map.png", title=title, **how)
    else:
        print("No skill_map.png: it needs two features, the layout has one", file=sys.stderr)
    if args.video and spec is not None:
        with _where_possible("replay.mp4"):
            _film(policy, make_rendered_env(spec), output / "replay.mp4", report.held_steps)
    print(f"Written to {output}")


def _environment(args: Evaluate, policy: SkillPolicy) -> gym.Env:
    from didi_gym.core.files import MEGABYTE, read_plain
    from didi_gym.evaluation.rollouts import env_spec_from_json, make_data_env, make_named_env

    if args.env is not None and args.env_spec is not None:
        raise ValueError("--env and --env-spec both name the environment; leave one out")
    if args.env is not None:
        return make_named_env(args.env)
    spec = None
    if args.env_spec is not None:
        spec = env_spec_from_json(read_plain(args.env_spec, MEGABYTE).decode(errors="replace"), str(args.env_spec))
    return make_data_env(policy, spec=spec, trust=args.trust)


def print_report(report: SkillReport, discrete: bool) -> None:
    """Print the figures by which skills are judged, with what a good value is, then the other ones by their names."""
    from didi_gym.cli.hub import _print_table
    from didi_gym.models.card_text import Figure, figures

    values = {name: value for name, value in asdict(report).items() if not math.isnan(value)}
    shown = figures(values, discrete)
    seen = {each.headline.key for each in shown}
    shown += [
        Figure(each, values[each.key], values.get(each.ceiling or ""), ())
        for each in other_headlines()
        if each.key in values and each.key not in seen
    ]
    intervals = {
        "mutual_information_bits": (report.mutual_information_low, report.mutual_information_high),
        "held_information_bits": (report.held_information_low, report.held_information_high),
    }
    rows = []
    for each in shown:
        low, high = intervals.get(each.headline.key, (math.nan, math.nan))
        interval = "" if math.isnan(low) else f" (95 %: {low:.3g} to {high:.3g})"
        rows.append((each.label, each.text + interval, each.headline.good, each.headline.key))
    _print_table(("measured in the simulator", "value", "good is", "in results.json"), rows)
    held = f"{report.held_steps} steps" + (
        f" ({report.held_seconds:g} s of simulated time)" if report.held_seconds > 0 else ""
    )
    print(f"Falls, distances and directions: skills held for {held} from a reset.")


def other_headlines() -> tuple[Headline, ...]:
    """What is measured beside the figures of a card."""
    from didi_gym.models.card_text import Headline

    unit = "scales"  # of the policy's normaliser
    return (
        Headline("real_spread", "executed spread", "", "close to the planned spread", unit),
        Headline("planned_spread", "planned spread", "", "not near 0: skills that differ", unit),
        Headline("open_loop_spread", "spread without new plans", "", "close to the executed spread", unit),
        Headline("plan_error", "error of plans", "", "small beside the planned spread", unit),
        Headline("probe", "probe (R^2)", "", "close to 1; at 0 or below, rollouts do not show their skill"),
        Headline("vendi", "Vendi score", "", "high, where rollouts are like the data", "", "vendi_ceiling"),
        Headline("smoothness", "change between actions", "", "as small as in the data; 0 is constant, 4 the most"),
        Headline("contact", "contact with the geoms asked for", "", "depends on the task", "%"),
        Headline("held_cut", "held rollouts cut short by a limit", "", "0 %", "%"),
    )


def _picture(policy: SkillPolicy, paths: np.ndarray) -> tuple[np.ndarray, dict[str, Any]] | None:
    """What to draw of held skills `(n, steps + 1, features)`: a map of the first two features or, of a body that moves
    along a line only, its way over time; None where there is neither."""
    import numpy as np

    features, relative = policy.config.layout.features, policy.config.layout.relative
    if len(relative) == 1 and relative[0] in features:
        way = paths[..., features.index(relative[0])]
        steps = np.broadcast_to(np.arange(way.shape[1]), way.shape)
        return np.stack([steps, way], axis=-1), {"axis_labels": ("step", "way"), "equal_axes": False}
    return (paths[..., :2], {}) if paths.shape[-1] >= 2 else None


@contextmanager
def _where_possible(file: str) -> Iterator[None]:
    """Say why a picture cannot be made here, and go on: the numbers do not need it."""
    try:
        yield
    except (ImportError, RuntimeError, gym.error.Error) as error:
        print(f"No {file}: {in_short(error)}", file=sys.stderr)


def _film(policy: SkillPolicy, env: gym.Env, file: Path, steps: int, skills: int = 8) -> None:
    """Film evenly spread skills, each held from a reset."""
    from didi_gym.core.progress import progress
    from didi_gym.evaluation.rollouts import SkillSimulator, Start
    from didi_gym.evaluation.video import Camera, write_video

    class Film(gym.Wrapper):
        """Takes a picture after every low-level step."""

        def step(self, action: Any) -> Any:
            result = self.env.step(action)
            frames.append(camera.frame(caption))
            return result

    frames: list[np.ndarray] = []
    simulator, camera, caption = SkillSimulator(policy, Film(env)), Camera(env), ""
    with progress("film", skills) as report:
        for i, skill in enumerate(policy.skill_space.grid(skills)):
            caption = f"skill {i + 1} of {skills}"
            simulator.hold(simulator.visit(Start(seed=0)), skill, steps)
            report(i + 1, {})
    write_video(frames, file, env.metadata.get("render_fps", 20))
    env.close()
