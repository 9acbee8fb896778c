"""A worker that crashes, hangs, or whose environment raises: one error that names it, and nothing left running."""

import contextlib
import gc
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings

import gymnasium as gym
import numpy as np
import psutil
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from didi_gym import make_vec
from didi_gym.sb3 import make_vec_env
from didi_gym.wrappers.workers import WorkerError
from tests.doubles import ScriptedPolicy, ToyEnv


class Unreadable(Exception):
    """It can be pickled, but not read again: the constructor takes two arguments, and pickle gives it one."""

    def __init__(self, motor, fire):
        super().__init__(f"{motor} {fire}")


class Locked(Exception):
    """It cannot be pickled."""


class Failing(ToyEnv):
    """A ToyEnv that fails where its seed was 2: at its 10th step or at its first or second reset."""

    def __init__(self, how: str, when: str, render_mode=None):
        super().__init__(30, 30, render_mode)
        self.how, self.when, self.unlucky = how, when, False

    def reset(self, *, seed=None, options=None):
        self.unlucky = self.unlucky or seed == 2
        second = self.when in ("reset", "autoreset") and self.episode > 0
        if self.unlucky and (second or self.when == "first reset"):
            self.fail()
        return super().reset(seed=seed, options=options)

    def step(self, action):
        if self.when == "step" and self.unlucky and len(self.trace) == 10:
            self.fail()
        return super().step(action)

    def fail(self):
        if self.how == "raises":
            raise ValueError("the motor is on fire")
        if self.how == "exits":
            os._exit(3)
        if self.how == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "raises a lock":
            raise Locked(threading.Lock())
        if self.how == "raises what cannot be sent":
            raise Unreadable("motor", "fire")
        time.sleep(1000)


WORDS = {
    "raises": r"worker 1 \(of 3, counted from 0\) raised ValueError: the motor is on fire",
    "exits": r"worker 1 \(of 3, counted from 0\) died \(exit code 3, process \d+\)",
    "is killed": r"worker 1 \(of 3, counted from 0\) died \(signal 9, process \d+\)",
    "hangs": r"worker 1 \(of 3, counted from 0\) did not answer within 1 s \(process \d+\).*longer worker_timeout",
}


@pytest.fixture(autouse=True)
def registered():
    if "Failing-v0" not in gym.registry:
        gym.register("Failing-v0", entry_point=Failing)


def vector(how, when, **kwargs):
    context = {"vector_kwargs": {"context": "fork"}, "skill_duration": 6, "replan_every": 3, "worker_timeout": 1.0}
    return make_vec("Failing-v0", ScriptedPolicy(), 3, "async", how=how, when=when, **context, **kwargs)


def vec_env(how, when):
    kwargs = {"skill_duration": 6, "replan_every": 3, "worker_timeout": 1.0, "how": how, "when": when, "seed": 1}
    start = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}}
    return make_vec_env("Failing-v0", ScriptedPolicy(), 3, **start, **kwargs)


def run(envs, skills, **kwargs):
    """A reset, some skills and another reset."""
    envs.reset(**kwargs)
    for _ in range(skills):
        envs.step(np.zeros((3, 2)))
    envs.reset()


def assert_nothing_is_left(envs):
    envs.close()  # again, or for the first time: neither hangs nor raises
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("how", WORDS)
@pytest.mark.parametrize("when", ["step", "reset", "autoreset", "first reset"])
def test_a_failing_worker_of_a_vector_environment_is_named(how, when):
    envs = vector(how, when, autoreset_mode="same_step")
    with pytest.raises(WorkerError, match=WORDS[how]) as caught:
        run(envs, 6 if when == "autoreset" else 2, seed=1)
    assert how != "raises" or "self.fail()" in str(caught.value.__cause__)
    assert_nothing_is_left(envs)


@pytest.mark.parametrize("how", WORDS)
@pytest.mark.parametrize("when", ["step", "reset", "autoreset", "first reset"])
def test_a_failing_worker_of_a_vec_env_is_named(how, when):
    envs = vec_env(how, when)
    with pytest.raises(WorkerError, match=WORDS[how]) as caught:
        run(envs, 6 if when == "autoreset" else 2)
    assert how != "raises" or "self.fail()" in str(caught.value.__cause__)
    assert_nothing_is_left(envs)


def test_an_error_in_this_process_keeps_its_type_and_traceback():
    envs = make_vec("Failing-v0", ScriptedPolicy(), 3, how="raises", when="step")
    with pytest.raises(ValueError, match=r"^the motor is on fire$"):
        run(envs, 3, seed=1)
    envs = make_vec_env("Failing-v0", ScriptedPolicy(), 3, how="raises", when="step", seed=1, vec_env_cls=DummyVecEnv)
    with pytest.raises(ValueError, match=r"^the motor is on fire$"):
        run(envs, 3)


