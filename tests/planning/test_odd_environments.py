"""SkillGraph in odd environments: it learns there, or says in one sentence what it needs."""

import signal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from didi_gym.core.skill_space import SkillSpace
from didi_gym.evaluation import decisions, evaluate_agent
from didi_gym.planning import SkillGraph
from didi_gym.planning.goal_graph import GoalGraph, Rows
from didi_gym.wrappers import SkillActionWrapper
from tests.doubles import ScriptedPolicy
from tests.planning.test_skill_graph import WalledRoom, make, walk


def skills(env, engine=walk, durations=(2, 6), **settings):
    return SkillActionWrapper(
        env, ScriptedPolicy("ball"), skill_duration=durations, replan_every=2, engine=engine, **settings
    )


class Shaped(WalledRoom):
    """The room with goals of another shape, filled up with zeros."""

    def __init__(self, shape, dtype=np.float64):
        super().__init__()
        goal = spaces.Box(-1000, 1000, shape, dtype)
        self.observation_space = spaces.Dict(
            observation=self.observation_space["observation"], achieved_goal=goal, desired_goal=goal
        )

    def _see(self):
        seen, space = super()._see(), self.observation_space["achieved_goal"]
        for name in ("achieved_goal", "desired_goal"):
            goal = np.zeros(int(np.prod(space.shape)))
            goal[:2] = 20 * seen[name][: len(goal)]
            seen[name] = goal.reshape(space.shape).astype(space.dtype)
        return seen


@pytest.mark.parametrize(("shape", "dtype"), [((2, 1), float), ((2,), np.int64), ((3,), np.float32), ((20,), float)])
def test_goals_may_have_any_shape_and_kind(shape, dtype):
    env = skills(Shaped(shape, dtype))
    agent = SkillGraph(env, seed=0).learn(4_000, progress=False)
    assert evaluate_agent(agent, env, 10, progress=False).success >= 0.7
    assert GoalGraph(1.0, 20).arrays()["centers"].shape == (0, 20)


def test_goals_of_a_single_number_are_reached():
    class Line(Shaped):
        def is_wall(self, place):
            return False

        def step(self, action):
            seen, _, _, truncated, _ = super().step(action)
            success = bool(abs(self.position[0] - self.goal[0]) < 0.3)
            return seen, float(success), success, truncated, {"success": success}

    for shape in ((), (1,)):
        env = skills(Line(shape))
        agent = SkillGraph(env, seed=0).learn(2_000, progress=False)
        assert evaluate_agent(agent, env, 10, progress=False).success == 1


def test_many_discrete_skills_are_tried_before_the_size_of_places_is_chosen():
    angles = np.arange(40) * np.pi / 20
    ways = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    policy = ScriptedPolicy("ball")
    policy.skill_space = SkillSpace("discrete", 40)

    def turn(inputs, chosen, steps):
        return walk(inputs, chosen @ ways, steps)

    env = SkillActionWrapper(WalledRoom(), policy, skill_duration=(2, 6), replan_every=2, engine=turn)
    agent = SkillGraph(env, seed=0).learn(4_000, progress=False)
    assert 0.3 < agent.graph.size < 0.9, "a skill leads 0.6 far"
    assert evaluate_agent(agent, env, 20, progress=False).success >= 0.8


def test_an_environment_that_writes_into_its_observations_teaches_the_same():
    class Reusing(WalledRoom):
        seen = None

        def _see(self):
            self.seen = super()._see() if self.seen is None else self.seen
            for name, value in super()._see().items():
                self.seen[name][...] = value
            return self.seen

    agent = SkillGraph(skills(Reusing()), seed=3).learn(1_500, progress=False)
    assert agent.history == SkillGraph(make(), seed=3).learn(1_500, progress=False).history


class Nowhere(WalledRoom):
    """After 30 steps nobody knows where the body is."""

    def _see(self):
        seen = super()._see()
        return {**seen, "achieved_goal": seen["achieved_goal"] * np.nan} if self.steps > 30 else seen


class NoRewards(gym.Wrapper):
    """A goal environment without `compute_reward`."""

    def has_wrapper_attr(self, name):
        return name != "compute_reward" and super().has_wrapper_attr(name)


class Larger(gym.ObservationWrapper):
    def observation(self, observation):
        return {**observation, "achieved_goal": 10 * observation["achieved_goal"]}


