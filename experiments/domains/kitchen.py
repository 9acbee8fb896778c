r"""Which subtasks do the skills for FrankaKitchen do, each alone and one after the other?

    didi-gym data kitchen
    didi-gym train --dataset didi/kitchen-v0 --output runs/kitchen-seed0 SETTINGS  # those of hub/recipes/kitchen.toml
    python experiments/domains/kitchen.py runs/kitchen-seed0

A figure of a policy and seed that is in the table is not measured again.

- `held_subtasks`: subtasks that some skill does in at least half of 8 resets when it is held for 280 steps, the
  environment's own limit; `held_rate: NAME` is the share of the resets in which the best skill for a subtask does it.
- `sequence_subtasks`: subtasks done in one episode by a sequence of skills, mean over 10 fresh resets;
  `sequence_least` is the least of them, `sequence_length` the number of skills. The sequence is found beforehand, on
  3 other resets, by a beam search that sees which subtasks are done; a skill of it is held for 100 to 250 steps.
- `purity`: share of the steps trained on whose skill, as the policy's errors tell it, mostly holds steps of the same
  expert, going home included; `purity_subtasks` leaves the steps on the way home out.
"""

from __future__ import annotations

import argparse
import copy
import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch

from didi_gym import Run, SkillPolicy, TrajectoryDataset
from didi_gym.data import read_labels
from didi_gym.data.generators.kitchen_experts import SUBTASKS
from didi_gym.evaluation.rollouts import SkillSimulator, Start, make_data_env
from didi_gym.training.behaviours import action_errors
from didi_gym.training.config import BehaviourConfig
from didi_gym.training.segmentation import refine

RESULTS = Path(__file__).resolve().parents[1] / "results" / "domains-kitchen.csv"
COLUMNS = ("policy", "seed", "device", "measure", "value")
HELD, RESETS = 280, 8  # steps of a skill that is held, and resets
TURNS, BEAM, LONGEST = (100, 150, 200, 250), 4, 9  # steps of a skill in a sequence, sequences kept, skills in one
SEARCHED, FRESH = 3, 10  # resets that a sequence is searched on, and others that it is tried on
_SEARCHED, _FIRST_FRESH, _FIRST_HELD = 500_000, 600_000, 700_000  # seeds of resets


class Kitchen:
    """Skills in the environment of the data, from resets and from states that were kept."""

    def __init__(self, policy: SkillPolicy) -> None:
        self.policy = policy
        self.simulator = SkillSimulator(policy, make_data_env(policy))
        self.inner: Any = self.simulator.env.unwrapped
        self.skills = policy.skill_space.grid(policy.skill_space.size)

    @property
    def done(self) -> list[str]:
        """Subtasks done since the reset, in the order in which they were."""
        return list(self.inner.episode_task_completions)

    def reset(self, seed: int) -> np.ndarray:
        return self.simulator.visit(Start(seed))

    def run(self, state: np.ndarray, skill: int, steps: int) -> np.ndarray:
        """Hold a skill and return the state after it."""
        return self.simulator.hold(state, self.skills[skill], steps).states[-1]

    def keep(self) -> Callable[[], None]:
        """Remember the simulator as it is now; what is returned puts it back there."""
        robot, inner = self.inner.robot_env, self.inner
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty(mujoco.mj_stateSize(robot.model, kind))
        mujoco.mj_getState(robot.model, robot.data, physics, kind)
        seen, tasks, done = robot._last_robot_qpos.copy(), set(inner.tasks_to_complete), self.done
        noise = copy.deepcopy((inner.np_random.bit_generator.state, robot.np_random.bit_generator.state))

        def put_back() -> None:
            mujoco.mj_setState(robot.model, robot.data, physics, kind)
            mujoco.mj_forward(robot.model, robot.data)
            robot._last_robot_qpos = seen.copy()
            inner.tasks_to_complete, inner.episode_task_completions = set(tasks), list(done)
            inner.np_random.bit_generator.state, robot.np_random.bit_generator.state = copy.deepcopy(noise)

        return put_back


@dataclass(frozen=True)
class Place:
    """Where a sequence of skills leads from one reset."""

    state: np.ndarray
    put_back: Callable[[], None]
    done: frozenset[str]


Sequence = tuple[tuple[int, int], ...]
"""Skills, and for how many steps each is held."""


def held_rates(kitchen: Kitchen) -> np.ndarray:
    """Share of the resets in which each skill, held, does each subtask `(skills, subtasks)`."""
    hits = np.zeros((len(kitchen.skills), len(SUBTASKS)))
    for skill in range(len(kitchen.skills)):
        for i in range(RESETS):
            kitchen.run(kitchen.reset(_FIRST_HELD + i), skill, HELD)
            hits[skill] += [subtask in kitchen.done for subtask in SUBTASKS]
        print(f"  skill {skill:2}:", dict(zip(SUBTASKS, (hits[skill] / RESETS).tolist(), strict=True)), flush=True)
    return hits / RESETS


