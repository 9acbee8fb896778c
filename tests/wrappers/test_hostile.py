"""What environments say that no policy should act on: NaN, other units, odd rewards, the older gym's interface."""

import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import didi_gym
from didi_gym.sb3 import SkillActionVecEnvWrapper, make_vec_env
from didi_gym.wrappers import SkillActionVectorWrapper, SkillActionWrapper, SkillExecutor
from tests.agents import make_policy
from tests.doubles import ScriptedPolicy, ToyEnv, ToyGoalEnv

GRAPH = spaces.Graph(spaces.Box(-1, 1, (2,)), None)
SPACES = {
    "Text": spaces.Text(3, charset="ab"),
    "Sequence": spaces.Sequence(spaces.Box(-1, 1, (2,))),
    "stacked Sequence": spaces.Sequence(spaces.Discrete(5), stack=True),
    "Graph": GRAPH,
    "OneOf": spaces.OneOf([spaces.Discrete(2), spaces.Box(-1, 1, (3,))]),
    "Discrete": spaces.Discrete(5),
    "MultiDiscrete": spaces.MultiDiscrete([3, 4]),
    "nested": spaces.Tuple(
        [
            spaces.Dict({"word": spaces.Text(4), "more": spaces.Tuple([spaces.Discrete(3), spaces.Box(0, 1, (2, 2))])}),
            GRAPH,
        ]
    ),
}


class Odd(ToyEnv):
    """A ToyEnv whose observations are samples of a space."""

    def __init__(self, space):
        super().__init__(9, 9)
        self.observation_space = space

    def reset(self, *, seed=None, options=None):
        self.observation_space.seed(seed)
        return super().reset(seed=seed, options=options)

    def _observation(self):
        return self.observation_space.sample()


