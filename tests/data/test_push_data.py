import builtins
import json
from typing import Any

import numpy as np
import pytest

from didi_gym.core.layout import Layout
from didi_gym.core.schema import from_dict
from didi_gym.data.dataset import TrajectoryDataset
from didi_gym.data.generators import push
from didi_gym.data.generators.parallel import ordered_map
from didi_gym.data.generators.push import APPROACHES, DIRECTIONS, Push, Pusher, collect_push, push_about, push_layout

HAND, BLOCK = np.array([1.3, 0.75, 0.42]), np.array([1.4, 0.75, 0.42])


def test_skills_are_told_by_the_block_and_the_policy_does_not_read_where_on_the_table_it_is() -> None:
    layout = push_layout()
    assert layout.features == (3, 4) and layout.relative == (0, 1, 3, 4)
    assert layout.state_dim == 26  # the yaw of the block is a cosine and a sine
    assert len(layout.policy_inputs) == 22 and not set(layout.relative) & set(layout.policy_inputs)


def test_a_hand_behind_the_block_pushes_it_ahead() -> None:
    pusher = Pusher(Push(0, 0, 0.0, 0.1, 0.7, 0.0, 0.0), BLOCK)
    np.testing.assert_allclose(pusher.act(BLOCK - [0.07, 0, 0], BLOCK), [0.7, 0, 0], atol=1e-9)
    assert not pusher.done(BLOCK + [0.09, 0, 0]) and pusher.done(BLOCK + [0.11, 0, 0])


def test_each_approach_leaves_for_its_own_side() -> None:
    moves = {a: Pusher(Push(4, i, np.pi, 0.1, 0.7, 0.0, 0.0), BLOCK).act(HAND, BLOCK) for i, a in enumerate(APPROACHES)}
    assert moves["counterclockwise"][1] < -0.5 and moves["clockwise"][1] > 0.5  # the hand is on the block's -x side
    assert moves["over"][2] > 0.5


def test_a_push_does_not_lead_off_the_table() -> None:
    rng, corner = np.random.default_rng(0), np.array([1.48, 1.0, 0.42])
    assert {Push.draw(corner, rng).direction for _ in range(100)} <= {4, 5, 6}  # back, or to the right
    assert {Push.draw(np.array([1.32, 0.75, 0.42]), rng).direction for _ in range(200)} == set(range(8))


def test_without_gymnasium_robotics_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_robotics(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "gymnasium_robotics":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_robotics)
    with pytest.raises(ImportError, match=r"didi-gym\[envs\]"):
        push._env.__wrapped__()


def test_a_collected_data_set_says_what_it_holds_and_gives_its_environment_back() -> None:
    pytest.importorskip("gymnasium_robotics")
    dataset = collect_push("didi/push-test-v0", steps=250, processes=1, progress=False)
    assert dataset.total_steps == 250
    for episode, labels in zip(
        dataset.iterate_episodes(), dataset.storage.get_episode_metadata(range(dataset.total_episodes)), strict=True
    ):
        assert set(episode.observations) == {"achieved_goal", "desired_goal", "observation"}
        assert all(np.isfinite(array).all() for array in episode.observations.values())
        assert np.abs(episode.actions).max() <= 1 and not episode.actions[:, 3].any()
        assert labels["direction"] == episode.infos["direction"][0] in range(8)
        assert labels["approach"] == episode.infos["approach"][0] in range(3)
        assert len(episode.infos["direction"]) == len(episode.actions) + 1
    assert from_dict(Layout, json.loads(dataset.storage.metadata["didi_gym_layout"])) == push_layout()
    assert TrajectoryDataset.from_minari("didi/push-test-v0").layout.features == (3, 4)
    env = dataset.recover_environment()
    assert env.spec.id == "FetchPush-v4" and env.spec.max_episode_steps == push.EPISODE_STEPS


def test_the_same_seed_collects_the_same_pushes_in_one_process_or_two() -> None:
    pytest.importorskip("gymnasium_robotics")
    alone = push_about(5, steps=450)
    with ordered_map(2) as run:
        together = push_about(5, steps=450, run=run)
    other = push_about(6, steps=100)
    for one, two in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.actions, two.actions)
        np.testing.assert_array_equal(one.infos["direction"], two.infos["direction"])
        np.testing.assert_array_equal(one.observations["observation"], two.observations["observation"])
    assert not np.array_equal(alone[0].actions[:100], other[0].actions)


def test_pushes_move_the_block_in_the_direction_of_their_label() -> None:
    pytest.importorskip("gymnasium_robotics")
    turned = []
    for episode in push_about(0, steps=2_500):
        place, what = episode.observations["observation"][:, 3:5], np.array(list(episode.infos.values()))[:, :-1]
        change = np.diff(place, axis=0)
        begun = np.flatnonzero(np.diff(what, axis=1).any(0)) + 1
        moving = np.linalg.norm(change, axis=1) > 0.005  # m in a step: it is being pushed,
        moving[(begun[:, None] + np.arange(3)).ravel().clip(max=len(moving) - 1)] = False  # and not by the last push
        turned.append(np.arctan2(change[:, 1], change[:, 0])[moving] - DIRECTIONS[what[0, moving]])
    error = np.abs(np.angle(np.exp(1j * np.concatenate(turned))))
    assert len(error) > 300 and np.median(error) < np.pi / 15 and (error < np.pi / 4).mean() > 0.9
