"""Every table and figure of the results, from the committed CSVs: docs/results.md, its pictures, and README's tables.

    make paper-tables

It trains and simulates nothing. The commands that made the CSVs stand in docs/results.md, above each table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

import numpy as np
from figures import OURS, plot_scores, plot_sensitivity
from rows import RESULTS, ROOT, Row, number, read, scores

from didi_gym.evaluation.statistics import interquartile_mean, probability_of_improvement, stratified_bootstrap

DOCS, README = ROOT / "docs", ROOT / "README.md"
EQUAL = "didi-64-starts"  # ours, measured from as many starts as the rivals, for comparing
RECORDED = "behaviours"  # what a mixture was recorded from: no rival, but what imitation could reach

METRICS = (  # column, title, scale, bar
    ("spread_ratio", "real / planned spread", 1.0, ">= 0.90"),
    ("mutual_information_bits", "bits within one horizon", 1.0, ">= 3.6 (gaits 3.0)"),
    ("held_information_bits", "bits, held 8 horizons", 1.0, "or here"),
    ("mutual_information_ceiling", "their ceiling", 1.0, ""),
    ("fidelity", "fidelity, %", 100.0, ">= 95"),
    ("held_fidelity", "fidelity, held 8 horizons, %", 100.0, "or here"),
    ("falls", "falls, %", 100.0, "<= 3"),
    ("contact", "wall contact, %", 100.0, ""),
    ("probe", "probe (R^2 or accuracy)", 1.0, ""),
    ("coverage", "coverage of the data's cells, %", 100.0, ""),
    ("vendi", "Vendi score of 8 held skills", 1.0, ""),
    ("smoothness", "smoothness (0: constant)", 1.0, ""),
    ("real_spread", "real spread", 1.0, ""),
    ("held_distance", "distance held, m", 1.0, ""),
)

_IN_SHORT = {"spread_ratio", "fidelity", "held_fidelity", "falls", "contact", "coverage"}
_IN_SHORT |= {"mutual_information_bits", "held_information_bits", "mutual_information_ceiling"}


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


def skills_table(rows: list[Row], metrics: Iterable[tuple[str, str, float, str]] = METRICS) -> str:
    """Our skills on every data set, over skill-training seeds, beside the behaviours that gaits were recorded from."""
    columns = {}
    for dataset in sorted({row["dataset"] for row in rows if row["method"] == OURS}):
        name = dataset.removeprefix("didi/").removesuffix("-v0")
        for method, title in ((OURS, name), (RECORDED, f"{name}, the behaviours themselves")):
            if own := [row for row in rows if (row["method"], row["dataset"]) == (method, dataset)]:
                columns[title] = own
    lines = [["seeds", "", *(str(len({row["seed"] for row in own})) for own in columns.values())]]
    for column, title, scale, bar in metrics:
        digits = 1 if scale > 1 else 3 if column in ("smoothness", "real_spread") else 2
        cells = [estimate([scale * number(row, column) for row in own], digits) for own in columns.values()]
        if set(cells) != {"-"}:
            lines.append([title, bar, *cells])
    return table(["", "bar", *columns], lines)


def improvement(rows: list[Row], method: str, datasets: Sequence[str]) -> str:
    """P(ours > method) on the combined score, 95 % interval, over the seeds and data sets that both have."""
    own_name = EQUAL if any(r["method"] == EQUAL for r in rows) else OURS
    pairs = [(scores(rows, own_name, d), scores(rows, method, d)) for d in datasets]
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
    methods = sorted({r["method"] for r in rows if r["dataset"] in datasets} - {OURS, EQUAL})
    methods.sort(key=lambda m: -np.mean([s for d in datasets for s in scores(rows, m, d).values()]))
    lines = []
    for method in [OURS, *[EQUAL] * any(r["method"] == EQUAL for r in rows), *methods]:
        cells = [estimate(list(scores(rows, method, d).values())) for d in datasets]
        seeds = min((len(scores(rows, method, d)) for d in datasets if scores(rows, method, d)), default=0)
        better = "" if method in (OURS, EQUAL) else improvement(rows, method, datasets)
        lines.append([method, str(seeds), *cells, better])
    names = [d.removeprefix("didi/").removesuffix("-v0") for d in datasets]
    return table(["method", "seeds", *names, "P(ours better)"], lines)


def details_table(rows: list[Row], dataset: str) -> str:
    """What the combined score is made of, for one data set."""
    own = [r for r in rows if r["dataset"] == dataset]
    columns = ("real_spread", "spread_ratio", "mutual_information_bits", "fidelity", "falls", "coverage", "smoothness")
    lines = [
        [m, *(estimate([number(r, c) for r in own if r["method"] == m]) for c in columns)]
        for m in sorted({r["method"] for r in own}, key=lambda m: (m != OURS, m))
    ]
    return table(["method", *(c.replace("_", " ") for c in columns)], lines)


def gaits_table(rows: list[Row]) -> str:
    """Behaviours recovered from gait mixtures, by data set, method and kind of start."""
    lines = []
    for dataset in sorted({r["dataset"] for r in rows}):
        methods = {r["method"] for r in rows if r["dataset"] == dataset}
        for method in sorted(methods, key=lambda m: (m != OURS, m != RECORDED, m)):
            for starts in ("reset", "data", "push"):
                own = [r for r in rows if (r["dataset"], r["method"], r["starts"]) == (dataset, method, starts)]
                if own:
                    success = [number(r, "success") for r in own]
                    slowest, fastest = min(number(r, "slowest") for r in own), max(number(r, "fastest") for r in own)
                    bits, inside = ([number(r, c) for r in own] for c in ("bits", "fidelity"))
                    cells = [" / ".join(r["recovered"] for r in own), " / ".join(f"{s:.2f}" for s in success)]
                    name = dataset.removeprefix("didi/halfcheetah-").removesuffix("-v0")
                    cells.insert(0, " / ".join(r["skills"] for r in own))
                    means = [estimate(success), estimate(bits), estimate([100 * share for share in inside], 1)]
                    lines.append([name, method, starts, *cells, *means, f"{slowest:.1f} to {fastest:.1f}"])
    head = [
        "data",
        "method",
        "starts",
        "skills, by seed",
        "recovered of 8",
        "success",
        "success, all seeds",
        "bits of 3",
        "fidelity, %",
    ]
    return table([*head, "speeds, m/s"], lines)


def assignment_table(rows: list[Row]) -> str:
    """Skills and purity of assignments without labels, by seed."""
    lines = []
    for dataset, clusters in dict.fromkeys((r["dataset"], r["clusters"]) for r in rows):
        cells = [dataset.removeprefix("didi/halfcheetah-").removesuffix("-v0"), clusters]
        for stage in ("windows", "refined"):
            own = [r for r in rows if (r["dataset"], r["clusters"], r["stage"]) == (dataset, clusters, stage)]
            cells += [" / ".join(r[column] for r in own) for column in ("skills", "covered")]
            cells.append(" / ".join(f"{number(r, 'purity'):.3f}" for r in own))
        lines.append(cells)
    stages = [f"{what}, {stage}" for stage in ("windows", "refined") for what in ("skills", "covered of 8", "purity")]
    return table(["data", "clusters", *stages], lines)


def sensitivity_table(rows: list[Row]) -> str:
    """One setting at a time: means over seeds."""
    columns = ("mutual_information_bits", "fidelity", "spread_ratio", "probe", "contact")
    lines = []
    for study, value in dict.fromkeys((r["study"], r["value"]) for r in rows):
        own = [r for r in rows if (r["study"], r["value"]) == (study, value)]
        means = [f"{np.mean([number(r, c) for r in own]):.2f}" for c in columns]
        lines.append([study, value, own[0]["steps"], str(len(own)), *means])
    return table(["study", "value", "data steps", "seeds", *(c.replace("_", " ") for c in columns)], lines)


def generic_table(rows: list[Row]) -> str:
    """A CSV as it is."""
    return table([c.replace("_", " ") for c in rows[0]], [list(row.values()) for row in rows])


def main() -> None:
    rows, gaits = read("skills.csv"), read("gaits.csv")
    continuous = [
        d for d in ("didi/ant-directions-v0", "didi/pointmaze-medium-v0") if any(r["dataset"] == d for r in rows)
    ]
    text = (RESULTS / "results.md.in").read_text()
    parts = {
        "SKILLS": skills_table(rows),
        "BASELINES": baselines_table(rows, continuous),
        "DETAILS": "\n\n".join(f"**{d}**\n\n{details_table(rows, d)}" for d in sorted({r["dataset"] for r in rows})),
        "GAITS": gaits_table(gaits),
    }
    if purity := read("assignment.csv"):
        parts["ASSIGNMENT"] = assignment_table(purity)
    if sensitivity := read("sensitivity.csv"):
        parts["SENSITIVITY"] = sensitivity_table(sensitivity)
        plot_sensitivity(sensitivity, DOCS / "results-sensitivity.png")
    if speed := read("benchmarks/results/training_speed.csv"):
        parts["SPEED"] = generic_table([row for row in speed if row["table"] != "curve"])
    for key, part in parts.items():
        text = text.replace(f"<!-- {key} -->", part)
    (DOCS / "results.md").write_text(text)
    README.write_text(fill(README.read_text(), in_short(rows, gaits, parts)))
    plot_scores(rows, continuous, DOCS / "results-scores.png")
    print(f"written: {DOCS / 'results.md'}, its pictures, and the tables in {README}")


def in_short(rows: list[Row], gaits: list[Row], parts: dict[str, str]) -> dict[str, str]:
    """The tables of README.md."""
    chosen = [metric for metric in METRICS if metric[0] in _IN_SHORT]
    shown = [r for r in gaits if r["method"] in (OURS, RECORDED) and r["starts"] != "push"]
    return {"SKILLS": skills_table(rows, chosen), "BASELINES": parts["BASELINES"], "GAITS": gaits_table(shown)}


def fill(text: str, parts: dict[str, str]) -> str:
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
