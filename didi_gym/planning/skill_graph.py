"""`SkillGraph`: an agent that reaches goals by planning over skills, on a graph that it learns while it acts."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper

from didi_gym.core.env_rows import EnvRows, Step
from didi_gym.core.files import SafeFileError, in_short
from didi_gym.core.interrupts import undisturbed
from didi_gym.core.progress import progress as progress_bar
from didi_gym.evaluation.agents import FIRST_SEED
from didi_gym.evaluation.plots import plot_goal_graph
from didi_gym.models.weights import read_tensors, write_tensors
from didi_gym.planning.goal_graph import GoalGraph, Ways
from didi_gym.planning.skill_model import SkillModel

_GOALS = ("achieved_goal", "desired_goal")
_HISTORY = {
    "low_level_steps": torch.int64,
    "success": torch.bool,
    "length": torch.int64,
    "fell": torch.bool,
    "places": torch.int64,
}
_BEYOND = 1 << 30  # between the seeds of training episodes and those of evaluation, which they would run into
_CANDIDATES = 32  # skills compared for a wanted direction
_CELL = 1.0  # cells in strides
_LOOKAHEAD = 3  # places to the waypoint, at most
_NEAR = 1.6  # cells from which the goal itself is aimed at
_NO_PROGRESS = 0.1  # a decision that made less than this share of its expected way was stuck
_STUCK = 3  # such decisions in a row after which something else is tried
_LOITERING = 6  # decisions that brought the goal no closer, after which something else is tried too
_HELPLESS = 6  # after which, in training, the episode counts as a fall and is left
_WANDERING = 0.15  # share of training episodes that begin by wandering
_WANDER_STEPS = 150  # low-level steps of it
_PATIENCE = 1_000  # decisions after which something must be known of the skills
_RECENT = 20  # episodes over which progress is shown
_OUTWARD = 3  # decisions from a frontier into the unknown before the next plan
_DETOUR = 10.0  # cells by which the body may stray from its way to a frontier before that is planned anew
_SAME = 1e-3  # share of itself by which an achieved goal may differ between info and observation, as in float32
_REPLAN = 20  # decisions after which a plan is renewed if the graph has changed


@dataclass
class _Trip:
    """What the agent remembers of the episode that an environment is in."""

    random: np.random.Generator
    tries: dict[int, int]
    """How often each place was gone to as a frontier."""
    goal: np.ndarray | None = None
    achieved: np.ndarray | None = None
    """Where the last decision was taken."""
    velocity: np.ndarray | None = None
    """Of the achieved goal before that decision, per low-level step."""
    expected: np.ndarray | None = None
    """Displacement that the decision should make."""
    skill: int = 0
    choice: int = 0
    stuck: int = 0
    """Decisions in a row that made no progress."""
    cheapest: float = np.inf
    """Lowest cost of the way that was left since the last plan."""
    idle: int = 0
    """Decisions in a row after which it was no lower."""
    way: tuple[int, int] | None = None
    """The move from place to place that the decision makes, where it makes a single one."""
    circled: tuple[int, int] | None = None
    """The move that was given up for bringing the goal no closer."""
    hold: int = 0
    """Decisions for which a random skill goes on."""
    wander: float = 0.0
    """Low-level steps for which the episode wanders."""
    frontier: int | None = None
    """The node from which unknown places are explored, while the goal is out of reach."""
    ways: Ways | None = None
    """To the goal or the frontier."""
    version: int = -1
    age: int = 0
    """Of the ways, in decisions."""
    past: list[np.ndarray] = field(default_factory=list)
    """Where the last decisions were taken, enough of them to go back to before it was stuck."""
    steps: int = 0
    """Low-level ones."""
    success: bool = False
    is_over: bool = False


class SkillGraph:
    """Reaches goals over skills: a learned model of the skills, a graph of where they led, and plans on it.

    It needs an environment with goals (`achieved_goal` and `desired_goal` in its observations) whose actions are
    skills. It learns from nothing, without rewards, maps or gradients: what each skill does to the achieved goal, which
    places of goal space are connected, where bodies get stuck or fall. Another goal in the same place costs no step.

    Args:
        env: One or many environments, of `didi_gym.make` or `make_vec`. With several durations to choose from, the
            shortest is used near goals.
        seed: Of the agent and of the episodes it begins.

    Raises:
        TypeError: no environment, or a vector environment of Stable-Baselines3.
        ValueError: the environment has no goals, its actions are no skills, or it masks skills.

    Example:
        >>> import didi_gym
        >>> from didi_gym.planning import SkillGraph
        >>> env = didi_gym.make("AntMaze_UMaze-v5", "ant-directions", skill_duration=(4, 8), replan_every=1)
        >>> agent = SkillGraph(env).learn(15_000)
        >>> action, state = agent.predict(env.reset(seed=1)[0])
    """

    def __init__(self, env: gym.Env | VectorEnv, *, seed: int = 0) -> None:
        self._rows = EnvRows(env)
        space = self._rows.single_observation_space
        goals = [space.spaces.get(goal) for goal in _GOALS] if isinstance(space, spaces.Dict) else [None]
        if not all(isinstance(goal, spaces.Box) and goal.shape == goals[0].shape for goal in goals):  # type: ignore[union-attr]
            raise ValueError(
                f"SkillGraph reaches goals: expected observations with achieved_goal and desired_goal, each a Box of "
                f"the same shape, got {space}; for other tasks train an agent over skills (help(didi_gym.sb3))"
            )
        try:
            policy, self.durations = _attribute(env, "policy"), _attribute(env, "skill_durations")
        except AttributeError:
            raise ValueError(
                "SkillGraph picks skills: wrap the environment with didi_gym.make, make_vec or SkillActionWrapper"
            ) from None
        if _attribute(env, "mask_fn") is not None:
            raise ValueError(
                "SkillGraph picks any skill at any time, and a mask_fn forbids some: make the environment without it, "
                "or train SkillMaskablePPO (help(didi_gym.sb3))"
            )
        self.env = env
        self.skill_space = policy.skill_space
        self._weights: str | None = policy.config.weights_sha256  # None for a policy that was never saved
        self.candidates = self.skill_space.grid(self.skill_space.size if self.skill_space.is_discrete else _CANDIDATES)
        self._goal_shape: tuple[int, ...] = goals[0].shape  # type: ignore[union-attr, assignment]
        self.goal_dim = math.prod(self._goal_shape)
        self.model = SkillModel(self.skill_space.skill_dim, self.goal_dim, self.durations)
        self.graph: GoalGraph | None = None
        seed = operator.index(seed)  # numpy's integers are no seeds of environments
        self.random = np.random.default_rng(seed)
        self.seed, self.episodes, self.low_level_steps = seed, 0, 0
        self.history: list[dict[str, float]] = []
        """One row for each training episode."""
        self._tries: dict[int, int] = {}
        self._waiting: list[np.ndarray] = []  # paths walked before there was a graph
        self._long, self._short = int(np.argmax(self.durations)), int(np.argmin(self.durations))

    # -- learning ------------------------------------------------------------------------------------------------------
    def learn(
        self,
        total_low_level_steps: int,
        *,
        on_step: Callable[[int, Any, Any, Step], object] | None = None,
        progress: bool = True,
    ) -> SkillGraph:
        """Learn for so many low-level steps, counted over all environments; those of the last decisions may go beyond.

        Every call begins new episodes. Ctrl-C leaves an agent that can be saved and goes on where it was. (It closes an
        asynchronous vector environment: save, and load with a new one.)

        Args:
            total_low_level_steps: How many; none where it is 0 or less, as what is left of a budget may be.
            on_step: Called after every decision with the index of the environment, the observation, the action and
                what came of it (`didi_gym.core.env_rows.Step`), as to fill a replay buffer.
            progress: Whether a bar is shown.

        Raises:
            ValueError: goals that are not finite or not those of the skills, or skills from which nothing can be
                learned.
        """
        begun, rows = self.low_level_steps, self._rows
        trips: dict[int, _Trip] = {}
        rows.running[:] = False
        with progress_bar("SkillGraph", total_low_level_steps, progress) as report:
            while self.low_level_steps - begun < total_low_level_steps:
                trips |= self._begin(np.flatnonzero(~rows.running).tolist())
                before = list(rows.observations)
                actions = {row: self._decide(before[row], trip) for row, trip in trips.items()}
                for row, step in rows.step(actions).items():
                    with undisturbed():
                        self._learn_from(trips[row], step)
                    trips[row].success |= _succeeded(step)
                    if on_step is not None:
                        on_step(row, before[row], actions[row], step)
                    if step.ended or trips[row].stuck >= _HELPLESS:
                        rows.running[row] = False
                        with undisturbed():
                            self._end(trips[row], fell=not step.ended)
                if self.history:
                    recent = self.history[-_RECENT:]
                    shown = {"success": sum(row["success"] for row in recent) / len(recent)}
                    shown |= {"places": recent[-1]["places"], "falls": sum(row["fell"] for row in recent)}
                    report(min(self.low_level_steps - begun, total_low_level_steps), shown)
        for trip in trips.values():
            if trip.steps and not trip.is_over:
                self._end(trip, fell=False)
        return self

    def _begin(self, free: list[int]) -> dict[int, _Trip]:
        """Begin an episode in each of these environments."""
        if not free:
            return {}
        numbers = [self.seed * 1_000_003 + self.episodes + i for i in range(len(free))]
        seeds = [number if number < FIRST_SEED else number + _BEYOND for number in numbers]
        self._rows.begin(dict(zip(free, seeds, strict=True)))
        self.episodes += len(free)
        trips = {row: _Trip(self.random, self._tries) for row in free}
        for trip in trips.values():
            trip.wander = _WANDER_STEPS if self.random.random() < _WANDERING else 0
        return trips

    def _end(self, trip: _Trip, fell: bool) -> None:
        if fell and self.graph is not None:
            self.graph.fall(np.stack(trip.past[:3]))
        trip.is_over = True
        places = 0 if self.graph is None else len(self.graph)
        row = {"low_level_steps": self.low_level_steps, "success": trip.success, "length": trip.steps, "fell": fell}
        self.history.append({**row, "places": places})

    def _learn_from(self, trip: _Trip, step: Step) -> None:
        """Learn from the decision just taken: what the skill did, and where the body went on the way."""
        assert trip.achieved is not None and trip.velocity is not None
        path = self._path(trip.achieved, step)
        length = len(path) - 1
        trip.steps += length
        self.low_level_steps += length
        moved = path[-1] - trip.achieved
        trip.past = [*trip.past[-_HELPLESS - 1 :], trip.achieved]
        if length == self.durations[trip.choice]:
            self.model.add(trip.choice, self.candidates[trip.skill], trip.velocity, moved)
        if self.graph is None:
            self._waiting.append(path)
            stride = self.model.stride(self._long, self.candidates) if self.model.is_fitted else 0.0
            if stride > 0:
                self.graph = GoalGraph(_CELL * stride, self.goal_dim)
                for walked in self._waiting:
                    self.graph.walk(walked)
                self._waiting.clear()
            elif len(self._waiting) >= _PATIENCE:
                self._give_up()
            return
        self.graph.walk(path)
        if trip.expected is not None and not trip.hold and _is_stuck(moved, trip.expected):
            ahead = trip.expected / max(float(np.linalg.norm(trip.expected)), 1e-9) * self.graph.size
            straight = (self.graph.locate(trip.achieved), self.graph.locate(trip.achieved + ahead))
            self.graph.fail(*(trip.way or straight))
        elif trip.circled is not None:
            self.graph.fail(*trip.circled)

    def _path(self, start: np.ndarray, step: Step) -> np.ndarray:
        """The goals achieved in a decision, `(1 + skill_length, goal_dim)`, from where it was taken."""
        if "skill_achieved_goals" not in step.info:
            raise ValueError(
                "SkillGraph learns from the goals achieved within a skill, which are recorded only where the "
                "environment has a method compute_reward(achieved_goal, desired_goal, info): give it one"
            )
        goals = np.asarray(step.info["skill_achieved_goals"], float)[: int(step.info["skill_length"])]
        path = np.concatenate([start[None], goals.reshape(-1, self.goal_dim)])
        seen = _flat_goal(step.observation, "achieved_goal")
        if not np.isfinite(path).all():
            raise ValueError(f"achieved goals must be finite, got {path[-1]}")
        if np.linalg.norm(path[-1] - seen) > _SAME * np.linalg.norm(path[-1]):
            raise ValueError(
                f"the skill ended at the achieved goal {path[-1]}, but the observation says {seen}: put wrappers that "
                "change goals inside, SkillActionWrapper(Wrapper(env), ...)"
            )
        return path

    def _give_up(self) -> None:
        tried = f"after {len(self._waiting)} decisions nothing is known of what skills do:"
        if self.model.is_fitted:
            raise ValueError(f"{tried} none moved the achieved goal; other skills, or longer ones, may")
        raise ValueError(
            f"{tried} nearly all ended with their episode (or by terminate_fn) before their "
            f"{self.durations[self._long]} low-level steps; choose shorter durations or a longer time limit"
        )

    # -- deciding ------------------------------------------------------------------------------------------------------
    def _decide(self, observation: dict[str, Any], trip: _Trip) -> Any:
        """The next action of the agent; `trip` remembers it."""
        achieved, trip.goal = (_flat_goal(observation, name) for name in _GOALS)
        if trip.achieved is None:
            trip.velocity = np.zeros(self.goal_dim)
        else:
            moved = achieved - trip.achieved
            trip.velocity = moved / self.durations[trip.choice]
            is_stuck = trip.expected is not None and _is_stuck(moved, trip.expected)
            trip.stuck = trip.stuck + 1 if is_stuck else 0
        trip.achieved = achieved
        trip.wander -= self.durations[trip.choice]
        trip.hold, trip.age = max(trip.hold - 1, 0), trip.age + 1
        last, trip.way, trip.circled = trip.way, None, None
        if trip.hold == 0:
            target = self._target(trip, last)
            if target is None:
                self._wander(trip)
            else:
                trip.choice = self._short if self._is_near(target - achieved) else self._long
                trip.skill = self._aim(target - achieved, trip)
        trip.expected = None
        if self.model.is_fitted:
            one = self.candidates[trip.skill : trip.skill + 1]
            trip.expected = self.model.predict(trip.choice, one, np.zeros(self.goal_dim))[0]
        return self._action(trip)

    def _wander(self, trip: _Trip) -> None:
        """Hold a random skill for a while; where the last one made no progress, one that leads away from there."""
        choices = np.arange(len(self.candidates))
        if trip.stuck and trip.expected is not None:
            moves = self.model.predict(self._long, self.candidates, np.zeros(self.goal_dim))
            choices = np.flatnonzero(moves @ trip.expected <= 0)
        trip.choice = self._long
        trip.skill = int(trip.random.choice(choices)) if len(choices) else trip.skill
        trip.hold = 2 if trip.stuck else int(trip.random.integers(2, 7))

    def _target(self, trip: _Trip, last: tuple[int, int] | None) -> np.ndarray | None:
        """Where to go now, after the move `last`; None: anywhere, at random."""
        graph, here, goal = self.graph, trip.achieved, trip.goal
        assert here is not None and goal is not None
        if graph is None or trip.wander > 0:
            return None
        if trip.stuck >= _STUCK and trip.stuck % _STUCK == 0:
            trip.ways = None
            return None  # something else for a while
        if trip.ways is None or (trip.age >= _REPLAN and trip.version != graph.version):
            self._plan(trip)
        assert trip.ways is not None
        node = graph.locate(here)
        cost = trip.ways.cost(node)
        if trip.frontier is not None:
            if cost == 0:  # arrived: go on into the unknown, towards the goal or at random
                trip.frontier, trip.ways = None, None
                trip.hold = _OUTWARD
                return goal if trip.random.random() < 0.5 else None
        elif self._is_near(goal - here) and (cost < 3 * _NEAR or not np.isfinite(cost)):
            return goal
        if node is None or not np.isfinite(cost):
            return self._rejoin(here, trip)
        trip.idle = 0 if cost < trip.cheapest else trip.idle + 1
        trip.cheapest = min(cost, trip.cheapest)
        if trip.idle >= _LOITERING:
            trip.idle, trip.cheapest, trip.circled = 0, np.inf, last
            return None
        ahead = trip.ways.path(node, _LOOKAHEAD)
        if not ahead:
            return goal if trip.frontier is None else graph.center(trip.frontier)
        if not trip.stuck and not trip.idle:
            for far in reversed(ahead[1:]):
                if graph.is_open(here, graph.center(far)):
                    return graph.center(far)
        trip.way = (node, ahead[0])
        return graph.center(ahead[0])

    def _plan(self, trip: _Trip) -> None:
        """Costs to the goal or, where no way is known, to the most promising frontier."""
        graph = self.graph
        assert graph is not None and trip.goal is not None and trip.achieved is not None
        trip.age, trip.version, trip.frontier = 0, graph.version, None
        trip.idle, trip.cheapest = 0, np.inf
        trip.ways = graph.ways_to(trip.goal, graph.size)
        node = graph.locate(trip.achieved)
        if node is None or np.isfinite(trip.ways.cost(node)):
            return
        reach = graph.costs_from(node)
        rest = np.linalg.norm(graph.centers - trip.goal, axis=1) / graph.size  # as if all that is unknown were free
        tried = np.array([trip.tries.get(i, 0) for i in range(len(graph))])
        score = reach + rest + 4.0 * tried + trip.random.exponential(2.0, len(graph))
        score[graph.open_sides == 0] = np.inf
        best = int(score.argmin())
        if np.isfinite(score[best]):
            trip.tries[best] = trip.tries.get(best, 0) + 1
            within = 1.5 * reach[best] + _DETOUR
            trip.frontier, trip.ways = best, graph.ways_to(graph.center(best), graph.size / 2, within)

    def _rejoin(self, here: np.ndarray, trip: _Trip) -> np.ndarray | None:
        """The nearest known place from which a way is known; None where there is none close by."""
        graph, ways = self.graph, trip.ways
        assert graph is not None and ways is not None
        known = np.flatnonzero(np.isfinite(ways.costs))
        if not len(known):
            return None
        centers = graph.centers[known]
        distance = np.linalg.norm(centers - here, axis=1) / graph.size
        near = distance < 3
        if not near.any():
            return None
        score = np.where(near, 2 * distance + ways.costs[known], np.inf)
        return centers[int(score.argmin())]

    def _is_near(self, way: np.ndarray) -> bool:
        assert self.graph is not None
        return bool(way @ way < (_NEAR * self.graph.size) ** 2)

    def _aim(self, way: np.ndarray, trip: _Trip) -> int:
        """The candidate skill that gets furthest along `way`, less what it drifts sideways."""
        assert trip.velocity is not None
        unit = way / max(math.sqrt(way @ way), 1e-9)
        moves = self.model.predict(trip.choice, self.candidates, trip.velocity)
        along = moves @ unit
        sideways = np.linalg.norm(moves - along[:, None] * unit, axis=1)
        return int((along - sideways).argmax())

    def _action(self, trip: _Trip) -> Any:
        """The agent's action for a candidate skill and a duration."""
        choices = len(self.durations)
        if self.skill_space.is_discrete:
            return trip.skill * choices + trip.choice
        skill = self.candidates[trip.skill]
        if choices == 1:
            return skill
        return np.append(skill, np.float32((2 * trip.choice + 1) / choices - 1))

    # -- acting --------------------------------------------------------------------------------------------------------
    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[Any, Any]:
        """The action for an observation, as Stable-Baselines3's agents give it; nothing is learned.

        Args:
            observation: Of one environment, or of n, stacked.
            state: What the last call returned, which the agent needs to notice that it is stuck.
            episode_start: `(n,)`, whether the observation is an episode's first.
            deterministic: Not used.

        Returns:
            The action or `(n, ...)` actions, and the state.

        Raises:
            ValueError: an observation of another form, goals that are not finite, or a state of other environments.
        """
        many = self._is_stacked(observation)
        n = len(observation["desired_goal"]) if many else 1
        trips: list[_Trip] = [self._new_trip() for _ in range(n)] if state is None else list(state)
        if len(trips) != n:
            raise ValueError(
                f"the state is of {len(trips)} environments, the observation of {n}: begin with state=None"
            )
        for i in range(n):
            if episode_start is not None and np.atleast_1d(episode_start)[i]:
                trips[i] = self._new_trip()
        rows = [{key: value[i] for key, value in observation.items()} if many else observation for i in range(n)]
        actions = [self._decide(row, trip) for row, trip in zip(rows, trips, strict=True)]
        return (np.stack(actions) if many else actions[0]), tuple(trips)

    def _is_stacked(self, observation: Any) -> bool:
        known = observation if isinstance(observation, dict) else {}
        shapes, one = [np.shape(known[name]) for name in _GOALS if name in known], self._goal_shape
        if shapes == [one, one]:
            return False
        if len(shapes) == 2 and shapes[0] == shapes[1] and len(shapes[0]) == len(one) + 1 and shapes[0][1:] == one:
            return True
        raise ValueError(
            f"expected an observation with {' and '.join(_GOALS)}, each {one} or stacked (n, *{one}), got "
            f"{', '.join(f'{name} {np.shape(value)}' for name, value in known.items()) or type(observation).__name__}"
        )

    def _new_trip(self) -> _Trip:
        """Of an episode that nothing is learned from: it acts the same whatever was evaluated before."""
        return _Trip(np.random.default_rng(self.seed), dict(self._tries))

    def plan(self, observation: dict[str, Any]) -> np.ndarray:
        """The way that it would go from an observation's achieved goal to the desired one, `(p, goal_dim)`.

        Empty where it knows no way. The last place is the goal's, not the goal itself.
        """
        if self._is_stacked(observation):
            raise ValueError(f"a plan is of one environment, got observations of {len(observation['desired_goal'])}")
        if self.graph is None:
            return np.zeros((0, self.goal_dim))
        achieved, goal = (_flat_goal(observation, name) for name in _GOALS)
        ways, node = self.graph.ways_to(goal, self.graph.size), self.graph.locate(achieved)
        if node is None or not np.isfinite(ways.cost(node)):
            return np.zeros((0, self.goal_dim))
        return np.stack([achieved, *(self.graph.center(i) for i in ways.path(node, len(self.graph)))])

    def plot(self, file: str | Path, observation: dict[str, Any], *, walls: np.ndarray | None = None) -> Path:
        """Draw what it believes: places, moves, failures, falls, and costs and plan for an observation's goal.

        Args:
            file: Where to write; the ending chooses the format (png, pdf, svg).
            observation: Of one environment.
            walls: See `didi_gym.evaluation.plot_goal_graph`.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: goals are not two-dimensional, or nothing was learned yet.
        """
        if self.goal_dim != 2 or self.graph is None:
            raise ValueError(
                f"a picture needs goals of 2 numbers and an agent that has learned; goals have {self.goal_dim}, "
                f"{0 if self.graph is None else len(self.graph)} places are known"
            )
        graph, plan, goal = self.graph, self.plan(observation), _flat_goal(observation, "desired_goal")
        edges, walked, failed = graph.moves
        steps = f"{self.low_level_steps:,} low-level steps, {len(graph)} places"
        return plot_goal_graph(
            graph.centers,
            graph.ways_to(goal, graph.size).costs,
            file,
            size=graph.size,
            edges=edges,
            failures=failed / np.maximum(walked + failed, 1),
            falls=graph.fall_rates,
            plan=plan,
            goal=goal,
            title=steps,
            walls=walls,
        )

    # -- storing -------------------------------------------------------------------------------------------------------
    def save(self, path: str | Path) -> Path:
        """Write all that was learned as one safetensors file; `load` goes on from there as if nothing had happened."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{name}": torch.from_numpy(array) for name, array in self.model.arrays().items()}
        if self.graph is not None:
            tensors |= {f"graph.{name}": torch.from_numpy(array) for name, array in self.graph.arrays().items()}
        tensors |= {
            f"history.{name}": torch.tensor([row[name] for row in self.history], dtype=kind)
            for name, kind in _HISTORY.items()
        }
        write_tensors(path, tensors, self._identity() | self._progress())
        return path

    @classmethod
    def load(cls, path: str | Path, env: gym.Env) -> SkillGraph:
        """An agent that was saved, for an environment that runs the same skills.

        Raises:
            SafeFileError: no such file, a damaged one, or one of other skills, durations or goals.
        """
        path, agent = Path(path), cls(env)
        file = read_tensors(path)
        info = file.info
        ours = json.loads(json.dumps(agent._identity()))
        theirs = {key: info.get(key) for key in ours} if isinstance(info, dict) else None
        if theirs != ours:
            raise SafeFileError(
                f"{path} is no SkillGraph of this environment: expected {ours}, got {in_short(str(theirs))}"
            )
        try:
            agent._restore(info, {name: tensor.numpy() for name, tensor in file.tensors.items()})
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise SafeFileError(f"{path} is damaged: {in_short(error)}") from error
        return agent

    def _identity(self) -> dict[str, Any]:
        space = {"kind": self.skill_space.kind, "size": self.skill_space.size}
        skills = {"skill_space": space, "durations": list(self.durations), "weights_sha256": self._weights}
        return {"format": 3, **skills, "goal_dim": self.goal_dim}

    def _progress(self) -> dict[str, Any]:
        return {
            "size": None if self.graph is None else self.graph.size,
            "seed": self.seed,
            "episodes": self.episodes,
            "low_level_steps": self.low_level_steps,
            "random": self.random.bit_generator.state,
            "tries": [[node, times] for node, times in self._tries.items()],
            "waiting": [path.tolist() for path in self._waiting],
        }

    def _restore(self, info: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self.model.restore({name: arrays[f"model.{name}"] for name in self.model.arrays()})
        if info["size"] is not None:
            own = {name.removeprefix("graph."): array for name, array in arrays.items() if name.startswith("graph.")}
            self.graph = GoalGraph.restored(float(info["size"]), self.goal_dim, own)
        counts = [info[name] for name in ("seed", "episodes", "low_level_steps")]
        tries = [number for pair in info["tries"] for number in pair]
        if not all(type(number) is int and 0 <= number < 2**63 for number in counts + tries):
            raise ValueError(f"counts must be whole numbers from 0, got {counts} and tries {tries}")
        self.seed, self.episodes, self.low_level_steps = counts
        self.random.bit_generator.state = info["random"]
        self._tries = dict(info["tries"])
        self._waiting = [np.array(path, float) for path in info["waiting"]]
        if not all(path.shape[1:] == (self.goal_dim,) and len(path) for path in self._waiting):
            raise ValueError(f"paths must be (steps, {self.goal_dim}), got {[path.shape for path in self._waiting]}")
        columns = [arrays[f"history.{name}"] for name in _HISTORY]
        kinds = [np.dtype(bool if kind is torch.bool else np.int64) for kind in _HISTORY.values()]
        if [column.dtype for column in columns] != kinds or len({column.shape for column in columns}) != 1:
            raise ValueError("the history's columns do not go together")
        values = zip(*(column.tolist() for column in columns), strict=True)
        self.history = [dict(zip(_HISTORY, row, strict=True)) for row in values]


def _flat_goal(observation: dict[str, Any], name: str) -> np.ndarray:
    """A goal of an observation as numbers `(goal_dim,)` of our own, whatever becomes of the array that holds it."""
    goal = np.array(observation[name], float).ravel()
    if not np.isfinite(goal).all():
        raise ValueError(f"{name} must be finite, got {goal}; check the environment")
    return goal


def _is_stuck(moved: np.ndarray, expected: np.ndarray) -> bool:
    return bool(moved @ expected < _NO_PROGRESS * (expected @ expected))


def _succeeded(step: Step) -> bool:
    return bool(step.info.get("success", step.info.get("is_success", step.terminated)))


def _attribute(env: gym.Env | VectorEnv, name: str) -> Any:
    """Of the wrapper that runs skills, however many are around it."""
    if not isinstance(env, VectorEnv):
        return env.get_wrapper_attr(name)
    while isinstance(env, VectorWrapper) and not hasattr(env, name):
        env = env.env
    return getattr(env, name)
