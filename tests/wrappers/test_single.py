"""The wrapper equals a loop written by hand, obeys both environment checkers, and rebuilds from its spec."""

import copy
import json
import pickle
import warnings
import weakref

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.monitor import Monitor

from didi_gym.wrappers import SkillActionWrapper
from didi_gym.wrappers.executor import SkillExecutor
from tests.doubles import ScriptedPolicy, ToyEnv, ToyGoalEnv, install_policies, register_toys


def skill_step_by_hand(env, policy, observation, action, k, m, discount):
    """The specification: plan, run m low-level actions, plan again, stop at k or at the end of the episode."""
    z = policy.skill_space.to_skill(action)
    rewards, length, ended = [], 0, False
    while length < k and not ended:
        inputs = observation[:2].astype(np.float32)
        plan = policy.plan_actions(inputs[None], z[None])[0]
        for low_level in plan[: min(m, k - length)]:
            observation, reward, terminated, truncated, info = env.step(np.clip(low_level, -1, 1))
            rewards.append(reward)
            length += 1
            ended = terminated or truncated
            if ended:
                break
    total = 0.0
    for i, reward in enumerate(rewards):
        total += discount**i * reward
    extra = {"skill_length": length, "skill_return": sum(rewards), "skill_interrupted": ended and length < k}
    return observation, total, terminated, truncated, {**info, **extra}


@settings(max_examples=80, deadline=None)
@given(
    k=st.integers(1, 20),
    m=st.integers(1, 8),
    kind=st.sampled_from(["box", "ball", "discrete"]),
    discount=st.sampled_from([1.0, 0.95]),
    seed=st.integers(0, 10_000),
    longest=st.integers(1, 30),
)
def test_the_wrapper_equals_a_loop_written_by_hand(k, m, kind, discount, seed, longest):
    policy = ScriptedPolicy(kind)
    wrapped = SkillActionWrapper(ToyEnv(longest), policy, skill_duration=k, replan_every=m, discount=discount)
    raw = ToyEnv(longest)
    observation, _ = raw.reset(seed=seed)
    assert (wrapped.reset(seed=seed)[0] == observation).all()
    wrapped.action_space.seed(seed)
    lengths = 0
    for _ in range(12):
        action = wrapped.action_space.sample()
        expected = skill_step_by_hand(raw, policy, observation, action, k, m, discount)
        got = wrapped.step(action)
        observation = expected[0]
        assert (got[0] == observation).all()
        assert got[1:] == expected[1:]
        assert [type(value) for value in got[1:4]] == [float, bool, bool]
        lengths += got[4]["skill_length"]
        if got[2] or got[3]:
            observation, _ = raw.reset()
            assert (wrapped.reset()[0] == observation).all()
    # ToyEnv refuses a step after the end, so equal traces also mean: none was taken.
    assert lengths == wrapped.low_level_steps == len(wrapped.unwrapped.trace) == len(raw.trace)
    for (episode, action), (raw_episode, raw_action) in zip(wrapped.unwrapped.trace, raw.trace, strict=True):
        assert episode == raw_episode
        assert (action == raw_action).all()


def test_skills_of_one_step_are_the_raw_environment_driven_by_the_policy():
    policy = ScriptedPolicy()
    wrapped, raw = SkillActionWrapper(ToyEnv(), policy, skill_duration=1), ToyEnv()
    observation, _ = raw.reset(seed=5)
    wrapped.reset(seed=5)
    terminated = truncated = False
    while not (terminated or truncated):
        action = wrapped.action_space.sample()
        low_level = policy.plan_actions(observation[None, :2].astype(np.float32), action[None])[0, 0]
        observation, reward, terminated, truncated, _ = raw.step(low_level)
        got = wrapped.step(action)
        assert (got[0] == observation).all()
        assert got[1:4] == (reward, terminated, truncated)


