r"""Do the default settings serve data that they were not developed on?

    python experiments/heldout.py push swimmer lander lander-behaviours --seeds 0 1 2

Each domain's data set is made here where it is not on this disk (`heldout/NAME-v0`), trained on with default settings,
and measured on rollouts of skills that are held from resets:

- `push`: scripted pushes of the block in 8 directions on FetchPush; continuous skills, with the one layout that is not
  the default: skills must differ in where the block is. `moved`: share of rollouts of 50 steps that move it more than
  5 cm. `directions`: octants into which some of 16 skills moves it so far in more than half of its rollouts.
- `swimmer`: sinusoids that swim straight and in curves, forwards and backwards; continuous skills. `spread_ratio`: real
  spread of the skills over the planned one. `swimmer-heading` is the same with a heading by the body's angle.
- `lander`: five controllers on LunarLander (needs box2d); continuous skills. `falls`: share of held skills that end
  their episode within 200 steps without standing on both legs, beside that of the data's first 200 steps.
  `lander-behaviours` is the same with discrete skills, 8 clusters.

A row is written when it is measured, and a row that is there is not measured again. A run that was stopped continues.
`--share .5` halves all gradient steps; it is recorded in the row.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from domains.held import octants, rollouts, unit
from rows import RESULTS, read

from didi_gym import SkillConfig, SkillPolicy, SkillSpace, TrainConfig, TrajectoryDataset, evaluate_skills, train
from didi_gym.core.layout import Layout, LayoutChoice
from didi_gym.data import DatasetError, Episode, write_dataset
from didi_gym.data.generators.agents import agents_layout
from didi_gym.training.pipeline import hold_out

FILE = "heldout.csv"
KEY = ("dataset", "seed", "share")
COLUMNS = (
    *KEY,
    *("skills", "horizon", "moved", "directions", "spread_ratio", "consistency", "falls", "falls_of_data"),
)
ROLLOUTS = 16
PUSH, LAND = 50, 200  # steps of a rollout
FAR = 0.05  # m that a block must move


def record(env: gym.Env, controller: Callable[[Any, int], np.ndarray], seed: int, steps: int) -> Episode:
    """One episode of a controller `(observation, step) -> action`."""
    observation = env.reset(seed=seed)[0]
    observations, actions, rewards, terminated = [observation], [], [], False
    while len(actions) < steps and not terminated:
        actions.append(controller(observation, len(actions)))
        observation, reward, terminated, truncated, _ = env.step(actions[-1])
        observations.append(observation)
        rewards.append(float(reward))
        if truncated:
            break
    seen: Any = observations
    if isinstance(observation, dict):
        seen = {key: np.stack([one[key] for one in observations]) for key in observation}
    return Episode(
        np.asarray(seen) if isinstance(seen, list) else seen,
        np.array(actions),
        np.array(rewards),
        bool(terminated),
        seed,
    )


def pusher(degrees: float, rng: np.random.Generator) -> Callable[[Any, int], np.ndarray]:
    """Goes round the block, pushes it 13 cm in a direction, and lifts the hand."""
    ahead = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
    side = np.array([-ahead[1], ahead[0]])
    state: dict[str, Any] = {"phase": "approach"}

    def act(observation: Any, step: int) -> np.ndarray:
        hand, block = observation["observation"][:3], observation["observation"][3:6]
        behind = block[:2] - 0.09 * ahead
        near = np.linalg.norm(hand[:2] - behind) < 0.03
        begin = state.setdefault("begin", block[:2].copy())
        if state["phase"] == "approach" and near and hand[2] - block[2] < 0.02:
            state["phase"] = "push"
        if state["phase"] == "push" and (block[:2] - begin) @ ahead > 0.13:
            state["phase"] = "lift"
        if state["phase"] == "approach":
            target = np.array([*behind, block[2] + (0 if near else 0.13)])
        elif state["phase"] == "push":
            target = np.array([*(hand[:2] + 0.05 * ahead - (hand[:2] - block[:2]) @ side * side), block[2]])
        else:
            target = np.array([*hand[:2], block[2] + 0.15])
        moves = np.clip(8 * (target - hand), -1, 1) + rng.normal(0, 0.1, 3)
        return np.append(moves, 0).clip(-1, 1).astype(np.float32)

    return act


def swimmer(rng: np.random.Generator) -> Callable[[Any, int], np.ndarray]:
    """A wave along the body, forwards or backwards, with a bend that makes it turn."""
    phase, bend, start = rng.choice([-1, 1]) * np.pi / 2, rng.uniform(-0.4, 0.4), rng.uniform(0, 2 * np.pi)

    def act(_: Any, step: int) -> np.ndarray:
        wave = start + 2 * np.pi * 0.04 * step  # one a second
        torque = np.array([np.sin(wave), np.sin(wave + phase)]) + bend + rng.normal(0, 0.1, 2)
        return torque.clip(-1, 1).astype(np.float32)

    return act


def lander(kind: int, rng: np.random.Generator) -> Callable[[Any, int], int]:
    """Land in the middle, to the left or to the right; hover; climb: by engines that are on or off."""
    place = (0.0, -0.5, 0.5, 0.0, 0.0)[kind]

    def act(observation: Any, step: int) -> int:
        x, y, vx, vy, angle, turning, left, right = observation
        lean = np.clip(0.5 * (x - place) + vx, -0.4, 0.4)
        turn = 0.5 * (lean - angle) - turning
        height = (0.55 * abs(x - place), 0.55 * abs(x - place), 0.55 * abs(x - place), 0.8, 1.2)[kind]
        lift = 0.5 * (height - y) - 0.5 * vy
        if left or right:
            turn, lift = 0, -0.5 * vy
        if rng.random() < 0.05:
            return int(rng.integers(4))
        if lift > abs(turn) and lift > 0.05:
            return 2
        return 3 if turn < -0.05 else 1 if turn > 0.05 else 0

    return act


def make(name: str, dataset_id: str) -> None:
    """Write the data set of a domain."""
    keys: tuple[str, ...] = ()
    if name == "push":
        import gymnasium_robotics

        gym.register_envs(gymnasium_robotics)
        env, episodes, steps, keys = gym.make("FetchPush-v4"), 2_000, PUSH, ("observation",)
        layout = Layout.flat(25, keys)

        def controller(i: int, rng: np.random.Generator) -> Any:
            return pusher(45 * i, rng)
    elif name == "swimmer":
        env = gym.make("Swimmer-v5", exclude_current_positions_from_observation=False)
        layout, episodes, steps = agents_layout(10, 2), 200, 500

        def controller(i: int, rng: np.random.Generator) -> Any:
            return swimmer(rng)
    else:
        env, layout, episodes, steps = gym.make("LunarLander-v3"), Layout.flat(8), 400, 400

        def controller(i: int, rng: np.random.Generator) -> Any:
            return lander(i % 5, rng)

    recorded = [record(env, controller(i, np.random.default_rng(i)), 10_000 + i, steps) for i in range(episodes)]
    about = f"{name}: scripted behaviours"
    write_dataset(
        dataset_id, recorded, env_spec=env.spec, layout=layout, keys=keys, algorithm_name="script", description=about
    )


def load(name: str) -> TrajectoryDataset:
    """The data set of a domain, with what a user has to say of its columns."""
    made = name.partition("-")[0]
    dataset_id = f"heldout/{made}-v0"
    layout = {
        "push": LayoutChoice(features=(3, 4)),  # where the block is
        "swimmer-heading": LayoutChoice(heading_angle=(2,), heading_vectors=((0, 1), (5, 6))),
    }.get(name)
    try:
        return TrajectoryDataset.from_minari(dataset_id, layout=layout)
    except DatasetError:
        make(made, dataset_id)
    return TrajectoryDataset.from_minari(dataset_id, layout=layout)


def settings(name: str, seed: int, share: float) -> TrainConfig:
    """Default settings, with `share` of the gradient steps."""
    config = TrainConfig(seed=seed)
    if name == "lander-behaviours":
        config = replace(config, skills=SkillConfig(skill_space=SkillSpace("discrete", 8)))

    def fewer(part: Any) -> Any:
        names = ("steps", "scout_steps")
        return replace(part, **{n: max(round(share * getattr(part, n)), 1) for n in names if hasattr(part, n)})

    parts = ("skills", "behaviours", "prior", "dynamics")
    return replace(config, **{part: fewer(getattr(config, part)) for part in parts})


def measure_push(policy: SkillPolicy, dataset: TrajectoryDataset) -> dict[str, Any]:
    feature = list(policy.config.layout.features)
    moves = np.array(
        [[r.states[-1, feature] - r.states[0, feature] for r in held] for held in rollouts(policy, 16, PUSH)]
    )
    far = np.linalg.norm(moves, axis=-1) > FAR
    octant = octants(moves)
    hit = [(far & (octant == one)).mean(1).max() > 0.5 for one in range(8)]
    consistency = np.linalg.norm((unit(moves) * far[..., None]).sum(1), axis=-1) / np.maximum(far.sum(1), 1)
    report, _ = evaluate_skills(policy, dataset=dataset, starts=16, held_episodes=1, hold=1, progress=False)
    return {
        "moved": far.mean(),
        "directions": int(np.sum(hit)),
        "consistency": consistency.mean(),
        "spread_ratio": report.spread_ratio,
    }


def measure_swimmer(policy: SkillPolicy, dataset: TrajectoryDataset) -> dict[str, Any]:
    report, _ = evaluate_skills(policy, dataset=dataset, held_episodes=1, hold=1, progress=False)
    moves = np.array([[r.states[-1, :2] - r.states[0, :2] for r in held] for held in rollouts(policy, 8, 200)])
    return {"spread_ratio": report.spread_ratio, "consistency": np.linalg.norm(unit(moves).mean(1), axis=-1).mean()}


def measure_lander(policy: SkillPolicy, dataset: TrajectoryDataset) -> dict[str, Any]:
    skills = policy.skill_space.size if policy.skill_space.is_discrete else 8
    held = [r for one in rollouts(policy, skills, LAND) for r in one]
    ends = zip(dataset.lengths, dataset.starts + dataset.lengths - 1, strict=True)

    def fell(state: np.ndarray) -> bool:  # one step before the end
        return bool(state[6:8].min() < 0.5)

    report, _ = evaluate_skills(policy, dataset=dataset, starts=16, held_episodes=1, hold=1, progress=False)
    return {
        "falls": np.mean([r.terminated and fell(r.states[-2]) for r in held]),
        "falls_of_data": np.mean([length < LAND and fell(dataset.observations[last]) for length, last in ends]),
        "spread_ratio": report.spread_ratio,
    }


MEASURES = {
    "push": measure_push,
    "swimmer": measure_swimmer,
    "swimmer-heading": measure_swimmer,
    "lander": measure_lander,
    "lander-behaviours": measure_lander,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=MEASURES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the default gradient steps")
    parser.add_argument("--runs", type=Path, default=Path("runs/heldout"), help="folder for the policies")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.names:
        if name.startswith("lander") and not _has_box2d():
            print("lander is left out: it needs box2d (pip install box2d)", file=sys.stderr)
            continue
        for seed in arguments.seeds:
            key = (name, str(seed), f"{arguments.share:g}")
            if any(tuple(row[column] for column in KEY) == key for row in read(FILE)):
                print(*key, "is there already")
                continue
            dataset = load(name)
            config = hold_out(dataset, settings(name, seed, arguments.share))[2]
            print(*key, f"horizon {config.horizon}", flush=True)
            folder = arguments.runs / "-".join(key)
            train(dataset, config, folder)
            policy = SkillPolicy.from_pretrained(folder, device="cpu")
            found = MEASURES[name](policy, dataset)
            row = dict(zip(KEY, key, strict=True)) | {
                "skills": f"{policy.skill_space.kind} {policy.skill_space.size}",
                "horizon": config.horizon,
                **{what: f"{value:.3g}" for what, value in found.items()},
            }
            print(row, flush=True)
            write([*read(FILE), row])


def write(rows: list[dict[str, Any]]) -> None:
    with (RESULTS / FILE).open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: tuple(str(row[column]) for column in KEY)))


def _has_box2d() -> bool:
    try:
        import Box2D  # noqa: F401
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    main()
