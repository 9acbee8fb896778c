"""A reward-free Ant data set: walking in every direction of the plane, with gaits that the package finds itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from didi_gym.core.layout import Heading, Layout, ObservationSource
from didi_gym.core.progress import Report
from didi_gym.core.progress import progress as progress_of
from didi_gym.data.generators.gait_search import Elite, Trial, search_gaits
from didi_gym.data.generators.gaits import (
    CONTROL_PERIOD,
    ENV_ID,
    ENV_KWARGS,
    GAIT_SIZE,
    UPRIGHT,
    Motion,
    measure,
    mirrored,
    pd_action,
    turned,
    up_of,
    yaw_of,
)
from didi_gym.data.generators.parallel import OrderedMap, ordered_map
from didi_gym.data.generators.parts import resumable
from didi_gym.data.generators.recording import record_until
from didi_gym.data.writing import Episode, require_writable, write_dataset

EPISODE_STEPS = 200
"""Short: most of the falls of skills learned from long episodes came within a second of a reset."""
MAX_NOISE = 0.2
"""An episode's action noise has a standard deviation drawn between 0 and this."""
SWITCH_PROBABILITY = 1 / 25
"""Chance per step that a new target is drawn."""
SLOW_SHARE, SLOW_SCALE = 0.12, (0.4, 0.9)
"""Share of targets followed with gait amplitudes scaled by a factor drawn from this range."""
STILL_SHARE = 0.03
"""Share of targets that ask to stand still."""
TOLERANCE = np.deg2rad(15)
"""A gait is kept while the target direction is no further than this from its own, and chosen within it."""
SCALES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)
"""Amplitudes at which gaits are measured where the data is to show many speeds: half the amplitude is less than half
the speed, and another direction."""
FASTEST, STILL = 1.9, 0.15
"""Targets of such data are spread evenly over the disc of velocities up to the first, in m/s; below the second the ant
stands."""
SPEED_TOLERANCE = 0.2
"""In m/s, as `TOLERANCE`."""


@dataclass(frozen=True)
class Repertoire:
    """Gaits for all directions, and the direction each moves in."""

    gaits: np.ndarray
    """(n, 25)."""
    directions: np.ndarray
    """(n,), in rad, in the body's frame."""
    speeds: np.ndarray
    """(n,), in m/s, as measured in the search."""
    scales: np.ndarray | None = None
    """(n,), of each gait's amplitudes; None where all are 1."""

    def __post_init__(self) -> None:
        n = len(self.gaits)
        if n == 0 or self.gaits.shape != (n, GAIT_SIZE) or self.directions.shape != (n,) or self.speeds.shape != (n,):
            raise ValueError(
                f"repertoire: expected gaits (n, {GAIT_SIZE}), directions (n,) and speeds (n,) with n > 0, got "
                f"{self.gaits.shape}, {self.directions.shape} and {self.speeds.shape}"
            )

    @staticmethod
    def from_archive(archive: Sequence[Sequence[Elite]], per_sector: int) -> Repertoire:
        """The best gaits of each sector, with their eight images under the Ant's symmetries."""
        rows = []
        for members in archive:
            for elite in sorted(members, key=lambda e: -e.score)[:per_sector]:
                for quarters in range(4):
                    angle = quarters * np.pi / 2
                    rows.append((turned(elite.gait, quarters), angle + elite.direction, elite.speed))
                    rows.append((turned(mirrored(elite.gait), quarters), angle - elite.direction, elite.speed))
        if not rows:
            raise ValueError("the search found no gait that walks; give it more search_steps")
        gaits, directions, speeds = zip(*rows, strict=True)
        return Repertoire(np.array(gaits), wrapped(np.array(directions)), np.array(speeds))

    def at_scales(self, trials: Callable[[list[Any]], Iterable[Motion]], seed: int, repeats: int = 4) -> Repertoire:
        """The same gaits at several amplitudes, each with the direction and speed that it is measured to have there.

        Args:
            trials: Maps trials to their outcome, in order.
            repeats: Trials of each gait and amplitude; where one of them falls, the pair is left out.
        """
        rng = np.random.default_rng(seed)
        pairs = [(row, scale) for row in range(0, len(self.gaits), _IMAGES) for scale in SCALES]
        asked = [
            (self.gaits[row], int(rng.integers(2**31)), *_SLOW_TRIAL, scale)
            for row, scale in pairs
            for _ in range(repeats)
        ]
        motions = list(trials(asked))
        rows = []
        for number, (row, scale) in enumerate(pairs):
            seen = motions[number * repeats : (number + 1) * repeats]
            if any(motion.fell for motion in seen):
                continue
            velocity = np.mean([motion.speed * np.exp(1j * motion.direction) for motion in seen])
            for quarters in range(4):  # as in `from_archive`
                gait, angle, turn = self.gaits[row], np.angle(velocity), quarters * np.pi / 2
                rows.append((turned(gait, quarters), turn + angle, abs(velocity), scale))
                rows.append((turned(mirrored(gait), quarters), turn - angle, abs(velocity), scale))
        gaits, directions, speeds, scales = zip(*rows, strict=True)
        return Repertoire(np.array(gaits), wrapped(np.array(directions)), np.array(speeds), np.array(scales))

    def choose(
        self, direction: float, current: int | None, rng: np.random.Generator, speed: float | None = None
    ) -> int:
        """A gait that moves in `direction` (rad, body frame), at `speed` (m/s) where one is asked for: the current one
        if it does, else a random other."""
        error = np.abs(wrapped(self.directions - direction))
        wrong = np.zeros_like(error) if speed is None else np.abs(self.speeds - speed)
        if current is not None and error[current] <= TOLERANCE and wrong[current] <= SPEED_TOLERANCE:
            return current
        fitting = np.flatnonzero(error <= max(TOLERANCE / 2, error.min()))
        if speed is not None:
            fitting = fitting[wrong[fitting] <= max(SPEED_TOLERANCE / 2, wrong[fitting].min())]
        return int(rng.choice(fitting))


