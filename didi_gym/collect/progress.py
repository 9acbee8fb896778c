"""A progress bar for collections, or none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Report = Callable[[int], None]
"""Takes the number of units done so far."""


@contextlib.contextmanager
def progress_bar(show: bool) -> Iterator[Callable[[str, int], Report]]:
    """Give a function that opens a bar by name and total and returns how to move it."""
    if not show:
        yield lambda name, total: lambda done: None
        return
    from rich.progress import Progress

    with Progress() as progress:

        def open_bar(name: str, total: int) -> Report:
            task = progress.add_task(name, total=total)
            return lambda done: progress.update(task, completed=min(done, total))

        yield open_bar
