"""A reward-free FrankaKitchen data set: chains of subtasks in random order, by scripted experts."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from didi_gym.core.layout import Layout, ObservationSource
from didi_gym.core.progress import Report
from didi_gym.core.progress import progress as progress_of
from didi_gym.data.generators.kitchen_experts import CLOSED, EXPERTS, FINGERS, HOME, SUBTASKS, Arm, Follower, go_home
from didi_gym.data.generators.parallel import OrderedMap, ordered_map
from didi_gym.data.generators.parts import resumable
from didi_gym.data.generators.recording import robotics_env
from didi_gym.data.labels import LABEL, Measured, to_metadata
from didi_gym.data.writing import Episode, require_writable, write_dataset

ENV_ID = "FrankaKitchen-v1"
ENV_KWARGS = {"terminate_on_tasks_completed": False}
EPISODE_STEPS = 2_000
"""Longest episode: all seven subtasks fit in."""
NOISE = (*(0.05,) * 7, *(0.01,) * 2)
"""Standard deviations of the Gaussian noise on actions, which lie in -1..1: with less on the fingers, grips hold."""
PACES = (1.1, 1.6)
"""The speeds of a subtask are multiplied by a number between these."""
SHOVES, SHOVE_STEPS = 1 / 30, (3, 8)
"""Chance per step that the hand is shoved off its path, and for how many steps: the data shows how it comes back."""
SHOVE_SPEEDS = (0.15, 0.04)
"""Speeds of a shove, m/s: between objects, and at one."""
ATTEMPTS = 3
"""How often an expert tries that misses."""
CHAIN = (4, 7)
"""Least and greatest number of subtasks in an episode."""
LEFT_HOMING = (0.02, 0.2)
"""The next subtask begins at a distance from home between these, m, so that it begins from many places."""
AROUND_HOME, AROUND_APPROACH = 0.03, 0.02
"""Half the ranges from which offsets of home and of a path's first point are drawn, m, for each axis."""
OFFSETS: dict[str, tuple[float, float, float]] = {
    "bottom burner": (0.003, 0.003, 0.003),
    "top burner": (0.003, 0.003, 0.003),
    "light switch": (0.005, 0.005, 0.005),
    "slide cabinet": (0.01, 0.005, 0.03),
    "hinge cabinet": (0.005, 0.005, 0.02),
    "microwave": (0.005, 0.005, 0.03),
    "kettle": (0.01, 0.003, 0.005),
}
"""Half the ranges of the offsets of the path from the object, m."""
BLOCKING, BLOCKED = "hinge cabinet", "top burner"
"""The wrist does not pass below the open door of the one, and so does not reach the other."""
KEYS = ("observation",)
BEHAVIOURS = (*SUBTASKS, HOME)
_USUAL = 1_000  # steps of an episode, about
_SIZE, _JOINTS = 59, 9  # numbers of an observation: places and velocities of joints, then of objects, of which
_PLACES, _VELOCITIES = 18, 39  # these are the first
_IDLE = (0, 1, 4, 5, 11)  # objects that no subtask moves: two burners with their knobs, and the left cabinet's hinge


def kitchen_layout() -> Layout:
    """Which of the 59 numbers are kept: all but those of objects that no subtask moves, which hold nothing but noise,
    49 in all. Skills differ in where joints and objects go."""
    idle = {begin + i for begin in (_PLACES, _VELOCITIES) for i in _IDLE}
    kept = tuple(i for i in range(_SIZE) if i not in idle)
    features = tuple(n for n, i in enumerate(kept) if i < _JOINTS or _PLACES <= i < _VELOCITIES)
    source = ObservationSource(_SIZE, kept, KEYS)
    everything = tuple(range(len(kept)))
    return Layout(len(kept), everything, features, sources=(source,), state_source=source)


def collect_kitchen(
    dataset_id: str = "didi/kitchen-v0",
    *,
    steps: int = 140_000,
    seed: int = 0,
    processes: int = 2,
    overwrite: bool = False,
    progress: bool = True,
) -> Any:
    """Let scripted experts do subtasks in a kitchen in random order, and write what was seen as a Minari data set.

    An episode is a chain of different subtasks; between two of them the hand goes home, though it need not arrive.
    Paces, paths and the places where objects are touched vary, and there is noise on every action. Which expert acts is
    the info `behaviour`, with names in the metadata: `read_labels` gives them to evaluation, training never reads them.
    The same arguments give the same data, whatever the number of processes.

    Args:
        processes: a script that uses more than one needs an `if __name__ == "__main__"` guard.

    Returns:
        The `minari.MinariDataset`.

    Raises:
        FileExistsError: the data set exists and `overwrite` is not set.
        ImportError: gymnasium-robotics is missing.
    """
    spec = _env().spec
    require_writable(dataset_id, overwrite=overwrite)
    with progress_of("kitchen", steps, progress) as report, ordered_map(processes) as run:
        episodes = cook(
            seed, steps=steps, longest=min(EPISODE_STEPS, steps), run=resumable(run, dataset_id), report=report
        )
    settings = {"noise": NOISE, "paces": PACES, "shoves": SHOVES, "seed": seed, "steps": steps}
    return write_dataset(
        dataset_id,
        episodes,
        env_spec=spec,
        layout=kitchen_layout(),
        keys=KEYS,
        about=to_metadata(measure(episodes), settings),
        algorithm_name="scripted experts, in random order",
        description=f"{ENV_ID}: chains of {CHAIN[0]} to {CHAIN[1]} of its seven subtasks, by scripted experts.",
        requirements=["gymnasium-robotics"],
        overwrite=overwrite,
    )


