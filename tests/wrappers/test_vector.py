"""The vector forms' own business: what they refuse, masks, autoreset by hand, and what a long random run conserves."""

import functools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from didi_gym import make_vec
from didi_gym.sb3 import make_vec_env
from didi_gym.sb3.vec_env import SkillActionVecEnvWrapper
from didi_gym.wrappers import SkillActionVectorWrapper
from didi_gym.wrappers.executor import SkillExecutor
from tests.doubles import ScriptedPolicy, ToyEnv, register_toys


@pytest.fixture(autouse=True)
def registered():
    register_toys()


def executor(**kwargs):
    return SkillExecutor(ToyEnv(), **{"skill_duration": 6, "replan_every": 4, **kwargs})


def test_plain_environments_are_refused_with_the_factory_that_makes_others():
    with pytest.raises(TypeError, match=r"across episode ends.*action space Box.*use didi_gym\.make_vec, or wrap each"):
        SkillActionVectorWrapper(SyncVectorEnv([ToyEnv]), ScriptedPolicy())
    with pytest.raises(TypeError, match=r"use didi_gym\.sb3\.make_vec_env, or wrap each"):
        SkillActionVecEnvWrapper(DummyVecEnv([ToyEnv]), ScriptedPolicy())


def test_executors_with_other_actions_than_the_policys_are_refused():
    pendulum = functools.partial(SkillExecutor, gym.make("Pendulum-v1"), skill_duration=6, replan_every=4)
    with pytest.raises(ValueError, match=r"expected Box\(-1.0, 1.0, \(2,\).*got Box\(-2.0, 2.0, \(1,\)"):
        SkillActionVectorWrapper(SyncVectorEnv([pendulum]), ScriptedPolicy())


def test_a_choice_of_durations_longer_than_the_executors_is_refused_at_the_first_skill():
    envs = SkillActionVectorWrapper(SyncVectorEnv([executor]), ScriptedPolicy(), skill_duration=(6, 12))
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"a skill lasts 1\.\.6 low-level steps here, got 12"):
        envs.step(np.ones((1, 3)))


def test_async_without_shared_memory_is_refused_where_it_would_lose_a_skill():
    with pytest.raises(ValueError, match="would lose a skill; use shared_memory=True"):
        make_vec("Toy-v0", ScriptedPolicy(), 2, "async", vector_kwargs={"shared_memory": False, "context": "fork"})
    envs = make_vec(
        "Toy-v0",
        ScriptedPolicy(),
        2,
        "async",
        autoreset_mode="same_step",
        vector_kwargs={"shared_memory": False, "context": "fork"},
    )
    assert isinstance(envs.unwrapped, AsyncVectorEnv)
    envs.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vectorization_mode": "threads"}, "vectorization_mode must be 'sync' or 'async', got 'threads'"),
        ({"autoreset_mode": "never"}, "autoreset_mode must be one of next_step, same_step, disabled, got 'never'"),
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"replan_every": 99}, "replan_every must be in"),
    ],
)
def test_wrong_arguments_of_make_vec_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_vec("Toy-v0", ScriptedPolicy(), **arguments)


def test_stepping_before_reset_is_refused():
    envs = make_vec("Toy-v0", ScriptedPolicy(), 2)
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\) before the first step"):
        envs.step(envs.action_space.sample())


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_with_autoreset_disabled_an_ended_episode_must_be_reset_by_hand(mode):
    kwargs = {"vector_kwargs": {"context": "fork"}} if mode == "async" else {}
    envs = make_vec("Toy-v0", ScriptedPolicy(), 3, mode, autoreset_mode="disabled", shortest=8, longest=8, **kwargs)
    envs.reset(seed=0)
    mask = np.array([False, True, False])
    envs.step(envs.action_space.sample())
    envs.reset(options={"reset_mask": mask})
    assert mask.tolist() == [False, True, False]
    _, _, terminations, truncations, infos = envs.step(envs.action_space.sample())
    assert (terminations | truncations).tolist() == [True, False, True]
    assert infos["skill_length"].tolist() == [2, 6, 2]
    with pytest.raises(gym.error.ResetNeeded, match=r"sub-environments \[0, 2\] have ended and autoreset is disabled"):
        envs.step(envs.action_space.sample())
    envs.reset(options={"reset_mask": terminations | truncations})
    *_, infos = envs.step(envs.action_space.sample())
    assert infos["skill_length"].tolist() == [6, 2, 6]
    envs.close()


def test_a_manual_reset_between_two_steps_is_not_taken_for_an_autoreset():
    envs = make_vec("Toy-v0", ScriptedPolicy(), 2, shortest=4, longest=4)
    envs.reset(seed=0)
    envs.step(envs.action_space.sample())
    envs.reset(seed=1)
    *_, infos = envs.step(envs.action_space.sample())
    assert infos["skill_length"].tolist() == [4, 4]