def as_words(value):
    """An observation as text in which arrays and numbers of all kinds are alike."""
    if isinstance(value, dict):
        return {key: as_words(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [type(value).__name__, *map(as_words, value)]
    return value if isinstance(value, (str, type(None))) else np.asarray(value).tolist()


@pytest.mark.parametrize("backend", [SyncVectorEnv, AsyncVectorEnv], ids=lambda backend: backend.__name__)
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_functions_of_an_observation_see_in_a_vector_what_they_see_alone(space, backend):
    seen = []

    def see(observation):
        seen.append(as_words(observation))
        return np.zeros(2)

    def mask(observation):
        seen.append(as_words(observation))
        return np.ones(2, dtype=bool)

    kwargs = {"obs_fn": see, "mask_fn": mask}
    policy = ScriptedPolicy("discrete")
    single = SkillActionWrapper(Odd(space), policy, **kwargs)
    for seed in (3, 4):
        single.reset(seed=seed)
        single.action_masks()
    expected, seen[:] = sorted(map(str, seen)), []
    how = {"shared_memory": False, "autoreset_mode": "SameStep", "context": "fork"} if backend is AsyncVectorEnv else {}
    how = {**how, "autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
    executors = [lambda: SkillExecutor(Odd(space), skill_duration=6, replan_every=4)] * 2
    envs = SkillActionVectorWrapper(backend(executors, **how), policy, **kwargs)
    envs.reset(seed=[3, 4])
    envs.action_masks()
    envs.close()
    assert sorted(map(str, seen)) == expected


class Broken(ToyEnv):
    """A ToyEnv in which a number is NaN, infinite or too large from some step on."""

    def __init__(self, number=np.nan, since=4, goal=False):
        super().__init__(30, 30)
        self.number, self.since, self.steps = number, since, 0

    def _observation(self):
        observation = super()._observation()
        if self.episode and len(self.trace) >= self.since:
            observation[1] = self.number
        return observation


def begin(env, actions):
    env.reset()
    env.step(actions)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("kind", ["box", "discrete"])
@pytest.mark.parametrize("obs_fn", [None, lambda observation: observation[:2]], ids=["", "obs_fn"])
def test_a_number_that_is_not_finite_is_an_error_that_names_where_it_is(number, kind, obs_fn):
    place = r"observation\[1\]" if obs_fn is None else r"obs_fn\(observation\)\[1\]"
    for since in (0, 4, 6):  # at the reset, in the middle of a skill, at its end
        env = SkillActionWrapper(Broken(number, since), ScriptedPolicy(kind), obs_fn=obs_fn)
        with pytest.raises(ValueError, match=rf"Broken: {place} is -?(nan|inf)"):
            begin(env, env.action_space.sample())
        assert np.isfinite([action for _, action in env.unwrapped.trace]).all()
        makers = [lambda: ToyEnv(30, 30), lambda since=since: Broken(number, since)]
        executors = [lambda make=make: SkillExecutor(make(), skill_duration=6, replan_every=4) for make in makers]
        envs = SkillActionVectorWrapper(SyncVectorEnv(executors), ScriptedPolicy(kind), obs_fn=obs_fn)
        with pytest.raises(ValueError, match=rf"sub-environment 1 of ToyEnv: {place} is -?(nan|inf)"):
            begin(envs, envs.action_space.sample())
        venv = SkillActionVecEnvWrapper(DummyVecEnv(executors), ScriptedPolicy(kind), obs_fn=obs_fn)
        with pytest.raises(ValueError, match=rf"sub-environment 1 of ToyEnv: {place} is -?(nan|inf)"):
            begin(venv, envs.action_space.sample())


@pytest.mark.parametrize("key", ["observations", "skills"])
@pytest.mark.parametrize("kind", ["box", "discrete"])
@pytest.mark.parametrize("method", ["act", "plan_actions", "plan"])
def test_a_policy_plans_from_finite_arrays_only(method, kind, key):
    policy = make_policy(kind=kind)
    arrays = {"observations": np.zeros((3, 2), np.float32), "skills": np.eye(3, 2, dtype=np.float32)}
    assert np.isfinite(policy.act(*arrays.values())).all()
    arrays[key][1, 1] = np.inf
    with pytest.raises(ValueError, match=rf"{key}\[1, 1\] is inf"):
        getattr(policy, method)(*arrays.values())


def test_what_squares_to_infinity_is_finite():
    policy = make_policy()
    assert np.isfinite(policy.act(np.full((1, 2), 1e30, np.float32), np.zeros((1, 2), np.float32))).all()


class Lists(ToyEnv):
    """Its observations are not arrays."""

    def __init__(self, kind):
        super().__init__(30, 30)
        self.kind = kind

    def _observation(self):
        return self.kind(super()._observation())


@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_observations_may_be_lists_or_tensors(kind):
    env, twin = (SkillActionWrapper(made, ScriptedPolicy()) for made in (Lists(kind), ToyEnv(30, 30)))
    got, expected = env.reset(seed=0)[0], twin.reset(seed=0)[0]
    assert np.asarray(got).tolist() == expected.tolist()
    got, expected = env.step(np.ones(2)), twin.step(np.ones(2))
    assert np.asarray(got[0]).tolist() == expected[0].tolist() and got[1:] == expected[1:]


# -- other numbers than those of the data ----------------------------------------------------------------------------
def normalized(env):
    return gym.wrappers.NormalizeObservation(env)


def test_wrappers_that_change_what_the_policy_reads_are_refused_inside():
    policy = ScriptedPolicy()
    with pytest.raises(ValueError, match=r"NormalizeObservation\(SkillActionWrapper"):
        SkillActionWrapper(gym.wrappers.TransformReward(normalized(ToyEnv()), float), policy)
    for make in (didi_gym.make_vec, make_vec_env):
        with pytest.raises(ValueError, match=r"NormalizeObservation\(SkillActionWrapper"):
            make(ToyEnv, policy, wrappers=[normalized])
    executors = [lambda: SkillExecutor(ToyEnv(), skill_duration=6, replan_every=4)] * 2
    with pytest.raises(ValueError, match=r"NormalizeObservation"):
        SkillActionVectorWrapper(gym.wrappers.vector.NormalizeObservation(SyncVectorEnv(executors)), policy)
    with pytest.raises(ValueError, match=r"VecNormalize\(didi_gym"):
        SkillActionVecEnvWrapper(VecNormalize(DummyVecEnv(executors)), policy)
    normalized(SkillActionWrapper(ToyEnv(), policy)).reset(seed=0)


def narrow_policy(center=0.0, scale=1.0):
    policy = make_policy()
    policy.normalizer.center.fill_(center)
    policy.normalizer.scale.fill_(scale)
    return policy


def test_first_observations_far_outside_the_data_warn_once():
    env = SkillActionWrapper(ToyEnv(30, 30), narrow_policy(center=100.0))
    with pytest.warns(UserWarning, match=r"ToyEnv: observation\[\d\] of a first .* about 99 to 101"):
        env.reset(seed=0)
    begin(env, np.ones(2))  # another warning would be an error
    with pytest.warns(UserWarning, match=r"observation\[\d\] of a first"):
        didi_gym.make_vec(ToyEnv, narrow_policy(center=100.0), 2).reset(seed=0)
    with pytest.warns(UserWarning, match=r"observation\[\d\] of a first"):
        make_vec_env(ToyEnv, narrow_policy(center=100.0), 2).reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SkillActionWrapper(ToyEnv(30, 30), narrow_policy(scale=0.2)).reset(seed=0)


def halved(env):
    return gym.wrappers.TransformObservation(env, lambda observation: observation / 2, env.observation_space)


@pytest.mark.parametrize("make", [didi_gym.make, didi_gym.make_vec, make_vec_env])
@pytest.mark.parametrize("recorded", [True, False])
def test_other_wrappers_of_observations_than_those_of_the_data_are_warned_of(make, recorded):
    spec = gym.make("Pendulum-v1").spec
    wrapper = gym.envs.registration.WrapperSpec("TransformObservation", "gymnasium.wrappers:TransformObservation", None)
    policy = ScriptedPolicy()
    policy.config = replace(policy.config, env_spec=replace(spec, additional_wrappers=(wrapper,) * recorded).to_json())
    make(ToyEnv, policy, wrappers=[halved] * recorded)  # a warning would be an error
    with pytest.warns(UserWarning, match=r"observations of ToyEnv have passed .*TransformObservation"):
        make(ToyEnv, policy, wrappers=[halved] * (not recorded))
    policy.config = replace(policy.config, env_spec=None)
    make(ToyEnv, policy, wrappers=[halved])


class Timed(ToyEnv):
    dt = 0.05


def test_another_time_step_than_that_of_the_data_warns_with_both():
    policy = ScriptedPolicy()
    for seconds, warns in ((0.05, False), (0.01, True), (None, False)):
        policy.config = replace(policy.config, step_seconds=seconds)
        for make in (didi_gym.make, didi_gym.make_vec, make_vec_env):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                make(Timed, policy)
            found = [str(one.message) for one in caught if "simulated time" in str(one.message)]
            assert len(found) == warns
            assert not warns or ("0.05 s" in found[0] and "0.01 s" in found[0])


class Holder(ToyEnv):
    """An environment that only tells the time of the body that it holds, as mazes do."""

    def __init__(self):
        super().__init__(30, 30)
        self.body = Timed()


def test_the_time_step_of_a_body_that_an_environment_holds_counts():
    policy = ScriptedPolicy()
    policy.config = replace(policy.config, step_seconds=0.01)
    for make in (didi_gym.make, didi_gym.make_vec, make_vec_env):
        with pytest.warns(UserWarning, match="one step of Holder takes 0.05 s"):
            make(Holder, policy)


# -- masks -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([False, False], r"allows no skill in environment 0 \(ToyEnv\)"),
        ([1, 0], r"a bool array of shape \(2,\), got array\(\[1, 0\]\); from the indices"),
        ([1], r"a bool array of shape \(2,\)"),
        (True, r"a bool array of shape \(2,\)"),
        (np.array([0.5, 1.0]), r"a bool array of shape \(2,\)"),
        (np.array([2, 1], np.int8), r"a bool array of shape \(2,\)"),
    ],
)
def test_a_mask_that_is_none_or_allows_nothing_is_refused(mask, message):
    env = SkillActionWrapper(ToyEnv(), ScriptedPolicy("discrete"), mask_fn=lambda observation: mask)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.action_masks()


def test_gymnasiums_own_kind_of_mask_is_one():
    mask = np.array([1, 0], np.int8)
    env = SkillActionWrapper(ToyEnv(), ScriptedPolicy("discrete"), mask_fn=lambda observation: mask)
    env.reset(seed=0)
    assert env.action_masks().tolist() == [True, False]


def test_nothing_need_be_allowed_where_an_episode_has_ended():
    at_the_end = {"mask_fn": lambda observation: np.full(2, observation[2] > 0), "skill_duration": 6}
    envs = didi_gym.make_vec(ToyEnv, ScriptedPolicy("discrete"), 2, longest=6, shortest=6, **at_the_end)
    envs.reset(seed=0)
    envs.step(np.zeros(2, dtype=int))
    assert envs.action_masks().all()


# -- actions and rewards ---------------------------------------------------------------------------------------------
class WholeNumbers(ToyEnv):
    def __init__(self):
        super().__init__()
        self.action_space = spaces.Box(-1, 1, (2,), np.int8)


def test_a_box_of_whole_numbers_is_refused():
    for make in (didi_gym.make, didi_gym.make_vec, make_vec_env):
        with pytest.raises(ValueError, match=r"a Box of int8 holds only whole ones"):
            make(WholeNumbers, ScriptedPolicy())


class Rewarding(ToyEnv):
    def __init__(self, reward):
        super().__init__(30, 30)
        self.reward = reward

    def step(self, action):
        observation, _, terminated, truncated, info = super().step(action)
        return observation, self.reward, terminated, truncated, info


@pytest.mark.parametrize(
    "reward", [2, np.float32(2), np.array([2.0]), np.array([[2.0]]), np.array(2), torch.tensor([2.0])]
)
def test_a_reward_may_be_an_array_of_one_number(reward):
    env = SkillActionWrapper(Rewarding(reward), ScriptedPolicy())
    env.reset(seed=0)
    assert env.step(np.ones(2))[1] == 12.0
    venv = make_vec_env(lambda: Rewarding(reward), ScriptedPolicy())  # with a Monitor, which takes no array
    venv.reset()
    assert venv.step(np.ones((1, 2)))[1] == 12.0


@pytest.mark.parametrize(("reward", "came"), [(np.ones(3), r"3, of shape \(3,\)"), (None, "None")])
def test_a_reward_that_is_not_one_number_is_refused(reward, came):
    env = SkillActionWrapper(Rewarding(reward), ScriptedPolicy())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"Rewarding gave {came}: "):
        env.step(np.ones(2))
    venv = make_vec_env(lambda: Rewarding(reward), ScriptedPolicy())
    venv.reset()
    with pytest.raises(ValueError, match=f"Rewarding gave {came}: "):
        venv.step(np.ones((1, 2)))