def test_a_skill_longer_than_the_horizon_is_planned_again_on_the_way():
    policy = ScriptedPolicy(horizon=8)
    env = SkillActionWrapper(ToyEnv(100, 100), policy, skill_duration=20, replan_every=8)
    env.reset(seed=0)
    *_, info = env.step(np.zeros(2))
    assert info["skill_length"] == 20
    assert policy.plans == 3


def test_defaults_come_from_the_policy_and_a_short_skill_needs_no_longer_plan():
    policy = ScriptedPolicy(skill_duration=6, replan_every=4)
    env = SkillActionWrapper(ToyEnv(), policy)
    assert (env.skill_duration, env.replan_every, env.policy) == (6, 4, policy)
    assert SkillActionWrapper(ToyEnv(), policy, skill_duration=3).replan_every == 3
    assert env.action_space == policy.skill_space.gym_space
    assert env.observation_space == ToyEnv().observation_space


def test_obs_fn_gives_the_policy_its_inputs():
    policy = ScriptedPolicy()
    env = SkillActionWrapper(ToyEnv(), policy, obs_fn=lambda observation: observation[[1, 0]])
    env.reset(seed=0)
    env.step(np.zeros(2))
    assert len(env.unwrapped.trace) > 0
    env = SkillActionWrapper(ToyEnv(), policy, obs_fn=lambda observation: observation)
    with pytest.raises(ValueError, match=r"obs_fn must return the policy's 2 inputs, got shape \(3,\)"):
        env.reset(seed=0)


def test_options_reach_the_environment():
    _, info = SkillActionWrapper(ToyEnv(), ScriptedPolicy()).reset(seed=0, options={"a": 1})
    assert info["options"] == {"a": 1}


def test_close_closes_once():
    env = SkillActionWrapper(ToyEnv(), ScriptedPolicy())
    env.close()
    env.close()
    assert env.unwrapped.closed == 1


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_continue_alike_and_apart(duplicate):
    env = SkillActionWrapper(ToyEnv(50, 50), ScriptedPolicy())
    env.reset(seed=0)
    env.step(np.ones(2))
    twin = duplicate(env)
    assert twin._executor.env is twin.env is not env.env
    (observation, *rest), (other, *others) = env.step(np.ones(2)), twin.step(np.ones(2))
    assert (observation == other).all()
    assert rest == others


def test_cloudpickle_carries_functions():
    env = SkillActionWrapper(ToyEnv(), ScriptedPolicy(), reward=lambda r: 7.0, obs_fn=lambda o: o[:2])
    twin = pickle.loads(cloudpickle.dumps(env))
    twin.reset(seed=0)
    assert twin.step(np.zeros(2))[1] == 7.0


def checked_env(monkeypatch, env_id):
    """An environment as `gym.make` gives it, with a policy known by name."""
    register_toys()
    install_policies(monkeypatch, toy=ScriptedPolicy(name_or_path="toy", skill_duration=3))
    kwargs = {"shortest": 12, "render_mode": "rgb_array"}
    return SkillActionWrapper(gym.make(env_id, **kwargs), "toy")


@pytest.mark.parametrize("env_id", ["Toy-v0", "ToyGoal-v0"])
def test_gymnasiums_checker_passes_without_a_warning(monkeypatch, env_id):
    env = checked_env(monkeypatch, env_id)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # It warns about every wrapper, ours and Gymnasium's own.
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version")
        check_env(env)


@pytest.mark.parametrize("env_id", ["Toy-v0", "ToyGoal-v0"])
def test_stable_baselines_checker_passes_without_a_warning(monkeypatch, env_id):
    env = checked_env(monkeypatch, env_id)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(env)


