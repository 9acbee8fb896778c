"""A worker that crashes, hangs, or whose environment raises: one error that names it, and nothing left running."""

import multiprocessing
import os
import signal
import time

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from didi_gym import make_vec
from didi_gym.sb3 import make_vec_env
from didi_gym.wrappers.workers import WorkerError
from tests.doubles import ScriptedPolicy, ToyEnv


class Failing(ToyEnv):
    """A ToyEnv that fails at its 10th step or at its second reset, where its seed was 2."""

    def __init__(self, how: str, when: str, render_mode=None):
        super().__init__(30, 30, render_mode)
        self.how, self.when, self.unlucky = how, when, False

    def reset(self, *, seed=None, options=None):
        self.unlucky = self.unlucky or seed == 2
        if self.when == "reset" and self.unlucky and self.episode:
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


def run(envs, skills):
    """Some skills and a reset."""
    for _ in range(skills):
        envs.step(np.zeros((3, 2)))
    envs.reset()


def assert_nothing_is_left(envs):
    envs.close()  # again, or for the first time: neither hangs nor raises
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("how", WORDS)
@pytest.mark.parametrize("when", ["step", "reset"])
def test_a_failing_worker_of_a_vector_environment_is_named(how, when):
    envs = vector(how, when)
    envs.reset(seed=1)
    with pytest.raises(WorkerError, match=WORDS[how]):
        run(envs, 2)
    assert_nothing_is_left(envs)


@pytest.mark.parametrize(("how", "when"), [("raises", "step"), *((how, "step") for how in list(WORDS)[1:])])
def test_a_failing_worker_of_a_vec_env_is_named(how, when):
    envs = vec_env(how, when)
    envs.reset()
    with pytest.raises(WorkerError, match=WORDS[how]):
        run(envs, 2)
    assert_nothing_is_left(envs)


@pytest.mark.parametrize(
    ("how", "words"), [("raises", "died .exit code 1"), ("exits", WORDS["exits"]), ("hangs", WORDS["hangs"])]
)
def test_a_worker_of_a_vec_env_that_fails_in_reset_is_named(how, words, capfd):
    envs = vec_env(how, "reset")
    envs.reset()
    with pytest.raises(WorkerError, match=words):
        envs.reset()
    assert how != "raises" or "the motor is on fire" in capfd.readouterr().err
    assert_nothing_is_left(envs)


def test_an_error_in_this_process_keeps_its_type_and_traceback():
    envs = make_vec("Failing-v0", ScriptedPolicy(), 3, how="raises", when="step")
    envs.reset(seed=1)
    with pytest.raises(ValueError, match=r"^the motor is on fire$"):
        run(envs, 3)
    envs = make_vec_env("Failing-v0", ScriptedPolicy(), 3, how="raises", when="step", seed=1, vec_env_cls=DummyVecEnv)
    envs.reset()
    with pytest.raises(ValueError, match=r"^the motor is on fire$"):
        run(envs, 3)


def test_closing_while_nothing_failed_ends_all_workers():
    for make in (vector, vec_env):
        envs = make("hangs", "never")
        envs.reset()
        assert len(multiprocessing.active_children()) == 3
        assert_nothing_is_left(envs)