def wrapped(angle: Any) -> Any:
    """Angles in rad brought to [-pi, pi)."""
    return (np.asarray(angle) + np.pi) % (2 * np.pi) - np.pi


def ant_layout() -> Layout:
    """What the 29 numbers of an Ant state hold, and where 27- and 105-number observations of it are found."""
    as_is, body = tuple(range(2, 29)), tuple(range(27))
    return Layout(
        state_dim=29,
        policy_inputs=as_is,
        features=(0, 1),
        relative=(0, 1),
        heading=Heading(quaternion=(3, 4, 5, 6), vectors=((0, 1), (15, 16))),
        sources=(
            ObservationSource(29, as_is),
            ObservationSource(27, body),
            ObservationSource(105, body),
            ObservationSource(105, body, keys=("observation",)),
            ObservationSource(27, body, keys=("observation",)),
        ),
    )


_IMAGES = 8  # of a gait under the Ant's symmetries, one after the other in a repertoire
_SLOW_TRIAL = (120, 40, 0.1)  # steps, warm-up and action noise


def collect_ant_directions(
    dataset_id: str = "didi/ant-directions-v0",
    *,
    steps: int = 300_000,
    seed: int = 0,
    search_steps: int = 800_000,
    gaits_per_sector: int = 3,
    speeds: bool = False,
    processes: int = 2,
    overwrite: bool = False,
    progress: bool = True,
) -> Any:
    """Find gaits for every direction, walk about with them, and write what was seen as a Minari data set.

    Episodes are short and start from rest, where an ant first has to land well. A direction in the *world* is held
    until it changes at random; the gait is whichever moves there given the body's yaw. Observations are (29,): position
    and orientation (7), joints (8), velocities (14). Each episode's labels are its noise, its falls and its mean
    velocity; the info `target` (T + 1, 2) holds the world velocity asked for, as a direction times an amplitude scale
    from 0 to 1.
    The same arguments give the same data, whatever the number of processes.

    Args:
        search_steps: environment steps spent on the gait search, about 12,000 a second on two cores.
        gaits_per_sector: gaits kept in each 15 degrees of direction.
        speeds: targets are velocities, spread evenly over a disc, rather than directions that are mostly walked in as
            fast as the ant can; the info `target` is then a share of 1.9 m/s.
        processes: a script that uses more than one needs an `if __name__ == "__main__"` guard.

    Returns:
        The `minari.MinariDataset`.

    Raises:
        FileExistsError: the data set exists and `overwrite` is not set.
    """
    import gymnasium as gym

    require_writable(dataset_id, overwrite=overwrite)
    search_seed, episode_seed = np.random.SeedSequence(seed).generate_state(2)
    with ordered_map(processes) as run:
        with progress_of("gait search", search_steps, progress) as report:
            repertoire = find_gaits(
                int(search_seed), search_steps=search_steps, per_sector=gaits_per_sector, run=run, report=report
            )
        if speeds:
            repertoire = repertoire.at_scales(lambda trials: run(_trial, trials), int(search_seed))
        with progress_of("walking", steps, progress) as report:
            episodes = walk(repertoire, int(episode_seed), steps=steps, run=resumable(run, dataset_id), report=report)
    return write_dataset(
        dataset_id,
        episodes,
        env_spec=gym.make(ENV_ID, **ENV_KWARGS).spec,
        layout=ant_layout(),
        algorithm_name="open-loop gaits from a random search, random directions",
        description="Ant walking in random directions of the plane, held for a while; collected without rewards.",
        requirements=["mujoco"],
        overwrite=overwrite,
    )