def test_spec_and_its_json_rebuild_the_environment(monkeypatch):
    register_toys()
    toy = ScriptedPolicy(name_or_path="owner/toy", revision="0123abc")
    asked = install_policies(monkeypatch, **{"owner/toy": toy})
    env = SkillActionWrapper(gym.make("Toy-v0", longest=9), "owner/toy", skill_duration=5, discount=0.9, device="cpu")
    recorded = env.spec.additional_wrappers[-1].kwargs
    assert recorded == {
        "policy": "owner/toy@0123abc",
        "skill_duration": 5,
        "until_done": False,
        "terminate_fn": None,
        "replan_every": 4,
        "reward": "sum",
        "discount": 0.9,
        "obs_fn": None,
        "mask_fn": None,
        "device": "cpu",
        "engine": "auto",
        "batch_invariant": False,
    }
    json.dumps(recorded)
    from_json = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert asked == [("owner/toy", "cpu"), ("owner/toy@0123abc", "cpu")]
    for twin in (from_json, gym.make(env.spec)):
        assert str(twin) == str(env)
        assert twin.spec == env.spec
        assert isinstance(twin.env, gym.wrappers.TimeLimit)
        assert (twin.reset(seed=3)[0] == env.reset(seed=3)[0]).all()
        got, expected = twin.step(np.ones(2)), env.step(np.ones(2))
        assert got[1:] == expected[1:]


@pytest.mark.parametrize(
    ("name", "revision", "recorded"),
    [
        ("toy", None, "toy@sha256:"),
        ("a/toy@v1", "0123abc", "a/toy@0123abc"),
        ("some@folder", None, "some@folder@sha256:"),
    ],
)
def test_a_live_policy_is_recorded_by_its_name_pinned_to_its_revision(name, revision, recorded):
    register_toys()
    env = SkillActionWrapper(gym.make("Toy-v0"), ScriptedPolicy(name_or_path=name, revision=revision))
    assert env.spec.additional_wrappers[-1].kwargs["policy"].startswith(recorded)


def test_the_spec_of_a_policy_without_a_name_says_why_it_cannot_rebuild():
    register_toys()
    env = SkillActionWrapper(gym.make("Toy-v0"), ScriptedPolicy())
    spec = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
    with pytest.raises(ValueError, match=r"live policy that has no name; save_pretrained\(\)"):
        gym.make(spec)


def test_scoring_other_goals_goes_through_the_wrapper():
    env = SkillActionWrapper(ToyGoalEnv(), ScriptedPolicy())
    env.reset(seed=0)
    observation, reward, *_, info = env.step(np.ones(2))
    assert env.compute_reward(observation["achieved_goal"], observation["desired_goal"], info) == reward
    far = np.full(2, 99.0)
    assert env.compute_reward(observation["achieved_goal"], far, info) == 0.0
    rewards = env.goal_rewards(info["skill_achieved_goals"][None], info["skill_achieved_goals"][None, -1])
    assert rewards.shape == (1, 6)
    assert rewards[0, -1] == 1.0


