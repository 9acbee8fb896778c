import copy
import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from didi_gym.core.frames import inputs_to_state, localize, turn
from didi_gym.core.layout import Layout
from didi_gym.core.skill_space import SkillSpace
from didi_gym.hub.download import SkillPolicyHubError
from didi_gym.models.dynamics import DynamicsEnsemble
from didi_gym.models.policy import SkillPolicy, pick_device
from tests.examples import BODY, body_states, random_policy

FORMS = [{}, {"skill_space": SkillSpace("discrete", 3)}, {"consistency": "joint"}, {"layout": Layout.flat(6)}]


def _asked(policy, n=5, seed=3):
    skills = policy.skill_space.sample(n, np.random.default_rng(seed))
    return body_states(n, seed)[:, 2:], skills


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_small_and_large_batches_plan_alike(form):
    policy = random_policy(**form)
    inputs, skills = _asked(policy, 4200)
    large = policy.plan_actions(inputs, skills)
    small = np.concatenate([policy.plan_actions(inputs[i : i + 8], skills[i : i + 8]) for i in range(0, 4200, 8)])
    assert large.shape == (4200, 8, 3) and large.dtype == small.dtype == np.float32
    np.testing.assert_allclose(small, large, atol=2e-5)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_plan_act_and_plan_actions_agree(form):
    policy = random_policy(**form)
    inputs, skills = _asked(policy)
    plan = policy.plan(inputs, skills)
    np.testing.assert_allclose(plan.actions, policy.plan_actions(inputs, skills), atol=2e-5)
    np.testing.assert_allclose(policy.act(inputs, skills), plan.actions[:, 0], atol=2e-5)
    np.testing.assert_allclose(policy.plan_actions(inputs, skills, 3), plan.actions[:, :3], atol=2e-5)
    assert (plan.observations is None) == (policy.config.consistency == "dynamics")


def _zero(policy):
    policy.net.outlet.weight.zero_()
    policy.net.outlet.bias.zero_()


def _replace_data(policy):
    torch.nn.utils.vector_to_parameters(torch.zeros(sum(p.numel() for p in policy.parameters())), policy.parameters())


def _replace_parameter(policy):
    policy.net.outlet.weight = torch.nn.Parameter(torch.zeros_like(policy.net.outlet.weight), requires_grad=False)
    policy.net.outlet.bias.zero_()


def _replace_layer(policy):
    policy.net.outlet = torch.nn.Linear(policy.net.outlet.in_features, policy.net.outlet.out_features)


def _move_bound(policy):
    policy.high.mul_(0.5)


def _train_a_step(policy):
    policy.requires_grad_(True)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.1, fused=True)  # raises no version
    policy(torch.ones(3, 6), torch.ones(3, 2))[0].sum().backward()
    with torch.enable_grad():
        optimizer.step()


@pytest.mark.parametrize(
    "change",
    [_zero, _replace_data, _replace_parameter, _replace_layer, _move_bound, _train_a_step],
    ids=lambda f: f.__name__,
)
def test_weights_that_change_in_place_change_the_next_plan_of_arrays(change):
    policy = random_policy().eval().requires_grad_(False)
    inputs, skills = _asked(policy)
    before = policy.act(inputs, skills)
    with torch.set_grad_enabled(change is _train_a_step):
        change(policy)
    live = policy.act(torch.from_numpy(inputs), torch.from_numpy(skills)).numpy()
    assert np.abs(live - before).max() > 1e-3
    np.testing.assert_allclose(policy.act(inputs, skills), live, atol=2e-5)


def test_a_frozen_policy_keeps_its_engine_and_one_in_training_keeps_none():
    policy = random_policy().eval().requires_grad_(False)
    policy.act(*_asked(policy))
    engine = policy._engine
    policy.act(*_asked(policy))
    assert policy._engine is engine is not None
    policy.net.outlet.weight.requires_grad_(True)
    policy.act(*_asked(policy))
    assert policy._engine is None


def test_actions_stay_inside_the_bounds_even_saturated():
    policy = random_policy()
    with torch.no_grad():
        policy.net.outlet.bias.copy_(torch.tensor([50.0, -50.0] * 12))
    for n in (3, 100):
        actions = policy.plan_actions(*_asked(policy, n))
        assert (actions >= policy.action_low).all() and (actions <= policy.action_high).all()
        assert actions.max(axis=(0, 1)).tolist() == policy.action_high.tolist()


