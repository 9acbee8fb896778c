"""A data set from behaviour policies: a mixture of behaviours whose labels training never sees."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from didi_gym.core.layout import Heading, Layout, ObservationSource
from didi_gym.core.progress import progress as progress_of
from didi_gym.data.generators.behaviours import Behaviour, body_of, read_folder, require_fit
from didi_gym.data.generators.parallel import ordered_map
from didi_gym.data.generators.parts import resumable
from didi_gym.data.generators.recording import Recorder, record, shared_env
from didi_gym.data.labels import check_recording, measure, to_metadata
from didi_gym.data.writing import require_writable, write_dataset

_POSITIONS = "exclude_current_positions_from_observation"  # how Gymnasium's MuJoCo bodies call it


def collect_from_agents(
    env_id: str,
    agents: Path | str | None = None,
    *,
    dataset_id: str | None = None,
    further: Callable[[int, np.ndarray, np.ndarray], Sequence[Behaviour]] | None = None,
    body: str | None = None,
    reads: Callable[[Any], np.ndarray] | None = None,
    only: Sequence[str] = (),
    final: Sequence[str] = (),
    steps: int = 200_000,
    switch_every: float | None = None,
    lead_in: int = 0,
    healthy: tuple[int, float, float] | None = None,
    angles: Sequence[int] = (),
    heading: Heading | None = None,
    noise: float = 0.05,
    episode_steps: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    zero_padding: bool = False,
    seed: int = 0,
    processes: int = 2,
    overwrite: bool = False,
    progress: bool = True,
) -> Any:
    """Run behaviour policies in an environment, and write what was seen as a Minari data set.

    Each episode is one behaviour's, or, with `switch_every`, behaviours take turns within it. Labels lie in the info
    `behaviour` and in the metadata, where `TrajectoryDataset.from_minari` does not look; `read_labels` gives them to
    evaluation. Where the environment can, observations begin with the body's position, which behaviours do not read,
    and which is relative in the layout. What was written is read again and checked (`check_recording`).
    The same arguments give the same data, whatever the number of processes.

    Args:
        agents: folder of `.npz` policies (`ArrayPolicy.read` says what they hold); those of other bodies are left out.
        dataset_id: default `didi/BODY-gaits-v0`, with switches `didi/BODY-gaits-switching-v0`.
        further: `(inputs, low, high)` -> more behaviours, for so many numbers of an observation and these action
            bounds; `didi_gym.sb3.recorded.find_policies` makes them of what Stable-Baselines3 saved.
        body: the body that the policies say they move, where the id of the environment does not name it: "Humanoid".
        reads: what behaviours read `(inputs,)` of the environment after a reset or a step, where that is not the
            observation without the position; a function of a module, since processes are sent it.
        only: names of the behaviours to use; all if empty.
        final: names of behaviours after which no other recovers (a body that lies on its back): where one of them
            would be left, the episode ends.
        switch_every: mean steps between switches, each to a random other behaviour.
        lead_in: before recording, a random other behaviour runs for 0 to this many steps, drawn for each episode.
        healthy: index in the observation without the position, least and greatest value, e.g. (1, -2, 2) for the pitch
            of a HalfCheetah in rad: an episode ends where it leaves that range, unless a final behaviour is at work.
        angles: indices in the observation without the position of angles, e.g. 1 for the pitch of a HalfCheetah:
            skills see their cosine and sine, since an angle that winds leads a network where it has never been.
        heading: the yaw of a body that moves on a plane and what turns with it, as indices of the whole observation:
            skills then do the same whatever way the body faces. Not with `angles`.
        noise: standard deviation of the Gaussian noise on actions, as a share of half their range.
        episode_steps: longest episode; default: the environment's time limit.
        zero_padding: fill with zeros what a behaviour reads beyond the observation.
        processes: a script that uses more than one needs an `if __name__ == "__main__"` guard.

    Returns:
        The `minari.MinariDataset`.

    Raises:
        BehaviourError: a behaviour cannot be read, or does not fit the environment.
        FileExistsError: the data set exists and `overwrite` is not set.
        ValueError: settings that do not go together.
    """
    given, hidden = with_positions(env_id, dict(env_kwargs or {}))
    env = shared_env(env_id, json.dumps(given))
    observed, acted = _require_boxes(env)
    limit = env.spec.max_episode_steps
    if limit is None and episode_steps is None:
        raise ValueError(f"{env_id} has no time limit; pass --episode-steps (episode_steps), e.g. 1000")
    name = dataset_id or f"didi/{body_of(env_id).lower()}-gaits{'' if switch_every is None else '-switching'}-v0"
    require_writable(name, overwrite=overwrite)
    inputs = observed - hidden
    if reads is not None:
        env.reset(seed=0)
        inputs = len(reads(env))
    behaviours: list[Behaviour] = [] if agents is None else [*read_folder(Path(agents).expanduser(), body or env_id)]
    if further is not None:
        behaviours += further(inputs, acted.low, acted.high)
    behaviours = [behaviours[i] for i in _indices(only, behaviours, "only")] if only else behaviours
    require_fit(behaviours, inputs, acted.shape[0], zero_padding=zero_padding)
    how = Recorder(
        env_id,
        json.dumps(given),
        tuple(behaviours),
        hidden,
        min(n for n in (episode_steps, limit) if n is not None),
        switch_every,
        lead_in,
        frozenset(_indices(final, behaviours, "final")),
        healthy,
        noise,
        reads,
    )
    require_sense(how, steps, inputs=observed - hidden, bounded=bool(np.isfinite(acted.high - acted.low).all()))
    with progress_of("recording", steps, progress) as report, ordered_map(processes) as run:
        episodes = record(how, seed, steps=steps, run=resumable(run, name), report=report)
    measured = measure(episodes, behaviours, seconds=env.unwrapped.dt if hidden else None)
    settings = {"noise": noise, "switch_every": switch_every, "lead_in": lead_in, "healthy": healthy}
    dataset = write_dataset(
        name,
        episodes,
        env_spec=env.spec,
        layout=agents_layout(observed, hidden, angles, heading),
        about=to_metadata(measured, {**settings, "final": list(final), "hidden": hidden, "seed": seed, "steps": steps}),
        algorithm_name=f"{len(behaviours)} behaviour policies",
        description=f"{env_id}: {len(behaviours)} behaviours, "
        + ("one in each episode." if switch_every is None else f"switched every {switch_every:g} steps on average."),
        overwrite=overwrite,
    )
    check_recording(name, behaviours, reads=reads)
    return dataset


def with_positions(env_id: str, env_kwargs: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Settings with which observations begin with the body's position, where the environment can do that, and how many
    numbers that is; settings that say otherwise are left alone."""
    env = shared_env(env_id, json.dumps(env_kwargs))
    if _POSITIONS not in inspect.signature(type(env.unwrapped).__init__).parameters:
        return env_kwargs, 0
    given = {_POSITIONS: False, **env_kwargs}
    sizes = [
        shared_env(env_id, json.dumps(kwargs)).observation_space.shape[0]
        for kwargs in (given, {**given, _POSITIONS: True})
    ]
    return given, sizes[0] - sizes[1]


