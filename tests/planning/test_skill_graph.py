"""SkillGraph reaches goals behind walls that it never saw a map of, and the graph counts what it should."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from didi_gym.core.files import SafeFileError
from didi_gym.core.skill_space import SkillSpace
from didi_gym.evaluation.agents import evaluate_agent
from didi_gym.planning import SkillGraph
from didi_gym.planning.goal_graph import GoalGraph
from didi_gym.planning.skill_model import SkillModel
from didi_gym.wrappers import SkillActionVectorWrapper, SkillActionWrapper
from didi_gym.wrappers.executor import SkillExecutor
from tests.doubles import ScriptedPolicy, ToyEnv

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
DIRECTIONS = np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], axis=1)


class WalledRoom(gym.Env):
    """A point in a room of 6 by 4; a wall from y = 1.5 to 2.5 leaves a gap at the right end; goals lie anywhere."""

    def __init__(self, goal_dim: int = 2, limit: int = 200) -> None:
        goal = spaces.Box(-np.inf, np.inf, (goal_dim,), np.float64)
        observation = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.observation_space = spaces.Dict(observation=observation, achieved_goal=goal, desired_goal=goal)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.goal_dim, self.limit = goal_dim, limit

    def _free(self):
        return np.array([self.np_random.uniform(0.3, 5.7), self.np_random.choice([0.5, 1.0, 3.0, 3.5])])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.goal, self.steps = self._free(), self._free(), 0
        return self._see(), {}

    def step(self, action):
        for axis in (0, 1):  # it slides along walls
            moved = self.position.copy()
            moved[axis] += 0.1 * action[axis]
            if (moved >= 0).all() and (moved <= [6, 4]).all() and not self.is_wall(moved):
                self.position = moved
        self.steps += 1
        success = bool(np.linalg.norm(self.position - self.goal) < 0.3)
        return self._see(), float(success), success, self.steps >= self.limit, {"success": success}

    def is_wall(self, place):
        return 1.5 < place[1] < 2.5 and place[0] < 4.8

    def _see(self):
        def whole(place):
            return np.concatenate([place, np.zeros(self.goal_dim - 2)])

        place = np.array([*self.position, self.steps], float)
        return {"observation": place, "achieved_goal": whole(self.position), "desired_goal": whole(self.goal)}

    def compute_reward(self, achieved_goal, desired_goal, info):
        return (np.linalg.norm(achieved_goal - desired_goal, axis=-1) < 0.3).astype(float)


def walk(inputs, skills, steps):
    """Plans that go where a skill points."""
    ways = skills if skills.shape[1] == 2 else skills @ DIRECTIONS
    return np.repeat(ways[:, None], steps, axis=1).astype(np.float32)


def make(kind="ball", durations=(2, 6), **room):
    policy = ScriptedPolicy("ball" if kind == "ball" else "discrete")
    if kind == "discrete":
        policy.skill_space = SkillSpace("discrete", 8)
    return SkillActionWrapper(WalledRoom(**room), policy, skill_duration=durations, replan_every=2, engine=walk)


def make_vec(n, mode):
    def one():
        return SkillExecutor(WalledRoom(), skill_duration=6, replan_every=2)

    envs = SyncVectorEnv([one] * n, autoreset_mode=mode)
    return SkillActionVectorWrapper(envs, ScriptedPolicy("ball"), skill_duration=(2, 6), engine=walk)


class Random:
    def __init__(self, env):
        self.space = env.action_space

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return self.space.sample(), None


@pytest.mark.parametrize(
    ("form", "steps"),
    [({}, 8_000), ({"durations": (4,)}, 8_000), ({"kind": "discrete"}, 8_000), ({"goal_dim": 4}, 12_000)],
    ids=str,
)
def test_goals_behind_a_wall_are_reached_without_a_map(form, steps):
    env = make(**form)
    agent = SkillGraph(env, seed=0).learn(steps, progress=False)
    learned = evaluate_agent(agent, env, 40, progress=False)
    assert learned.success >= 0.9, learned
    assert evaluate_agent(Random(env), env, 40, progress=False).success < 0.6
    assert 8_000 <= agent.low_level_steps < steps + 6 and agent.history[-1]["low_level_steps"] == agent.low_level_steps


def test_a_saved_agent_goes_on_as_if_nothing_had_happened(tmp_path):
    whole = SkillGraph(make(), seed=3).learn(2_000, progress=False).learn(2_000, progress=False)
    half = SkillGraph(make(), seed=3).learn(2_000, progress=False)
    evaluated = evaluate_agent(half, make(), 5, progress=False)
    assert evaluate_agent(half, make(), 5, progress=False) == evaluated, "acting teaches nothing"
    half.save(tmp_path / "agent.safetensors")
    again = SkillGraph.load(tmp_path / "agent.safetensors", make()).learn(2_000, progress=False)
    assert again.history == whole.history
    np.testing.assert_array_equal(again.graph.centers, whole.graph.centers)
    assert evaluate_agent(again, make(), 5, progress=False) == evaluate_agent(whole, make(), 5, progress=False)


@pytest.mark.parametrize("mode", MODES)
def test_many_environments_teach_what_one_does(mode):
    one = SkillGraph(make(), seed=3).learn(1_500, progress=False)
    alike = SkillGraph(make_vec(1, mode), seed=3).learn(1_500, progress=False)
    assert alike.history == one.history
    seen = []
    many = SkillGraph(make_vec(4, mode), seed=0).learn(8_000, progress=False, on_step=lambda *step: seen.append(step))
    assert evaluate_agent(many, make_vec(4, mode), 40, progress=False).success >= 0.9
    assert sum(step.info["skill_length"] for *_, step in seen) == many.low_level_steps
    assert sum(row["length"] for row in many.history) == many.low_level_steps


def test_other_starts_and_goals_cost_no_step_and_a_closed_door_is_learned_anew():
    class Fixed(WalledRoom):
        """Always the same start and goal, with a second way on the left that a door may close."""

        closed = False
        ends = ((3.0, 0.5), (3.0, 3.5))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.position, self.goal = (np.array(place) for place in self.ends)
            return self._see(), {}

        def is_wall(self, place):
            return super().is_wall(place) and (self.closed or place[0] > 1.2)

    def room():
        return SkillActionWrapper(Fixed(limit=300), ScriptedPolicy("ball"), skill_duration=(2, 6), engine=walk)

    env = room()
    agent = SkillGraph(env, seed=0).learn(8_000, progress=False)
    assert evaluate_agent(agent, env, 5, progress=False).success == 1
    Fixed.ends = ((5.0, 3.5), (1.0, 1.0))
    assert evaluate_agent(agent, env, 5, progress=False).success == 1
    Fixed.ends, Fixed.closed = ((0.6, 0.5), (0.6, 3.5)), True
    assert evaluate_agent(agent.learn(4_000, progress=False), env, 5, progress=False).success == 1


def test_what_it_believes_is_drawn(tmp_path):
    env = make()
    agent, (observation, _) = SkillGraph(env, seed=0), env.reset(seed=4)
    with pytest.raises(ValueError, match="has learned"):
        agent.plot(tmp_path / "graph.png", observation)
    assert agent.plan(observation).shape == (0, 2)
    agent.learn(4_000, progress=False)
    plan = agent.plan(observation)
    np.testing.assert_array_equal(plan[0], observation["achieved_goal"])
    assert np.linalg.norm(plan[-1] - observation["desired_goal"]) <= agent.graph.size
    assert np.linalg.norm(np.diff(plan, axis=0), axis=1).max() < 3 * agent.graph.size
    assert agent.plot(tmp_path / "graph.png", observation).stat().st_size > 10_000
    other = SkillGraph(make(goal_dim=4), seed=0).learn(500, progress=False)
    with pytest.raises(ValueError, match="2 numbers"):
        other.plot(tmp_path / "no.png", other.env.reset()[0])


def test_an_agent_for_other_skills_or_a_damaged_one_is_refused(tmp_path):
    file = SkillGraph(make(), seed=3).learn(1_000, progress=False).save(tmp_path / "agent.safetensors")
    with pytest.raises(SafeFileError, match="durations"):
        SkillGraph.load(file, make(durations=(4,)))
    other = make()
    other.policy.config = replace(other.policy.config, weights_sha256="0" * 64)
    with pytest.raises(SafeFileError, match="weights_sha256"):
        SkillGraph.load(file, other)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(SafeFileError, match="agent"):
        SkillGraph.load(file, make())


def test_what_has_no_goals_or_no_skills_is_refused():
    with pytest.raises(ValueError, match="desired_goal"):
        SkillGraph(SkillActionWrapper(ToyEnv(), ScriptedPolicy()))
    with pytest.raises(ValueError, match="SkillActionWrapper"):
        SkillGraph(WalledRoom())


def test_stable_baselines3_evaluates_it():
    env = make()
    agent = SkillGraph(env, seed=0).learn(6_000, progress=False)
    inside = SkillActionWrapper(
        Monitor(WalledRoom()), ScriptedPolicy("ball"), skill_duration=(2, 6), replan_every=2, engine=walk
    )
    rewards, _ = evaluate_policy(agent, inside, n_eval_episodes=10, return_episode_rewards=True)
    assert np.mean(rewards) >= 0.8


def test_costs_are_lengths_with_doubt_and_ways_that_failed_cost_more():
    graph = GoalGraph(1.0, 1)
    line = np.arange(0.5, 5)[:, None]  # the places 0 to 4
    for _ in range(4):
        graph.walk(line)
    free = graph.ways_to(np.array([4.5]), 0.1).costs
    assert free[4] == 0 and np.all(np.diff(free) < 0)
    doubt = 1 + 1 / np.sqrt(4)
    assert free[2] - free[3] == pytest.approx(doubt)  # place 3 has both neighbours
    assert free[3] == pytest.approx(doubt * (1 + 6.0 / 2))  # beside place 4 nothing was reached on one of two sides
    graph.fail(2, 3)
    failed, times = graph.ways_to(np.array([4.5]), 0.1).costs, 0.6 * 4  # a failure makes the moves before it count less
    assert failed[2] - failed[3] == pytest.approx((1 + times**-0.5) * (1 + 1 / times))
    graph.fall(np.array([[3.5]]))
    assert graph.ways_to(np.array([4.5]), 0.1).costs[2] > failed[2] + 1
    ways = graph.ways_to(np.array([4.5]), 0.1)
    assert ways.path(0, 2) == [1, 2] and ways.path(3, 9) == [4] and ways.path(7, 9) == [] and ways.cost(7) == np.inf
    for _ in range(30):
        graph.fail(2, 3)
    assert np.isinf(graph.ways_to(np.array([4.5]), 0.1).costs[:3]).all(), "a way that never leads on is none"
    graph.walk(line)
    back = graph.ways_to(np.array([0.5]), 0.1).costs
    assert back[2] - back[1] == pytest.approx(3.0), "nobody walked back, which is dear but not out of the question"
    graph.fail(2, 1)
    assert graph.ways_to(np.array([0.5]), 0.1).costs[2] - back[1] == pytest.approx(15.0)
    assert graph.costs_from(0)[4] == pytest.approx(graph.ways_to(np.array([4.5]), 0.1).costs[0])


def test_in_many_dimensions_places_are_landmarks():
    graph = GoalGraph(1.0, 5)
    goals = np.random.default_rng(0).uniform(-2, 2, (500, 5))
    graph.walk(goals)
    distance = np.linalg.norm(graph.centers[:, None] - graph.centers, axis=-1) + 9 * np.eye(len(graph))
    assert distance.min() > 1.0 and (graph.open_sides == 0).all()
    assert all(np.linalg.norm(graph.centers[graph.locate(goal)] - goal) <= 1.0 for goal in goals)


def test_the_skill_model_learns_displacements_and_leaves_out_what_was_blocked():
    model, rng = SkillModel(2, 2, (2, 4)), np.random.default_rng(0)
    for _ in range(80):
        z, v = rng.uniform(-1, 1, (2, 2))
        model.add(1, z, v, 0.5 * z + 0.2 * v)
    for _ in range(40):
        z = rng.uniform(-1, 1, 2)
        model.add(1, z, np.zeros(2), -0.5 * z)  # thrown back by a wall
    np.testing.assert_allclose(model.predict(1, np.eye(2), np.zeros(2)), 0.5 * np.eye(2), atol=0.02)
    np.testing.assert_allclose(model.predict(0, np.eye(2), np.zeros(2)), 0.25 * np.eye(2), atol=0.02)  # half as long
    assert model.stride(1, np.eye(2)) == pytest.approx(0.5 / (1 - 0.2 / 4), abs=0.03)
