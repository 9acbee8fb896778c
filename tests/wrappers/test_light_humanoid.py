"""The registered humanoid: its masses, and that it is Humanoid-v5 in everything else."""

import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from didi_gym.core.environments import LIGHT_HUMANOID, asks_for_trust
from didi_gym.wrappers.ids import BODIES, REGISTERED

mujoco = pytest.importorskip("mujoco")
WHOLE = {f"include_{part}_in_observation": True for part in ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")}


def walk(env, steps=20):
    observations = [env.reset(seed=3)[0]]
    env.action_space.seed(0)
    observations += [env.step(env.action_space.sample())[0] for _ in range(steps)]
    env.close()
    return np.array(observations)


def test_a_capsule_weighs_what_mujoco_1_gave_it():
    from didi_gym.wrappers.humanoid import light_capsule

    assert light_capsule(0.06, 0.12) == pytest.approx(1000 * np.pi * 0.06**2 * 0.18)  # 2.036 kg, the waist
    model = gym.make(LIGHT_HUMANOID).unwrapped.model
    assert model.body("lwaist").mass[0] == pytest.approx(2.036, abs=5e-4)
    # two capsules and the head, a sphere of 9 cm, as in the inertias that the gaits' authors recorded
    assert model.body("torso").mass[0] == pytest.approx(8.322, abs=5e-4)


def test_every_capsule_and_nothing_else_is_lighter_than_in_gymnasium():
    light, stock = (gym.make(name).unwrapped.model for name in (LIGHT_HUMANOID, "Humanoid-v5"))
    capsules = {light.geom_bodyid[i] for i in range(light.ngeom) if light.geom_type[i] == mujoco.mjtGeom.mjGEOM_CAPSULE}
    for body in range(light.nbody):
        expected = stock.body_mass[body]
        for geom in np.flatnonzero(light.geom_bodyid == body):
            if light.geom_type[geom] == mujoco.mjtGeom.mjGEOM_CAPSULE:
                expected -= 1000 * np.pi * light.geom_size[geom, 0] ** 3 / 3  # 4/3 r in place of r
        assert light.body_mass[body] == pytest.approx(expected, rel=1e-9)
        assert (light.body_inertia[body] < stock.body_inertia[body]).all() == (body in capsules)
    for name in ("geom_size", "geom_pos", "jnt_range", "dof_damping", "actuator_gear", "body_pos", "qpos0"):
        np.testing.assert_array_equal(getattr(light, name), getattr(stock, name))


def test_observations_have_45_numbers_with_the_position_47_and_with_all_parts_as_many_as_gymnasiums():
    shapes = [
        gym.make(LIGHT_HUMANOID, **kwargs).observation_space.shape[0]
        for kwargs in ({}, {"exclude_current_positions_from_observation": False}, WHOLE)
    ]
    assert shapes == [45, 47, gym.make("Humanoid-v5").observation_space.shape[0]]
    np.testing.assert_array_equal(walk(gym.make(LIGHT_HUMANOID, **WHOLE))[:, :45], walk(gym.make(LIGHT_HUMANOID)))


def test_it_passes_both_checkers_and_repeats_itself_through_specs_and_pickles():
    env = gym.make(f"didi_gym:{LIGHT_HUMANOID}", max_episode_steps=7, healthy_z_range=(0.5, 2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version")
        warnings.filterwarnings("ignore", message=".*infinity|.*(normalize|symmetric)")  # as of Humanoid-v5
        check_env(env, skip_render_check=True)
        sb3_check_env(env)
    first = walk(env, steps=5)
    for twin in (
        gym.make(env.spec),
        gym.make(EnvSpec.from_json(env.spec.to_json())),
        pickle.loads(pickle.dumps(env)),
    ):
        np.testing.assert_array_equal(walk(twin, steps=5), first)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_many_of_them_do_as_one_does(mode):
    envs = gym.make_vec(LIGHT_HUMANOID, 2, vectorization_mode=mode)
    one = gym.make(LIGHT_HUMANOID)
    many, alone = envs.reset(seed=5)[0], one.reset(seed=6)[0]
    np.testing.assert_array_equal(many[1], alone)
    action = np.full((2, 17), 0.1, np.float32)
    np.testing.assert_array_equal(envs.step(action)[0][1], one.step(action[1])[0])
    envs.close()


def test_a_model_of_ones_own_is_lightened_too(tmp_path):
    stock = gym.make("Humanoid-v5").unwrapped.fullpath
    own = tmp_path / "own.xml"
    with open(stock) as text:
        own.write_text(text.read().replace('name="lwaist" size="0.06"', 'name="lwaist" size="0.05"'))
    model = gym.make(LIGHT_HUMANOID, xml_file=str(own)).unwrapped.model
    assert model.body("lwaist").mass[0] == pytest.approx(1000 * np.pi * 0.05**2 * 0.17)


def test_a_file_may_name_a_body_of_ours_but_no_environment_that_loads_a_policy():
    assert all(asks_for_trust(name, {}) is None for name in BODIES)
    assert all("loads another skill policy" in asks_for_trust(name, {}) for name in REGISTERED)
    assert "loads another" in asks_for_trust(LIGHT_HUMANOID, {"policy": "owner/name"})
    assert "imports the module" in asks_for_trust(f"didi_gym:{LIGHT_HUMANOID}", {})
