"""The pictures of docs/results.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rows import Row, number, scores
from words import OURS, short
from words import method as in_words

from didi_gym.evaluation.statistics import interquartile_mean


def plot_scores(rows: list[Row], datasets: Sequence[str], file: Path) -> None:
    """Combined score of every method with its seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    methods = sorted({r["method"] for r in rows if r["dataset"] in datasets})
    methods.sort(key=lambda m: np.mean([s for d in datasets for s in scores(rows, m, d).values()]))
    figure, panels = plt.subplots(
        1, len(datasets), figsize=(4.2 * len(datasets) + 2, 0.32 * len(methods) + 1.2), sharey=True
    )
    for axes, dataset in zip(np.atleast_1d(panels), datasets, strict=True):
        for i, method in enumerate(methods):
            values = np.array(list(scores(rows, method, dataset).values()))
            if not len(values):
                continue
            color = "#0072b2" if method == OURS else "#777777"
            axes.plot(values, np.full(len(values), i), "o", color=color, alpha=0.5, markersize=4)
            axes.plot([interquartile_mean(values[:, None])], [i], "|", color=color, markersize=14, markeredgewidth=2)
        axes.set_title(short(dataset))
        axes.set_xlabel("combined score")
        axes.set_xlim(-0.02, 1)
        axes.grid(axis="x", alpha=0.3)
    np.atleast_1d(panels)[0].set_yticks(range(len(methods)), [in_words(m) for m in methods])
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def plot_sensitivity(rows: list[Row], file: Path) -> None:
    """How diversity and fidelity move with one setting at a time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    studies = list(dict.fromkeys(r["study"] for r in rows))
    figure, panels = plt.subplots(1, len(studies), figsize=(3.6 * len(studies), 3.2), squeeze=False)
    lines: tuple[tuple[str, str, Callable[[Row], float]], ...] = (
        (
            "information / ceiling",
            "#0072b2",
            lambda r: number(r, "mutual_information_bits") / number(r, "mutual_information_ceiling"),
        ),
        ("rollouts like the data", "#d55e00", lambda r: number(r, "fidelity")),
        ("executed / planned spread", "#009e73", lambda r: number(r, "spread_ratio")),
    )
    for axes, study in zip(panels[0], studies, strict=True):
        own = [r for r in rows if r["study"] == study]
        values = sorted({r["value"] for r in own}, key=float)
        for label, color, share in lines:
            points = [[share(r) for r in own if r["value"] == v] for v in values]
            axes.plot(range(len(values)), [np.mean(p) for p in points], "-", color=color, label=label)
            for i, p in enumerate(points):
                axes.plot([i] * len(p), p, "o", color=color, markersize=3)
        axes.set_xticks(range(len(values)), values, fontsize=8)
        axes.set_xlabel(study)
        axes.set_ylim(0, 1.05)
        axes.grid(alpha=0.3)
    panels[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)
