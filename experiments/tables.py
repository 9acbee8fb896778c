"""Every table and figure of the pages, from the committed results: README.md, docs/results.md, docs/performance.md.

    make paper-tables

It trains and simulates nothing. The commands that made the committed files stand beside each table.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product

import numpy as np
from figures import plot_scores, plot_sensitivity
from rows import RESULTS, ROOT, Row, number, read, scores
from words import (
    EQUAL,
    IN_ONE_HORIZON,
    LOOPS,
    METRICS,
    OURS,
    RECORDED,
    STARTS,
    WHEN_HELD,
    Metric,
    method,
    short,
)

from didi_gym.evaluation.statistics import interquartile_mean, probability_of_improvement, stratified_bootstrap

DOCS, README = ROOT / "docs", ROOT / "README.md"
CONTINUOUS = ("didi/ant-directions-v0", "didi/pointmaze-medium-v0")
FEWEST = 10  # episodes that reach the goal, for a mean over them to be shown
EPISODES = 50  # of each evaluation in mazes
AGENTS = {
    "skill-graph": "SkillGraph over skills",
    "sac": "SAC + HER over skills",
    "sac-from-graph": "SAC + HER over skills, from SkillGraph's transitions",
    "ppo": "SkillPPO over skills",
    "graph-of-random-skills": "SkillGraph over random held actions",
    "random": "random skills",
    "flat-sac": "flat SAC + HER, same features",
}
MAZES = ("Open", "UMaze", "Medium", "Large", "Own", "PointMaze_Large")


def estimate(values: Sequence[float], digits: int = 2) -> str:
    """Interquartile mean and 95 % interval over seeds."""
    known = np.array([v for v in values if not math.isnan(v)])
    if not len(known):
        return "-"
    middle = f"{interquartile_mean(known[:, None]):.{digits}f}"
    if len(known) < 3:
        return middle
    low, high = stratified_bootstrap(known[:, None], interquartile_mean)
    return f"{middle} [{low:.{digits}f}, {high:.{digits}f}]"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def select(rows: list[Row], **wanted: str) -> list[Row]:
    """The rows whose columns have the wanted values."""
    return [row for row in rows if all(row[column] == value for column, value in wanted.items())]


def measured(rows: list[Row], column: str) -> str:
    metric: Metric = METRICS[column]
    return estimate([metric.scale * number(row, column) for row in rows], metric.digits)


def mazes_table(rows: list[Row]) -> str:
    """Agents by maze and steps of training."""
    lines = []
    for maze, (agent, name) in product(MAZES, AGENTS.items()):
        own = select(rows, maze=maze, agent=agent)
        for budget in sorted({int(r["low_level_steps"]) for r in own}):
            runs = select(own, low_level_steps=str(budget))
            reached = [number(r, "steps_to_goal") for r in runs if number(r, "success") * EPISODES >= FEWEST]
            bold = "**" if agent == "skill-graph" else ""
            success = estimate([number(r, "success") for r in runs])
            steps = f"{np.mean(reached):.0f}" if len(reached) == len(runs) else "-"
            lines.append([maze, f"{bold}{name}{bold}", f"{budget:,}", f"{bold}{success}{bold}", str(len(runs)), steps])
    return table(["maze", "agent", "steps of training", "success", "seeds", "mean steps to the goal"], lines)


def short_mazes_table(rows: list[Row]) -> str:
    """The ant mazes, each with its last budget; agents that were run on none of them are left out."""

    def cell(maze: str, agent: str) -> str:
        own = select(rows, maze=maze, agent=agent)
        if not own:
            return "-"
        last = max(own, key=lambda r: int(r["low_level_steps"]))["low_level_steps"]
        success = estimate([number(r, "success") for r in select(own, low_level_steps=last)])
        return f"{success}, {int(last):,} steps" if int(last) else success

    shown = {
        agent: AGENTS[agent] for agent in ("skill-graph", "sac", "random", "flat-sac") if select(rows, agent=agent)
    }
    lines = [[maze, *(cell(maze, agent) for agent in shown)] for maze in MAZES if not maze.startswith("Point")]
    return table(["maze", *shown.values()], lines)


HELD_OUT = {  # what is measured of each data set, and in which words
    "push": "block moved in {moved} of rollouts, in {directions} of 8 directions",
    "swimmer": "real spread over planned spread {spread_ratio}",
    "lander": "falls {falls}, in the data {falls_of_data}",
    "lander-behaviours": "falls {falls}, in the data {falls_of_data}",
}


def heldout_table(rows: list[Row]) -> str:
    """Default settings on data that they were not developed on, run by run."""
    shown = [r for r in rows if r["dataset"] in HELD_OUT]
    lines = [
        [
            r["dataset"],
            r["skills"],
            r["seed"],
            f"{number(r, 'share'):.0%}",
            r["horizon"],
            HELD_OUT[r["dataset"]].format(**r),
        ]
        for r in shown
    ]
    return table(["data set", "skills", "seed", "of the default gradient steps", "horizon found", "measured"], lines)


_GAITS = {
    "behaviours": "behaviours in the data",
    "recovered": "of these recovered from resets",
    "survival_of_own": "their survival over the behaviours' own",
    "held_information_share": "information when held, of its ceiling",
}
DOMAINS = {  # what is shown of each policy's measures, and in which words; the CSV files have all
    "ant-velocities": {
        "speed_at_0": "speed at length 0, m/s",
        "speed_at_0.5": "speed at length 0.5, m/s",
        "speed_at_1": "speed at length 1, m/s",
        "direction_error": "largest error of eight directions, degrees",
        "falls": "rollouts of 15 s that fall",
        "real_over_planned": "executed / planned spread",
    },
    "humanoid-gaits": {
        "gaits_shown": "gaits shown, of 15 in the data",
        "survival": "steps stood, of 1,000 (median of all rollouts)",
        "skills_that_survive": "skills that mostly stand for 500 steps, of 15",
        "forward": "fastest forwards, m/s",
        "backward": "backwards, m/s",
        "left": "to the left, m/s",
        "right": "to the right, m/s",
    },
    "walker2d-gaits": _GAITS,
    "hopper-gaits": _GAITS,
    "push": {
        "moved": "rollouts that move the block 10 cm",
        "directions": "directions in which some skill mostly does, of 8",
        "direction_error": "mean error of direction, degrees",
        "entropy": "entropy of the directions, of its maximum",
        "real_over_planned": "executed / planned spread",
    },
    "swimmer-directions": {
        "headings": "skills that go their own way, of 8",
        "resultant": "mean resultant length of their directions",
        "smallest_angle": "smallest angle between neighbours, of 45 degrees",
        "real_over_planned": "executed / planned spread",
    },
    "kitchen": {
        "held_subtasks": "subtasks that a held skill does from resets, of 7",
        "sequence_subtasks": "subtasks that the best sequence of skills does in one episode",
        "sequence_least": "the least of these in ten fresh resets",
        "purity": "purity of the skills found",
    },
}


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{round(value, 3):.3g}"


def domains_table(rows: list[Row]) -> str:
    """What skills do in each domain, a figure a line, by training seed."""
    lines = []
    for policy, shown in DOMAINS.items():
        for name, words in shown.items():
            own = sorted(select(rows, policy=policy, measure=name), key=lambda r: int(r["seed"]))
            if own:
                lines.append([f"`{policy}`", words, " / ".join(_short(number(r, "value")) for r in own)])
    return table(["policy", "measured", "by training seed"], lines)


def transfer_table(rows: list[Row], study: str) -> str:
    lines = []
    for where, further in dict.fromkeys((r["where"], r["further_steps"]) for r in select(rows, study=study)):
        runs = select(rows, study=study, where=where, further_steps=further)
        success = estimate([number(r, "success") for r in runs])
        lines.append([where, f"{int(further):,}", success, str(len(runs))])
    return table(["task", "further steps of training", "success", "seeds"], lines)


def skills_table(rows: list[Row]) -> str:
    """Our skills on every data set, over skill-training seeds, beside the policies that gaits were recorded from."""
    columns = {}
    for dataset in sorted({row["dataset"] for row in select(rows, method=OURS)}):
        name = short(dataset)
        for label, title in ((OURS, name), (RECORDED, f"{name}, the recorded policies themselves")):
            if own := select(rows, method=label, dataset=dataset):
                columns[title] = own
    lines = [["seeds", *(str(len({row["seed"] for row in own})) for own in columns.values())]]
    for column in METRICS:
        cells = [measured(own, column) for own in columns.values()]
        if set(cells) != {"-"}:
            lines.append([METRICS[column].title, *cells])
    return table(["", *columns], lines)


def improvement(rows: list[Row], label: str, datasets: Sequence[str]) -> str:
    """P(ours > method) on the combined score, 95 % interval, over the seeds and data sets that both have."""
    own_name = EQUAL if select(rows, method=EQUAL) else OURS
    pairs = [(scores(rows, own_name, d), scores(rows, label, d)) for d in datasets]
    pairs = [pair for pair in pairs if pair[0] and pair[1]]
    seeds = sorted(set.intersection(*(set(own) & set(other) for own, other in pairs))) if pairs else []
    if len(seeds) < 3:
        return "-"
    own, other = (np.array([[side[s] for side in column] for s in seeds]) for column in zip(*pairs, strict=True))
    tasks = own.shape[1]

    def statistic(joined: np.ndarray) -> float:
        return probability_of_improvement(joined[:, :tasks], joined[:, tasks:])

    joined = np.concatenate([own, other], axis=1)
    low, high = stratified_bootstrap(joined, statistic)
    return f"{statistic(joined):.2f} [{low:.2f}, {high:.2f}]"


def baselines_table(rows: list[Row], datasets: Sequence[str]) -> str:
    """Combined score of every method, and the probability that ours is better."""
    labels = sorted({r["method"] for r in rows if r["dataset"] in datasets} - {OURS, EQUAL})
    labels.sort(key=lambda m: -np.mean([s for d in datasets for s in scores(rows, m, d).values()]))
    lines = []
    for label in [OURS, *[EQUAL] * bool(select(rows, method=EQUAL)), *labels]:
        cells = [estimate(list(scores(rows, label, d).values())) for d in datasets]
        seeds = min((len(scores(rows, label, d)) for d in datasets if scores(rows, label, d)), default=0)
        better = "" if label in (OURS, EQUAL) else improvement(rows, label, datasets)
        lines.append([method(label), f"`{label}`", str(seeds), *cells, better])
    return table(["method", "label", "seeds", *map(short, datasets), "probability that ours is better"], lines)


def details_table(rows: list[Row], dataset: str, metrics: Mapping[str, Metric]) -> str:
    """Every metric of every method on one data set; those that nothing was measured for are left out."""
    own = select(rows, dataset=dataset)
    labels = sorted({r["method"] for r in own}, key=lambda m: (m != OURS, m != EQUAL, m))
    columns = [c for c in metrics if any(not math.isnan(number(r, c)) for r in own)]
    lines = []
    for label in labels:
        of_method = select(own, method=label)
        cells = [measured(of_method, column) for column in columns]
        if set(cells) != {"-"}:
            lines.append([method(label, dataset), f"`{label}`", *cells])
    return table(["method", "label", *(metrics[c].title for c in columns)], lines)


def all_details(rows: list[Row]) -> str:
    parts = []
    for dataset in sorted({r["dataset"] for r in rows}):
        for title, metrics in (("in one horizon", IN_ONE_HORIZON), ("skills held", WHEN_HELD)):
            parts += [f"**{short(dataset)}, {title}**", details_table(rows, dataset, metrics)]
    return "\n\n".join(parts)


def gaits_table(rows: list[Row], dataset: str) -> str:
    """Behaviours recovered from one mixture of gaits, by method and kind of start."""
    lines = []
    for label in sorted({r["method"] for r in select(rows, dataset=dataset)}, key=lambda m: (m != OURS, m)):
        for starts, where in STARTS.items():
            own = select(rows, dataset=dataset, method=label, starts=starts)
            if not own:
                continue
            by_seed = [" / ".join(r[column] for r in own) for column in ("skills", "recovered")]
            success = [number(r, "success") for r in own]
            slowest, fastest = min(number(r, "slowest") for r in own), max(number(r, "fastest") for r in own)
            lines.append(
                [
                    method(label, dataset),
                    f"`{label}`",
                    where,
                    *by_seed,
                    " / ".join(f"{s:.2f}" for s in success),
                    estimate(success),
                    estimate([number(r, "bits") for r in own]),
                    estimate([100 * number(r, "fidelity") for r in own], 1),
                    f"{slowest:.1f} to {fastest:.1f}",
                ]
            )
    head = ["method", "label", "starts", "skills, by seed", "behaviours recovered, of 8", "success, by seed"]
    return table([*head, "success, all seeds", "bits, of 3", "rollouts like the data, %", "speeds, m/s"], lines)


def assignment_table(rows: list[Row]) -> str:
    """Skills and purity of segmentations without labels, by seed."""
    lines = []
    for dataset, clusters in dict.fromkeys((r["dataset"], r["clusters"]) for r in rows):
        cells = [short(dataset), clusters]
        for stage in ("windows", "refined"):
            own = select(rows, dataset=dataset, clusters=clusters, stage=stage)
            cells += [" / ".join(r[column] for r in own) for column in ("skills", "covered")]
            cells.append(" / ".join(f"{number(r, 'purity'):.3f}" for r in own))
        lines.append(cells)
    stages = [
        f"{what}, {stage}"
        for stage in ("from windows", "refined")
        for what in ("skills", "behaviours covered of 8", "purity")
    ]
    return table(["data", "clusters asked for", *stages], lines)


def sensitivity_table(rows: list[Row]) -> str:
    """One setting at a time: means over seeds."""
    columns = ("mutual_information_bits", "fidelity", "spread_ratio", "probe", "contact")
    lines = []
    for study, value in dict.fromkeys((r["study"], r["value"]) for r in rows):
        own = select(rows, study=study, value=value)
        means = [METRICS[c].scale * np.mean([number(r, c) for r in own]) for c in columns]
        shown = [f"{mean:.{METRICS[c].digits}f}" for c, mean in zip(columns, means, strict=True)]
        lines.append([study, value, own[0]["steps"], str(len(own)), *shown])
    return table(["setting", "value", "data steps", "seeds", *(METRICS[c].title for c in columns)], lines)


def vectors_table(rows: list[Row], part: str) -> str:
    """Agents trained in several environments at once, by agent and seed."""
    columns = {
        "n_envs": "environments",
        "decisions": "decisions",
        "mean_skill_length": "mean steps of a skill",
        "return": "return",
        "return_by_hand": "return, loop of our own",
        "steps_to_goal": "steps of an episode",
        "steps_to_goal_by_hand": "steps, loop of our own",
        "weights": "checksum of the weights",
    }
    lines = [[r["agent"], r["seed"], *(r[column] for column in columns)] for r in select(rows, part=part)]
    return table(["agent", "seed", *columns.values()], lines)


def conservation_table(rows: list[dict[str, float]]) -> str:
    """Steps and rewards that skill execution reports beside those of the environments."""
    columns = ("skills", "environment_steps", "sum_of_skill_length", "steps_in_ended_episodes")
    lines = [
        [str(r["form"]), *(f"{r[column]:,}" for column in columns), f"{r['absolute_difference_of_rewards']:.1e}"]
        for r in rows
    ]
    titles = ["vector form", "skills", "steps counted by the environments", "sum of `skill_length`"]
    return table([*titles, "steps in ended episodes", "difference of the sums of rewards"], lines)


def to_target_table(rows: list[Row]) -> str:
    lines = [
        [
            LOOPS[r["loop"]],
            "yes" if r["setting"].endswith(" reached") and "not" not in r["setting"] else "no",
            *(r[column] for column in ("steps", "seconds", "loss", "ms_per_step", "samples_per_s")),
            r["matrix_rate_share"],
        ]
        for r in select(rows, table="to_target")
    ]
    head = ["training loop", "target reached", "steps", "seconds", "held-out loss", "ms per step", "samples per s"]
    return table([*head, "share of the core's matrix rate"], lines)


def growth_table(rows: list[Row]) -> str:
    columns = ("ms_per_step", "samples_per_s", "matrix_rate_share")
    lines = [[r["setting"], LOOPS[r["loop"]], *(r[c] for c in columns)] for r in select(rows, table="growth")]
    return table(["setting", "training loop", "ms per step", "samples per s", "share of the core's matrix rate"], lines)


def rates_table(rows: list[Row], replan_every: int) -> str:
    """Steps per second with skills over those without, for skills of 16 steps."""
    own = select(rows, k="16", m=str(replan_every))
    environments = list(dict.fromkeys(r["env"] for r in rows))
    names = {
        ("single", "1"): "one environment, `SkillActionWrapper`",
        ("sync", "8"): '8, `make_vec(..., vectorization_mode="sync")`',
        ("async", "8"): '8, `make_vec(..., vectorization_mode="async")`',
        ("dummy", "8"): "8, `sb3.make_vec_env` in one process",
        ("subproc", "8"): "8, `sb3.make_vec_env` in 8 processes",
    }
    lines = []
    for (form, n), name in names.items():
        cells = {r["env"]: f"{number(r, 'ratio'):.2f}" for r in select(own, form=form, n=n)}
        if cells:
            lines.append([name, *(cells.get(env, "-") for env in environments)])
    every = "step" if replan_every == 1 else f"{replan_every} steps"
    return table([f"a new plan every {every}", *environments], lines)


def latency_table(rows: list[Row], policy: str) -> str:
    """Microseconds of a plan of one step."""
    lines = []
    for engine in dict.fromkeys(r["engine"] for r in rows):
        own = select(rows, policy=policy, engine=engine, steps="1")
        cells = {r["batch"]: f"{number(r, 'p50_us'):,.0f} ({number(r, 'p99_us'):,.0f})" for r in own}
        if cells:
            lines.append([f"`{engine}`", *(cells.get(batch, "-") for batch in ("1", "8", "64", "256", "4096"))])
    return table(["engine or method", "1 observation", "8", "64", "256", "4096"], lines)


def memory_table(rows: list[Row]) -> str:
    lines = [
        [r["form"], r["n"], r["raw_main_mb"], r["wrapped_main_mb"], r["raw_worker_mb"], r["wrapped_worker_mb"]]
        for r in rows
    ]
    sides = [f"{process}, {side} skills" for process in ("main process", "each worker") for side in ("without", "with")]
    return table(["form", "environments", *sides], lines)


def main() -> None:
    rows, gaits, mazes = read("skills.csv"), read("gaits.csv"), read("hrl.csv")
    vectors, sensitivity = read("vector-training.csv"), read("sensitivity.csv")
    speed, rates = read("benchmarks/results/training_speed.csv"), read("benchmarks/results/step_rate.csv")
    latency = read("benchmarks/results/plan_latency.csv")
    of_results = {
        "BUDGETS": mazes_table(mazes),
        "GOALS": transfer_table(read("hrl-transfer.csv"), "goals"),
        "HELDOUT": heldout_table(read("heldout.csv")),
        "DOMAINS": domains_table([row for file in sorted(RESULTS.glob("domains-*.csv")) for row in read(file.name)]),
        "DOOR": transfer_table(read("hrl-transfer.csv"), "door"),
        "VECTORS": vectors_table(vectors, "sac"),
        "LENGTHS": vectors_table(vectors, "signal"),
        "MAZES": vectors_table(vectors, "ppo"),
        "SKILLS": skills_table(rows),
        "BASELINES": baselines_table(rows, CONTINUOUS),
        "DETAILS": all_details(rows),
        "GAITS": gaits_table(gaits, "didi/halfcheetah-gaits-v0"),
        "SWITCHING": gaits_table(gaits, "didi/halfcheetah-gaits-switching-v0"),
        "ASSIGNMENT": assignment_table(read("assignment.csv")),
        "SENSITIVITY": sensitivity_table(sensitivity),
        "TARGET": to_target_table(speed),
        "GROWTH": growth_table(speed),
        "CONSERVATION": conservation_table(json.loads((RESULTS / "conservation.json").read_text())["rows"]),
    }
    of_performance = {
        "RATES": rates_table(rates, 16),
        "EVERY4": rates_table(rates, 4),
        "EVERY1": rates_table(rates, 1),
        "ANT": latency_table(latency, "ant-directions"),
        "POINT": latency_table(latency, "pointmaze-medium"),
        "MEMORY": memory_table(read("benchmarks/results/memory.csv")),
    }
    text = (RESULTS / "results.md.in").read_text()
    for key, part in of_results.items():
        assert text.count(f"<!-- {key} -->") == 1, f"results.md.in: expected <!-- {key} --> once"
        text = text.replace(f"<!-- {key} -->", part)
    (DOCS / "results.md").write_text(text)
    for page, parts in (
        (README, {"ANTMAZE": short_mazes_table(mazes)}),
        (DOCS / "performance.md", of_performance),
    ):
        page.write_text(fill(page.read_text(), parts))
    plot_scores(rows, CONTINUOUS, DOCS / "results-scores.png")
    plot_sensitivity(sensitivity, DOCS / "results-sensitivity.png")
    print(f"written: the tables of {README}, {DOCS / 'results.md'} and {DOCS / 'performance.md'}, and the pictures")


def fill(text: str, parts: Mapping[str, str]) -> str:
    """`text` with each part between the comments `KEY` and `/KEY`."""
    for key, part in parts.items():
        text, found = re.subn(
            rf"(<!-- {key} -->\n).*?(<!-- /{key} -->)",
            lambda match, part=part: f"{match[1]}\n{part}\n\n{match[2]}",
            text,
            flags=re.DOTALL,
        )
        assert found == 1, f"expected <!-- {key} --> and <!-- /{key} --> once, found {found}"
    return text


if __name__ == "__main__":
    main()
