import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from datetime import date

import pytest

from didi_gym.core.layout import Heading, Layout, LayoutChoice, ObservationSource
from didi_gym.core.schema import from_dict, to_dict
from didi_gym.core.skill_space import SkillSpace
from didi_gym.data.generators.agents import agents_layout
from didi_gym.models.config import PolicyConfig, UNetConfig
from didi_gym.models.discriminator import Discriminator
from didi_gym.training import BehaviourConfig, DynamicsConfig, PriorConfig, SkillConfig, TrainConfig
from tests.examples import BODY, DISC, random_policy


@pytest.mark.parametrize("config", [SkillConfig(), PriorConfig(), TrainConfig(), random_policy().config, BODY])
def test_a_config_survives_json(config):
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


def test_a_whole_number_too_large_for_a_float_is_refused_in_words():
    with pytest.raises(ValueError, match=r"^learning_rate: "):
        from_dict(DynamicsConfig, {"learning_rate": 10**400})


def test_a_config_written_before_there_were_u_nets_means_an_mlp():
    old = {name: value for name, value in _changed().items() if name not in ("network", "unet")}
    assert from_dict(PolicyConfig, old) == random_policy().config and random_policy().config.network == "mlp"


def test_a_config_written_before_there_was_an_action_range_means_the_bounds():
    old = {name: value for name, value in _changed().items() if name not in ("action_range", "env_spec")}
    assert from_dict(PolicyConfig, old) == random_policy().config and random_policy().config.action_range is None


def _changed(**changes):
    return {**json.loads(json.dumps(to_dict(random_policy().config))), **changes}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (_changed(extra=1), "extra: "),
        (_changed(layout={**to_dict(BODY), "extra": 1}), "layout.extra: "),
        ({k: v for k, v in _changed().items() if k != "layout"}, "layout: "),
        (_changed(horizon="8"), "horizon: .*, got '8'"),
        (_changed(horizon=True), "horizon: .*, got True"),
        (_changed(horizon=8.0), "horizon: .*, got 8.0"),
        (_changed(horizon=10**30), "horizon: .*10000, got 1000000000000000000000000000000"),
        (_changed(discrete_actions=0), "discrete_actions: .*, got 0"),
        (_changed(consistency="magic"), "consistency: .*'dynamics' or 'joint', got 'magic'"),
        (_changed(skill_space={"kind": "torus", "size": 2}), r"skill_space\.kind: .*got 'torus'"),
        (_changed(skill_space={"kind": "ball", "size": 0}), r"skill_space\.size .*got 0"),
        (_changed(skill_space={"kind": "ball", "size": "2"}), r"skill_space\.size: .*got '2'"),
        (_changed(skill_space=3), "skill_space: .*, got 3"),
        (_changed(layout={**to_dict(BODY), "relative": 5}), r"layout\.relative: .*, got 5"),
        (_changed(layout={**to_dict(BODY), "relative": [0, "1"]}), r"layout\.relative\[1\]: .*, got '1'"),
        (_changed(layout={**to_dict(BODY), "features": [0, 0]}), r"layout\.features .*distinct"),
        (
            _changed(layout={**to_dict(BODY), "heading": {"quaternion": [1, 2], "vectors": []}}),
            r"layout\.heading\.q",
        ),
        (_changed(action_range=[[0.0, 0.0], [1.0, 1.0]]), "PolicyConfig: action_range: .*3 lowest.*got 2 and 2"),
        (_changed(action_range=[[0.0] * 3, [1.0, 1.0, -1.0]]), "PolicyConfig: action_range: "),
        (
            _changed(action_range=[[0.0] * 3, [1.0] * 3], discrete_actions=True),
            "PolicyConfig: action_range: .*discrete",
        ),
        (_changed(action_range=[[0.0] * 3, [1.0, 1.0, "1"]]), r"action_range\[1\]\[2\]: "),
        (_changed(env_spec="x" * 100_001), "env_spec: "),
        (_changed(env_kwargs=[]), r"env_kwargs: .*, got \[\]"),
        (_changed(env_kwargs={"day": date(2026, 1, 1)}), "PolicyConfig: .*JSON"),
        (_changed(env_kwargs="x" * 10**5), "env_kwargs: .*got 'xx"),
        ([], r"PolicyConfig: .*, got \[\]"),
    ],
)
def test_decoding_is_strict_and_names_the_place(data, words):
    with pytest.raises(ValueError, match=f"^{words}") as raised:
        from_dict(PolicyConfig, data)
    message = str(raised.value)
    assert message.isprintable() and len(message) < 600 and "pydantic" not in message


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
        ({"heading": Heading((0, 3, 4, 5), ())}, "heading.*must read its quaternion"),
    ],
)
def test_a_layout_that_contradicts_itself_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(BODY, **changes)