class Shifted(gym.ActionWrapper):
    def __init__(self, env):
        super().__init__(env)
        self.action_space = gym.spaces.Box(-2.0, 1.0, (2,), np.float32)

    def action(self, action):
        return action


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SkillActionWrapper(gym.make("Pendulum-v1"), ScriptedPolicy()),
            r"expected Box\(-1.0, 1.0, \(2,\), float32\), got Box\(-2.0, 2.0, \(1,\), float32\); use the policy's "
            r"environment \(Toy-v0\).*RescaleAction inside",
        ),
        (lambda: SkillActionWrapper(Shifted(ToyEnv()), ScriptedPolicy()), r"expected Box\(-1.0, 1.0.*got Box\(-2.0"),
        (lambda: SkillActionWrapper(gym.make("CartPole-v1"), ScriptedPolicy()), r"expected Box\(.*got Discrete\(2\)"),
        (
            lambda: SkillActionWrapper(gym.wrappers.FlattenObservation(ToyGoalEnv()), ScriptedPolicy()),
            r"cannot read this environment's observations.*got a Box of shape \(7,\); pass obs_fn=",
        ),
        (
            lambda: SkillActionWrapper(SkillActionWrapper(ToyEnv(), ScriptedPolicy()), ScriptedPolicy()),
            "found SkillActionWrapper inside",
        ),
        (
            lambda: SkillActionWrapper(Monitor(SkillExecutor(ToyEnv(), skill_duration=4)), ScriptedPolicy()),
            "found SkillExecutor inside",
        ),
        (lambda: SkillActionWrapper(ToyEnv(), ScriptedPolicy(), replan_every=9), r"must be in 1\.\.8.*got 9"),
        (lambda: SkillActionWrapper(ToyEnv(), ScriptedPolicy(), replan_every=0), r"must be in 1\.\.8.*got 0"),
        (
            lambda: SkillActionWrapper(ToyEnv(), ScriptedPolicy(), skill_duration=0),
            "low-level steps, or several, got 0",
        ),
        (lambda: SkillActionWrapper(ToyEnv(), None), "policy is None"),
    ],
)
def test_what_does_not_fit_is_refused_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("limit", [np.inf, float(np.finfo(np.float32).max)])
def test_a_space_without_a_bound_takes_a_policy_whose_bound_is_its_datas_extreme(limit):
    low_level = ToyEnv()
    low_level.action_space = gym.spaces.Box(np.float32([-1, -limit]), np.float32([limit, 1]))
    env = SkillActionWrapper(low_level, ScriptedPolicy())
    env.reset(seed=0)
    assert env.step(env.action_space.sample())[4]["skill_length"] > 0
    low_level.action_space = gym.spaces.Box(np.float32([-limit, -2]), np.float32([limit, 1]))
    with pytest.raises(ValueError, match="not those the policy was trained on"):
        SkillActionWrapper(low_level, ScriptedPolicy())


def test_vector_environments_are_sent_to_make_vec():
    vector = gym.vector.SyncVectorEnv([ToyEnv])
    with pytest.raises(TypeError, match=r"got SyncVectorEnv; for vector environments use didi_gym\.make_vec"):
        SkillActionWrapper(vector, ScriptedPolicy())


def test_a_time_limit_around_is_refused_and_one_inside_is_not():
    inside = SkillActionWrapper(gym.wrappers.TimeLimit(ToyEnv(), 5), ScriptedPolicy())
    Monitor(inside).reset(seed=0)
    around = gym.wrappers.TimeLimit(Monitor(gym.wrappers.OrderEnforcing(inside)), 5)
    with pytest.raises(ValueError, match=r"a TimeLimit around .* counts skills.* put it inside"):
        around.reset(seed=0)
    with pytest.raises(ValueError, match="TimeLimit around"):
        gym.wrappers.TimeLimit(SkillExecutor(ToyEnv(), skill_duration=2), 5).reset(seed=0)


class Plain(gym.Wrapper):
    """Calls `reset` through a function whose frame is no method's."""

    def reset(self, **kwargs):
        return (lambda env: env.reset(**kwargs))(self.env)


class Impatient(gym.Wrapper):
    """Calls `reset` before it is a wrapper, as Gymnasium's AddRenderObservation does."""

    def __init__(self, env):
        env.reset()
        super().__init__(env)


class Composed(gym.Env):
    """Not a wrapper: holds a skill-action environment as a part, whose episodes are not its own."""

    observation_space, action_space = ToyEnv().observation_space, gym.spaces.Discrete(2)

    def __init__(self, env):
        self.env = env

    def reset(self, *, seed=None, options=None):
        return self.env.reset(seed=seed)


@pytest.mark.parametrize("around", [Plain, Impatient, lambda env: Plain(gym.wrappers.OrderEnforcing(Impatient(env)))])
def test_a_time_limit_is_found_whatever_calls_reset_in_between(around):
    env = around(SkillActionWrapper(ToyEnv(), ScriptedPolicy()))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="TimeLimit around"):
        gym.wrappers.OrderEnforcing(gym.wrappers.TimeLimit(env, 5)).reset(seed=0)


class OwnLimit(gym.wrappers.TimeLimit):
    """Resets without the method that it inherits."""

    def reset(self, *, seed=None, options=None):
        result = self.env.reset(seed=seed, options=options)
        self._elapsed_steps = 0
        return result