@pytest.mark.parametrize("shape", [(2, 2), (1, 2), (4, 2), (2,), (3, 3, 2)])
def test_one_action_for_each_environment_is_asked_for_and_others_leave_it_usable(shape):
    for envs in (make_vec("Toy-v0", ScriptedPolicy(), 3), make_vec_env("Toy-v0", ScriptedPolicy(), 3)):
        envs.reset()
        with pytest.raises(ValueError, match=rf"one action per environment: expected .*\(3, 2\), got \({shape[0]},"):
            envs.step(np.zeros(shape))
        with pytest.raises(ValueError, match="must be finite"):
            envs.step(np.full((3, 2), np.nan))
        assert envs.low_level_steps == 0
        envs.step(np.zeros((3, 2)))
        assert envs.low_level_steps > 0


@pytest.mark.parametrize("kwargs", [{}, {"mode": "async"}, {"copy": False}])
def test_writing_into_observations_changes_no_later_plan_and_no_mask(kwargs):
    def second_half(observation):
        return [observation[2] > 5, True]

    mode, extra = kwargs.pop("mode", "sync"), {"vector_kwargs": kwargs}
    arguments = {"mask_fn": second_half, "shortest": 30, "longest": 30}
    policy = ScriptedPolicy("discrete")
    vectors = [make_vec("Toy-v0", policy, 2, mode, **extra, **arguments) for _ in range(2)]
    vec_envs = [make_vec_env("Toy-v0", policy, 2, seed=0, **arguments) for _ in range(2)]
    for left, written in (vectors, vec_envs):
        for envs in (left, written):
            seed = {"seed": 0} if envs in vectors else {}
            observations = envs.reset(**seed)
            for _ in range(2):
                if envs is written:
                    (observations if isinstance(observations, np.ndarray) else observations[0])[:] = -70
                observations = envs.step(np.array([0, 1]))
        np.testing.assert_array_equal(left.action_masks(), written.action_masks())
        np.testing.assert_array_equal(left.step(np.array([1, 1]))[0], written.step(np.array([1, 1]))[0])
        left.close()
        written.close()


@pytest.mark.parametrize(
    "kwargs",
    [
        {"autoreset_mode": "SameStep"},
        {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP},
        {"autoreset_mode": "same_step", "vectorization_mode": gym.VectorizeMode.SYNC},
        {"vector_kwargs": {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}},
        {"vector_kwargs": {"autoreset_mode": "SameStep"}},
    ],
)
def test_modes_may_be_named_as_in_gymnasium(kwargs):
    envs = make_vec("Toy-v0", ScriptedPolicy(name_or_path="toy"), 2, **kwargs)
    assert envs.metadata["autoreset_mode"] == gym.vector.AutoresetMode.SAME_STEP
    assert '"same_step"' in envs.spec.to_json()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_sub_environments_can_be_asked_and_told_through_the_wrapper(mode):
    envs = make_vec("Toy-v0", ScriptedPolicy(), 2, mode, render_mode="rgb_array")
    envs.reset(seed=0)
    assert envs.call("render")[1].shape == envs.render()[0].shape == (4, 4, 3)
    envs.set_attr("longest", [7, 8])
    assert envs.get_attr("longest") == (7, 8)
    envs.close()


class Telling(ToyEnv):
    """Says things of many kinds at reset; episodes of two steps."""

    def reset(self, *, seed=None, options=None):
        observation, _ = super().reset(seed=seed, options=options)
        return observation, {"flag": True, "count": 3, "none": None, "word": "x", "part": {"flag": False}}


@pytest.mark.parametrize("replan_every", [2, 4])
def test_what_a_reset_says_between_the_chunks_of_others_keeps_its_kind(replan_every):
    """Whether the environments beside it plan once or twice in the step that resets one."""

    def sub_environment(length):
        return SkillExecutor(Telling(length, length), skill_duration=4, replan_every=replan_every)

    vector = SyncVectorEnv([functools.partial(sub_environment, 2), functools.partial(sub_environment, 30)])
    envs = SkillActionVectorWrapper(vector, ScriptedPolicy())
    envs.reset(seed=0)
    envs.step(np.zeros((2, 2)))
    infos = envs.step(np.zeros((2, 2)))[-1]
    assert infos["flag"].dtype == infos["part"]["flag"].dtype == bool
    assert infos["count"].dtype == int
    assert (infos["flag"].tolist(), infos["_flag"].tolist()) == ([True, False], [True, False])
    assert (infos["none"][0], infos["word"][0]) == (None, "x")


def test_a_policy_of_continuous_actions_is_refused_where_low_level_actions_are_discrete():
    policy = ScriptedPolicy()
    policy.action_low = np.zeros(2, np.float32)
    cart_pole = {"obs_fn": lambda observation: observation[:2]}
    for make in (make_vec, make_vec_env):
        with pytest.raises(ValueError, match=r"expected Box\(0.0, 1.0, \(2,\), float32\), got Discrete\(2\)"):
            make("CartPole-v1", policy, 2, **cart_pole)