def cook(
    seed: int,
    *,
    steps: int,
    longest: int = EPISODE_STEPS,
    run: OrderedMap = map,
    report: Report = lambda done, metrics: None,
) -> list[Episode]:
    """Episodes of at most `longest` steps, `steps` in all, each from its own seed."""
    episodes: list[Episode] = []
    total, root = 0, np.random.SeedSequence(seed)
    while total < steps:
        count = max((steps - total) // min(_USUAL, longest), 1)  # about as many as are still needed
        seeds = [int(child.generate_state(1)[0]) for child in root.spawn(count)]
        for episode in run(functools.partial(cook_episode, longest), seeds):
            if total < steps:
                episodes.append(episode.head(steps - total))
                total += len(episodes[-1])
                report(total, {})
    return episodes


def cook_episode(longest: int, seed: int) -> Episode:
    """One chain of subtasks, cut after `longest` steps."""
    env, rng = _env(), np.random.default_rng(seed)
    observation, info = env.reset(seed=seed)
    arm, recorded = Arm(env), [_copied(observation)]
    actions: list[np.ndarray] = []
    rewards: list[float] = []
    labels: list[int] = []
    chain = _draw_chain(rng)
    tried = []

    def follow(behaviour: int, follower: Follower, enough: float) -> None:
        nonlocal observation, info
        shove, left = np.zeros(3), 0
        while len(actions) < longest and not (follower.done or follower.left < enough):
            if left == 0 and rng.random() < SHOVES:
                way = rng.standard_normal(3)
                shove = way / np.linalg.norm(way) * SHOVE_SPEEDS[not follower.free]
                left = int(rng.integers(*SHOVE_STEPS))
            acted = follower.shoved(shove) if left else follower.act()
            left = max(left - 1, 0)
            action = np.clip(acted + np.array(NOISE) * rng.standard_normal(9), -1, 1)
            observation, reward, _, _, info = env.step(action)
            recorded.append(_copied(observation))
            actions.append(action)
            rewards.append(float(reward))
            labels.append(behaviour)

    for subtask in chain:
        doing, attempts = SUBTASKS.index(subtask), 0
        while attempts < ATTEMPTS and subtask not in info["episode_task_completions"]:
            follow(doing, *_plan(arm, subtask, rng))
            attempts += 1
        follow(len(SUBTASKS), *_plan_home(arm, subtask, rng))
        if len(actions) < longest:
            tried.append(subtask)
    completed = [name for name in tried if name in info["episode_task_completions"]]
    about = {"chain": ", ".join(tried), "completed": ", ".join(completed)}
    infos = {LABEL: np.array([*labels, labels[-1]], dtype=np.int16)}
    return Episode(_stacked(recorded), np.array(actions), np.array(rewards), False, seed, about, infos)


def _draw_chain(rng: np.random.Generator) -> list[str]:
    """Different subtasks in random order; what the open door of the hinge cabinet keeps the arm from comes before."""
    chain: list[str] = rng.permutation(SUBTASKS)[: rng.integers(CHAIN[0], CHAIN[1] + 1)].tolist()
    if {BLOCKING, BLOCKED} <= set(chain) and chain.index(BLOCKING) < chain.index(BLOCKED):
        i, j = chain.index(BLOCKING), chain.index(BLOCKED)
        chain[i], chain[j] = chain[j], chain[i]
    return chain


def measure(episodes: Sequence[Episode]) -> tuple[Measured, ...]:
    """Count the steps and stretches of each behaviour."""
    steps, stretches = np.zeros((2, len(BEHAVIOURS)), dtype=int)
    for episode in episodes:
        label = episode.infos[LABEL][: len(episode)]
        steps += np.bincount(label, minlength=len(BEHAVIOURS))
        begins = np.flatnonzero(np.diff(label, prepend=-1))
        stretches += np.bincount(label[begins], minlength=len(BEHAVIOURS))
    return tuple(
        Measured(name, "scripted expert", int(steps[i]), int(stretches[i]), 0, None, None)
        for i, name in enumerate(BEHAVIOURS)
    )


def _plan(arm: Arm, subtask: str, rng: np.random.Generator) -> tuple[Follower, float]:
    """What leads the hand through a subtask, to the end of its path."""
    path = EXPERTS[subtask](arm, rng.uniform(-1, 1, 3) * OFFSETS[subtask])
    path[0] = path[0].moved(rng.uniform(-AROUND_APPROACH, AROUND_APPROACH, 3))
    return Follower(arm, path, float(rng.uniform(*PACES))), -1.0


def _plan_home(arm: Arm, subtask: str, rng: np.random.Generator) -> tuple[Follower, float]:
    """What leads the hand home after a subtask, and the distance from there in m that is near enough."""
    path = go_home(arm, rng.uniform(-AROUND_HOME, AROUND_HOME, 3), FINGERS.get(subtask, CLOSED))
    return Follower(arm, path, float(rng.uniform(*PACES))), float(rng.uniform(*LEFT_HOMING))


def _copied(observation: Any) -> Any:
    """A copy of what the environment goes on to write into."""
    if isinstance(observation, Mapping):
        return {key: _copied(value) for key, value in observation.items()}
    return np.array(observation)


def _stacked(observations: Sequence[Any]) -> Any:
    """Observations one upon the other, key by key."""
    if isinstance(observations[0], Mapping):
        return {key: _stacked([one[key] for one in observations]) for key in observations[0]}
    return np.stack(observations)


@functools.cache
def _env() -> Any:
    return robotics_env(ENV_ID, max_episode_steps=EPISODE_STEPS, disable_env_checker=True, **ENV_KWARGS)