def test_closing_while_nothing_failed_ends_all_workers():
    for make in (vector, vec_env):
        envs = make("hangs", "never")
        envs.reset()
        assert len(multiprocessing.active_children()) == 3
        assert_nothing_is_left(envs)


def test_an_error_that_cannot_be_sent_still_names_the_worker_and_says_why():
    for how, words in {"raises what cannot be sent": "Unreadable: motor fire", "raises a lock": "Locked: "}.items():
        for make in (vector, vec_env):
            envs = make(how, "step")
            with pytest.raises(WorkerError, match=rf"worker 1 .* raised {words}"):
                run(envs, 2, **({"seed": 1} if make is vector else {}))
            assert_nothing_is_left(envs)


class OnlyHere(ToyEnv):
    """It can be made in the process of the tests only."""

    def __init__(self, home, render_mode=None):
        super().__init__(render_mode=render_mode)
        if os.getpid() != home:
            raise OSError("no simulator here")


@pytest.mark.parametrize("form", ["async", "subproc"])
def test_a_worker_that_cannot_make_its_environment_is_named(form, capfd):
    gym.register("OnlyHere-v0", entry_point=OnlyHere)
    if form == "async":
        make, how = make_vec, {"vectorization_mode": "async", "vector_kwargs": {"context": "fork"}}
    else:
        make, how = make_vec_env, {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}}
    with pytest.raises(WorkerError, match=r"worker \d \(of 2, .*died \(exit code 1.* while it made its environment"):
        make("OnlyHere-v0", ScriptedPolicy(), 2, home=os.getpid(), **how)
    del gym.registry["OnlyHere-v0"]
    assert "no simulator here" in capfd.readouterr().err
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("make", [vector, vec_env])
def test_ctrl_c_in_the_middle_of_a_skill_ends_the_workers_and_stays_a_keyboard_interrupt(make):
    envs = make("hangs", "step")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may ignore Ctrl-C
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run(envs, 2, **({"seed": 1} if make is vector else {}))
    finally:
        signal.signal(signal.SIGINT, before)
    assert multiprocessing.active_children() == []
    assert_nothing_is_left(envs)


@pytest.mark.parametrize("make", [vector, vec_env])
def test_a_step_after_a_failure_or_after_close_says_that_the_workers_were_ended(make):
    for how in ("exits", "never fails"):
        envs = make(how, "step")
        envs.reset(**({"seed": 1} if make is vector else {}))
        envs.step(np.zeros((3, 2)))
        if how == "exits":
            with pytest.raises(WorkerError):
                envs.step(np.zeros((3, 2)))
        envs.close()
        with pytest.raises((WorkerError, gym.error.ClosedEnvironmentError), match=r"workers were ended|call to `close"):
            envs.step(np.zeros((3, 2)))


@pytest.mark.parametrize("make", [vector, vec_env])
def test_close_is_quiet_where_a_worker_is_dead_already(make):
    envs = make("never fails", "step")
    envs.reset()
    processes = envs.unwrapped.processes
    processes[1].kill()
    processes[1].join()
    assert_nothing_is_left(envs)


@pytest.mark.parametrize("make", [vector, vec_env])
def test_workers_end_with_an_environment_that_nobody_closed(make):
    gc.collect()
    gc.disable()  # no cycle keeps it alive
    try:
        envs = make("never fails", "step")
        envs.reset()
        assert len(multiprocessing.active_children()) == 3
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            del envs
        assert multiprocessing.active_children() == []
    finally:
        gc.enable()


class Ragged(ToyEnv):
    """Its info is longer where the seed was 2; Gymnasium cannot put such infos together."""

    def reset(self, *, seed=None, options=None):
        self.length = 3 if seed == 2 else 4
        return super().reset(seed=seed, options=options)

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {**info, "ragged": np.zeros(self.length)}


def test_infos_that_cannot_be_put_together_leave_no_worker_waiting():
    gym.register("Ragged-v0", entry_point=Ragged, kwargs={"shortest": 20})
    envs = make_vec("Ragged-v0", ScriptedPolicy(), 3, "async", worker_timeout=5.0, vector_kwargs={"context": "fork"})
    del gym.registry["Ragged-v0"]
    envs.reset(seed=1)
    with pytest.raises(ValueError, match="could not broadcast"):
        envs.step(np.zeros((3, 2)))
    assert_nothing_is_left(envs)


class Slow(ToyEnv):
    """In a worker it takes for ever to make it or to close it."""

    def __init__(self, home, what, render_mode=None):
        super().__init__(render_mode=render_mode)
        self.home, self.what = home, what
        self.wait("make")

    def close(self):
        self.wait("close")

    def wait(self, what):
        if self.what == what and os.getpid() != self.home:
            time.sleep(1000)