class OldReset(ToyEnv):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0][:2]  # two numbers, as many as are expected


class OldStep(ToyEnv):
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, info


def test_an_environment_of_the_older_gym_is_named_with_what_was_expected():
    with pytest.raises(TypeError, match=r"reset of OldReset must return \(observation, info\).*got ndarray"):
        SkillActionWrapper(OldReset(), ScriptedPolicy()).reset()
    env = SkillActionWrapper(OldStep(), ScriptedPolicy())
    env.reset(seed=0)
    with pytest.raises(TypeError, match=r"step of OldStep must return .*got 4 values"):
        env.step(np.ones(2))
    venv = make_vec_env(OldStep, ScriptedPolicy())
    venv.reset()
    with pytest.raises(TypeError, match=r"step of OldStep must return .*got 4 values"):
        venv.step(np.ones((1, 2)))
    env = SkillActionWrapper(gym.wrappers.TimeLimit(OldStep(), 30), ScriptedPolicy())  # as gymnasium.make has it
    env.reset(seed=0)
    with pytest.raises(TypeError, match=r"step of OldStep must return .*\(expected 5, got 4\), perhaps"):
        env.step(np.ones(2))


class OfBothKinds(ToyEnv, gym.vector.VectorEnv):
    """As EnvPool's environments are."""


