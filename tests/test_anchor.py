"""Skills anchored in the data do what the behaviours of the data do, alone and under the joint objective."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from didi_gym.anchor import train_anchor
from didi_gym.config import AnchorConfig, DynamicsConfig, PriorConfig, SkillConfig
from didi_gym.loops import Batches
from didi_gym.policy import SkillPolicy
from didi_gym.skills import SkillSpace
from didi_gym.training import TrainConfig, train
from tests.examples import SMALL_ANCHOR, gait_dataset


def settings(**changes):
    anchor = {"window": 24, "stride": 4, "scout_steps": 150, "steps": 500, "batch_size": 128, "smoothing": 5}
    anchor["tuning_steps"] = 20
    return SkillConfig(
        **{
            "horizon": 8,
            "skill_space": SkillSpace("discrete", 5),
            "anchor": AnchorConfig(**anchor),
            "steps": 20,
            "batch_size": 32,
            "width": 64,
            "depth": 1,
            **changes,
        }
    )


def behaviours(policy: SkillPolicy) -> list[int]:
    """Which behaviour each skill shows when held for 80 steps from a place in the middle."""
    shown = []
    for skill in np.eye(policy.skill_space.size, dtype=np.float32):
        position, turned = np.array([0.8, 0.3]), []
        for _ in range(80):
            action = policy.act(position[None].astype(np.float32), skill[None])[0]
            turned.append(np.cross(np.append(position, 0), np.append(action, 0))[2])
            position = position + 0.2 * action
        at_goal = np.linalg.norm(position - [3, 0]) < 0.5
        around = abs(np.linalg.norm(position) - 1) < 0.5
        shown.append(2 if at_goal else int(np.mean(turned[40:]) < 0) if around else -1)
    return shown


def test_every_behaviour_is_recovered_without_labels():
    anchored = train_anchor(gait_dataset()[0], settings(), horizon=8, progress=False)
    assert {0, 1, 2} <= set(behaviours(anchored.policy))
    assert anchored.policy.skill_space.size == anchored.assignment.skills
    assert anchored.policy.config.plan_length == 1


def test_the_classifier_knows_the_behaviours_of_unseen_episodes():
    dataset = gait_dataset()[0]
    held_out, truth = gait_dataset(seed=1)
    anchored = train_anchor(dataset, settings(), horizon=8, progress=False)
    rows = held_out.window_starts(np.arange(0, held_out.num_windows(8), 7), 8)
    batches = Batches(held_out, anchored.policy.normalizer, torch.device("cpu"))
    states, actions = batches.at(torch.from_numpy(rows), 8)
    told = anchored.classifier(states, actions, torch.Generator().manual_seed(0)).argmax(1).numpy()
    best = [np.bincount(truth[rows][told == skill], minlength=3).max(initial=0) for skill in set(told)]
    assert sum(best) / len(rows) > 0.8
    assert not any(p.requires_grad for p in anchored.classifier.parameters())


def small(skills):
    prior = PriorConfig(steps=60, batch_size=32, width=32, depth=1, diffusion_steps=20)
    return TrainConfig(skills, prior, DynamicsConfig(steps=60, batch_size=32, width=32, members=2, unroll=3))


def test_without_tuning_the_policy_is_as_anchored(tmp_path):
    config = settings(anchor=AnchorConfig(window=24, stride=4, scout_steps=60, steps=80, batch_size=64))
    dataset = gait_dataset(episodes=9)[0]
    policy = train(dataset, small(config), tmp_path, progress=False)
    anchored = train_anchor(dataset, config, horizon=8, progress=False).policy
    for name, tensor in anchored.state_dict().items():
        assert torch.equal(tensor, policy.state_dict()[name]), name


def test_the_joint_objective_keeps_what_is_anchored(tmp_path):
    policy = train(gait_dataset()[0], small(settings()), tmp_path, progress=False)
    assert {0, 1, 2} <= set(behaviours(policy))
    loaded = SkillPolicy.from_pretrained(tmp_path)
    plan = loaded.plan(np.zeros((2, 2), np.float32), np.eye(loaded.skill_space.size, dtype=np.float32)[:2])
    assert plan.actions.shape == (2, 8, 2)
    assert plan.observations.shape == (2, 8, 2)


def test_a_run_that_was_stopped_continues_to_the_same_weights(tmp_path, monkeypatch):
    dataset, config = gait_dataset(episodes=9)[0], small(settings())
    whole = train(dataset, config, tmp_path / "whole", progress=False)
    import didi_gym.anchor as module

    calls = []
    imitate = module._imitate

    def stop_after_the_scout(stage, *args):
        calls.append(stage)
        if stage == "anchor" and len(calls) == 2:
            raise KeyboardInterrupt
        return imitate(stage, *args)

    monkeypatch.setattr(module, "_imitate", stop_after_the_scout)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, config, tmp_path / "stopped", progress=False)
    again = train(dataset, config, tmp_path / "stopped", progress=False)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_what_was_anchored_can_be_tuned_without_being_anchored_again(tmp_path):
    dataset, untuned = gait_dataset(episodes=9)[0], settings(anchor=replace(SMALL_ANCHOR, tuning_steps=0))
    train_anchor(dataset, untuned, horizon=8, checkpoints=tmp_path, progress=False)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert {"scout.safetensors", "anchor.safetensors", "classifier.safetensors"} <= before.keys()
    train_anchor(dataset, settings(anchor=SMALL_ANCHOR), horizon=8, checkpoints=tmp_path, progress=False)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_without_an_anchor_discrete_skills_are_planned_whole(tmp_path):
    config = settings(anchor=AnchorConfig(steps=0))
    policy = train(gait_dataset(episodes=9)[0], small(config), tmp_path, progress=False)
    assert policy.config.plan_length is None
    assert policy.skill_space.size == 5
