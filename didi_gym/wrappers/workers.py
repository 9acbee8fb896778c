"""Worker processes that crash, hang or raise: one clear error that names the worker, and nothing left running."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import queue
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.util import Finalize
from typing import Any, TypeVar

WORKER_TIMEOUT = 300.0
"""Seconds without an answer after which a worker counts as hung: far longer than any skill or reset should take."""
_REPORT_TIMEOUT = 5.0
"""Seconds to wait for what an environment raised, after its worker's word that it did: some of it cannot be sent."""
_END_TIMEOUT = 2.0
"""Seconds for workers to end by themselves, as in a handler of SIGTERM, before they are killed."""
_WATCH_EVERY = 1.0
"""Seconds between two looks of a worker at whether its parent still lives."""
_T = TypeVar("_T")


class WorkerError(RuntimeError):
    """A worker process, or the environment in it, failed; the message names it and says what happened."""


def start(
    cls: type[_T], env_fns: Sequence[Callable[[], Any]], *, timeout: float | None = WORKER_TIMEOUT, **kwargs: Any
) -> _T:
    """`cls(env_fns, **kwargs)`, a vector environment, of which nothing is left running where that fails.

    Its workers end with this process, whatever ends it.

    Args:
        timeout: seconds for the workers to start and make their environments; None waits for ever.

    Raises:
        WorkerError: a worker process died before it had made its environment, or did not make it in time.
    """
    envs = cls.__new__(cls)
    own = [functools.partial(_make_in_worker, env_fn, os.getpid()) for env_fn in env_fns]
    try:
        with _time_limit(lambda: getattr(envs, "processes", ()), timeout) as late:
            cls.__init__(envs, own, **kwargs)  # type: ignore[call-arg]
    except BaseException as error:
        if late:
            _kill(envs.processes)  # type: ignore[attr-defined]
            raise WorkerError(
                f"{len(envs.processes)} workers did not make their environments within {timeout:g} s: one hangs, or "  # type: ignore[attr-defined]
                "needs a longer worker_timeout; all were ended"
            ) from error
        processes = [process for process in getattr(envs, "processes", ()) if process.pid is not None]
        dead = wait([process.sentinel for process in processes], 1.0) if _is_broken_pipe(error) else []
        _kill(processes)
        for index, process in enumerate(processes):
            if process.sentinel in dead:
                what = f"{_death(process)} while it made its environment; see what it printed above"
                raise WorkerError(_story(index, len(processes), what)) from error
        raise
    return envs


def _make_in_worker(env_fn: Callable[[], Any], main: int) -> Any:
    """Make an environment where it will run: in the process `main`, or in a worker, which then ends with its parent."""
    if os.getpid() == main:
        return env_fn()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    return env_fn()


def _end_with(parent: Any) -> None:
    """End this process after its parent, of which a worker waiting at its pipe hears nothing: siblings keep it open."""
    forked = os.getppid() == parent.pid  # else by a server, which lives as long as its own parent
    while not wait([parent.sentinel], _WATCH_EVERY) and not (forked and os.getppid() != parent.pid):
        pass
    os._exit(1)


@contextlib.contextmanager
def _time_limit(processes: Callable[[], Sequence[BaseProcess]], timeout: float | None) -> Iterator[list[bool]]:
    """Kill processes that are still waited for after `timeout` seconds; the list is then no longer empty."""
    late: list[bool] = []

    def end() -> None:
        late.append(True)
        for process in processes():
            process.kill()

    timer = None if timeout is None else threading.Timer(timeout, end)
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield late
    finally:
        if timer is not None:
            timer.cancel()


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
        # At exit before multiprocessing's own turn, which would wait for a stopped worker for ever.
        Finalize(envs, _end_own, (os.getpid(), processes), exitpriority=0)

    def closing(self, timeout: float | None) -> Any:
        """A context in which workers that take longer than `timeout` seconds to end are killed."""
        return _time_limit(lambda: self._processes, timeout)

    def watch(self, pipes: Sequence[Connection], timeout: float | None) -> list[Any]:
        """The main process's ends of the workers' pipes, so that waiting for a dead or hung worker is an error."""
        for pipe in pipes:
            _bound(pipe, timeout)
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
            why = "it cannot be pickled" if isinstance(error, queue.Empty) else f"{type(error).__name__}: {error}"
            what = f"raised an error that could not be sent here ({why}); see what it printed"
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
        except BlockingIOError as error:
            raise self._hangs("take what was sent to it") from error
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
            raise self._hangs("answer")
        try:
            if self._pipe in ready or self._pipe.poll():
                return self._workers.check(self._index, self._pipe.recv())
        except BlockingIOError as error:
            raise self._hangs("finish its answer") from error
        except (EOFError, ConnectionError) as error:
            raise self._died() from error
        raise self._died()

    def _hangs(self, task: str) -> WorkerError:
        what = f"did not {task} within {self._timeout:g} s (process {self._workers.process(self._index).pid})"
        return self._workers.fail(self._index, f"{what}: it hangs, or needs a longer worker_timeout")

    def _died(self) -> WorkerError:
        process = self._workers.process(self._index)
        process.join(timeout=1)  # its pipe breaks a moment before it is gone
        what = f"{_death(process)}; see what it printed above, or the memory in use"
        return self._workers.fail(self._index, what)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)


def _bound(pipe: Connection, timeout: float | None) -> None:
    """Let no single read or write of a pipe wait longer than `timeout` seconds: they are a BlockingIOError then."""
    if timeout is None or os.name != "posix":
        return
    seconds = struct.pack("ll", int(timeout), int(timeout % 1 * 1e6))
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(pipe.fileno())) as end:  # two-way pipes are sockets
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)


def _is_broken_pipe(error: BaseException) -> bool:
    return isinstance(error, (EOFError, ConnectionError))


def _story(index: int, number: int, what: str) -> str:
    return f"worker {index} (of {number}, counted from 0) {what}; all workers were ended"


def _death(process: BaseProcess) -> str:
    code = process.exitcode
    reason = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return f"died ({reason}, process {process.pid})"


def _end_own(parent: int, processes: Sequence[BaseProcess]) -> None:
    """End workers gently, and those that do not follow by force."""
    if os.getpid() != parent:  # a fork of this process has no say in them
        return
    for process in processes:
        process.terminate()
    until = time.monotonic() + _END_TIMEOUT
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    _kill(processes)


def _kill(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