@pytest.mark.parametrize(
    ("heading", "words"),
    [
        (Heading(angle=(0, 3), vectors=((6, 7),)), "heading.*must read its angle"),
        (Heading(angle=(2, 9)), r"heading .*distinct indices in 0\.\.7"),
        (Heading((2, 3, 4, 5), angle=(6, 7)), "either a quaternion or an angle"),
        (Heading(vectors=((6, 7),)), "either a quaternion or an angle"),
    ],
)
def test_a_heading_has_one_orientation_that_the_policy_reads(heading, words):
    with pytest.raises(ValueError, match=words):
        replace(BODY, heading=heading)


OBSERVED = ObservationSource(5, (0, 1, 2, 3, 4))


def test_chosen_columns_make_the_layout_that_one_would_write():
    assert LayoutChoice().complete(OBSERVED) == replace(Layout.flat(5), sources=(OBSERVED,), state_source=OBSERVED)
    chosen = LayoutChoice(features=(0, 1), relative=(0, 1), heading_angle=(2,), heading_vectors=((0, 1), (3, 4)))
    assert chosen.complete(OBSERVED) == DISC
    pair = LayoutChoice(heading_angle=(2, 3), heading_vectors=((0, 1),)).complete(OBSERVED)
    assert pair.heading == Heading(angle=(2, 3), vectors=((0, 1),)) and pair.state_dim == 5
    assert LayoutChoice(features=(1,), angles=(1, 2)).complete(OBSERVED).features == (1, 5)
    kept = ObservationSource(9, (8, 6, 4), ("a", "b"))
    assert LayoutChoice(relative=(1,)).complete(kept).sources == (ObservationSource(9, (8, 4), ("a", "b")),)


