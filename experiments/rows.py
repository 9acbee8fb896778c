"""Rows of the result tables, and what they score."""

from __future__ import annotations

import csv
import math
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
Row = dict[str, str]


def read(name: str) -> list[Row]:
    """Rows of a result table; none where it has not been made."""
    path = RESULTS / name if not name.startswith("benchmarks") else ROOT / name
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def number(row: Row, column: str) -> float:
    """A cell as a number; NaN where it is empty or absent."""
    return float(row.get(column) or "nan")


def combined_score(row: Row) -> float:
    """Geometric mean of three shares: information of its ceiling, agreement of real and planned spread, fidelity.

    Spreads agree by the smaller of them over the larger: skills that lead further apart than was planned are no more
    under control than skills that stay behind. One share near zero makes the score near zero: skills must differ, be
    executed as planned, and be like the data. A method without plans (no planned spread) is scored on the other two.
    """
    bits = max(number(row, "mutual_information_bits"), 0) / number(row, "mutual_information_ceiling")
    ratio = number(row, "spread_ratio")
    agreement = min(ratio, 1 / ratio) if ratio > 0 else ratio
    shares = [bits, agreement, number(row, "fidelity")]
    known = [share for share in shares if not math.isnan(share)]
    return math.prod(known) ** (1 / len(known))


def scores(rows: list[Row], method: str, dataset: str) -> dict[str, float]:
    """Combined score of each seed."""
    return {r["seed"]: combined_score(r) for r in rows if r["method"] == method and r["dataset"] == dataset}