def test_masks_that_depend_on_an_observation_need_one():
    arguments = {"mask_fn": lambda observation: [True, observation[0] > 0]}
    for make in (make_vec, make_vec_env):
        envs = make("Toy-v0", ScriptedPolicy("discrete"), 2, **arguments)
        with pytest.raises(gym.error.ResetNeeded, match=r"depends on the observation: call reset\(\) first"):
            envs.action_masks()
    assert make_vec("Toy-v0", ScriptedPolicy("discrete"), 2).action_masks().all()


def test_masks_come_from_the_latest_observations():
    def only_the_second_in_late_steps(observation):
        return [observation[2] > 4, True]

    arguments = {"mask_fn": only_the_second_in_late_steps, "skill_duration": (2, 4), "shortest": 6, "longest": 6}
    envs = make_vec("Toy-v0", ScriptedPolicy("discrete"), 2, **arguments)
    envs.reset(seed=0)
    assert envs.action_masks().tolist() == [[True] * 4] * 2
    envs.step(np.array([0, 3]))
    assert envs.action_masks().tolist() == [[False, False, True, True]] * 2
    venv = make_vec_env("Toy-v0", ScriptedPolicy("discrete"), 2, **arguments)
    venv.reset()
    venv.step(np.array([0, 3]))
    assert venv.has_attr("action_masks")
    assert np.stack(venv.env_method("action_masks")).tolist() == envs.action_masks().tolist()
    assert venv.env_method("action_masks", indices=[1])[0].tolist() == [False, False, True, True]
    assert venv.get_attr("action_masks", indices=[1])[0]().tolist() == [False, False, True, True]


def test_a_vec_env_answers_for_its_planner_and_for_its_environments():
    policy = ScriptedPolicy()
    venv = make_vec_env("Toy-v0", policy, 3, skill_duration=5, discount=0.9)
    assert venv.get_attr("policy") == [policy] * 3
    assert venv.get_attr("policy", indices=0) == [policy]
    assert venv.get_attr("skill_duration") == [5] * 3
    assert venv.get_attr("reward_rule")[0].discount == 0.9
    assert not venv.has_attr("nothing_of_this_name")


def test_until_done_runs_whole_episodes():
    envs = make_vec("Toy-v0", ScriptedPolicy(), 2, until_done=True, shortest=30, longest=30)
    envs.reset(seed=0)
    _, _, _, truncations, infos = envs.step(envs.action_space.sample())
    assert truncations.all()
    assert infos["skill_length"].tolist() == [15, 15]  # Toy-v0's time limit
    assert not infos["skill_interrupted"].any()


def test_wrappers_are_put_inside_and_see_low_level_steps():
    envs = make_vec(
        "Toy-v0",
        ScriptedPolicy(),
        2,
        autoreset_mode="same_step",
        wrappers=[gym.wrappers.RecordEpisodeStatistics],
        shortest=9,
        longest=9,
    )
    envs.reset(seed=0)
    for _ in range(2):
        *_, infos = envs.step(envs.action_space.sample())
    assert infos["final_info"]["episode"]["l"].tolist() == [9, 9]


def test_obs_fn_gets_single_observations():
    shapes = []

    def second_then_first(observation):
        shapes.append(observation.shape)
        return observation[[1, 0]]

    envs = make_vec("Toy-v0", ScriptedPolicy(), 3, obs_fn=second_then_first)
    envs.reset(seed=0)
    envs.step(envs.action_space.sample())
    assert set(shapes) == {(3,)}


@pytest.mark.parametrize("mode", ["next_step", "same_step", "disabled"])
def test_a_long_random_run_conserves_steps_and_rewards(mode):
    """ToyEnv refuses a step in an ended episode; its own counts are compared with what the wrapper reports."""
    envs = make_vec("Toy-v0", ScriptedPolicy(), 5, autoreset_mode=mode, skill_duration=(1, 4, 9), replan_every=3)
    envs.reset(seed=0)
    envs.action_space.seed(0)
    lengths = total = 0.0
    for _ in range(1500):
        _, rewards, terminations, truncations, infos = envs.step(envs.action_space.sample())
        final = infos.get("final_info", {})
        for part in (infos, final):
            lengths += part.get("skill_length", np.zeros(1)).sum()
        total += rewards.sum()
        if mode == "disabled" and (terminations | truncations).any():
            envs.reset(options={"reset_mask": terminations | truncations})
    bases = [env.unwrapped for env in envs.unwrapped.envs]
    steps = sum(len(base.trace) for base in bases)
    assert steps == lengths == envs.low_level_steps > 10_000
    assert total == pytest.approx(sum(base.rewards_given for base in bases), abs=1e-9)
