"""The environment that rollouts are made in: with the wrappers of the data, and nothing that only a file asks for."""

import json
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import gymnasium as gym
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from didi_gym.core.environments import asks_for_trust
from didi_gym.core.layout import Layout
from didi_gym.data.dataset import TrajectoryDataset
from didi_gym.evaluation.report import fidelity
from didi_gym.evaluation.rollouts import SkillSimulator, env_spec_from_json, hold_skills, make_data_env
from tests.examples import random_policy

pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered")  # of bounds, by Gymnasium's RescaleObservation
DATASET = "wrapped/pendulum-v0"


def policy_of(**config):
    policy = random_policy(Layout.flat(3), low=[-2.0], high=[2.0], horizon=8)
    policy.config = replace(policy.config, **config)
    return policy


def rescaled():
    return gym.wrappers.RescaleObservation(gym.make("Pendulum-v1"), -1.0, 1.0)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Constant torques, recorded through a wrapper that rescales observations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        env, buffers = rescaled(), []
        for seed, torque in enumerate(np.random.default_rng(0).uniform(-2, 2, (300, 1)).astype(np.float32)):
            observations, actions = [env.reset(seed=seed)[0]], [torque] * 16
            observations += [env.step(action)[0] for action in actions]
            none, last = np.zeros(16, bool), np.arange(16) == 15
            arrays = {"observations": np.stack(observations), "actions": np.stack(actions), "rewards": np.zeros(16)}
            buffers.append(EpisodeBuffer(id=seed, **arrays, terminations=none, truncations=last))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*env")  # none is named for evaluation alone
            about = dict.fromkeys(("algorithm_name", "author", "author_email", "code_permalink", "description"), "x")
            minari.create_dataset_from_buffers(
                DATASET,
                buffers,
                env=env.spec,
                observation_space=env.observation_space,
                action_space=env.action_space,
                **about,
            )
        yield TrajectoryDataset.from_minari(DATASET)


def test_rollouts_are_seen_through_the_wrappers_of_the_data(recorded):
    policy = policy_of(dataset_id=DATASET, env_id="Pendulum-v1")
    policy.plan_actions = lambda inputs, skills, steps=None: np.repeat(2 * skills[:, None, :1], steps, axis=1)
    policy.normalizer.scale.fill_(1)
    space = make_data_env(policy).observation_space
    assert (space.low == -1).all() and (space.high == 1).all()
    assert "RescaleObservation" in str(minari.load_dataset(DATASET).recover_environment())  # what Minari does too

    def like_the_data(env):
        simulator = SkillSimulator(policy, env)
        starts = simulator.random_starts(24, np.random.default_rng(0), burn_in=0)
        held = [
            simulator.hold(simulator.visit(start), skill, 8) for start in starts for skill in policy.skill_space.grid(4)
        ]
        return fidelity(policy, recorded, held)

    assert like_the_data(make_data_env(policy)) > 0.9
    assert like_the_data(gym.make("Pendulum-v1")) < 0.5


def test_a_spec_stands_before_the_config_and_the_config_before_the_data_set(recorded):
    stored = rescaled().spec
    without = policy_of(env_id="Pendulum-v1")
    assert make_data_env(without).observation_space.high[2] == 8
    assert make_data_env(without, spec=stored).observation_space.high[2] == 1

    without.config = SimpleNamespace(**vars(without.config) | {"env_spec": stored.to_json()})
    assert make_data_env(without).observation_space.high[2] == 1
    assert make_data_env(without, spec=gym.spec("Pendulum-v1")).observation_space.high[2] == 8


def test_a_data_set_of_another_environment_says_nothing(recorded):
    policy = policy_of(dataset_id=DATASET, env_id="MountainCarContinuous-v0")
    assert make_data_env(policy).spec.id == "MountainCarContinuous-v0"


def test_the_json_of_a_spec_needs_an_id_only_and_faults_name_the_file():
    wrappers = json.loads(rescaled().spec.to_json())["additional_wrappers"]
    text = json.dumps({"id": "Pendulum-v1", "additional_wrappers": wrappers})
    assert make_data_env(policy_of(), spec=env_spec_from_json(text, "x")).observation_space.high[2] == 1
    for wrong in ("", "[]", "3", "{}", '{"id": 3}', '{"id": "..x:Y-v0"}', '{"id": "A-v0", "additional_wrappers": [1]}'):
        with pytest.raises(ValueError, match=r"^some\.json is no JSON"):
            env_spec_from_json(wrong, "some.json")


@pytest.mark.parametrize(
    ("env_id", "kwargs", "named"),
    [
        ("Pendulum-v1", {"max_episode_steps": "x"}, "max_episode_steps"),
        ("Pendulum-v1", {"g": "x"}, "'g'"),  # found when it steps
        ("Pendulum-v1", {"moon": 1}, "moon"),
        ("Pendulum-v1", {"env_id": "CartPole-v1"}, "CartPole-v1"),
        ("Pendulum-v1", {"id": "CartPole-v1"}, "CartPole-v1"),
        ("Pendulum-v1", {"policy": "evil/repo"}, "evil/repo"),
        ("didi_gym/Ant-v0", {}, "didi_gym/Ant-v0"),
        ("gymnasium:didi_gym/Ant-v0", {}, "loads another skill policy"),
        ("..x:Y-v0", {}, "..x:Y-v0"),
        ("a:b:Y-v0", {}, "a:b:Y-v0"),
        ("", {}, "''"),
    ],
)
def test_odd_environments_of_a_config_are_refused_in_one_sentence(env_id, kwargs, named):
    with pytest.raises(ValueError, match=named) as refused:
        make_data_env(policy_of(env_id=env_id, env_kwargs=kwargs))
    assert "\n" not in str(refused.value)


