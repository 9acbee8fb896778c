"""Worker processes that crash, hang or raise: one clear error that names the worker, and nothing left running."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import Any

WORKER_TIMEOUT = 300.0
"""Seconds without an answer after which a worker counts as hung: far longer than any skill or reset should take."""


class WorkerError(RuntimeError):
    """A worker process, or the environment in it, failed; the message names it and says what happened."""


class Workers:
    """The worker processes of a vector environment.

    Args:
        processes: one per environment; none where the environments live in this process.
        close: frees what the vector environment holds, once its processes are gone.
        errors: where AsyncVectorEnv's workers put errors of their environments: (index, type, text, traceback).
    """

    def __init__(
        self, processes: Sequence[BaseProcess], close: Callable[[], Any], errors: Queue[Any] | None = None
    ) -> None:
        self._processes, self._close, self._errors = processes, close, errors

    def watch(self, pipes: Sequence[Connection], timeout: float | None) -> list[Any]:
        """The main process's ends of the workers' pipes, so that waiting for a dead or hung worker is an error."""
        return [WatchedPipe(pipe, self, index, timeout) for index, pipe in enumerate(pipes)]

    def process(self, index: int) -> BaseProcess:
        return self._processes[index]

    def fail(self, index: int, what: str) -> WorkerError:
        """End all workers; returns the error that says what happened to one of them."""
        number = len(self._processes)
        self.end()
        return WorkerError(f"worker {index} (of {number}, counted from 0) {what}; all workers were ended")

    def check(self, answer: Any) -> Any:
        """A worker's answer; where it says that an environment raised, `WorkerError`."""
        if self._errors is None or answer[1]:
            return answer
        index, kind, text, trace = self._errors.get()
        raise self.fail(index, f"raised {kind.__name__}: {text}") from RuntimeError(trace)

    def end(self) -> None:
        """Kill all workers and free what the vector environment holds."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        self._close()


class WatchedPipe:
    """A pipe to a worker that does not wait for ever, nor for the dead: with `fork`, siblings keep a pipe open."""

    def __init__(self, pipe: Connection, workers: Workers, index: int, timeout: float | None) -> None:
        self._pipe, self._workers, self._index, self._timeout = pipe, workers, index, timeout

    def send(self, message: Any) -> None:
        try:
            self._pipe.send(message)
        except ConnectionError as error:
            raise self._died() from error

    def recv(self) -> Any:
        process = self._workers.process(self._index)
        ready = wait([self._pipe, process.sentinel], self._timeout)
        if not ready:
            raise self._workers.fail(
                self._index,
                f"did not answer within {self._timeout:g} s (process {process.pid}): it hangs, or needs a longer "
                "worker_timeout",
            )
        try:
            if self._pipe in ready or self._pipe.poll():
                return self._workers.check(self._pipe.recv())
        except (EOFError, ConnectionError) as error:
            raise self._died() from error
        raise self._died()

    def _died(self) -> WorkerError:
        process = self._workers.process(self._index)
        process.join(timeout=1)  # its pipe breaks a moment before it is gone
        code = process.exitcode
        reason = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return self._workers.fail(
            self._index, f"died ({reason}, process {process.pid}); see what it printed above, or the memory in use"
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)