def test_rounding_does_not_leave_the_bounds():
    generator = np.random.default_rng(0)
    policy = random_policy(low=generator.uniform(-3, 0, 200), high=generator.uniform(0, 3, 200))
    for sign in (-1, 1):
        with torch.no_grad():
            policy.net.outlet.bias.fill_(50.0 * sign)
        inputs, skills = _asked(policy, 4)
        for engine in (policy.engine("numpy"), policy.engine("torch"), policy.engine(batch_invariant=True)):
            actions = engine(inputs, skills, 2)
            assert (actions >= policy.action_low).all() and (actions <= policy.action_high).all()


def test_turning_the_world_and_the_skill_together_changes_no_action():
    policy = random_policy()
    inputs, skills = _asked(policy)
    turned = turn(inputs_to_state(inputs, BODY), np.full(5, 1.3, np.float32), BODY.heading)[:, 2:]
    c, s = np.cos(1.3), np.sin(1.3)
    turned_skills = skills @ np.array([[c, s], [-s, c]])
    np.testing.assert_allclose(
        policy.plan_actions(turned, turned_skills), policy.plan_actions(inputs, skills), atol=1e-4
    )
    assert np.abs(policy.plan_actions(turned, skills) - policy.plan_actions(inputs, skills)).max() > 1e-2


def test_imagined_states_start_where_the_body_is_and_turn_with_the_world():
    policy = random_policy()
    torch.manual_seed(1)
    policy.attach_dynamics(DynamicsEnsemble(BODY, 3, members=1, width=16))
    inputs, skills = _asked(policy)
    plan = policy.plan(inputs, skills)
    assert plan.observations.shape == (5, 8, 8)
    start = inputs_to_state(inputs, BODY)
    sign = np.sign((plan.observations[:, 0, 2:6] * start[:, 2:6]).sum(-1, keepdims=True))
    np.testing.assert_allclose(plan.observations[:, 0, 2:6] * sign, start[:, 2:6], atol=1e-4)
    np.testing.assert_allclose(plan.observations[:, 0, 6:], start[:, 6:], atol=1e-4)
    assert not any(name.startswith("_dynamics") or "dynamics" in name for name in policy.state_dict())


