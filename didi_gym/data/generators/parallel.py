"""Work in processes, with results that do not depend on how many there are."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

OrderedMap = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


@contextlib.contextmanager
def ordered_map(processes: int) -> Iterator[OrderedMap]:
    """A `map` over `processes` spawned processes that yields results in the order of the items.

    With one process nothing is spawned. Leaving by an exception, Ctrl-C included, drops the work not yet begun and
    ends the processes. Spawned processes import the main module: guard a script with `if __name__ == "__main__"`.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    if processes == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(processes, mp_context=context, initializer=_leave_interrupts_to_the_parent)
    try:
        yield lambda function, items: executor.map(function, items, chunksize=_chunk(len(items), processes))
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _chunk(items: int, processes: int) -> int:
    """Items to send to a process at a time: enough to be worth it, few enough to keep all busy."""
    return max(1, items // (8 * processes))
