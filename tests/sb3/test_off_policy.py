"""Replay buffers of skills: a discount per transition, hindsight that reproduces what is stored, features."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from didi_gym.sb3 import RelativeGoalExtractor, SkillDictReplayBuffer, SkillHerReplayBuffer, SkillReplayBuffer
from didi_gym.wrappers import SkillActionWrapper
from tests.doubles import ScriptedPolicy, ToyEnv, ToyGoalEnv

GAMMA = 0.9
NETS = {"net_arch": [16]}


def skill_vec_env(make_env, n_envs=3, **kwargs):
    return DummyVecEnv([lambda: SkillActionWrapper(make_env(), ScriptedPolicy(), **kwargs)] * n_envs)


def make_buffer(cls, venv, size=600, **kwargs):
    if issubclass(cls, SkillHerReplayBuffer):
        kwargs["env"] = venv
    if issubclass(cls, SkillReplayBuffer):
        kwargs["gamma"] = GAMMA
    return cls(size, venv.observation_space, venv.action_space, device="cpu", n_envs=venv.num_envs, **kwargs)


def fill(buffers, venv, steps, seed=0):
    """What SB3 does: step, put terminal observations in place, store. Returns everything stored, in order."""
    venv.seed(seed)
    venv.action_space.seed(seed)
    obs, stored = venv.reset(), []
    for _ in range(steps):
        actions = np.stack([venv.action_space.sample() for _ in range(venv.num_envs)])
        new_obs, rewards, dones, infos = venv.step(actions)
        next_obs = copy.deepcopy(new_obs)
        for i in np.flatnonzero(dones):
            for key in next_obs if isinstance(next_obs, dict) else [...]:
                place = next_obs[key] if isinstance(next_obs, dict) else next_obs
                last = infos[i]["terminal_observation"]
                place[i] = last[key] if isinstance(last, dict) else last
        for buffer in buffers:
            buffer.add(copy.deepcopy(obs), next_obs, actions, rewards, dones, infos)
        stored.append({"obs": obs, "next_obs": next_obs, "rewards": rewards, "dones": dones, "infos": infos})
        obs = new_obs
    return stored


def everywhere(buffer):
    slots, envs = np.divmod(np.arange(buffer.size() * buffer.n_envs), buffer.n_envs)
    return slots, envs


@pytest.mark.parametrize(
    ("make_env", "ours", "theirs"),
    [(ToyEnv, SkillReplayBuffer, ReplayBuffer), (ToyGoalEnv, SkillDictReplayBuffer, DictReplayBuffer)],
)
@pytest.mark.parametrize("steps", [50, 333])
def test_samples_are_those_of_stable_baselines_plus_the_discounts(make_env, ours, theirs, steps):
    venv = skill_vec_env(make_env, skill_duration=7)
    buffers = [make_buffer(cls, venv) for cls in (ours, theirs)]
    fill(buffers, venv, steps)
    batches = []
    for buffer in buffers:
        np.random.seed(0)  # noqa: NPY002 (SB3 draws from numpy's global generator)
        batches.append(buffer.sample(64))
    mine, base = batches
    for name in ("observations", "actions", "next_observations", "dones", "rewards"):
        a, b = getattr(mine, name), getattr(base, name)
        for key in a if isinstance(a, dict) else [...]:
            assert th.equal(a[key], b[key])
            assert a[key].dtype == b[key].dtype
    assert mine.discounts.shape == (64, 1)
    assert mine.discounts.dtype == th.float32
    assert set(np.log(mine.discounts.numpy()).ravel() / np.log(GAMMA)) <= set(
        np.log((GAMMA ** np.arange(1, 8)).astype(np.float32)) / np.log(GAMMA)
    )


def test_every_stored_skill_is_discounted_by_its_own_length():
    venv = skill_vec_env(lambda: ToyEnv(12), skill_duration=5)
    buffer = make_buffer(SkillReplayBuffer, venv)
    stored = fill([buffer], venv, 80)
    lengths = np.array([[info["skill_length"] for info in step["infos"]] for step in stored])
    assert len(set(lengths.ravel())) > 3
    assert (buffer.skill_lengths[:80] == lengths).all()
    np.testing.assert_array_equal(buffer._stored(everywhere(buffer))[2].reshape(80, 3), lengths)
    assert buffer.discounts(np.array([1, 2, 5])).tolist() == [GAMMA, GAMMA**2, GAMMA**5]
    length_of = dict(zip(map(tuple, buffer.actions[:80].reshape(-1, 2).tolist()), lengths.ravel(), strict=True))
    samples = buffer.sample(200)
    expected = [GAMMA ** length_of[tuple(action)] for action in samples.actions.tolist()]
    assert (samples.discounts.numpy().ravel() == np.array(expected, np.float32)).all()


class Ring(gym.Env):
    """Five states in a ring; an action of positive sign moves on, else stays. Reward = the state; state 4 ends it."""

    observation_space = gym.spaces.Box(-1.0, 5.0, (3,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, start=0):
        self.start = start

    def reset(self, *, seed=None, options=None):
        self.state = self.start
        return np.array([self.state, 0.0, 0.0]), {}

    def step(self, action):
        self.state = min(self.state + int(action[0] > 0), 4)
        return np.array([self.state, 0.0, 0.0]), float(self.state), self.state == 4, False, {}


def test_values_from_discounted_skills_are_those_of_the_low_level_chain():
    # Two low-level actions a skill, from state 0: 0 -> 2 -> 4; from 1: 1 -> 3 -> 4, the last of one step.
    policy = ScriptedPolicy("discrete", skill_duration=2)
    policy.plan_actions = lambda inputs, skills, steps=None: np.ones((1, steps, 2), np.float32)
    buffer_of = DummyVecEnv([lambda: SkillActionWrapper(Ring(), policy, discount=GAMMA)])
    buffer = make_buffer(SkillReplayBuffer, buffer_of)
    values = np.zeros(5)
    for state in (3, 2, 1, 0):  # the fixed point in one backward sweep: a skill only moves on
        env = SkillActionWrapper(Ring(state), policy, discount=GAMMA)
        env.reset()
        observation, reward, terminated, _, info = env.step(0)
        discount = buffer.discounts(np.array([info["skill_length"]]))[0]
        values[state] = reward + (1 - terminated) * discount * values[int(observation[0])]
        low_level = sum(GAMMA**i * r for i, r in enumerate(range(state + 1, 5)))
        assert abs(values[state] - low_level) <= 1e-12


@pytest.mark.parametrize("normalise", [False, True])
def test_sac_with_hindsight_learns_saves_and_goes_on(tmp_path, normalise):
    venv = skill_vec_env(ToyGoalEnv, discount=GAMMA)
    venv = VecNormalize(venv, norm_obs_keys=["observation"]) if normalise else venv
    agent = SAC(
        "MultiInputPolicy",
        venv,
        learning_starts=3,
        buffer_size=90,
        replay_buffer_class=SkillHerReplayBuffer,
        replay_buffer_kwargs={"gamma": GAMMA},
        policy_kwargs={**NETS, "features_extractor_class": RelativeGoalExtractor},
        seed=0,
        device="cpu",
    ).learn(30)
    agent.learn(120)  # resets the environments without a done, and wraps the buffer around
    agent.save_replay_buffer(tmp_path / "buffer.pkl")
    running = int((agent.replay_buffer._episode_skills > 0).sum())
    ends = agent.replay_buffer.timeouts.sum()
    agent.load_replay_buffer(tmp_path / "buffer.pkl")
    assert agent.replay_buffer.timeouts.sum() == ends + running
    assert not agent.replay_buffer._episode_skills.any()
    agent.learn(12)


@settings(max_examples=25, deadline=None)
@given(
    rewards=st.sampled_from([(0.0, 1.0), (-1.0, 0.0)]),
    continuing=st.booleans(),
    timeouts=st.booleans(),
    settings_=st.sampled_from([{}, {"discount": GAMMA}, {"reward": "last"}, {"reward": np.max}]),
    k=st.integers(1, 9),
    seed=st.integers(0, 999),
    steps=st.integers(1, 60),
)
def test_with_the_goal_unchanged_relabelling_reproduces_every_transition(
    rewards, continuing, timeouts, settings_, k, seed, steps
):
    miss, hit = rewards
    venv = skill_vec_env(lambda: ToyGoalEnv(30, 1, miss, hit, continuing=continuing), skill_duration=k, **settings_)
    buffer = make_buffer(
        SkillHerReplayBuffer,
        venv,
        size=90,
        terminal_on_success=not continuing,
        handle_timeout_termination=timeouts,
    )
    fill([buffer], venv, steps, seed)
    at = everywhere(buffer)
    for got, stored in zip(
        buffer._relabel(at, buffer.next_observations["desired_goal"][at]), buffer._stored(at), strict=True
    ):
        assert got.dtype == stored.dtype
        assert (got == stored).all()


@settings(max_examples=25, deadline=None)
@given(
    rewards=st.sampled_from([(0.0, 1.0), (-1.0, 0.0)]),
    discount=st.sampled_from([1.0, GAMMA]),
    seed=st.integers(0, 999),
    steps=st.integers(1, 60),
)
def test_hindsight_equals_the_definition_written_as_a_loop(rewards, discount, seed, steps):
    miss, hit = rewards
    venv = skill_vec_env(lambda: ToyGoalEnv(30, 1, miss, hit), skill_duration=5, discount=discount)
    buffer = make_buffer(SkillHerReplayBuffer, venv, size=90)
    stored = fill([buffer], venv, steps, seed)[-buffer.size() :]
    slots, envs = everywhere(buffer)
    goals = np.random.default_rng(seed).uniform(-4, 4, (len(slots), 2))
    rewards_, dones, lengths = buffer._relabel((slots, envs), goals)
    for row, (slot, env, goal) in enumerate(zip(slots, envs, goals, strict=True)):
        step = stored[(slot - buffer.pos) % buffer.buffer_size if buffer.full else slot]
        info = step["infos"][env]
        total, length, done = 0.0, 0, False
        for position in info["skill_achieved_goals"][: info["skill_length"]]:
            near = np.linalg.norm(position - goal) <= 1.0
            total += discount**length * (hit if near else miss)
            length += 1
            if near:
                done = True
                break
        if not done:  # an end of another cause than the old goal stays one
            old_goal_reached = info["skill_rewards"][info["skill_length"] - 1] == hit
            done = step["dones"][env] and not info["TimeLimit.truncated"] and not old_goal_reached
        assert (rewards_[row], dones[row], lengths[row]) == (np.float32(total), done, length)


@pytest.mark.parametrize("steps", [7, 29, 30, 31, 100])
def test_goals_come_from_this_or_a_later_skill_of_the_same_episode(steps):
    venv = skill_vec_env(lambda: ToyGoalEnv(60), skill_duration=3)
    buffer = make_buffer(SkillHerReplayBuffer, venv, size=90)  # 30 slots for each of 3 environments
    stored = fill([buffer], venv, steps)
    first = steps - buffer.size()
    slots, envs = everywhere(buffer)
    seen: dict[tuple[int, int], set] = {}
    for _ in range(300):
        for slot, env, goal in zip(slots, envs, buffer._future_goals((slots, envs)), strict=True):
            seen.setdefault((slot, env), set()).add(tuple(goal))
    for step in range(first, steps):
        for env in range(3):
            allowed = []
            for later in range(step, steps):
                allowed.append(tuple(stored[later]["next_obs"]["achieved_goal"][env]))
                if stored[later]["dones"][env]:
                    break
            got = seen[(step % 30, env)]
            assert got <= set(allowed)
            if len(allowed) <= 20:  # all of them, given 300 draws
                assert got == set(allowed)


def test_a_reset_without_a_done_ends_the_episode_and_bootstraps():
    venv = skill_vec_env(lambda: ToyGoalEnv(1000, 1000, continuing=True), n_envs=1)
    buffer = make_buffer(SkillHerReplayBuffer, venv, terminal_on_success=False)
    fill([buffer], venv, 5, seed=1)
    fill([buffer], venv, 5, seed=2)
    assert buffer._episode_last[:10, 0].tolist() == [4] * 5 + [-1] * 5
    assert (buffer.dones[4, 0], buffer.timeouts[4, 0]) == (1, 1)
    assert not buffer._stored(everywhere(buffer))[1].any()


@pytest.mark.parametrize(("her_ratio", "relabelled"), [(0.0, 0), (0.6, 60), (1.0, 100)])
def test_her_ratio_is_the_share_of_relabelled_transitions(her_ratio, relabelled):
    venv = skill_vec_env(lambda: ToyGoalEnv(200, 200, continuing=True))
    buffer = make_buffer(SkillHerReplayBuffer, venv, her_ratio=her_ratio, terminal_on_success=False)
    stored = fill([buffer], venv, 20)
    real = {tuple(goal) for step in stored for goal in step["obs"]["desired_goal"]}
    samples = buffer.sample(100)
    assert sum(tuple(goal) not in real for goal in samples.observations["desired_goal"].tolist()) == relabelled
    assert th.equal(samples.observations["desired_goal"], samples.next_observations["desired_goal"])
    assert samples.discounts.shape == samples.rewards.shape == samples.dones.shape == (100, 1)
    assert samples.rewards.dtype == samples.dones.dtype == samples.discounts.dtype == th.float32


def test_episodes_that_go_on_where_the_goal_was_reached_warn_once_with_what_to_set():
    venv = skill_vec_env(lambda: ToyGoalEnv(200, 200, continuing=True))
    buffer = make_buffer(SkillHerReplayBuffer, venv)
    with pytest.warns(UserWarning, match=r"'terminal_on_success': False.*'continuing_task': False"):
        fill([buffer], venv, 60)
    fill([buffer], venv, 30, seed=1)  # another warning would be an error
    fill([make_buffer(SkillHerReplayBuffer, venv, terminal_on_success=False)], venv, 60)


class Saying(ToyGoalEnv):
    """A ToyGoalEnv of goals that are never reached, which says whether episodes end at them."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        self.goal = np.full(2, 90.0)
        return self._goal_observation(), {}

    def compute_terminated(self, achieved_goal, desired_goal, info):
        return not self.continuing