class _Waits(TorchDispatchMode):
    """Refuses what waits for a device: reading a number, a shape that depends on numbers, a list as an index."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().partition(".")[0]
        assert name not in ("aten::_local_scalar_dense", "aten::lift_fresh", "aten::nonzero"), function
        assert name != "aten::index" or torch.bool not in {index.dtype for index in args[1] if index is not None}
        assert name != "aten::_to_copy" or "device" not in (kwargs or {})
        return function(*args, **(kwargs or {}))


TENSOR_FORMS = [*FORMS, {"discrete_actions": True}]


@pytest.mark.parametrize("form", TENSOR_FORMS, ids=str)
def test_tensors_give_the_same_plans_as_tensors_without_waiting_for_the_device(form):
    policy = random_policy(**form)
    layout = policy.config.layout
    policy.attach_dynamics(_world(layout))
    arrays = _asked(policy)
    tensors = [torch.from_numpy(array) for array in arrays]
    with _Waits():
        plan, first = policy.plan(*tensors), policy.act(*tensors)
        three = policy.plan_actions(*tensors, 3)
    expected = policy.plan(*arrays)
    assert isinstance(plan.actions, torch.Tensor) and isinstance(expected.actions, np.ndarray)
    np.testing.assert_allclose(plan.actions.numpy(), expected.actions, atol=2e-5)
    np.testing.assert_allclose(plan.observations.numpy(), expected.observations, atol=2e-4)
    np.testing.assert_allclose(first.numpy(), expected.actions[:, 0], atol=2e-5)
    np.testing.assert_allclose(three.numpy(), expected.actions[:, :3], atol=2e-5)
    torch.testing.assert_close(tensors[0], torch.from_numpy(arrays[0]), rtol=0, atol=0)


def test_emitting_leaves_what_it_is_given_alone():
    policy = random_policy()
    joined = torch.from_numpy(np.concatenate(_asked(policy), axis=1))
    before = joined.clone()
    policy.emit(joined, 3)
    assert torch.equal(joined, before)


@pytest.mark.parametrize(
    "wait", [lambda x: bool(x.sum() > 0), lambda x: x[x > 0], lambda x: x[:, [0, 1]]], ids=["bool", "mask", "list"]
)
def test_the_check_for_waiting_finds_it(wait):
    with pytest.raises(AssertionError), _Waits():
        wait(torch.ones(2, 2))


@pytest.mark.parametrize("form", TENSOR_FORMS, ids=str)
def test_tensors_stay_on_their_device(form):
    policy = random_policy(**form).to("meta")  # a device that has shapes but no numbers: reading any is an error
    inputs, skills = torch.zeros(5, 6, device="meta"), torch.zeros(5, policy.skill_space.skill_dim, device="meta")
    assert policy.plan(inputs, skills).actions.device.type == policy.act(inputs, skills).device.type == "meta"


def test_tensors_may_need_gradients_later():
    policy = random_policy()
    actions = policy.act(*(torch.from_numpy(array) for array in _asked(policy)))
    weight = torch.ones(3, requires_grad=True)
    (actions * weight).sum().backward()
    torch.testing.assert_close(weight.grad, actions.sum(0))


@pytest.mark.parametrize(
    ("inputs", "skills", "words"),
    [
        (torch.zeros(2, 6), np.zeros((2, 2)), "both be arrays or both be tensors, got skills of type ndarray"),
        (np.zeros((2, 6)), torch.zeros(2, 2), "inputs of type ndarray"),
        (torch.zeros(2, 6, device="meta"), torch.zeros(2, 2), "inputs are on meta, the policy is on cpu"),
        (torch.zeros(2, 6), torch.zeros(2, 2, device="meta"), "skills are on meta, the policy is on cpu"),
        (torch.zeros(2, 5), torch.zeros(2, 2), r"inputs .*\(n, 6\), got \(2, 5\)"),
    ],
)
def test_tensors_of_two_kinds_are_refused(inputs, skills, words):
    for method in (random_policy().plan, random_policy().plan_actions, random_policy().act):
        with pytest.raises(ValueError, match=words):
            method(inputs, skills)


@pytest.mark.parametrize("steps", [0, -1, 9])
def test_steps_beyond_the_horizon_are_refused(steps):
    policy = random_policy()
    with pytest.raises(ValueError, match=rf"steps must be in 1\.\.8, the policy's horizon or plan_length, got {steps}"):
        policy.plan_actions(*_asked(policy), steps)


def _load(policy):
    policy.load_state_dict(random_policy(seed=9).state_dict())


def _train(policy):
    policy.train()
    policy.net.outlet.bias.data += 1
    policy.eval()


def _apply(policy):
    policy._apply(lambda tensor: tensor + 0.5 if tensor.is_floating_point() else tensor)


@pytest.mark.parametrize("change", [_load, _train, _apply])
def test_new_weights_are_used_at_once(change):
    policy = random_policy()
    before = policy.plan_actions(*_asked(policy))
    change(policy)
    after = policy.plan_actions(*_asked(policy))
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, policy.engine("torch")(*_asked(policy), 8), atol=2e-5)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))])
def test_a_policy_that_has_acted_can_be_copied_and_the_copy_has_weights_of_its_own(again):
    policy = random_policy()
    before = policy.plan_actions(*_asked(policy))
    twin = again(policy)
    assert policy._engine is not None and twin._engine is None  # the engine may hold a graph, which cannot be copied
    np.testing.assert_array_equal(twin.plan_actions(*_asked(policy)), before)
    _load(policy)
    np.testing.assert_array_equal(twin.plan_actions(*_asked(policy)), before)


@pytest.mark.parametrize(
    ("inputs", "skills", "words"),
    [
        (np.zeros((2, 5)), np.zeros((2, 2)), r"inputs .*\(n, 6\), got \(2, 5\)"),
        (np.zeros(6), np.zeros((1, 2)), "inputs"),
        (np.zeros((2, 6)), np.zeros((2, 3)), r"skills must have shape \(n, 2\), got \(2, 3\)"),
        (np.zeros((2, 6)), np.zeros((3, 2)), "2 inputs and 3 skills"),
    ],
)
def test_wrong_shapes_are_refused(inputs, skills, words):
    with pytest.raises(ValueError, match=words):
        random_policy().plan_actions(inputs, skills)


def test_states_need_the_dynamics_model():
    with pytest.raises(ValueError, match="need the dynamics model"):
        random_policy().trajectory(torch.zeros(1, 8), torch.zeros(1, 2), None)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_saved_policy_loads_and_acts_the_same(tmp_path, form):
    policy = random_policy(**form)
    loaded = SkillPolicy.from_pretrained(policy.save_pretrained(tmp_path / "p"), device="cpu")
    assert loaded.config == policy.config and not loaded.training
    assert all(
        torch.equal(a, b) for a, b in zip(policy.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    np.testing.assert_array_equal(loaded.plan_actions(*_asked(policy)), policy.plan_actions(*_asked(policy)))
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["config.json", "model.safetensors"]


class _Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def _edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def _pickle_only(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb()))


DAMAGES = {
    "no config": (lambda f: (f / "config.json").unlink(), "it has no config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "no skill policy configuration"),
    "another model": (lambda f: _edit_config(f, model_type="act"), '"model_type": "didi"'),
    "newer format": (
        lambda f: _edit_config(f, format_version=99, novelty=1),
        "newer than this didi_gym reads .* upgrade",
    ),
    "unknown key": (lambda f: _edit_config(f, novelty=1), "novelty: .*got 1"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
    "only a pickle": (_pickle_only, "pytorch_model.bin is there, but pickles are never read"),
    "a pickle renamed": (
        lambda f: (f / "model.safetensors").write_bytes(pickle.dumps(_Bomb())),
        "damaged or no safetensors file",
    ),
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        "damaged or no safetensors file",
    ),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "damaged or no safetensors file"),
    "missing tensor": (lambda f: _edit_weights(f, lambda w: w.pop("low")), r"1 tensor\(s\) missing, e.g. low"),
    "unknown tensor": (lambda f: _edit_weights(f, lambda w: w.update(x=torch.ones(1))), "1 unknown.* e.g. x"),
    "wrong shape": (
        lambda f: _edit_weights(f, lambda w: w.update(low=torch.ones(4))),
        r"low must be \(3,\).*got \(4,\)",
    ),
    "wrong type": (lambda f: _edit_weights(f, lambda w: w.update(low=torch.ones(3).double())), "float64"),
    "not finite": (lambda f: _edit_weights(f, lambda w: w["low"].fill_(torch.nan)), "low holds NaN"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_an_error_that_says_why(tmp_path, damage, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = random_policy().save_pretrained(tmp_path / "p")
    action, words = DAMAGES[damage]
    action(folder)
    with pytest.raises(SkillPolicyHubError, match=words):
        SkillPolicy.from_pretrained(folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no-such-policy", "neither a folder, nor a bundled policy"),
        ("./nowhere", "neither a folder"),
        ("a/b/c", "neither a folder"),
        ("owner/name", "owner/name .* is not in the cache"),
    ],
)
def test_a_name_that_leads_nowhere_says_what_was_tried(name, words):
    with pytest.raises(SkillPolicyHubError, match=words):
        SkillPolicy.from_pretrained(name, local_files_only=True)


def test_two_revisions_at_once_are_refused():
    with pytest.raises(SkillPolicyHubError, match="names revision 'v1', but revision='v2'"):
        SkillPolicy.from_pretrained("owner/name@v1", revision="v2")


def test_a_damaged_dynamics_model_beside_the_policy_is_an_error(tmp_path):
    folder = random_policy().save_pretrained(tmp_path / "p")
    save_file(
        {"dynamics.x": torch.ones(1)},
        folder / "training.safetensors",
        {"info": json.dumps({"parts": ["dynamics"], "config": {"dynamics": {"members": 3, "width": 256}}})},
    )
    with pytest.raises(SkillPolicyHubError, match="missing"):
        SkillPolicy.from_pretrained(folder)
    (folder / "training.safetensors").write_bytes(b"garbage")
    with pytest.raises(SkillPolicyHubError, match="damaged"):
        SkillPolicy.from_pretrained(folder)


def _world(layout=BODY, action_dim=3):
    torch.manual_seed(1)
    return DynamicsEnsemble(layout, action_dim, members=2, width=16)


@torch.no_grad()
def test_a_trajectory_replanned_on_the_way_is_what_executing_the_policy_in_the_model_gives():
    policy, dynamics = random_policy(), _world()
    skills = torch.tensor([[0.3, -0.8]])
    first = policy.normalizer.normalize(torch.from_numpy(localize(body_states(1)[:, None], BODY)[0][:, 0]))
    states, actions = policy.trajectory(first, skills, dynamics, replan_every=3)
    expected = [first]
    for step in range(8):
        if step % 3 == 0:  # plan from the present state in environment units, in the world's frame
            here = policy.normalizer.denormalize(expected[-1])[:, 2:].numpy()
            plan = policy.plan_actions(here, skills.numpy())
            plan = (torch.from_numpy(plan) - policy.low) / (policy.high - policy.low) * 2 - 1
        torch.testing.assert_close(actions[:, step], plan[:, step % 3], atol=2e-4, rtol=2e-4)
        expected.append(dynamics.rollout(expected[-1], plan[:, step % 3][:, None])[:, 1])
    torch.testing.assert_close(states, torch.stack(expected[:8], dim=1), atol=1e-3, rtol=1e-3)


def test_a_trajectory_of_one_plan_is_the_papers_single_pass():
    policy, dynamics = random_policy(Layout.flat(6)), _world(Layout.flat(6))
    first, skills = torch.randn(4, 6), torch.randn(4, 2)
    states, actions = policy.trajectory(first, skills, dynamics)
    torch.testing.assert_close(actions, policy(first, skills)[0])
    torch.testing.assert_close(states, dynamics.rollout(first, actions)[:, :8])


def test_an_action_range_outside_of_the_bounds_is_refused(tmp_path):
    random_policy(action_range=((0.0, 0.0, 0.0), (0.5, 0.25, 4.0))).save_pretrained(tmp_path)
    with pytest.raises(SkillPolicyHubError, match="action_range of config"):
        SkillPolicy.from_pretrained(tmp_path)
    kept = random_policy(action_range=((0.0, 0.0, 0.0), (0.5, 0.25, 3.0)))
    again = SkillPolicy.from_pretrained(kept.save_pretrained(tmp_path), device="cpu")
    assert again.config == kept.config and again.action_range[1].tolist() == [0.5, 0.25, 3.0]


def test_a_changed_bit_of_the_weights_or_those_of_another_policy_are_refused(tmp_path):
    folder = random_policy().save_pretrained(tmp_path / "p")
    content = (folder / "model.safetensors").read_bytes()
    sound = SkillPolicy.from_pretrained(folder, device="cpu")
    for place in (-1, -5000, -len(content) // 3):
        changed = bytearray(content)
        changed[place] ^= 1
        (folder / "model.safetensors").write_bytes(changed)
        with pytest.raises(
            SkillPolicyHubError, match=r"model.safetensors is damaged or of another policy: its weights"
        ):
            SkillPolicy.from_pretrained(folder, device="cpu")
    other = random_policy(seed=1).save_pretrained(tmp_path / "q")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(SkillPolicyHubError, match="damaged or of another policy"):
        SkillPolicy.from_pretrained(folder, device="cpu")
    sound.low.fill_(-7.0)  # what is saved has the hash of what is saved
    assert SkillPolicy.from_pretrained(sound.save_pretrained(tmp_path / "p"), device="cpu").low[0] == -7


def test_a_folder_from_before_hashes_were_recorded_loads(tmp_path):
    folder = random_policy().save_pretrained(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert len(config.pop("weights_sha256")) == 64
    (folder / "config.json").write_text(json.dumps(config))
    assert SkillPolicy.from_pretrained(folder, device="cpu").config == random_policy().config


def test_another_default_type_of_torch_changes_nothing(tmp_path):
    folder = random_policy().save_pretrained(tmp_path / "p")
    asked = _asked(random_policy())
    expected = SkillPolicy.from_pretrained(folder, device="cpu").plan_actions(*asked)
    torch.set_default_dtype(torch.float64)
    try:
        policy = SkillPolicy.from_pretrained(folder, device="cpu")
        np.testing.assert_array_equal(policy.plan_actions(*asked), expected)
        SkillPolicy(policy.config).save_pretrained(tmp_path / "fresh")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert SkillPolicy.from_pretrained(tmp_path / "fresh", device="cpu").low.dtype == torch.float32


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for device in ("cuda", "cuda:1", "mps", torch.device("cuda")):
        with pytest.raises(
            ValueError, match=f"{device} was asked for, but torch finds no .* on this computer; use cpu"
        ):
            pick_device(device)
    with pytest.raises(ValueError, match="device: expected auto, cpu, cuda, cuda:1 or mps, got 'gpu'"):
        pick_device("gpu")
    with pytest.raises(ValueError, match=r"device: torch cannot use hpu here .*; use cpu or auto"):
        pick_device("hpu")  # a kind that torch knows and only other builds of it have
    assert pick_device("cpu") == pick_device("auto") == torch.device("cpu")