def test_a_window_is_never_opened():
    assert make_data_env(policy_of(env_id="Pendulum-v1", env_kwargs={"render_mode": 5})).render_mode is None


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that leaves a mark when it is imported, and registers an environment."""
    mark = tmp_path / "imported"
    (tmp_path / "evilmodule.py").write_text(
        f"import gymnasium as gym\nopen({str(mark)!r}, 'w').close()\n"
        "from gymnasium.envs.classic_control.pendulum import PendulumEnv\n"
        "gym.register('Evil-v0', entry_point=PendulumEnv)\n"
        "class Wrap(gym.Wrapper): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield mark
    sys.modules.pop("evilmodule", None)
    gym.registry.pop("Evil-v0", None)


def test_a_config_imports_no_module_without_trust(evil):
    policy = policy_of(env_id="evilmodule:Evil-v0")
    with pytest.raises(ValueError, match=r"'evilmodule'.*--trust"):
        make_data_env(policy)
    assert not evil.exists() and "evilmodule" not in sys.modules
    assert make_data_env(policy, trust=True).spec.id == "Evil-v0" and evil.exists()


@pytest.mark.parametrize(
    "spec",
    [
        {"id": "Pendulum-v1", "additional_wrappers": [{"name": "W", "entry_point": "evilmodule:Wrap", "kwargs": {}}]},
        {"id": "Elsewhere-v0", "entry_point": "evilmodule:Evil"},
        {"id": "Pendulum-v1", "entry_point": "evilmodule:Evil"},
    ],
)
def test_a_spec_in_a_config_imports_no_module_without_trust(evil, spec):
    policy = policy_of()
    policy.config = SimpleNamespace(**vars(policy.config) | {"env_spec": spec})
    if spec.get("additional_wrappers") or spec["id"] == "Elsewhere-v0":
        with pytest.raises((ValueError, gym.error.Error), match=r"evilmodule.*--trust"):
            make_data_env(policy)
    else:  # what Gymnasium has registered under an id stands before what the file says
        assert "Pendulum" in str(make_data_env(policy))
    assert not evil.exists()


def test_what_a_file_calls_a_wrapper_must_be_one():
    call = {"name": "W", "entry_point": "gymnasium.wrappers.common:deepcopy", "kwargs": {}}
    spec = env_spec_from_json(json.dumps({"id": "Pendulum-v1", "additional_wrappers": [call]}), "x")
    with pytest.raises(ValueError, match=r"gymnasium\.wrappers\.common:deepcopy is no wrapper"):
        make_data_env(policy_of(), spec=spec)
    assert asks_for_trust("Pendulum-v1", {}, ["gymnasium.envs.registration:make"]) is not None
    assert asks_for_trust("Pendulum-v1", {}, ["gymnasium.wrappers:RescaleObservation"]) is None


def test_wrappers_that_film_are_left_out_and_one_without_arguments_is_named():
    film = {"name": "RecordVideo", "entry_point": "gymnasium.wrappers:RecordVideo", "kwargs": {"video_folder": "/x"}}
    spec = env_spec_from_json(json.dumps({"id": "Pendulum-v1", "additional_wrappers": [film]}), "x")
    assert "RecordVideo" not in str(make_data_env(policy_of(), spec=spec))
    spec.additional_wrappers[0].kwargs = None
    with pytest.raises(ValueError, match="RecordVideo"):
        make_data_env(policy_of(), spec=spec)


class OldStep(gym.Wrapper):
    def step(self, action):
        return self.env.step(action)[:4]


class OldReset(gym.Wrapper):
    def reset(self, **kwargs):
        return self.env.reset(**kwargs)[0]


@pytest.mark.parametrize(("old", "method"), [(OldStep, "step"), (OldReset, "reset")])
def test_rollouts_in_an_environment_of_the_older_gym_name_what_was_expected(old, method):
    env = old(gym.make("Pendulum-v1").unwrapped)
    with pytest.raises(gym.error.Error, match=f"^{method} of Pendulum-v1 must return .*gymnasium.Env.*got"):
        hold_skills(policy_of(), env, skills=2, episodes=1, steps=4, progress=False)


def test_rollouts_through_statistics_that_move_are_refused():
    """Those of the data, with which the policy was trained, are not recorded anywhere."""
    with pytest.raises(ValueError, match="NormalizeObservation inside changes these by statistics"):
        SkillSimulator(random_policy(Layout.flat(3)), gym.wrappers.NormalizeObservation(gym.make("Pendulum-v1")))


def test_an_environment_that_nobody_registered_is_answered_with_what_to_do():
    with pytest.raises(gym.error.UnregisteredEnv, match=r"--env module:Nowhere-v0.*recover_environment"):
        make_data_env(policy_of(env_id="Nowhere-v0"))