def test_an_environment_that_says_that_it_goes_on_is_warned_of_before_any_goal_is_reached():
    going_on = skill_vec_env(lambda: Saying(continuing=True))
    with pytest.warns(UserWarning, match=r"goes on where the goal is reached.*'terminal_on_success': False"):
        fill([make_buffer(SkillHerReplayBuffer, going_on)], going_on, 2)
    fill([make_buffer(SkillHerReplayBuffer, going_on, terminal_on_success=False)], going_on, 2)
    ending = skill_vec_env(Saying)
    fill([make_buffer(SkillHerReplayBuffer, ending)], ending, 2)  # a warning would be an error


def test_with_copied_infos_rewards_for_other_goals_get_those_of_their_own_steps():
    seen = []

    class Asking(ToyGoalEnv):
        def compute_reward(self, achieved_goal, desired_goal, info):
            if np.ndim(achieved_goal) > 1:
                seen.extend(info)
            return super().compute_reward(achieved_goal, desired_goal, info)

    venv = skill_vec_env(lambda: Asking(200, 200, continuing=True))
    kwargs = {"terminal_on_success": False, "her_ratio": 1.0}
    for copied in (True, False):
        buffer = make_buffer(SkillHerReplayBuffer, venv, copy_info_dict=copied, **kwargs)
        fill([buffer], venv, 20)
        seen.clear()
        buffer.sample(8)
        assert all(("left" in info) == copied for info in seen) and len(seen) == 8 * 6


