"""Every registered id and every factory: both checkers, copies, pickles, specs and their JSON give the same again."""

import copy
import pickle
import warnings

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import SubprocVecEnv

import didi_gym
from didi_gym.wrappers.ids import REGISTERED, SKILL_ID
from didi_gym.wrappers.make import make_low_level

pytest.importorskip("gymnasium_robotics")
ARGUMENTS = {SKILL_ID: {"env_id": "PointMaze_UMaze-v3", "policy": "pointmaze-medium", "skill_duration": (4, 8)}}
CHECKER_ON_WRAPPERS = ".*is different from the unwrapped version"


def through_pickle(env):
    return pickle.loads(pickle.dumps(env))


def through_cloudpickle(env):
    return pickle.loads(cloudpickle.dumps(env))


def through_json(spec):
    return EnvSpec.from_json(spec.to_json())


COPIES = [copy.deepcopy, through_pickle, through_cloudpickle]


def warnings_of_checking(env) -> set[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message=CHECKER_ON_WRAPPERS)
        check_env(env, skip_render_check=True)  # a display may be absent
    return {str(warning.message) for warning in caught}


def assert_alike(env, twin, steps=3):
    """The same observations, rewards and infos from the same seed and actions."""
    try:
        (first, _), (other, _) = env.reset(seed=4), twin.reset(seed=4)
        env.action_space.seed(0)
        for _ in range(steps):
            for a, b in zip(leaves(first), leaves(other), strict=True):
                np.testing.assert_array_equal(a, b)
            action = env.action_space.sample()
            (first, *rest), (other, *others) = env.step(action), twin.step(action)
            for a, b in zip(leaves(rest), leaves(others), strict=True):
                np.testing.assert_array_equal(a, b)
    finally:
        twin.close()


def leaves(value):
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in leaves(value[key])]
    if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.dtype == object):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


@pytest.mark.parametrize("env_id", REGISTERED)
def test_an_id_makes_an_environment_that_passes_both_checkers_and_can_be_made_again(env_id):
    env = gym.make(f"didi_gym:{env_id}", **ARGUMENTS.get(env_id, {}))
    # A warning is allowed only where the environment underneath earns it itself.
    assert warnings_of_checking(env) <= warnings_of_checking(make_low_level(env.spec.kwargs["env_id"]))
    sb3_check_env(env)
    for duplicate in COPIES:
        assert_alike(env, duplicate(env))
    assert env.spec.id == env_id
    for spec in (env.spec, through_json(env.spec)):
        twin = gym.make(spec)
        assert (str(twin), twin.spec.to_json()) == (str(env), env.spec.to_json())
        assert_alike(env, twin)


@pytest.mark.parametrize("env_id", REGISTERED)
def test_an_id_makes_a_vector_environment_with_one_planner(env_id):
    envs = gym.make_vec(f"didi_gym:{env_id}", num_envs=2, **ARGUMENTS.get(env_id, {}))
    assert isinstance(envs, didi_gym.SkillActionVectorWrapper)
    assert envs.spec.id == env_id
    for duplicate in COPIES:
        assert_alike(envs, duplicate(envs))
    for spec in (envs.spec, through_json(envs.spec)):
        assert_alike(envs, gym.make_vec(spec))
    envs.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_make_vec_gives_environments_that_can_be_made_again(mode):
    envs = didi_gym.make_vec(
        "PointMaze_Medium-v3",
        "pointmaze-medium",
        2,
        mode,
        autoreset_mode="same_step",
        skill_duration=8,
        replan_every=2,
        discount=0.9,
        max_episode_steps=20,
    )
    for duplicate in COPIES:
        assert_alike(envs, duplicate(envs))
    for spec in (envs.spec, through_json(envs.spec)):
        twin = gym.make_vec(spec)
        assert type(twin.unwrapped) is type(envs.unwrapped)
        assert twin.metadata["autoreset_mode"] == gym.vector.AutoresetMode.SAME_STEP
        assert_alike(envs, twin)
    envs.close()


def test_a_vector_environment_of_single_wrappers_works_too():
    plain = gym.make_vec("didi_gym/PointMaze_Medium-v0", num_envs=2, vectorization_mode="sync")
    planned = gym.make_vec("didi_gym/PointMaze_Medium-v0", num_envs=2, batch_invariant=True)
    assert_alike(plain, planned)
    plain.close()


