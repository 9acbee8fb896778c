"""make() splits its keyword arguments, and knows where unknown ids come from."""

import sys

import gymnasium as gym
import pytest

from didi_gym.registration import make
from tests.doubles import ScriptedPolicy, install_policies, register_toys


def test_make_splits_wrapper_settings_from_those_of_the_environment():
    register_toys()
    env = make("Toy-v0", ScriptedPolicy(), skill_duration=5, discount=0.9, longest=7, max_episode_steps=4)
    assert (env.skill_duration, env.reward_rule.discount, env.unwrapped.longest) == (5, 0.9, 7)
    assert env.env._max_episode_steps == 4
    env.reset(seed=0)


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


def test_an_id_unknown_everywhere_keeps_gymnasiums_error():
    pytest.importorskip("gymnasium_robotics")
    with pytest.raises(gym.error.NameNotFound, match="Nowhere"):
        make("Nowhere-v0", ScriptedPolicy())


def test_ids_of_gymnasium_robotics_need_no_import():
    pytest.importorskip("gymnasium_robotics")
    with pytest.raises(ValueError, match="cannot read this environment's observations"):
        make("PointMaze_UMaze-v3", ScriptedPolicy())