class OtherGoals(WalledRoom):
    """What is desired has other numbers than what is achieved."""

    def __init__(self):
        super().__init__()
        more = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.observation_space = spaces.Dict({**self.observation_space.spaces, "desired_goal": more})


def stand(inputs, chosen, steps):
    return np.zeros((len(chosen), steps, 2), np.float32)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (lambda: skills(Nowhere()), "achieved_goal must be finite"),
        (lambda: skills(NoRewards(WalledRoom())), "compute_reward"),
        (lambda: Larger(skills(WalledRoom())), "put wrappers that change goals inside"),
        (lambda: skills(WalledRoom(limit=1)), "longer time limit"),
        (lambda: skills(WalledRoom(), engine=stand), "none moved the achieved goal"),
        (lambda: skills(OtherGoals()), "same shape"),
        (lambda: DummyVecEnv([make]), "got DummyVecEnv"),
    ],
    ids=range(7),
)
def test_what_it_cannot_learn_from_is_said_in_a_sentence(env, words):
    with pytest.raises((ValueError, TypeError), match=words):
        SkillGraph(env(), seed=0).learn(12_000, progress=False)


def test_masks_are_refused():
    policy = ScriptedPolicy("discrete")
    env = SkillActionWrapper(WalledRoom(), policy, skill_duration=6, mask_fn=lambda seen: np.ones(2, bool), engine=walk)
    with pytest.raises(ValueError, match="mask_fn"):
        SkillGraph(env)


def test_numpys_integers_are_seeds_and_a_budget_that_is_used_up_teaches_nothing():
    agent = SkillGraph(make(), seed=np.int64(3)).learn(500, progress=False)
    assert agent.history == SkillGraph(make(), seed=3).learn(500, progress=False).history
    assert [decision.seed for decision in decisions(make(limit=2), agent, np.arange(3))] == [0, 1, 2]
    steps = agent.low_level_steps
    assert agent.learn(0).learn(-5).low_level_steps == steps


def test_an_observation_or_a_state_of_other_environments_is_refused():
    agent, (seen, _) = SkillGraph(make(), seed=0), make().reset(seed=0)
    three = {name: np.stack([value] * 3) for name, value in seen.items()}
    _, state = agent.predict(three)
    for observation in (seen, {name: np.stack([value] * 4) for name, value in seen.items()}):
        with pytest.raises(ValueError, match="state is of 3 environments"):
            agent.predict(observation, state)
    for wrong in (np.zeros(3), {"observation": np.zeros(3)}, {**seen, "desired_goal": np.zeros(5)}):
        with pytest.raises(ValueError, match="achieved_goal and desired_goal, each"):
            agent.predict(wrong)
    with pytest.raises(ValueError, match="plan is of one environment, got observations of 3"):
        agent.plan(three)
    with pytest.raises(ValueError, match="desired_goal must be finite"):
        agent.predict({**seen, "desired_goal": np.full(2, np.nan)})


def test_ctrl_c_leaves_nothing_half_learned(tmp_path, monkeypatch):
    agent, append, left = SkillGraph(make(), seed=0).learn(1_000, progress=False), Rows.append, [5]

    def interrupted(self, row):
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)
        append(self, row)

    monkeypatch.setattr(Rows, "append", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # programs in the background ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            agent.learn(100_000, progress=False)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    file = agent.save(tmp_path / "agent.safetensors")
    again = SkillGraph.load(file, make()).learn(500, progress=False)
    assert again.history == agent.learn(500, progress=False).history


@pytest.mark.parametrize("seed", [0, 9, 10, 11])
def test_no_training_episode_is_one_of_those_it_is_evaluated_in(seed):
    begun = []

    class Noting(WalledRoom):
        def reset(self, *, seed=None, options=None):
            begun.append(seed)
            return super().reset(seed=seed, options=options)

    agent = SkillGraph(skills(Noting(limit=6)), seed=seed).learn(360, progress=False)
    agent.episodes = 999_990 if seed == 9 else agent.episodes
    agent.learn(60, progress=False)
    trained = set(begun)
    begun.clear()
    evaluate_agent(agent, agent.env, 100, progress=False)
    assert len(trained) >= 60 and not trained & set(begun)