def test_an_environment_that_is_many_is_sent_to_make_vec():
    with pytest.raises(TypeError, match=r"got OfBothKinds; for vector environments use didi_gym\.make_vec"):
        SkillActionWrapper(OfBothKinds(), ScriptedPolicy())
    for make in (didi_gym.make, didi_gym.make_vec, make_vec_env):
        with pytest.raises(TypeError, match=r"got OfBothKinds; for vector environments use didi_gym\.make_vec"):
            make(OfBothKinds, ScriptedPolicy())


class ManyInOne(ToyEnv):
    """Many environments that call themselves one."""

    def _observation(self):
        return np.stack([super()._observation()] * 2)


def test_observations_of_many_environments_in_one_are_not_blamed_on_a_function_that_nobody_gave():
    with pytest.raises(ValueError, match=r"^an observation of ManyInOne is not what .* shape \(2, 2\).*make_vec"):
        SkillActionWrapper(ManyInOne(), ScriptedPolicy()).reset()


def test_lengths_and_autoreset_are_of_the_kinds_that_other_libraries_read():
    env = SkillActionWrapper(ToyEnv(30, 30), ScriptedPolicy())
    env.reset(seed=0)
    info = env.step(np.ones(2))[4]
    assert isinstance(info["skill_length"], np.integer) and isinstance(info["skill_return"], np.floating)
    for mode in ("next_step", "same_step", "disabled"):
        envs = didi_gym.make_vec(ToyEnv, ScriptedPolicy(), 2, autoreset_mode=mode)
        assert envs.autoreset_mode == envs.metadata["autoreset_mode"] == envs.unwrapped.autoreset_mode