def test_make_gives_an_environment_that_can_be_made_again():
    env = didi_gym.make("Ant-v5", "ant-directions", skill_duration=8, max_episode_steps=40)
    sb3_check_env(env)
    for duplicate in COPIES:
        assert_alike(env, duplicate(env))
    for spec in (env.spec, through_json(env.spec)):
        assert_alike(env, gym.make(spec))


IN_PROCESSES = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}}


@pytest.mark.parametrize("kwargs", [{}, IN_PROCESSES])
def test_make_vec_env_gives_environments_that_can_be_made_again(kwargs):
    from didi_gym.sb3 import make_vec_env

    env = make_vec_env("PointMaze_Medium-v3", "pointmaze-medium", 2, seed=3, skill_duration=8, **kwargs)
    first = env.reset()
    actions = np.array([env.action_space.sample() for _ in range(2)])
    expected = env.step(actions)
    for duplicate in COPIES:
        twin = duplicate(env)
        assert type(twin.unwrapped) is type(env.unwrapped)
        for a, b in zip(leaves(first), leaves(twin.reset()), strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(leaves(expected), leaves(twin.step(actions)), strict=True):
            np.testing.assert_array_equal(a, b)
        twin.close()
    single = gym.make(through_json(env.get_attr("spec")[0]))
    assert single.action_space == env.action_space
    assert single.skill_duration == 8
    env.close()


def test_specs_pin_the_policy_to_its_revision(monkeypatch):
    from tests.doubles import ScriptedPolicy, install_policies, register_toys

    register_toys()
    toy = ScriptedPolicy(name_or_path="owner/toy", revision="0123abc")
    install_policies(monkeypatch, **{"owner/toy": toy})
    arguments = {"env_id": "Toy-v0", "policy": "owner/toy"}
    assert gym.make(SKILL_ID, **arguments).spec.kwargs["policy"] == "owner/toy@0123abc"
    assert gym.make_vec(SKILL_ID, num_envs=2, **arguments).spec.kwargs["policy"] == "owner/toy@0123abc"
    assert didi_gym.make_vec("Toy-v0", "owner/toy", 2).spec.kwargs["policy"] == "owner/toy@0123abc"


def test_a_spec_made_from_a_spec_or_from_numpys_numbers_survives_json():
    maze = make_low_level("PointMaze_Medium-v3", max_episode_steps=50).spec
    envs = didi_gym.make_vec(maze, "pointmaze-medium", 2, skill_duration=np.int64(8), discount=np.float32(0.5))
    assert_alike(envs, gym.make_vec(through_json(envs.spec)), steps=8)
    assert gym.make_vec(through_json(envs.spec)).get_attr("spec")[0].max_episode_steps == 50
    env = didi_gym.make(maze, "pointmaze-medium", skill_duration=np.int64(8), discount=np.float32(0.5))
    assert_alike(env, gym.make(through_json(env.spec)))


def steps_of_an_episode(env):
    """Low-level steps until the episode is truncated, and whether nothing but the last skill was cut short."""
    env.action_space.seed(0)
    env.reset(seed=0)
    lengths, truncated = [], False
    while not truncated:
        *_, truncated, info = env.step(env.action_space.sample())
        lengths.append(int(info["skill_length"]))
    assert len(set(lengths[:-1])) == 1 and lengths[-1] <= lengths[0]
    return sum(lengths)


def test_a_time_limit_for_gymnasiums_make_counts_low_level_steps():
    env = gym.make("didi_gym/PointMaze_Medium-v0", max_episode_steps=21, skill_duration=8)
    assert [steps_of_an_episode(env) for _ in range(2)] == [21, 21]
    assert env.spec.max_episode_steps == 21
    assert steps_of_an_episode(gym.make(through_json(env.spec))) == 21
    with pytest.raises(ValueError, match=r"counts skills.*didi_gym\.make\(.*max_episode_steps"):
        gym.wrappers.TimeLimit(env, 5).reset()


@pytest.fixture
def own_id():
    """An id as a user registers it, with settings of the skills and a time limit."""
    gym.register(
        "mine/Maze-v0",
        entry_point="didi_gym:make",
        vector_entry_point="didi_gym:make_vec",
        max_episode_steps=21,
        kwargs={"env_id": "PointMaze_Medium-v3", "policy": "pointmaze-medium", "skill_duration": 8},
    )
    yield "mine/Maze-v0"
    del gym.registry["mine/Maze-v0"]


def test_an_id_that_a_user_registers_works_wherever_ours_do(own_id, tmp_path):
    from stable_baselines3 import PPO

    from didi_gym.sb3 import load_agent, make_vec_env, save_agent

    env = gym.make(own_id)
    assert steps_of_an_episode(env) == 21
    for spec in (env.spec, through_json(env.spec)):
        twin = gym.make(spec)
        assert (str(twin), twin.spec.to_json()) == (str(env), env.spec.to_json())
        assert steps_of_an_episode(twin) == 21
    assert steps_of_an_episode(didi_gym.make(own_id)) == 21
    assert steps_of_an_episode(didi_gym.make(own_id, max_episode_steps=9)) == 9
    assert didi_gym.make(gym.spec(own_id), skill_duration=4).skill_duration == 4
    vectors = [gym.make_vec(own_id, num_envs=2), didi_gym.make_vec(own_id, num_envs=2)]
    vectors += [gym.make_vec(through_json(envs.spec)) for envs in vectors]
    for envs in vectors:
        assert isinstance(envs, didi_gym.SkillActionVectorWrapper) and envs.skill_duration == 8
        assert envs.get_attr("spec")[0].max_episode_steps == 21
        envs.close()
    for made in (make_vec_env(own_id, n_envs=2), gym.make(own_id)):
        agent = PPO("MultiInputPolicy", made, n_steps=4, batch_size=4, device="cpu", policy_kwargs={"net_arch": [4]})
        save_agent(agent, tmp_path / "agent.zip")
        loaded = load_agent(PPO, tmp_path / "agent.zip", device="cpu")
        assert loaded.get_env().get_attr("skill_duration") == [8]
        assert loaded.get_env().get_attr("spec")[0].kwargs["max_episode_steps"] == 21


def test_an_id_of_ours_names_environment_and_policy_for_every_factory():
    from didi_gym.sb3 import make_vec_env

    for make in (didi_gym.make, didi_gym.make_vec, make_vec_env):
        env = make("didi_gym/PointMaze_Medium-v0", skill_duration=4)
        assert env.policy.name_or_path == "pointmaze-medium"
        env.close()
    with pytest.raises(ValueError, match="policy is None"):
        didi_gym.make("PointMaze_Medium-v3")


def test_the_other_librarys_word_for_the_number_of_environments_is_named():
    from didi_gym.sb3 import make_vec_env

    with pytest.raises(TypeError, match=r"Gymnasium calls it num_envs"):
        didi_gym.make_vec("Ant-v5", "ant-directions", n_envs=2)
    with pytest.raises(TypeError, match=r"Stable-Baselines3 calls it n_envs"):
        make_vec_env("Ant-v5", "ant-directions", num_envs=2)


def test_a_function_may_make_the_environment_and_wrappers_go_inside():
    from didi_gym.sb3 import make_vec_env
    from tests.doubles import ScriptedPolicy, ToyEnv

    limit = [lambda env: gym.wrappers.TimeLimit(env, 5)]
    single = didi_gym.make(ToyEnv, ScriptedPolicy(), wrappers=limit, shortest=9)
    single.reset(seed=0)
    assert single.step(single.action_space.sample())[4]["skill_length"] == 5
    for make in (didi_gym.make_vec, make_vec_env):
        env = make(ToyEnv, ScriptedPolicy(), 2, wrappers=limit, shortest=9)
        env.reset()
        *_, info = env.step(np.zeros((2, 2)))
        lengths = info["skill_length"] if isinstance(info, dict) else [each["skill_length"] for each in info]
        assert list(lengths) == [5, 5]


def test_the_spec_of_a_vec_env_describes_one_environment_and_no_workers():
    from didi_gym.sb3 import make_vec_env

    env = make_vec_env("PointMaze_Medium-v3", "pointmaze-medium", 2, worker_timeout=60, skill_duration=8)
    single = gym.make(through_json(env.get_attr("spec")[0]))
    assert single.skill_duration == 8
