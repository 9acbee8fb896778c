r"""How long do the humanoid's skills walk, how many of its gaits do they show, and which ways do they go?

    didi-gym data humanoid-gaits --agents DIR
    didi-gym train --dataset didi/humanoid-gaits-v0 --output runs/humanoid-gaits --seed 0 \
        --skills.skill-space.kind discrete --skills.skill-space.size 24 --behaviours.steps 30000
    python experiments/domains/humanoid.py runs/humanoid-gaits --agents DIR

The rows `humanoid-gaits-14k` are those of the default number of steps.

Every skill is held for up to 1,000 steps (15 s) from 16 resets. `survival` is how many of them it stood: the median of
all rollouts, and of the skills' medians the least and how many reach 500. A classifier, fitted on labelled windows of
the data, says which gait each window of a rollout shows; a gait is shown where it fills more than half of the windows
of some skill. Velocities, in m/s, are those of the body's own frame after the first 100 steps, the mean of a skill's
rollouts; `forward` is the greatest of all skills, and so on; `turning` is in rad/s. `switches_stood` is the share of
switches, from each skill after 150 steps to a random other one, after which the body stands for 300 more. With
`--agents` the gaits themselves are held from the same resets, without noise (policy `gaits`): what imitation could
reach.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from gait_recovery import SETTLED, WINDOW, Judge
from rows import RESULTS, read

from didi_gym import SkillPolicy, TrajectoryDataset
from didi_gym.core.frames import yaw_of
from didi_gym.core.layout import Heading
from didi_gym.data import ArrayPolicy, read_labels
from didi_gym.data.generators.behaviours import read_folder
from didi_gym.data.generators.humanoid import whole_observation
from didi_gym.evaluation.rollouts import Rollout, SkillSimulator, Start, make_data_env

STEPS, ROLLOUTS, ENOUGH = 1000, 16, 500
BEFORE, AFTER = 150, 300  # a switch
FILE = "domains-humanoid.csv"
COLUMNS = ("policy", "seed", "device", "measure", "value")


def measure(policy: SkillPolicy, dataset: TrajectoryDataset) -> dict[str, float]:
    """What the skills of a policy do in the simulator, held from resets."""
    simulator = SkillSimulator(policy, make_data_env(policy))
    starts = resets(simulator)
    skills = np.eye(policy.skill_space.size, dtype=np.float32)

    def hold(skill: int, state: np.ndarray, steps: int) -> Rollout:
        return simulator.hold(state, skills[skill], steps)

    held = [[hold(skill, simulator.visit(start), STEPS) for start in starts] for skill in range(len(skills))]
    found = {"skills": len(held), **describe(held, dataset, seconds=simulator.env.unwrapped.dt)}  # type: ignore[attr-defined]
    return {**found, "switches_stood": switches_stood(hold, simulator, len(skills))}


def measure_gaits(policy: SkillPolicy, dataset: TrajectoryDataset, agents: Path) -> dict[str, float]:
    """What the gaits that the data set was recorded from do, held from the same resets."""
    simulator = SkillSimulator(policy, make_data_env(policy))
    starts, known = resets(simulator), {agent.name: agent for agent in read_folder(agents, "Humanoid")}
    names = read_labels(str(dataset.dataset_id)).names

    def hold(gait: int, state: np.ndarray, steps: int) -> Rollout:
        return run(simulator, known[names[gait]], state, steps)

    held = [[hold(gait, simulator.visit(start), STEPS) for start in starts] for gait in range(len(names))]
    found = {"gaits": len(held), **describe(held, dataset, seconds=simulator.env.unwrapped.dt)}  # type: ignore[attr-defined]
    return {**found, "switches_stood": switches_stood(hold, simulator, len(names))}


def resets(simulator: SkillSimulator) -> list[Start]:
    return simulator.random_starts(ROLLOUTS, np.random.default_rng(0), burn_in=0)


def switches_stood(hold: Callable[[int, np.ndarray, int], Rollout], simulator: SkillSimulator, skills: int) -> float:
    """Share of switches to a random other skill that the body stands, of those from a skill that stood until then."""
    rng, stood = np.random.default_rng(1), []
    for first in range(skills):
        for start in resets(simulator):
            second = int(rng.choice([skill for skill in range(skills) if skill != first]))
            before = hold(first, simulator.visit(start), BEFORE)
            if not before.terminated:
                stood.append(not hold(second, before.states[-1], AFTER).terminated)
    return float(np.mean(stood)) if stood else 0.0


def run(simulator: SkillSimulator, agent: ArrayPolicy, state: np.ndarray, steps: int) -> Rollout:
    states, actions, terminated = [state], [], False
    low, high = simulator.env.action_space.low, simulator.env.action_space.high  # type: ignore[attr-defined]
    while len(actions) < steps and not terminated:
        action = agent(whole_observation(simulator.env)[None], np.array([len(actions)]))[0].clip(low, high)
        observation, _, terminated, _, _ = simulator.env.step(action.astype(np.float32))
        states.append(np.asarray(observation, np.float32))
        actions.append(action)
    return Rollout(np.stack(states), np.stack(actions), bool(terminated), np.nan)


def describe(held: Sequence[Sequence[Rollout]], dataset: TrajectoryDataset, *, seconds: float) -> dict[str, float]:
    """Survival, gaits and velocities of what was held, a sequence of rollouts for each skill."""
    labels, heading = read_labels(str(dataset.dataset_id)), dataset.layout.heading
    assert heading is not None
    judge = Judge(dataset, labels.steps)
    survived, velocities, shown, steady = [], [], set(), set()
    for skill, rollouts in enumerate(held):
        lengths = np.array([len(rollout.actions) for rollout in rollouts])
        settled = [rollout for rollout in rollouts if len(rollout.actions) >= SETTLED + WINDOW]
        survived.append(lengths)
        counts, velocity = np.zeros(len(labels.names), int), np.full(3, np.nan)
        if settled:
            counts = np.bincount(np.concatenate([judge(rollout) for rollout in settled]), minlength=len(labels.names))
            velocity = np.mean([body_velocity(rollout, heading, seconds) for rollout in settled], axis=0)
            velocities.append(velocity)
        most = int(counts.argmax())
        if counts[most] > 0.5 * counts.sum():
            shown.add(most)
            if np.median(lengths) >= ENOUGH:
                steady.add(most)
        print(
            f"  {skill:2}: {labels.names[most]:38} {counts[most] / max(counts.sum(), 1):.2f} of windows, survival "
            f"{lengths.min()}/{np.median(lengths):.0f}, {velocity[0]:5.2f} m/s ahead, {velocity[1]:5.2f} to the left, "
            f"{velocity[2]:5.2f} rad/s",
            flush=True,
        )
    medians, (ahead, left, turning) = np.median(survived, axis=1), np.array(velocities).T
    return {
        "survival": float(np.median(survived)),
        "survival_of_the_least_skill": float(medians.min()),
        "skills_that_survive": int((medians >= ENOUGH).sum()),
        "gaits_shown": len(shown),
        "gaits_shown_and_survive": len(steady),
        "forward": float(ahead.max()),
        "backward": float(-ahead.min()),
        "left": float(left.max()),
        "right": float(-left.min()),
        "turning": float(np.abs(turning).max()),
    }


def body_velocity(rollout: Rollout, heading: Heading, seconds: float) -> np.ndarray:
    """Mean velocity ahead and to the left, in m/s, and of turning, in rad/s, after it has settled, `(3,)`."""
    states = rollout.states[SETTLED:].astype(np.float64)
    yaw = np.unwrap(yaw_of(states, heading))
    (dx, dy), cos, sin = np.diff(states[:, :2], axis=0).T, np.cos(yaw[:-1]), np.sin(yaw[:-1])
    moved = np.array([cos * dx + sin * dy, cos * dy - sin * dx, np.diff(yaw)])
    return moved.mean(1) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="policy folders NAME-seedN, or NAME for seed 0")
    parser.add_argument("--agents", type=Path, help="folder of the gaits, to measure them as well")
    parser.add_argument("--dry", action="store_true", help="write no table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for folder in arguments.folders:
        name, seed = re.fullmatch(r"(.*?)(?:-seed(\d+))?", folder.resolve().name).groups()  # type: ignore[union-attr]
        policy = SkillPolicy.from_pretrained(folder, device="cpu")
        dataset = TrajectoryDataset.from_minari(str(policy.config.dataset_id))
        found = {(name, seed or "0"): measure(policy, dataset)}
        if arguments.agents:
            found["gaits", ""] = measure_gaits(policy, dataset, arguments.agents)
            arguments.agents = None  # once
        print(found)
        if not arguments.dry:
            write(found)


def write(found: dict[tuple[str, str], dict[str, float]]) -> None:
    """Put figures into the table, in place of older ones of the same policies and seeds."""
    rows = [row for row in read(FILE) if (row["policy"], row["seed"]) not in found]
    for (policy, seed), figures in found.items():
        for what, value in figures.items():
            rows.append(dict(zip(COLUMNS, (policy, seed, "cpu", what, f"{value:.4g}"), strict=True)))
    with (RESULTS / FILE).open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (row["policy"], row["seed"])))


if __name__ == "__main__":
    main()