# -- goals -----------------------------------------------------------------------------------------------------------
class OneGoal(ToyGoalEnv):
    """Its compute_reward takes one goal only."""

    def compute_reward(self, achieved_goal, desired_goal, info):
        return -float(np.linalg.norm(achieved_goal - desired_goal))


class GoalOf(ToyGoalEnv):
    def __init__(self, goal):
        super().__init__()
        parts = {**self.observation_space.spaces, "achieved_goal": goal, "desired_goal": goal}
        self.observation_space = spaces.Dict(parts)


class PaysByInfo(ToyGoalEnv):
    """Its reward depends on the info of the step."""

    def __init__(self):
        super().__init__(9, 9, continuing=True)

    def compute_reward(self, achieved_goal, desired_goal, info):
        infos = info if isinstance(info, (list, tuple)) else [info]
        left = np.array([one.get("left", -1) for one in infos], dtype=np.float64)
        return left if np.ndim(achieved_goal) > 1 else left[0]


def test_a_compute_reward_for_one_goal_is_named():
    executor = SkillExecutor(OneGoal(), skill_duration=4)
    with pytest.raises(ValueError, match=r"compute_reward of OneGoal .* expected rewards of shape \(12,\), got \(\)"):
        executor.goal_rewards(np.zeros((3, 4, 2)), np.zeros((3, 2)))


@pytest.mark.parametrize("goal", [spaces.Discrete(3), spaces.MultiBinary(2), spaces.MultiDiscrete([2, 3])])
def test_goals_of_another_kind_are_named(goal):
    executor = SkillExecutor(GoalOf(goal), skill_duration=4)
    with pytest.raises(ValueError, match=rf"GoalOf: expected goals in a Box, got {type(goal).__name__}"):
        executor.goal_rewards(np.zeros((3, 4, 2)), np.zeros((3, 2)))


def test_rewards_for_other_goals_get_the_infos_of_their_own_steps():
    env = SkillActionWrapper(PaysByInfo(), ScriptedPolicy(), skill_duration=4)
    env.reset(seed=0)
    observation, reward, *_, info = env.step(np.ones(2))
    assert [one["left"] for one in info["skill_infos"]] == [8, 7, 6, 5]
    goal = observation["desired_goal"]
    assert env.compute_reward(goal, goal, info) == reward == 26
    assert env.compute_reward(np.stack([goal, goal]), np.stack([goal, goal]), [info, info]).tolist() == [26, 26]
    assert env.compute_reward(np.stack([goal, goal]), np.stack([goal, goal]), info).tolist() == [26, 26]


@pytest.mark.parametrize("info", [None, {}, {"left": 3}], ids=str)
def test_without_a_skills_info_the_answer_is_the_environments_own(info):
    env = SkillActionWrapper(ToyGoalEnv(), ScriptedPolicy())
    goals, others = np.zeros((3, 2)), np.array([[0, 0], [3, 3], [0.5, 0]])
    for achieved, desired in ((goals, others), (goals[0], others[1])):
        expected = env.unwrapped.compute_reward(achieved, desired, info)
        assert np.array_equal(env.compute_reward(achieved, desired, info), expected)


def test_copies_of_an_info_share_the_low_level_ones():
    import copy

    env = SkillActionWrapper(ToyGoalEnv(30, 30), ScriptedPolicy())
    env.reset(seed=0)
    info = env.step(np.ones(2))[4]
    assert copy.deepcopy(info)["skill_infos"] is info["skill_infos"]


def test_bundled_policies_do_not_warn_in_their_own_environments():
    pytest.importorskip("gymnasium_robotics")
    for env_id in ("didi_gym/Ant-v0", "didi_gym/PointMaze_Medium-v0"):
        env = gym.make(env_id)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            for seed in range(5):
                env.reset(seed=seed)
                assert env.get_wrapper_attr("_controller")._looked, "nothing was compared"
                env.get_wrapper_attr("_controller")._looked = False
        env.close()
