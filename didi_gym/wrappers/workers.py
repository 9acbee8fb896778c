"""Worker processes that crash, hang or raise: one clear error that names the worker, and nothing left running."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import Any, TypeVar

WORKER_TIMEOUT = 300.0
"""Seconds without an answer after which a worker counts as hung: far longer than any skill or reset should take."""
_REPORT_TIMEOUT = 5.0
"""Seconds to wait for what an environment raised, after its worker's word that it did: some of it cannot be sent."""
_T = TypeVar("_T")


class WorkerError(RuntimeError):
    """A worker process, or the environment in it, failed; the message names it and says what happened."""


def start(cls: type[_T], env_fns: Sequence[Callable[[], Any]], **kwargs: Any) -> _T:
    """`cls(env_fns, **kwargs)`, a vector environment, of which nothing is left running where that fails.

    Raises:
        WorkerError: a worker process died before it had made its environment.
    """
    envs = cls.__new__(cls)
    try:
        cls.__init__(envs, env_fns, **kwargs)  # type: ignore[call-arg]
    except BaseException as error:
        processes = [process for process in getattr(envs, "processes", ()) if process.pid is not None]
        dead = wait([process.sentinel for process in processes], 1.0) if _is_broken_pipe(error) else []
        _kill(processes)
        for index, process in enumerate(processes):
            if process.sentinel in dead:
                what = f"{_death(process)} while it made its environment; see what it printed above"
                raise WorkerError(_story(index, len(processes), what)) from error
        raise
    return envs


class Workers:
    """The worker processes of a vector environment; they end with it, also where nobody closes it.

    Args:
        envs: the vector environment; known by a weak reference, so that it is freed as soon as nobody else knows it.
        processes: one per environment.
        close: frees what the vector environment, its argument, holds, once its processes are gone.
        errors: where AsyncVectorEnv's workers put errors of their environments: (index, type, text, traceback).
    """

    def __init__(
        self,
        envs: Any,
        processes: Sequence[BaseProcess],
        close: Callable[[Any], Any],
        errors: Queue[Any] | None = None,
    ) -> None:
        self._envs, self._processes, self._close, self._errors = weakref.ref(envs), processes, close, errors
        # At exit they end by themselves, and more gently.
        weakref.finalize(envs, _kill_own, os.getpid(), processes).atexit = False

    def watch(self, pipes: Sequence[Connection], timeout: float | None) -> list[Any]:
        """The main process's ends of the workers' pipes, so that waiting for a dead or hung worker is an error."""
        return [WatchedPipe(pipe, self, index, timeout) for index, pipe in enumerate(pipes)]

    def process(self, index: int) -> BaseProcess:
        return self._processes[index]

    def fail(self, index: int, what: str) -> WorkerError:
        """End all workers; returns the error that says what happened to one of them."""
        self.end()
        return WorkerError(_story(index, len(self._processes), what))

    def check(self, index: int, answer: Any) -> Any:
        """A worker's answer; where it says that an environment raised, `WorkerError`."""
        if self._errors is None or answer[1]:
            return answer
        try:
            index, kind, text, trace = self._errors.get(timeout=_REPORT_TIMEOUT)
        except Exception as error:  # none came, or it cannot be read: not every exception survives pickling
            what = f"raised an error that could not be sent here ({type(error).__name__}: {error}); see what it printed"
            raise self.fail(index, what) from error
        raise self.fail(index, f"raised {kind.__name__}: {text}") from RuntimeError(trace)

    def end(self) -> None:
        """Kill all workers and free what the vector environment holds."""
        _kill(self._processes)
        envs = self._envs()
        if envs is not None:
            self._close(envs)


class WatchedPipe:
    """A pipe to a worker that does not wait for ever, nor for the dead: with `fork`, siblings keep a pipe open."""

    def __init__(self, pipe: Connection, workers: Workers, index: int, timeout: float | None) -> None:
        self._pipe, self._workers, self._index, self._timeout = pipe, workers, index, timeout

    def send(self, message: Any) -> None:
        if self._pipe.closed:
            raise WorkerError("all workers were ended, after an error or by close(); make the environment anew")
        try:
            self._pipe.send(message)
        except ConnectionError as error:
            raise self._died() from error

    def recv(self) -> Any:
        process = self._workers.process(self._index)
        try:
            ready = wait([self._pipe, process.sentinel], self._timeout)
        except BaseException:  # Ctrl-C: the answer would be taken for that to another question
            self._workers.end()
            raise
        if not ready:
            raise self._workers.fail(
                self._index,
                f"did not answer within {self._timeout:g} s (process {process.pid}): it hangs, or needs a longer "
                "worker_timeout",
            )
        try:
            if self._pipe in ready or self._pipe.poll():
                return self._workers.check(self._index, self._pipe.recv())
        except (EOFError, ConnectionError) as error:
            raise self._died() from error
        raise self._died()

    def _died(self) -> WorkerError:
        process = self._workers.process(self._index)
        process.join(timeout=1)  # its pipe breaks a moment before it is gone
        what = f"{_death(process)}; see what it printed above, or the memory in use"
        return self._workers.fail(self._index, what)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)


def _is_broken_pipe(error: BaseException) -> bool:
    return isinstance(error, (EOFError, ConnectionError))


def _story(index: int, number: int, what: str) -> str:
    return f"worker {index} (of {number}, counted from 0) {what}; all workers were ended"


def _death(process: BaseProcess) -> str:
    code = process.exitcode
    reason = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return f"died ({reason}, process {process.pid})"


def _kill_own(parent: int, processes: Sequence[BaseProcess]) -> None:
    if os.getpid() == parent:  # a fork of this process has no say in them
        _kill(processes)


def _kill(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