def test_a_goal_passed_inside_a_skill_ends_it_there():
    venv = skill_vec_env(lambda: ToyGoalEnv(1000, 1000), n_envs=1, skill_duration=6)
    buffer = make_buffer(SkillHerReplayBuffer, venv)
    stored = fill([buffer], venv, 1)[0]
    path = stored["infos"][0]["skill_achieved_goals"]
    at = np.zeros(1, int), np.zeros(1, int)
    away = path[2:3] + 0.9 * (path[2] - path[1]) / np.linalg.norm(path[2] - path[1])
    hits = np.linalg.norm(path - away, axis=-1) <= 1.0
    rewards, dones, lengths = buffer._relabel(at, away)
    assert (rewards[0], dones[0], lengths[0]) == (1.0, 1.0, hits.argmax() + 1)


@pytest.mark.parametrize(("miss", "hit"), [(0.0, 1.0), (-1.0, 0.0)])
def test_the_reward_of_success_is_asked_from_the_environment(miss, hit):
    venv = skill_vec_env(lambda: ToyGoalEnv(20, 1, miss, hit))
    buffer = make_buffer(SkillHerReplayBuffer, venv)
    fill([buffer], venv, 1)
    assert buffer.success_reward == hit


def test_a_loaded_hindsight_buffer_needs_its_environment():
    venv = skill_vec_env(ToyGoalEnv)
    buffer = make_buffer(SkillHerReplayBuffer, venv)
    fill([buffer], venv, 5)
    loaded = pickle.loads(pickle.dumps(buffer))
    with pytest.raises(ValueError, match=r"call set_env\(env\)"):
        loaded.sample(8)
    loaded.set_env(venv)
    assert loaded.sample(8).rewards.shape == (8, 1)