def slow(form, what):
    gym.registry.pop("Slow-v0", None)
    gym.register("Slow-v0", entry_point=Slow)
    kwargs = {"home": os.getpid(), "what": what, "worker_timeout": 1.0}
    if form == "async":
        return make_vec("Slow-v0", ScriptedPolicy(), 2, "async", vector_kwargs={"context": "fork"}, **kwargs)
    start = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}}
    return make_vec_env("Slow-v0", ScriptedPolicy(), 2, **start, **kwargs)


@pytest.mark.parametrize("form", ["async", "subproc"])
def test_the_timeout_bounds_making_and_closing(form):
    with pytest.raises(WorkerError, match=r"2 workers did not make their environments within 1 s"):
        slow(form, "make")
    assert multiprocessing.active_children() == []
    envs = slow(form, "close")
    envs.reset()
    begin = time.monotonic()
    assert_nothing_is_left(envs)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("make", [vector, vec_env])
def test_the_timeout_bounds_sending_much_to_a_stopped_worker(make):
    envs = make("never", "never")
    envs.reset()
    os.kill(envs.unwrapped.processes[1].pid, signal.SIGSTOP)
    pipes = envs.unwrapped.parent_pipes if make is vector else envs.unwrapped.remotes
    with pytest.raises(WorkerError, match=r"worker 1 .* did not take what was sent to it within 1 s"):
        pipes[1].send(("step", b"0" * (1 << 22)))
    assert_nothing_is_left(envs)


@pytest.mark.parametrize("make", [vector, vec_env])
def test_the_timeout_bounds_half_an_answer(make):
    envs = make("never", "never")
    envs.reset()
    pipes = envs.unwrapped.parent_pipes if make is vector else envs.unwrapped.remotes
    ours, theirs = multiprocessing.Pipe()
    pipe = envs._workers.watch([ours], 1.0)[0]
    os.write(theirs.fileno(), struct.pack("!i", 1000) + b"half")
    with pytest.raises(WorkerError, match=r"worker 0 .* did not finish its answer within 1 s"):
        pipe.recv()
    assert all(pipe.closed for pipe in pipes)
    assert_nothing_is_left(envs)


ORPHANS = """
import os, sys, time
import tests.wrappers.test_workers as here
here.gym.register("Failing-v0", entry_point=here.Failing)
envs = here.{make}("never", "never")
envs.reset()
print(*[process.pid for process in envs.unwrapped.processes], flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("make", ["vector", "vec_env"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_process_that_started_them(make, how):
    main = subprocess.Popen([sys.executable, "-c", ORPHANS.format(make=make)], stdout=subprocess.PIPE, text=True)
    workers = [psutil.Process(int(pid)) for pid in main.stdout.readline().split()]
    assert len(workers) == 3
    main.send_signal(how)
    main.wait()
    main.stdout.close()
    _, alive = psutil.wait_procs(workers, timeout=10)
    for process in alive:
        process.kill()
    assert alive == []


STOPPED = """
import multiprocessing, os, signal, threading
import didi_gym
from didi_gym.sb3 import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv
from tests.doubles import ScriptedPolicy, ToyEnv

def begin():
    global envs
    if {vector}:
        envs = didi_gym.make_vec(ToyEnv, ScriptedPolicy(), 2, "async", vector_kwargs={{"context": "{method}"}})
    else:
        how = {{"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {{"start_method": "{method}"}}}}
        envs = make_vec_env(ToyEnv, ScriptedPolicy(), 2, **how)
    envs.reset()

if __name__ == "__main__":
    multiprocessing.current_process()._config["semprefix"] = "/{name}"
    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    print(*[process.pid for process in envs.unwrapped.processes], flush=True)
    for process in envs.unwrapped.processes:
        os.kill(process.pid, signal.SIGSTOP)
"""


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="where semaphores are not files")
@pytest.mark.parametrize("method", ["fork", "forkserver"])
@pytest.mark.parametrize("vector", [True, False], ids=["vector", "vec_env"])
def test_stopped_workers_that_a_thread_has_left_neither_delay_the_end_nor_leave_semaphores(vector, method, tmp_path):
    program = tmp_path / "program.py"
    name = f"didi-{os.getpid()}-{method}-{vector}"
    program.write_text(STOPPED.format(vector=vector, method=method, name=name))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    main = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True, env=environment)
    workers = [psutil.Process(int(pid)) for pid in main.stdout.readline().split()]
    try:
        assert len(workers) == 2 and main.wait(timeout=30) == 0
        assert psutil.wait_procs(workers, timeout=5)[1] == []
    finally:
        main.kill()
        main.stdout.close()
        for process in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    until = time.monotonic() + 10  # whoever keeps track of them is a process of its own
    while left := [file for file in os.listdir("/dev/shm") if file.startswith(f"sem.{name}")]:
        assert time.monotonic() < until, left
        time.sleep(0.1)