@pytest.mark.parametrize("known", [BODY, DISC, agents_layout(9, 1, (0,)), agents_layout(9, 2)])
def test_what_is_not_chosen_stays_as_the_data_set_says(known):
    source = replace(known.state_source, angles=())
    assert LayoutChoice().complete(source, known) == known
    assert LayoutChoice(features=(3,)).complete(source, known) == replace(known, features=(3,))
    turned = LayoutChoice(features=(0,), angles=(3, 4), heading_vectors=(), heading_angle=()).complete(source, known)
    assert [one.size for one in turned.sources] == [one.size for one in known.sources]  # in both forms still


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"features": (5,)}, "features names column 5, .* 0 to 4"),
        ({"heading_vectors": ((3, 7),)}, "heading_vectors names column 7"),
        ({"features": (1, 1)}, "features .*distinct"),
        ({"relative": (2,), "angles": (2,)}, "column 2 .*angle and as relative"),
        ({"heading_angle": (2,)}, "heading_vectors"),
        ({"heading_vectors": ((3, 4),)}, "heading_angle or heading_quaternion"),
        ({"heading_angle": (0, 1, 2), "heading_vectors": ((3, 4),)}, "heading_angle names one column, or two, got 3"),
        ({"heading_angle": (2,), "heading_quaternion": (0, 1, 2, 3), "heading_vectors": ((3, 4),)}, "not both"),
        ({"relative": (0,), "heading_angle": (2,), "heading_vectors": ((0, 1),)}, "as a whole"),
    ],
)
def test_columns_that_cannot_be_chosen_are_named(choice, words):
    with pytest.raises(ValueError, match=words):
        LayoutChoice(**choice).complete(OBSERVED)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PriorConfig(steps=0), "steps: .*, got 0"),
        (lambda: PriorConfig(ema_decay=1.5), "ema_decay: .*, got 1.5"),
        (lambda: PriorConfig(learning_rate=float("inf")), "learning_rate: .*, got inf"),
        (lambda: PriorConfig(batch_size=8.5), "batch_size: .*, got 8.5"),
        (lambda: PriorConfig(diffusion_steps=1), "diffusion_steps: .*, got 1"),
        (lambda: UNetConfig(channels=0), "channels: .*, got 0"),
        (lambda: UNetConfig(multipliers=()), r"multipliers: .*, got \(\)"),
        (lambda: UNetConfig(multipliers=(1, 0)), r"multipliers\[1\]: .*, got 0"),
        (lambda: TrainConfig(horizon=1), "horizon: .*, got 1"),
        (lambda: BehaviourConfig(merge_ratio=0.5), "merge_ratio: .*, got 0.5"),
        (lambda: BehaviourConfig(window=11), "window: .*, got 11"),
        (lambda: SkillConfig(feature_times=0), "feature_times: .*, got 0"),
        (lambda: Discriminator(Layout.flat(2), 2, horizon=8, times=8), "feature_times"),
        (lambda: SkillConfig(noise_range=(0.7, 0.1)), "noise_range"),
        (lambda: SkillConfig(guidance_weight=-1), "guidance_weight: .*, got -1"),
        (lambda: SkillConfig(plans=()), r"plans: .*, got \(\)"),
        (lambda: replace(random_policy().config, replan_every=9), "replan_every 9 exceeds the 8 actions of a plan"),
        (lambda: replace(random_policy().config, skill_space=SkillSpace("box", 2)), "ball or"),
        (lambda: ObservationSource(3, (3,)), "must lie in 0..2"),
        (lambda: ObservationSource(3, ()), "not be empty"),
        (lambda: replace(random_policy().config, width=10**9), "width: .*8192, got 1000000000"),
        (lambda: replace(random_policy().config, horizon=10**9), "horizon: .*10000, got 1000000000"),
        (lambda: SkillSpace("ball", 10**9), r"skill_space\.size .*1024, got 1000000000"),
        (lambda: Layout(10**9, (0,), (0,)), r"layout\.state_dim .*4096, got 1000000000"),
        (lambda: ObservationSource(10**9, (0,)), "size must be in"),
        (lambda: DynamicsConfig(members=10**9), "members: .*256, got 1000000000"),
        (lambda: PriorConfig(diffusion_steps=10**9), "diffusion_steps: .*100000, got 1000000000"),
    ],
)
def test_settings_out_of_range_are_refused_at_construction(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_settings_are_records_that_can_be_hashed_copied_and_pickled():
    config = SkillConfig(noise_range=(0, 1), unet=UNetConfig(channels=8))
    assert pickle.loads(pickle.dumps(config)) == config and hash(replace(config)) == hash(config)
    assert isinstance(config.noise_range[0], float)  # a whole number is taken for one; nothing else is converted
    with pytest.raises(FrozenInstanceError):
        config.steps = 3


def test_workers_load_no_pydantic():
    modules = "didi_gym.wrappers.executor, didi_gym.core.layout, didi_gym.core.skill_space"
    script = f"import sys, {modules}; print([m for m in ('pydantic', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"


def test_a_flat_layout_reads_and_judges_everything():
    layout = Layout.flat(3, ("a",))
    assert layout.policy_inputs == layout.features == (0, 1, 2)
    assert layout.sources == (ObservationSource(3, (0, 1, 2), ("a",)),) and layout.state_source == layout.sources[0]


@pytest.mark.parametrize("name", ["env_id", "dataset_id", "didi_gym_version"])
@pytest.mark.parametrize("odd", ["a\x1b[2Jb", "a\nsha256 0123", "a\u202eb", "a\u200bb"])
def test_what_a_configuration_names_can_be_printed(name, odd):
    with pytest.raises(ValueError, match=f"{name} holds what cannot be printed") as caught:
        replace(random_policy().config, **{name: odd})
    assert str(caught.value).isprintable()


def test_a_layout_has_few_sources_and_not_many_indices():
    source = ObservationSource(8, (2, 3, 4, 5, 6, 7))
    assert len(replace(BODY, sources=(source,) * 64).sources) == 64
    with pytest.raises(ValueError, match=r"layout.sources: expected at most 64, got 65"):
        replace(BODY, sources=(source,) * 65)
    with pytest.raises(ValueError, match=r"layout.sources: expected at most 65536 indices and keys in all, got 70014"):
        replace(
            BODY, sources=(ObservationSource(8, (2, 3, 4, 5, 6, 7), ("k",) * 70_000),), state_source=BODY.state_source
        )
