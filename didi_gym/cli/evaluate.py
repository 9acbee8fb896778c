"""The command `didi-gym evaluate`: its settings, and what it runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import gymnasium as gym
import tyro

from didi_gym.data.dataset import DatasetError

if TYPE_CHECKING:
    import numpy as np

    from didi_gym.models.policy import SkillPolicy


@dataclass(frozen=True)
class Evaluate:
    """Roll skills out in the simulator and write results.json, skill_map.png and replay.mp4."""

    policy: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="POLICY")]
    """Bundled name, folder, or Hub id."""
    output: Path | None = None
    """Folder to write to; default: the policy's own folder, or ./NAME-evaluation for others."""
    env: str | None = None
    """Environment to roll out in; default: the one its data set was recorded in."""
    dataset: str | None = None
    """Data set to measure fidelity against; default: the policy's own, where it is on this disk."""
    starts: int = 64
    """Start states."""
    skills: int = 16
    """Skills compared from each start."""
    held_steps: int = 96
    """Environment steps for which a skill is held in the picture and for distances and falls."""
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
    from didi_gym.evaluation.rollouts import data_env_id
    from didi_gym.evaluation.video import make_rendered_env
    from didi_gym.models.policy import SkillPolicy
    from didi_gym.wrappers.make import make_low_level

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
            print(f"Fidelity, Vendi score and coverage are left out: {error}", file=sys.stderr)
    env_id, env_kwargs = data_env_id(policy) if args.env is None else (args.env, {})
    report, held = evaluate_skills(
        policy,
        make_low_level(env_id, **env_kwargs),
        dataset,
        starts=args.starts,
        skills=args.skills,
        held_steps=args.held_steps,
        replan_every=args.replan_every,
        contact_geoms=args.contact_geoms,
        seed=args.seed,
    )
    report.save(output / "results.json")
    for metric, value in asdict(report).items():
        print(f"{metric:28} {value:.3f}" if isinstance(value, float) else f"{metric:28} {value}")
    if (picture := _picture(policy, held.paths)) is not None:
        paths, how = picture
        title = f"{output.resolve().name}: skills held for {args.held_steps} steps in the simulator"
        with _where_possible("skill_map.png"):
            plot_skill_map(paths, held.skills, policy.skill_space, output / "skill_map.png", title=title, **how)
    else:
        print("No skill_map.png: it needs two features, the layout has one", file=sys.stderr)
    if args.video:
        with _where_possible("replay.mp4"):
            _film(policy, make_rendered_env(env_id, **env_kwargs), output / "replay.mp4", args.held_steps)
    print(f"Written to {output}")


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
        print(f"No {file}: {error}", file=sys.stderr)


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