def agents_layout(size: int, hidden: int, angles: Sequence[int] = (), heading: Heading | None = None) -> Layout:
    """The layout of observations of `size` numbers that begin with `hidden` ones of position: those are relative, the
    policy reads the rest, and everything is a feature. `angles` count from the first number that is read, the indices
    of `heading` from the first of all."""
    if any(not 0 <= angle < size - hidden for angle in angles):
        raise ValueError(f"angles must lie in 0..{size - hidden - 1}, got {list(angles)}")
    whole, turning = tuple(range(size)), tuple(angles)
    states = size + len(turning)
    sources = [ObservationSource(size, whole[hidden:], angles=turning)]
    if hidden:
        sources.append(ObservationSource(size - hidden, whole[: size - hidden], angles=turning))
    return Layout(
        states,
        tuple(range(hidden, states)),
        tuple(range(states)),
        relative=whole[:hidden],
        heading=heading,
        sources=tuple(sources),
        state_source=ObservationSource(size, whole, angles=tuple(hidden + angle for angle in turning)),
    )


def require_sense(how: Recorder, steps: int, *, inputs: int, bounded: bool) -> None:
    """Refuse settings that do not go together.

    Args:
        inputs: numbers of an observation without the position.
        bounded: whether all actions have bounds.
    """
    k, movable = len(how.behaviours), len(how.behaviours) - len(how.final)
    for wrong, message in (
        (k == 0, "expected behaviours, got none; pass --agents or --sb3 (agents, sb3)"),
        (steps < k, f"expected at least a step for each of {k} behaviours, got steps={steps}"),
        (how.episode_steps < 1, f"expected episode_steps of at least 1, got {how.episode_steps}"),
        (
            how.switch_every is not None and (how.switch_every < 1 or k < 2),
            f"expected switch_every of at least 1 and two behaviours to switch between, got {how.switch_every} and {k}",
        ),
        (
            not 0 <= how.lead_in < how.episode_steps,
            f"expected lead_in of 0 to {how.episode_steps - 1}, less than an episode, got {how.lead_in}",
        ),
        (how.lead_in > 0 and movable < 2, f"a lead-in needs two behaviours that are not final, got {movable}"),
        (
            how.healthy is not None and not (0 <= how.healthy[0] < inputs and how.healthy[1] < how.healthy[2]),
            f"expected healthy as an index of 0 to {inputs - 1}, a least and a greater value, got {how.healthy}",
        ),
        (not 0 <= how.noise <= 1, f"expected noise of 0 to 1 of half the action range, got {how.noise}"),
        (how.noise > 0 and not bounded, "noise is a share of the action range, and actions have no bounds; pass 0"),
    ):
        if wrong:
            raise ValueError(message)


def _indices(names: Sequence[str], behaviours: Sequence[Behaviour], option: str) -> list[int]:
    known = [behaviour.name for behaviour in behaviours]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--{option} {unknown[0]}: no such behaviour; there are {', '.join(known) or 'none'}")
    return [i for i, name in enumerate(known) if name in names]


def _require_boxes(env: Any) -> tuple[int, Any]:
    from gymnasium.spaces import Box

    for what, space in (("observations", env.observation_space), ("actions", env.action_space)):
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise ValueError(f"{env.spec.id}: expected {what} in a flat Box, got {space}; record those yourself")
    return int(env.observation_space.shape[0]), env.action_space
