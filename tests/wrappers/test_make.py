"""make() splits its keyword arguments, and knows where unknown ids come from."""

import sys
from pathlib import Path

import gymnasium as gym
import pytest

from didi_gym.sb3 import make_vec_env
from didi_gym.wrappers.make import make, make_vec
from tests.doubles import ScriptedPolicy, ToyEnv, install_policies, register_toys


def test_make_splits_wrapper_settings_from_those_of_the_environment():
    register_toys()
    env = make("Toy-v0", ScriptedPolicy(), skill_duration=5, discount=0.9, longest=7, max_episode_steps=4)
    assert (env.skill_duration, env.reward_rule.discount, env.unwrapped.longest) == (5, 0.9, 7)
    assert env.env._max_episode_steps == 4
    env.reset(seed=0)


class NeedyEnv(ToyEnv):
    """Has arguments of the names of settings of the wrapper."""

    def __init__(self, device="env's own", reward="env's own", longest=20):
        super().__init__(longest)
        self.device, self.reward = device, reward


@pytest.fixture
def needy():
    gym.register("Needy-v0", entry_point="tests.wrappers.test_make:NeedyEnv")
    yield "Needy-v0"
    del gym.registry["Needy-v0"]


FACTORIES = [make, make_vec, make_vec_env]


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("form", [str, gym.spec, lambda _: NeedyEnv], ids=["id", "spec", "class"])
def test_an_argument_that_the_environment_has_too_is_refused(factory, form, needy):
    with pytest.raises(TypeError, match=r"device.*env_kwargs"):
        factory(form(needy), ScriptedPolicy(), device="cpu")


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda f: f.__name__)
def test_env_kwargs_reach_the_environment_whatever_their_names(factory, needy):
    own = {"device": "theirs", "reward": "shaped", "longest": 7}
    env = factory(needy, ScriptedPolicy(), env_kwargs=own, device="cpu", discount=0.9)
    low = env if factory is make else env.unwrapped.envs[0]
    assert (low.unwrapped.device, low.unwrapped.reward, low.unwrapped.longest) == ("theirs", "shaped", 7)
    env.close()


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda f: f.__name__)
def test_an_argument_given_twice_is_refused(factory, needy):
    with pytest.raises(TypeError, match="longest"):
        factory(needy, ScriptedPolicy(), env_kwargs={"longest": 7}, longest=8)


def test_specs_keep_env_kwargs(needy, monkeypatch):
    install_policies(monkeypatch, toy=ScriptedPolicy(name_or_path="toy"))
    own = {"device": "theirs", "longest": 7}
    envs = make_vec(needy, "toy", num_envs=2, env_kwargs=own)
    again = gym.make_vec(gym.envs.registration.EnvSpec.from_json(envs.spec.to_json()))
    assert [env.unwrapped.device for env in again.unwrapped.envs] == ["theirs", "theirs"]
    single = gym.make(make_vec_env(needy, "toy", env_kwargs=own).get_attr("spec")[0])
    assert (single.unwrapped.device, single.unwrapped.longest) == ("theirs", 7)


def test_make_takes_a_policy_by_name(monkeypatch):
    register_toys()
    asked = install_policies(monkeypatch, toy=ScriptedPolicy(name_or_path="toy"))
    make("Toy-v0", "toy", device="cpu")
    assert asked == [("toy", "cpu")]


def test_make_closes_the_environment_where_the_policy_does_not_fit(monkeypatch):
    register_toys()
    closed = []
    monkeypatch.setattr("tests.doubles.ToyEnv.close", lambda self: closed.append(self))
    with pytest.raises(ValueError, match="replan_every"):
        make("Toy-v0", ScriptedPolicy(), replan_every=99)
    assert len(closed) == 1


def test_an_unknown_id_names_the_extra_where_gymnasium_robotics_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    with pytest.raises(gym.error.UnregisteredEnv, match=r"'Nowhere-v0' is .*pip install 'didi-gym\[envs\]'"):
        make("Nowhere-v0", ScriptedPolicy())


def _fails(error):
    def make_it():
        raise error

    return make_it


def test_a_missing_mujoco_names_the_versions_that_work():
    missing = gym.error.DependencyNotInstalled('MuJoCo is not installed, run `pip install "gymnasium[mujoco]"`')
    with pytest.raises(
        gym.error.DependencyNotInstalled, match=r"\(mujoco>=3.3,<3.12\): pip install 'didi-gym\[envs\]'"
    ):
        make(_fails(missing), ScriptedPolicy())
    with pytest.raises(gym.error.DependencyNotInstalled, match=r"^box2d is missing$"):
        make(_fails(gym.error.DependencyNotInstalled("box2d is missing")), ScriptedPolicy())


def test_a_mujoco_past_the_cap_is_named_where_an_environment_fails(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda _: "4.0.0")
    with pytest.raises(gym.error.Error, match=r"mujoco 4.0.0 is installed, .*expected mujoco>=3.3,<3.12"):
        make(_fails(AssertionError()), ScriptedPolicy())
    monkeypatch.setattr("importlib.metadata.version", lambda _: "3.11.2")
    with pytest.raises(AssertionError, match=r"^its own$"):
        make(_fails(AssertionError("its own")), ScriptedPolicy())


def test_the_versions_of_mujoco_are_those_of_the_extra():
    from didi_gym.wrappers.make import MUJOCO

    assert f'"mujoco{MUJOCO}"' in (Path(__file__).parents[2] / "pyproject.toml").read_text()


def test_an_id_unknown_everywhere_keeps_gymnasiums_error():
    pytest.importorskip("gymnasium_robotics")
    with pytest.raises(gym.error.NameNotFound, match="Nowhere"):
        make("Nowhere-v0", ScriptedPolicy())


def test_ids_of_gymnasium_robotics_need_no_import():
    pytest.importorskip("gymnasium_robotics")
    with pytest.raises(ValueError, match="cannot read this environment's observations"):
        make("PointMaze_UMaze-v3", ScriptedPolicy())