def best_sequence(kitchen: Kitchen) -> Sequence:
    """A sequence of skills that does many subtasks from each of a few resets, by beam search."""
    places = [Place(kitchen.reset(_SEARCHED + i), kitchen.keep(), frozenset()) for i in range(SEARCHED)]
    beam: list[tuple[Sequence, list[Place]]] = [((), places)]
    best, most = beam[0][0], 0
    for _ in range(LONGEST):
        found: dict[tuple[frozenset[str], ...], tuple[Sequence, list[Place]]] = {}
        for sequence, places in beam:
            for skill in range(len(kitchen.skills)):
                for turn, after in turns(kitchen, places, skill).items():
                    # of sequences that did the same, the first is kept
                    found.setdefault(tuple(place.done for place in after), ((*sequence, (skill, turn)), after))
        beam = sorted(found.values(), key=lambda one: -score(one[1]))[:BEAM]
        if score(beam[0][1]) <= most:
            break
        best, most = beam[0][0], score(beam[0][1])
        print(f"  {best} does {most / SEARCHED:.2f} of {len(SUBTASKS)}", flush=True)
    return best


def turns(kitchen: Kitchen, places: list[Place], skill: int) -> dict[int, list[Place]]:
    """Where a skill leads from each of `places` when it is held for each of `TURNS` steps."""
    after: dict[int, list[Place]] = {turn: [] for turn in TURNS}
    for place in places:
        place.put_back()
        state, held = place.state, 0
        for turn in TURNS:
            state, held = kitchen.run(state, skill, turn - held), turn
            after[turn].append(Place(state, kitchen.keep(), frozenset(kitchen.done)))
    return after


def score(places: list[Place]) -> int:
    return sum(len(place.done) for place in places)


def verified(kitchen: Kitchen, sequence: Sequence) -> list[int]:
    """Subtasks that a sequence of skills does from each of the fresh resets."""
    counts = []
    for i in range(FRESH):
        state = kitchen.reset(_FIRST_FRESH + i)
        for skill, steps in sequence:
            state = kitchen.run(state, skill, steps)
        counts.append(len(kitchen.done))
        print(f"  reset {i}: {', '.join(kitchen.done)}", flush=True)
    return counts


def purity(policy: SkillPolicy, dataset: TrajectoryDataset) -> dict[str, float]:
    """How well the skills' errors tell the experts apart in the data."""
    labels = read_labels(str(dataset.dataset_id))
    dataset = dataset.split(horizon=policy.config.horizon)[0]  # for the policy's own units
    run = Run(dataset, horizon=policy.config.horizon, device="cpu", progress=False)
    errors = action_errors(run, policy, policy.skill_space.size)
    found = refine(dataset, errors, BehaviourConfig(merge_ratio=1.0)).labels
    counts = np.zeros((found.max() + 1, len(labels.names)))
    np.add.at(counts, (found[found >= 0], labels.steps[found >= 0]), 1)
    subtasks = counts[:, : len(SUBTASKS)]
    return {
        "purity": counts.max(1).sum() / counts.sum(),
        "purity_subtasks": subtasks.max(1).sum() / subtasks.sum(),
    }


def measure(policy: SkillPolicy, dataset: TrajectoryDataset) -> dict[str, float]:
    """What the skills of a policy do in the kitchen."""
    kitchen = Kitchen(policy)
    rates = held_rates(kitchen).max(0)
    sequence = best_sequence(kitchen)
    counts = verified(kitchen, sequence)
    return {
        "skills": policy.skill_space.size,
        "held_subtasks": float((rates >= 0.5).sum()),
        **{f"held_rate: {name}": float(rate) for name, rate in zip(SUBTASKS, rates, strict=True)},
        "sequence_subtasks": float(np.mean(counts)),
        "sequence_least": float(min(counts)),
        "sequence_length": len(sequence),
        **purity(policy, dataset),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="policy folders NAME-seedN, or NAME for seed 0")
    parser.add_argument("--dry", action="store_true", help="write no table, and measure what is there as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for folder in arguments.folders:
        matched = re.fullmatch(r"(.*?)(?:-seed(\d+))?", folder.resolve().name)
        assert matched is not None
        name, seed = matched[1], matched[2] or "0"
        if not arguments.dry and any((row["policy"], row["seed"]) == (name, seed) for row in rows()):
            print(name, seed, "is there already")
            continue
        policy = SkillPolicy.from_pretrained(folder, device="cpu")
        found = measure(policy, TrajectoryDataset.from_minari(str(policy.config.dataset_id)))
        print({what: round(value, 3) for what, value in found.items()})
        if not arguments.dry:
            new = [dict(zip(COLUMNS, (name, seed, "cpu", what, f"{v:.4g}"), strict=True)) for what, v in found.items()]
            write([*rows(), *new])


def rows() -> list[dict[str, str]]:
    if not RESULTS.is_file():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def write(table: list[dict[str, str]]) -> None:
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(table, key=lambda row: (row["policy"], row["seed"])))


if __name__ == "__main__":
    main()