def test_a_time_limit_of_ones_own_is_found_and_an_observation_that_counts_skills_is_warned_of():
    env = SkillActionWrapper(gym.wrappers.TimeLimit(ToyEnv(), 9), ScriptedPolicy())
    with pytest.raises(ValueError, match="TimeLimit around"):
        OwnLimit(env, 5).reset(seed=0)
    with pytest.warns(UserWarning, match="TimeAwareObservation around .* how many skills have passed"):
        gym.wrappers.TimeAwareObservation(env).reset(seed=0)


def test_gymnasiums_wrapper_that_resets_in_its_constructor_goes_around():
    inside = SkillActionWrapper(ToyEnv(render_mode="rgb_array"), ScriptedPolicy())
    env = gym.wrappers.AddRenderObservation(inside)
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation, inside.render())
    assert env.step(np.zeros(2))[4]["skill_length"] == inside.skill_duration
    env.close()


def test_a_time_limit_of_another_environment_is_none_of_ours():
    part = SkillActionWrapper(ToyEnv(), ScriptedPolicy())
    for env in (Composed(part), Plain(Composed(Plain(part)))):
        gym.wrappers.TimeLimit(env, 5).reset(seed=0)
        assert part.step(np.zeros(2))[4]["skill_length"] > 0  # it was reset, and not refused
    with pytest.raises(ValueError, match="TimeLimit"):
        gym.wrappers.TimeLimit(part, 5).reset(seed=0)


def test_acting_before_reset_or_after_the_end_is_refused():
    env = SkillActionWrapper(ToyEnv(2), ScriptedPolicy())
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\) before the first skill"):
        env.step(np.zeros(2))
    env.reset(seed=0)
    env.step(np.zeros(2))
    with pytest.raises(gym.error.ResetNeeded, match="no episode is running"):
        env.step(np.zeros(2))


def test_an_action_that_is_not_finite_is_refused():
    env = SkillActionWrapper(ToyEnv(), ScriptedPolicy())
    env.reset(seed=0)
    with pytest.raises(ValueError, match="must be finite"):
        env.step(np.array([np.nan, 0.0]))
    assert env.low_level_steps == 0


@pytest.mark.parametrize("kind", ["box", "discrete"])
def test_an_action_for_several_environments_is_refused(kind):
    env = SkillActionWrapper(ToyEnv(), ScriptedPolicy(kind))
    env.reset(seed=0)
    several = np.stack([env.action_space.sample()])
    with pytest.raises(ValueError, match=r"expected one action, of shape \(2?,?\), got shape \(1,"):
        env.step(several)
    assert env.low_level_steps == 0
    env.step(several[0])


def test_writing_into_an_observation_changes_no_later_plan():
    envs = [SkillActionWrapper(ToyEnv(50, 50), ScriptedPolicy("discrete"), mask_fn=lambda o: [o[2] > 40, True])]
    envs.append(copy.deepcopy(envs[0]))
    for written, env in enumerate(envs):
        observation, _ = env.reset(seed=0)
        for _ in range(2):
            observation[:] = -50 if written else observation
            observation = env.step(1)[0]
        observation[:] = -50 if written else observation
    assert (envs[0].action_masks() == envs[1].action_masks()).all()
    assert (envs[0].step(0)[0] == envs[1].step(0)[0]).all()


def test_masks_that_depend_on_an_observation_need_one():
    env = SkillActionWrapper(ToyEnv(), ScriptedPolicy("discrete"), mask_fn=lambda observation: observation > 0)
    with pytest.raises(gym.error.ResetNeeded, match=r"depends on the observation: call reset\(\) first"):
        env.action_masks()


def test_looking_for_a_time_limit_around_keeps_nothing_alive():
    class Big:
        pass

    def episode():
        """A function whose local variables would be kept by a look at them."""
        big = Big()
        seen = weakref.ref(big)
        SkillActionWrapper(ToyEnv(), ScriptedPolicy()).reset(seed=0)
        del big
        return seen()

    assert episode() is None
