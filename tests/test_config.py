import json
import re
from dataclasses import replace

import pytest

from didi_gym.config import PolicyConfig, UNetConfig
from didi_gym.decoding import from_dict, to_dict
from didi_gym.discriminator import Discriminator
from didi_gym.layout import Heading, Layout, ObservationSource
from didi_gym.skills import SkillSpace
from didi_gym.training import BehaviourConfig, DynamicsConfig, PriorConfig, SkillConfig, TrainConfig
from tests.examples import BODY, random_policy


@pytest.mark.parametrize("config", [SkillConfig(), PriorConfig(), TrainConfig(), random_policy().config, BODY])
def test_a_config_survives_json(config):
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


def test_a_whole_number_too_large_for_a_float_is_refused_in_words():
    with pytest.raises(ValueError, match="learning_rate: int too large"):
        from_dict(DynamicsConfig, {"learning_rate": 10**400})


def test_a_config_written_before_there_were_u_nets_means_an_mlp():
    old = {name: value for name, value in _changed().items() if name not in ("network", "unet")}
    assert from_dict(PolicyConfig, old) == random_policy().config and random_policy().config.network == "mlp"


def _changed(**changes):
    return {**json.loads(json.dumps(to_dict(random_policy().config))), **changes}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (_changed(extra=1), "unknown key(s) extra"),
        ({k: v for k, v in _changed().items() if k != "layout"}, "missing key(s) layout"),
        (_changed(horizon="8"), "horizon: expected int, got '8'"),
        (_changed(horizon=True), "horizon: expected int, got True"),
        (_changed(horizon=10**30), "horizon must be in [1, 10000], got 1000000000000000000000000000000"),
        (_changed(consistency="magic"), "consistency: expected one of 'dynamics', 'joint'"),
        (_changed(skill_space={"kind": "torus", "size": 2}), "skill_space.kind: expected one of"),
        (_changed(skill_space={"kind": "ball", "size": 0}), "skill_space: skill space: a ball needs size >= 1, got 0"),
        (_changed(skill_space=3), "skill_space: expected a mapping, got 3"),
        (_changed(layout={**to_dict(BODY), "relative": 5}), "layout.relative: expected a list"),
        (
            _changed(layout={**to_dict(BODY), "heading": {"quaternion": [1, 2], "vectors": []}}),
            "expected 4 items, got 2",
        ),
        (_changed(env_kwargs=[]), "env_kwargs: expected a mapping"),
        ([], "PolicyConfig: expected a mapping"),
    ],
)
def test_decoding_is_strict_and_names_the_place(data, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        from_dict(PolicyConfig, data)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"policy_inputs": (2, 3, 4, 5, 6, 9)}, "policy_inputs"),
        ({"features": ()}, "at least one"),
        ({"features": (0, 0)}, "distinct"),
        ({"policy_inputs": (0, 2, 3, 4, 5, 6, 7)}, "relative to a trajectory's first state"),
        ({"policy_inputs": (2, 3, 4, 5, 6)}, "as a whole"),
        ({"relative": (0,), "policy_inputs": (2, 3, 4, 5, 6, 7)}, "as a whole"),
        ({"heading": None, "relative": (0,)}, "read by the policy or be relative"),
        ({"sources": (ObservationSource(4, (0, 1)),)}, "selects 2 numbers, the policy reads 6"),
        ({"state_source": ObservationSource(4, (0, 1))}, "state_source must select 8"),
        ({"heading": Heading((0, 3, 4, 5), ())}, "must read the heading's quaternion"),
    ],
)
def test_a_layout_that_contradicts_itself_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(BODY, **changes)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PriorConfig(steps=0), "steps must be positive"),
        (lambda: PriorConfig(ema_decay=1.5), "ema_decay must be in"),
        (lambda: PriorConfig(diffusion_steps=1), "at least 2"),
        (lambda: UNetConfig(channels=0), "channels must be in"),
        (lambda: UNetConfig(multipliers=()), "multipliers must be 1 to 8 numbers"),
        (lambda: TrainConfig(horizon=1), "horizon"),
        (lambda: BehaviourConfig(merge_ratio=0.5), "merge_ratio"),
        (lambda: SkillConfig(feature_times=0), "feature_times"),
        (lambda: Discriminator(Layout.flat(2), 2, horizon=8, times=8), "feature_times"),
        (lambda: SkillConfig(noise_range=(0.7, 0.1)), "noise_range"),
        (lambda: SkillConfig(guidance_weight=-1), "guidance_weight must not be negative"),
        (lambda: replace(random_policy().config, replan_every=9), "exceeds the 8 actions of a plan"),
        (lambda: replace(random_policy().config, skill_space=SkillSpace("box", 2)), "ball or"),
        (lambda: ObservationSource(3, (3,)), "must lie in 0..2"),
        (lambda: ObservationSource(3, ()), "not be empty"),
        (lambda: replace(random_policy().config, width=10**9), r"width must be in \[1, 8192\], got 1000000000"),
        (lambda: replace(random_policy().config, horizon=10**9), r"horizon must be in \[1, 10000\]"),
        (
            lambda: replace(random_policy().config, skill_space=SkillSpace("ball", 10**9)),
            r"size must be in \[1, 1024\]",
        ),
        (lambda: Layout(10**9, (0,), (0,)), r"state_dim must be in \[1, 4096\]"),
        (lambda: ObservationSource(10**9, (0,)), "size must be in"),
        (lambda: DynamicsConfig(members=10**9), r"members must be in \[1, 256\]"),
        (lambda: PriorConfig(diffusion_steps=10**9), "diffusion_steps must be in"),
    ],
)
def test_settings_out_of_range_are_refused_at_construction(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_flat_layout_reads_and_judges_everything():
    layout = Layout.flat(3, ("a",))
    assert layout.policy_inputs == layout.features == (0, 1, 2)
    assert layout.sources == (ObservationSource(3, (0, 1, 2), ("a",)),) and layout.state_source == layout.sources[0]
