r"""Into how many directions of the world do the skills for the Swimmer go, and do they keep them?

    didi-gym data swimmer-directions
    python experiments/domains/swimmer.py --seeds 0 1 2

Where `--runs` has no run of a seed, it is trained by `hub/recipes/swimmer-directions.toml`; a run that was stopped goes
on. 8 skills are held from the same 16 resets for 200 steps (8 s). `headings`: skills of which nine in ten rollouts end
in a direction that is nearer to the skill's own mean direction than to that of any other; `resultant`: mean length of
the mean direction of a skill's rollouts; `smallest_angle`: in degrees, between neighbouring mean directions (45 where
all are even), and `largest_angle`; `direction_error`: mean angle in degrees between the direction that the skill means
and where it went; `turned_start`: the same when the body begins turned by 0 to 360 degrees, which tells directions of
the world from those of the body; `distance` in m, `later_distance` in the 100 steps that follow. `real_over_planned`
compares the spread over skills with the imagined one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from held import ROLLOUTS, direction_errors, main, rollouts, unit

from didi_gym import SkillPolicy, TrajectoryDataset, evaluate_skills
from didi_gym.evaluation.rollouts import SkillSimulator, make_data_env

SKILLS, STEPS, LATER = 8, 200, 300


def measure(policy: SkillPolicy, dataset: TrajectoryDataset) -> dict[str, float]:
    """Where the skills of a policy lead, held from resets."""
    report, _ = evaluate_skills(policy, dataset=dataset, held_episodes=1, hold=1, progress=False)
    places = np.array(
        [[r.states[[0, STEPS, LATER], :2] for r in row] for row in rollouts(policy, SKILLS, LATER)], np.float64
    )
    moves, grid = places[:, :, 1] - places[:, :, 0], policy.skill_space.grid(SKILLS)
    means = unit(moves).mean(1)
    nearest = (unit(moves) @ unit(means).T).argmax(-1)  # (skills, resets)
    angles = np.sort(np.arctan2(means[:, 1], means[:, 0]))
    gaps = np.degrees(np.diff(np.append(angles, angles[0] + 2 * np.pi)))
    return {
        "real_over_planned": report.spread_ratio,
        "fidelity": report.fidelity,
        "probe": report.probe,
        "headings": float(((nearest == np.arange(SKILLS)[:, None]).mean(1) >= 0.9).sum()),
        "resultant": float(np.linalg.norm(means, axis=-1).mean()),
        "least_resultant": float(np.linalg.norm(means, axis=-1).min()),
        "smallest_angle": float(gaps.min()),
        "largest_angle": float(gaps.max()),
        "direction_error": float(direction_errors(grid, moves).mean()),
        "turned_start": float(direction_errors(grid, turned_moves(policy, grid)).mean()),
        "distance": float(np.linalg.norm(moves, axis=-1).mean()),
        "later_distance": float(np.linalg.norm(places[:, :, 2] - places[:, :, 1], axis=-1).mean()),
    }


def turned_moves(policy: SkillPolicy, grid: np.ndarray) -> np.ndarray:
    """As far as each skill goes from bodies that begin turned, `(skills, ROLLOUTS, 2)`."""
    simulator = SkillSimulator(policy, make_data_env(policy))
    angle = policy.config.layout.heading.angle  # type: ignore[union-attr]
    starts = simulator.random_starts(ROLLOUTS, np.random.default_rng(0), burn_in=0)
    found = []
    for skill in grid:
        found.append([])
        for i, start in enumerate(starts):
            state, turn = simulator.visit(start).copy(), 2 * np.pi * i / ROLLOUTS
            state[list(angle)] = np.cos(turn), np.sin(turn)
            path = simulator.hold(simulator.visit(replace(start, state=state)), skill, STEPS).states
            found[-1].append(path[-1, :2] - path[0, :2])
    return np.array(found)


if __name__ == "__main__":
    main("swimmer-directions", "domains-swimmer.csv", measure, __doc__)
