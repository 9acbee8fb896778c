"""Behaviour skills do what the behaviours of the data do, by imitation alone and after tuning by DIDI."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from didi_gym.core.skill_space import SkillSpace
from didi_gym.models.policy import SkillPolicy
from didi_gym.training import (
    BehaviourConfig,
    DynamicsConfig,
    PriorConfig,
    Run,
    SkillConfig,
    TrainConfig,
    train,
    train_behaviours,
)
from didi_gym.training.batches import Batches
from didi_gym.training.behaviours import _train_classifier
from tests.examples import SMALL_BEHAVIOURS, gait_dataset

IMITATION = BehaviourConfig(window=24, stride=4, scout_steps=150, steps=500, batch_size=128, smoothing=5)
SKILLS = SkillConfig(skill_space=SkillSpace("discrete", 5), steps=20, batch_size=32, width=64, depth=1)
TUNED = TrainConfig(
    SKILLS,
    replace(IMITATION, tuning_steps=20),
    PriorConfig(steps=60, batch_size=32, width=32, depth=1, diffusion_steps=20),
    DynamicsConfig(steps=60, batch_size=32, width=32, members=2, unroll=3),
    horizon=8,
)


def run_on(dataset, checkpoints=None):
    return Run(dataset, horizon=8, checkpoints=checkpoints, progress=False)


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
    found = train_behaviours(run_on(gait_dataset()[0]), IMITATION, SKILLS)
    assert {0, 1, 2} <= set(behaviours(found.policy))
    assert found.policy.skill_space.size == found.segmentation.skills
    assert found.policy.config.plan_length == 1


def test_the_classifier_knows_the_behaviours_of_unseen_episodes():
    run = run_on(gait_dataset()[0])
    held_out, truth = gait_dataset(seed=1)
    segmentation = train_behaviours(run, replace(IMITATION, steps=1), SKILLS).segmentation
    classifier = _train_classifier(run, IMITATION, SKILLS, segmentation)
    rows = held_out.window_starts(np.arange(0, held_out.num_windows(8), 7), 8)
    batches = Batches(held_out, run.batches.normalizer, torch.device("cpu"))
    states, actions = batches.at(torch.from_numpy(rows), 8)
    told = classifier(states, actions, torch.Generator().manual_seed(0)).argmax(1).numpy()
    best = [np.bincount(truth[rows][told == skill], minlength=3).max(initial=0) for skill in set(told)]
    assert sum(best) / len(rows) > 0.8
    assert not any(p.requires_grad for p in classifier.parameters())


def test_without_tuning_the_policy_is_the_one_that_imitates(tmp_path):
    config = BehaviourConfig(window=24, stride=4, scout_steps=60, steps=80, batch_size=64)
    dataset = gait_dataset(episodes=9)[0]
    policy = train(dataset, replace(TUNED, behaviours=config), tmp_path, held_out=0, progress=False)
    imitation = train_behaviours(run_on(dataset), config, SKILLS).policy
    for name, tensor in imitation.state_dict().items():
        assert torch.equal(tensor, policy.state_dict()[name]), name


def test_tuning_keeps_the_behaviours(tmp_path):
    policy = train(gait_dataset()[0], TUNED, tmp_path, progress=False)
    assert {0, 1, 2} <= set(behaviours(policy))
    loaded = SkillPolicy.from_pretrained(tmp_path)
    plan = loaded.plan(np.zeros((2, 2), np.float32), np.eye(loaded.skill_space.size, dtype=np.float32)[:2])
    assert plan.actions.shape == (2, 8, 2)
    assert plan.observations.shape == (2, 8, 2)


@pytest.mark.parametrize("stage", ["scout", "imitation", "classifier", "skills"])
def test_a_run_that_was_stopped_continues_to_the_same_weights(tmp_path, monkeypatch, stage):
    dataset, config = gait_dataset(episodes=9)[0], replace(TUNED, behaviours=SMALL_BEHAVIOURS)
    whole = train(dataset, config, tmp_path / "whole", progress=False)
    learn = Run.learn

    def stop_after(self, name, *args, **kwargs):
        learned = learn(self, name, *args, **kwargs)
        if name == stage:
            raise KeyboardInterrupt
        return learned

    monkeypatch.setattr(Run, "learn", stop_after)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, config, tmp_path / "stopped", progress=False)
    monkeypatch.setattr(Run, "learn", learn)
    again = train(dataset, config, tmp_path / "stopped", progress=False)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_tuning_can_be_added_without_imitating_again(tmp_path):
    dataset = gait_dataset(episodes=9)[0]
    untuned = replace(TUNED, behaviours=replace(SMALL_BEHAVIOURS, tuning_steps=0))
    train(dataset, untuned, tmp_path, progress=False)
    before = {file.name: file.read_bytes() for file in (tmp_path / "checkpoints").iterdir()}
    assert {"scout.safetensors", "imitation.safetensors"} == before.keys()
    train(dataset, replace(TUNED, behaviours=SMALL_BEHAVIOURS), tmp_path, progress=False)
    assert before.items() <= {file.name: file.read_bytes() for file in (tmp_path / "checkpoints").iterdir()}.items()


def test_without_imitation_discrete_skills_are_planned_whole(tmp_path):
    config = replace(TUNED, behaviours=BehaviourConfig(steps=0))
    policy = train(gait_dataset(episodes=9)[0], config, tmp_path, progress=False)
    assert policy.config.plan_length is None
    assert policy.skill_space.size == 5