def test_a_buffer_of_skills_refuses_transitions_that_are_none():
    venv = DummyVecEnv([ToyEnv])
    with pytest.raises(ValueError, match="expected 'skill_length' in every info"):
        fill([make_buffer(SkillReplayBuffer, venv)], venv, 1)


@pytest.mark.parametrize(
    ("cls", "make_venv", "kwargs", "message"),
    [
        (
            SkillReplayBuffer,
            lambda: skill_vec_env(ToyEnv),
            {"optimize_memory_usage": True},
            "optimize_memory_usage=False",
        ),
        (SkillHerReplayBuffer, lambda: skill_vec_env(ToyGoalEnv), {"her_ratio": 1.5}, "must be in .0, 1., got 1.5"),
        (SkillHerReplayBuffer, lambda: DummyVecEnv([ToyGoalEnv]), {}, "needs environments that run skills"),
        (SkillHerReplayBuffer, lambda: skill_vec_env(ToyGoalEnv, discount=0.5), {}, "by 0.5 .* the buffer by 0.9"),
        (SkillReplayBuffer, lambda: skill_vec_env(ToyGoalEnv), {}, "for Box .*; use SkillDictReplayBuffer or SkillHer"),
        (SkillDictReplayBuffer, lambda: skill_vec_env(ToyEnv), {}, "for Dict observations, .*; use SkillReplayBuffer"),
    ],
)
def test_settings_that_do_not_fit_are_refused(cls, make_venv, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_buffer(cls, make_venv(), **kwargs)


def test_gamma_is_required_and_must_be_a_discount():
    venv = skill_vec_env(ToyEnv)
    with pytest.raises(TypeError, match=r"the agent's has no effect: pass replay_buffer_kwargs=\{'gamma'"):
        SAC("MlpPolicy", venv, gamma=0.9, replay_buffer_class=SkillReplayBuffer, device="cpu")
    with pytest.raises(TypeError, match="SkillReplayBuffer has a gamma of its own"):
        SkillReplayBuffer(10, venv.observation_space, venv.action_space)
    with pytest.raises(ValueError, match=r"discount per low-level step and must be in \(0, 1\], got 1.2"):
        SkillReplayBuffer(10, venv.observation_space, venv.action_space, gamma=1.2)


GOAL_SPACE = ToyGoalEnv().observation_space


def test_relative_goal_features_are_direction_and_two_distances():
    extractor = RelativeGoalExtractor(GOAL_SPACE, [2, 0], near_scale=2.5, far_scale=10.0, absolute_goals=True)
    features = extractor(
        {
            "observation": th.tensor([[1.0, 2.0, 3.0]]),
            "achieved_goal": th.tensor([[1.0, 1.0]]),
            "desired_goal": th.tensor([[4.0, 5.0]]),
        }
    )
    expected = [[3.0, 1.0, 0.6, 0.8, np.tanh(2.0), 0.5, 0.1, 0.1, 0.4, 0.5]]
    np.testing.assert_allclose(features.numpy(), expected, rtol=1e-6)
    assert extractor.features_dim == 10


def test_relative_goal_features_are_finite_with_a_finite_gradient_at_the_goal():
    goal = th.zeros(1, 2, requires_grad=True)
    features = RelativeGoalExtractor(GOAL_SPACE)(
        {"observation": th.ones(1, 3), "achieved_goal": th.zeros(1, 2), "desired_goal": goal}
    )
    assert features.tolist() == [[1, 1, 1, 0, 0, 0, 0]]
    features.sum().backward()
    assert goal.grad is not None
    assert goal.grad.isfinite().all()


@pytest.mark.parametrize(
    ("space", "kwargs", "message"),
    [
        (ToyEnv().observation_space, {}, r"needs a goal observation, \['achieved_goal'"),
        (GOAL_SPACE, {"near_scale": 0.0}, "must be positive, got 0.0 and 8.0"),
        (GOAL_SPACE, {"observation_indices": [3]}, r"must lie in 0\.\.2, got \[3\]"),
    ],
)
def test_features_that_do_not_fit_are_refused(space, kwargs, message):
    with pytest.raises(ValueError, match=message):
        RelativeGoalExtractor(space, **kwargs)
