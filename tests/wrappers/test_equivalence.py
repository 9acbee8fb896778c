"""Vector forms equal N single wrappers, transition for transition and bit for bit, in every mode and backend."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import iterate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from didi_gym.core.env_rows import info_of
from didi_gym.core.layout import Layout, ObservationSource
from didi_gym.sb3.vec_env import SkillActionVecEnvWrapper
from didi_gym.wrappers import SkillActionVectorWrapper, SkillActionWrapper
from didi_gym.wrappers.executor import SkillExecutor
from tests.doubles import ScriptedPolicy, ToyEnv, ToyGoalEnv

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
SKILLS = 7


def every_fourth_step_from_the_end(observation: Any, skill: np.ndarray, steps: int) -> bool:
    numbers = observation["observation"] if isinstance(observation, dict) else observation
    return numbers[2] % 4 == 0 and skill[0] > 0 and steps > 1


settings_of_skills = st.fixed_dictionaries(
    {
        "skill_duration": st.one_of(st.integers(1, 14), st.sampled_from([(2, 5, 11), (9, 4)])),
        "replan_every": st.integers(1, 8),
        "discount": st.sampled_from([1.0, 0.95]),
        "terminate_fn": st.sampled_from([None, every_fourth_step_from_the_end]),
    }
)
whole_case = {
    "kind": st.sampled_from(["box", "ball", "discrete"]),
    "skills": settings_of_skills,
    "env_class": st.sampled_from([ToyEnv, ToyGoalEnv]),
    "n": st.integers(1, 4),
    "longest": st.integers(1, 25),
    "seed": st.integers(0, 10_000),
}


def real_policy(kind: str) -> Any:
    """An untrained network that reads what the scripted policy reads."""
    from didi_gym.core.skill_space import SkillSpace
    from tests.examples import random_policy

    sources = (ObservationSource(3, (0, 1)), ObservationSource(3, (0, 1), ("observation",)))
    layout = Layout(2, (0, 1), (0, 1), sources=sources)
    return random_policy(layout, skill_space=SkillSpace(kind, 2), width=64, low=(-1.0, -1.0), high=(1.0, 1.0))


def executors(env_class: type[ToyEnv], n: int, longest: int, skills: dict[str, Any]) -> list[Any]:
    durations = skills["skill_duration"]
    longest_skill = durations if isinstance(durations, int) else max(durations)
    return [
        functools.partial(
            SkillExecutor,
            env_class(longest),
            **{**skills, "skill_duration": longest_skill, "skill_dim": 2},
        )
        for _ in range(n)
    ]


def assert_same(got: Any, expected: Any) -> None:
    """Equal to the last bit, whatever the nesting."""
    if isinstance(expected, dict):
        assert set(got) == set(expected)
        for key, value in expected.items():
            assert_same(got[key], value)
    elif isinstance(expected, tuple):
        for part, value in zip(got, expected, strict=True):
            assert_same(part, value)
    else:
        np.testing.assert_array_equal(got, expected)


def assert_vector_is_like_singles(
    backend: Any, mode: AutoresetMode, policy: Any, skills: Any, env_class: Any, n: int, longest: int, seed: int
) -> None:
    """Drive a vector environment and N single ones with the same actions, and compare all that they say."""
    invariant = {} if isinstance(policy, ScriptedPolicy) else {"batch_invariant": True}
    singles = [SkillActionWrapper(env_class(longest), policy, **skills, **invariant) for _ in range(n)]
    vector = backend(executors(env_class, n, longest, skills), autoreset_mode=mode)
    envs = SkillActionVectorWrapper(vector, policy, skill_duration=skills["skill_duration"], **invariant)
    try:
        assert envs.metadata["autoreset_mode"] == mode
        observations, infos = envs.reset(seed=seed)
        for i, single in enumerate(singles):
            observation, info = single.reset(seed=seed + i)
            assert_same(list(iterate(envs.observation_space, observations))[i], observation)
            assert_same(info_of(infos, i), info)
        envs.action_space.seed(seed)
        ended = np.zeros(n, dtype=bool)
        for _ in range(SKILLS):
            if mode == AutoresetMode.DISABLED and ended.any():
                options = {"reset_mask": ended.copy(), "from": 1}
                observations, infos = envs.reset(options=options)
                assert options["from"] == 1 and (options["reset_mask"] == ended).all()
                for i in np.flatnonzero(ended):
                    observation, info = singles[i].reset(options={"from": 1})
                    assert_same(list(iterate(envs.observation_space, observations))[i], observation)
                    assert_same(info_of(infos, i), info)
            actions = envs.action_space.sample()
            observations, rewards, terminations, truncations, infos = envs.step(actions)
            for i, single in enumerate(singles):
                if mode == AutoresetMode.NEXT_STEP and ended[i]:
                    observation, info = single.reset()
                    reward, terminated, truncated = 0.0, False, False
                else:
                    observation, reward, terminated, truncated, info = single.step(actions[i])
                    if mode == AutoresetMode.SAME_STEP and (terminated or truncated):
                        final = {"final_obs": observation, "final_info": info}
                        observation, info = single.reset()
                        info = {**final, **info}
                assert_same(list(iterate(envs.observation_space, observations))[i], observation)
                assert (rewards[i], terminations[i], truncations[i]) == (reward, terminated, truncated)
                assert_same(info_of(infos, i), info)
            ended = terminations | truncations
        assert envs.low_level_steps == sum(single.low_level_steps for single in singles)
    finally:
        envs.close()


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=60, deadline=None)
@given(**whole_case)
def test_sync_equals_single_wrappers(mode, kind, **case):
    assert_vector_is_like_singles(SyncVectorEnv, mode, ScriptedPolicy(kind), **case)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(**whole_case)
def test_async_equals_single_wrappers(mode, kind, **case):
    assert_vector_is_like_singles(functools.partial(AsyncVectorEnv, context="fork"), mode, ScriptedPolicy(kind), **case)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=15, deadline=None)
@given(**whole_case)
def test_a_real_policy_plans_the_same_alone_and_in_company_when_batch_invariant(mode, kind, **case):
    assert_vector_is_like_singles(SyncVectorEnv, mode, real_policy(kind), **case)


operations = st.lists(
    st.one_of(st.just("step"), st.just("reset"), st.lists(st.booleans(), min_size=3, max_size=3).filter(any)),
    max_size=8,
)


@pytest.mark.parametrize("backend", [SyncVectorEnv, functools.partial(AsyncVectorEnv, context="fork")])
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(operations=operations, longest=st.integers(1, 25), seed=st.integers(0, 10_000))
def test_resets_of_all_or_some_at_any_time_are_those_of_single_wrappers(backend, mode, operations, longest, seed):
    skills = {"skill_duration": 6, "replan_every": 4}
    singles = [SkillActionWrapper(ToyEnv(longest), ScriptedPolicy(), **skills) for _ in range(3)]
    envs = SkillActionVectorWrapper(
        backend(executors(ToyEnv, 3, longest, skills), autoreset_mode=mode), ScriptedPolicy()
    )
    envs.action_space.seed(seed)
    ended = np.zeros(3, dtype=bool)
    try:
        for operation in ["reset", *operations, "step"]:
            if operation == "step" and mode == AutoresetMode.DISABLED and ended.any():
                operation = ended.tolist()
            if operation == "step":
                actions = envs.action_space.sample()
                observations, rewards, terminations, truncations, _ = envs.step(actions)
                for i, single in enumerate(singles):
                    if mode == AutoresetMode.NEXT_STEP and ended[i]:
                        expected: tuple[Any, ...] = (single.reset()[0], 0.0, False, False)
                    else:
                        expected = single.step(actions[i])[:4]
                    if mode == AutoresetMode.SAME_STEP and (expected[2] or expected[3]):
                        expected = (single.reset()[0], *expected[1:])
                    assert_same(observations[i], expected[0])
                    assert (rewards[i], terminations[i], truncations[i]) == expected[1:]
                ended = terminations | truncations
            else:
                mask = np.ones(3, dtype=bool) if operation == "reset" else np.array(operation)
                seeds = [seed + i for i in range(3)]
                options = {} if operation == "reset" else {"options": {"reset_mask": mask}}
                observations, _ = envs.reset(seed=seeds, **options)
                for i in np.flatnonzero(mask):
                    assert_same(observations[i], singles[i].reset(seed=seeds[i])[0])
                ended &= ~mask
                seed += 1
            observations += 100.0  # an agent may normalise in place: the next plan does not change
    finally:
        envs.close()


def assert_vec_env_is_like_singles(
    venv: Any, policy: Any, skills: Any, env_class: Any, n: int, longest: int, seed: int
) -> None:
    """The same for Stable-Baselines3, against single wrappers in a DummyVecEnv, Monitors inside both."""
    invariant = {} if isinstance(policy, ScriptedPolicy) else {"batch_invariant": True}
    singles = DummyVecEnv(
        [
            functools.partial(SkillActionWrapper, Monitor(env_class(longest)), policy, **skills, **invariant)
            for _ in range(n)
        ]
    )
    envs = SkillActionVecEnvWrapper(venv, policy, skill_duration=skills["skill_duration"], **invariant)
    try:
        assert envs.action_space == singles.action_space
        for either in (envs, singles):
            either.seed(seed)
            either.action_space.seed(seed)
        assert_same(envs.reset(), singles.reset())
        assert_same(dict(enumerate(envs.reset_infos)), dict(enumerate(singles.reset_infos)))
        for _ in range(SKILLS):
            actions = np.stack([envs.action_space.sample() for _ in range(n)])
            got, expected = envs.step(actions), singles.step(actions)
            assert_same(got[0], expected[0])
            assert_same(got[1].astype(np.float32), expected[1])  # SubprocVecEnv alone reports float64
            assert_same(got[2], expected[2])
            for ours, theirs in zip(got[3], expected[3], strict=True):
                for info in (ours, theirs):
                    for one in (info, *info.get("skill_infos", ())):
                        one.get("episode", {}).pop("t", None)  # wall-clock time
                assert_same(ours, theirs)
            assert_same(dict(enumerate(envs.reset_infos)), dict(enumerate(singles.reset_infos)))
        assert envs.low_level_steps == sum(singles.get_attr("low_level_steps"))
    finally:
        envs.close()


def monitored(**case: Any) -> list[Any]:
    longest, env_class = case["longest"], case["env_class"]
    makers = executors(env_class, case["n"], longest, case["skills"])
    return [functools.partial(maker.func, Monitor(maker.args[0]), **maker.keywords) for maker in makers]


@settings(max_examples=60, deadline=None)
@given(**whole_case)
def test_dummy_vec_env_equals_single_wrappers(kind, **case):
    assert_vec_env_is_like_singles(DummyVecEnv(monitored(**case)), ScriptedPolicy(kind), **case)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(**whole_case)
def test_subproc_vec_env_equals_single_wrappers(kind, **case):
    assert_vec_env_is_like_singles(SubprocVecEnv(monitored(**case), start_method="fork"), ScriptedPolicy(kind), **case)


@settings(max_examples=15, deadline=None)
@given(**whole_case)
def test_a_real_policy_plans_the_same_in_a_vec_env_when_batch_invariant(kind, **case):
    assert_vec_env_is_like_singles(DummyVecEnv(monitored(**case)), real_policy(kind), **case)


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_other_ways_to_start_processes_work_too(start_method):
    skills = {"skill_duration": (3, 8), "replan_every": 3, "terminate_fn": every_fourth_step_from_the_end}
    case = {"skills": skills, "env_class": ToyGoalEnv, "n": 2, "longest": 20, "seed": 1}
    assert_vec_env_is_like_singles(
        SubprocVecEnv(monitored(**case), start_method=start_method), ScriptedPolicy(), **case
    )
    backend = functools.partial(AsyncVectorEnv, context=start_method)
    assert_vector_is_like_singles(backend, AutoresetMode.NEXT_STEP, ScriptedPolicy(), **case)
