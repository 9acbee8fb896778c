"""Progress of long work: a live bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

_LINE_SECONDS = 20.0  # in a log, where a bar would be noise

Report = Callable[[int, Mapping[str, float]], None]


@contextmanager
def progress(label: str, total: int, enabled: bool = True) -> Iterator[Report]:
    """Yield `report(done, metrics)`; metrics are shown beside the bar."""
    if not enabled:
        yield lambda done, metrics: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = ("[bold]{task.description}", BarColumn(), "{task.completed}/{task.total}")
        times = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[metrics]}"))
        with Progress(*columns, *times, console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total, metrics="")
            yield lambda done, metrics: bar.update(task, completed=done, metrics=_words(metrics))
    else:
        began = last = time.monotonic()

        def report(done: int, metrics: Mapping[str, float]) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _LINE_SECONDS or done == total:
                last = now
                print(f"{label}: {done}/{total} in {now - began:.0f} s  {_words(metrics)}", file=sys.stderr, flush=True)

        yield report


def _words(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in metrics.items())