def find_gaits(
    seed: int, *, search_steps: int, per_sector: int, run: OrderedMap = map, report: Report = lambda done, metrics: None
) -> Repertoire:
    """Search gaits for all directions; see `didi_gym.data.generators.gait_search.search_gaits`."""
    archive = search_gaits(
        lambda trials: run(_trial, trials),
        seed,
        search_steps=search_steps,
        report=lambda spent, speed: report(min(spent, search_steps), {"speed": speed}),
    )
    return Repertoire.from_archive(archive, per_sector)


def walk(
    repertoire: Repertoire, seed: int, *, steps: int, run: OrderedMap = map, report: Report = lambda done, metrics: None
) -> list[Episode]:
    """Episodes of up to `EPISODE_STEPS` steps, `steps` in all, each from its own seed."""
    return record_until(
        functools.partial(walk_episode, repertoire), seed, steps=steps, longest=EPISODE_STEPS, run=run, report=report
    )


def walk_episode(repertoire: Repertoire, seed: int) -> Episode:
    """One episode of walking in random world directions from rest; it ends early where the ant falls."""
    env, rng = _env(), np.random.default_rng(seed)
    noise = rng.uniform(0, MAX_NOISE)
    observation, _ = env.reset(seed=seed)
    observations, actions, rewards, targets = [observation], [], [], []
    draw_target = _draw_target if repertoire.scales is None else _draw_velocity
    direction, scale = draw_target(rng)
    gait, phase = None, rng.uniform(0, 2 * np.pi)
    terminated = fell = False
    for _ in range(EPISODE_STEPS):
        if rng.random() < SWITCH_PROBABILITY:
            direction, scale = draw_target(rng)
        if repertoire.scales is None:
            gait = repertoire.choose(direction - yaw_of(observation[3:7]), gait, rng)
            amplitude = scale
        else:
            gait = repertoire.choose(direction - yaw_of(observation[3:7]), gait, rng, FASTEST * scale)
            amplitude = repertoire.scales[gait] if FASTEST * scale > STILL else 0.0
        action = pd_action(repertoire.gaits[gait], phase, observation[:15], observation[15:], amplitude)
        action = np.clip(action + noise * rng.standard_normal(8), -1, 1).astype(np.float32)
        observation, reward, terminated, _, _ = env.step(action)
        phase += 2 * np.pi * repertoire.gaits[gait, -1] * CONTROL_PERIOD
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
        targets.append((scale * np.cos(direction), scale * np.sin(direction)))
        fell = terminated or up_of(observation[3:7]) < UPRIGHT
        if fell:
            break
    path = np.array(observations)
    velocity = (path[-1, :2] - path[0, :2]) / (len(actions) * CONTROL_PERIOD)
    labels = {"noise": noise, "fell": bool(fell), "mean_velocity_x": velocity[0], "mean_velocity_y": velocity[1]}
    infos = {"target": np.array([*targets, targets[-1]])}
    return Episode(path, np.array(actions), np.array(rewards), bool(terminated), seed, labels, infos)


def _draw_target(rng: np.random.Generator) -> tuple[float, float]:
    """A world direction in rad and a gait amplitude scale."""
    direction, kind = rng.uniform(-np.pi, np.pi), rng.random()
    if kind < STILL_SHARE:
        return direction, 0.0
    return direction, rng.uniform(*SLOW_SCALE) if kind < STILL_SHARE + SLOW_SHARE else 1.0


def _draw_velocity(rng: np.random.Generator) -> tuple[float, float]:
    """A world direction in rad and a share of the fastest speed, evenly spread over the disc."""
    return rng.uniform(-np.pi, np.pi), float(np.sqrt(rng.random()))


@functools.cache
def _env() -> Any:
    import gymnasium as gym

    return gym.make(ENV_ID, **ENV_KWARGS)


def _trial(trial: Trial | tuple[np.ndarray, int, int, int, float, float]) -> Motion:
    gait, seed, steps, warmup, noise, *scale = trial
    return measure(gait, seed, steps=steps, warmup=warmup, noise=noise, scale=scale[0] if scale else 1.0, env=_env())
