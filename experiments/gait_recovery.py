r"""Which behaviours of a mixture do skills recover, that were learned from it without labels?

    didi-gym data from-agents --env HalfCheetah-v5 --agents DIR --angles 1 --healthy 1 -2 2 --final NAME \
        --episode-steps 500 [--switch-every 120]
    didi-gym train --dataset didi/halfcheetah-gaits-v0 --output runs/didi-halfcheetah-gaits-v0-seed0 --seed 0 \
        --skills.skill-space.kind discrete --skills.skill-space.size 12
    python experiments/gait_recovery.py runs/didi-halfcheetah-gaits-v0-seed* --csv experiments/results/gaits.csv

The data sets are halfcheetah-gaits (one behaviour an episode) and halfcheetah-gaits-switching (`--switch-every 120`);
DIR holds policies as plain arrays, NAME is one that runs on its back. Further seeds take `--reuse` of the first run.
`--agents DIR --method behaviours` judges the behaviours themselves from the same starts: what imitation could reach.
The rows of other methods come from `experiments/baselines.py --policies runs/methods`, read here with `--method`.

Every skill is held for 300 steps from 16 resets, from 16 upright states of all behaviours, which training never saw,
and from the resets with a push after 100 steps (a kick to every velocity). A classifier, fitted on labelled windows of
the data, says which behaviour each rollout shows; its speed is taken over the last 200 steps. A behaviour is recovered
where some skill shows it in most windows, at its speed within 25 %. `bits` is the mutual information between the
skill and the behaviour that a rollout mostly shows, `fidelity` that of the last steps of the rollouts.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from methods.recorded import the_behaviours
from torch.nn import functional as F

from didi_gym import SkillPolicy, TrajectoryDataset
from didi_gym.core.frames import localize
from didi_gym.data import read_labels
from didi_gym.data.windows import describe_windows
from didi_gym.evaluation.report import fidelity
from didi_gym.evaluation.rollouts import Rollout, SkillSimulator, Start, make_data_env

STEPS, SETTLED, WINDOW, STRIDE, ROLLOUTS = 300, 100, 50, 25, 16
PUSH = 2.0  # standard deviation of the kick, in m/s and rad/s
KEY = ("dataset", "method", "seed", "starts")
COLUMNS = (*KEY, "skills", "recovered", "bits", "fidelity", "success", "slowest", "fastest", "behaviours")


class Judge:
    """Says which behaviour windows of states and actions show, from labelled data."""

    def __init__(self, dataset: TrajectoryDataset, labels: np.ndarray) -> None:
        self._layout = dataset.layout
        signals = self._join(dataset.observations, dataset.actions)
        self._mean, self._std = signals.mean(0), np.maximum(signals.std(0), 1e-6)
        signals = self._normal(signals)
        self._axes = np.linalg.svd(signals[::25], full_matrices=False)[2][:10]
        windows, truth = [], []
        for first, length in zip(dataset.starts, dataset.lengths, strict=True):
            for start in range(first + SETTLED, first + length - WINDOW + 1, STRIDE):
                own = labels[start : start + WINDOW]
                if (own == own[0]).all():
                    windows.append(signals[start : start + WINDOW])
                    truth.append(own[0])
        features = describe_windows(np.stack(windows), self._axes)
        self._center, self._scale = features.mean(0), np.maximum(features.std(0), 1e-6)
        x, y = torch.as_tensor((features - self._center) / self._scale), torch.as_tensor(np.array(truth))
        torch.manual_seed(0)
        self._net = torch.nn.Sequential(
            torch.nn.Linear(x.shape[1], 64), torch.nn.SiLU(), torch.nn.Linear(64, int(y.max()) + 1)
        )
        optimizer = torch.optim.AdamW(self._net.parameters(), lr=1e-3, weight_decay=1e-2)
        for _ in range(800):
            rows = torch.randint(len(x), (512,))
            optimizer.zero_grad()
            F.cross_entropy(self._net(x[rows]), y[rows]).backward()
            optimizer.step()

    def __call__(self, rollout: Rollout) -> np.ndarray:
        """The behaviour of each window of a rollout after it has settled."""
        signals = self._normal(self._join(rollout.states[:-1], rollout.actions))
        starts = range(SETTLED, len(signals) - WINDOW + 1, STRIDE)
        features = describe_windows(np.stack([signals[start : start + WINDOW] for start in starts]), self._axes)
        with torch.no_grad():
            return self._net(torch.as_tensor((features - self._center) / self._scale)).argmax(1).numpy()

    def _join(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        own = localize(states[:, None], self._layout)[0][:, 0]  # the same whatever way a body faces
        return np.concatenate([own[:, list(self._layout.policy_inputs)], actions], axis=1)

    def _normal(self, signals: np.ndarray) -> np.ndarray:
        return ((signals - self._mean) / self._std).astype(np.float32)


def hold(simulator: SkillSimulator, start: Start, skill: np.ndarray, kick: np.ndarray | None) -> Rollout:
    """Hold a skill for STEPS steps, with a kick to the velocities `(nv,)` when it has settled, if there is one."""
    if kick is None:
        return simulator.hold(simulator.visit(start), skill, STEPS)
    before = simulator.hold(simulator.visit(start), skill, SETTLED)
    simulator.env.unwrapped.data.qvel[:] += kick  # type: ignore[attr-defined]
    after = simulator.hold(before.states[-1], skill, STEPS - SETTLED)  # its first action does not know of the kick
    states = np.concatenate([before.states, after.states[1:]])
    return Rollout(states, np.concatenate([before.actions, after.actions]), after.terminated, before.contact)


def information(counts: np.ndarray) -> float:
    """Mutual information in bits of a table of counts: between the skill and the behaviour that a rollout shows."""
    joint = counts / counts.sum()
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    held = joint > 0
    return float((joint[held] * np.log2(joint[held] / independent[held])).sum())


def evaluate(policy: SkillPolicy, seed: int, method: str = "didi") -> list[dict[str, Any]]:
    """A row for starts from resets, one for starts from held-out states of the data, and one for pushes."""
    assert policy.config.dataset_id is not None, "the policy does not say which data set it was trained on"
    dataset = TrajectoryDataset.from_minari(policy.config.dataset_id)
    labels = read_labels(policy.config.dataset_id)
    judge = Judge(dataset, labels.steps)
    env, horizon = make_data_env(policy), policy.config.horizon
    simulator = SkillSimulator(policy, env)
    seconds = (STEPS - SETTLED) * env.unwrapped.dt  # type: ignore[attr-defined]
    speeds = np.array([behaviour.speed for behaviour in labels.behaviours])
    rows = []
    for kind in ("reset", "data", "push"):
        generator = np.random.default_rng(1000 + seed)
        if kind != "data":
            starts = simulator.random_starts(ROLLOUTS, generator, burn_in=0)
        else:
            drawn = simulator.data_starts(40 * ROLLOUTS, dataset.split(horizon=horizon)[1], generator)
            upright = dataset.layout.state_source.angles[0]  # type: ignore[union-attr]
            starts = [start for start in drawn if start.state is not None and start.state[upright] > 0][:ROLLOUTS]
        best = np.zeros(len(speeds))
        together = np.zeros((policy.skill_space.size, len(speeds)))  # rollouts of each skill by what they mostly show
        shown_speeds, inside = [], []
        for skill in np.eye(policy.skill_space.size, dtype=np.float32):
            kicks = generator.normal(0, PUSH, (len(starts), env.unwrapped.model.nv)) if kind == "push" else None  # type: ignore[attr-defined]
            rollouts = [
                hold(simulator, start, skill, None if kicks is None else kicks[i]) for i, start in enumerate(starts)
            ]
            ends = [replace(r, states=r.states[-horizon - 1 :], actions=r.actions[-horizon:]) for r in rollouts]
            inside.append(fidelity(policy, dataset, ends))
            shown = np.stack([judge(rollout) for rollout in rollouts])
            ran = np.array([rollout.states[STEPS, 0] - rollout.states[SETTLED, 0] for rollout in rollouts]) / seconds
            mostly = [np.bincount(row, minlength=len(speeds)).argmax() for row in shown]
            together[skill.argmax()] = np.bincount(mostly, minlength=len(speeds))
            counts = np.bincount(shown.ravel(), minlength=len(speeds))
            behaviour = int(counts.argmax())
            near = np.abs(ran / speeds[behaviour] - 1) < 0.25
            success = float((((shown == behaviour).mean(1) > 0.5) & near).mean())
            recovers = counts[behaviour] > 0.5 * shown.size and abs(ran.mean() / speeds[behaviour] - 1) < 0.25
            print(
                f"{kind:6} skill {skill.argmax():2}: {labels.names[behaviour]:26} {counts[behaviour] / shown.size:.2f}"
                f"  {ran.mean():5.2f} m/s ({speeds[behaviour]:5.2f})  success {success:.2f} {'*' if recovers else ''}"
            )
            if recovers:
                best[behaviour] = max(best[behaviour], success)
                shown_speeds.append(float(ran.mean()))
        found = np.flatnonzero(best)
        rows.append(
            {
                "dataset": policy.config.dataset_id,
                "method": method,
                "seed": seed,
                "starts": kind,
                "skills": policy.skill_space.size,
                "recovered": len(found),
                "bits": round(information(together), 3),
                "fidelity": round(float(np.mean(inside)), 3),
                "success": round(float(best[found].mean()), 3) if len(found) else 0.0,
                "slowest": round(min(shown_speeds, default=0), 2),
                "fastest": round(max(shown_speeds, default=0), 2),
                "behaviours": json.dumps({labels.names[i]: round(float(best[i]), 2) for i in found}),
            }
        )
        print(rows[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="policy folders whose names hold seedN")
    parser.add_argument("--method", default="didi", help="name of the method in the table")
    parser.add_argument("--agents", type=Path, help="judge the behaviours of this folder in place of the policies")
    parser.add_argument("--csv", type=Path, help="put the rows into this table, in place of older ones of the same key")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for folder in arguments.folders:
        found = re.search(r"seed(\d+)", folder.name)
        seed = int(found.group(1)) if found else 0
        policy = SkillPolicy.from_pretrained(folder, device="cpu")
        if arguments.agents:
            policy = the_behaviours(policy, arguments.agents, seed)
        rows = evaluate(policy, seed, arguments.method)
        if arguments.csv:
            merge(arguments.csv, rows)


def merge(file: Path, rows: list[dict[str, Any]]) -> None:
    """Put rows into a table, sorted by key."""
    table: dict[tuple[str, ...], dict[str, Any]] = {}
    if file.is_file():
        with file.open(newline="") as lines:
            table = {tuple(row[name] for name in KEY): row for row in csv.DictReader(lines)}
    table |= {tuple(str(row[name]) for name in KEY): row for row in rows}
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table[key] for key in sorted(table))


if __name__ == "__main__":
    main()
