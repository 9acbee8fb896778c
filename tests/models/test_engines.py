from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from didi_gym.core.frames import MATH, NUMPY, HeadingFrame, inputs_to_state, localize, turn_skill
from didi_gym.core.layout import Heading, Layout
from didi_gym.core.skill_space import SkillSpace
from didi_gym.models import engines
from didi_gym.models.config import UNetConfig
from didi_gym.models.engines import (
    CpuEngine,
    CudaGraphEngine,
    NonFinitePlan,
    NumpyEngine,
    Recording,
    RowEngine,
    TorchEngine,
)
from tests.examples import BODY, DISC, body_states, random_policy

DISCRETE = SkillSpace("discrete", 3)
SCATTERED = Layout(  # vx vy | w | x y | q: nothing is where BODY has it, and the quaternion is not in one piece
    state_dim=8,
    policy_inputs=(7, 0, 1, 5, 2, 6),
    features=(3,),
    relative=(3, 4),
    heading=Heading((2, 5, 6, 7), ((3, 4), (0, 1))),
)
FORMS = [
    {},
    {"skill_space": DISCRETE},
    {"skill_space": SkillSpace("sphere", 4)},
    {"layout": SCATTERED},
    {"layout": Layout.flat(6)},
    {"layout": Layout.flat(6), "skill_space": DISCRETE},
    {"consistency": "joint"},
    {"discrete_actions": True},
    {"action_range": ((-0.1, -0.5, 0.5), (0.2, 0.25, 0.5))},
]
UNET = {"network": "unet", "unet": UNetConfig(8, (1, 2))}
UNETS = [UNET, {**UNET, "consistency": "joint"}, {**UNET, "plan_length": 3, "replan_every": 3}]


def _asked(policy, n=5, seed=3):
    return body_states(n, seed)[:, 2:], policy.skill_space.sample(n, np.random.default_rng(seed))


@pytest.mark.parametrize("n", [0, 1, 3, 33])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_all_engines_plan_alike(form, n):
    policy = random_policy(**form)
    asked = _asked(policy, n)
    expected = TorchEngine(policy)(*asked, 8)
    for engine in (NumpyEngine(policy), CpuEngine(policy), RowEngine(policy), _OnCpu(policy)):
        for steps in (8, 1, 3):
            actions = engine(*asked, steps)
            assert actions.shape == (n, steps, 3) and actions.dtype == np.float32
            scale = policy.action_high - policy.action_low
            np.testing.assert_allclose(actions / scale, expected[:, :steps] / scale, atol=2e-5)
            assert (actions >= policy.action_low).all() and (actions <= policy.action_high).all()


@pytest.mark.parametrize("n", [1, 33])
def test_minus_one_and_one_are_the_ends_of_the_range_and_the_bounds_only_clip(n):
    policy = random_policy(action_range=((-0.1, -0.5, 0.5), (0.2, 0.25, 0.5)))
    last = policy.net.state_dict()[[name for name in policy.net.state_dict() if name.endswith("bias")][-1]]
    last.copy_(torch.where(torch.arange(len(last)) % 2 == 0, 1e3, -1e3))  # tanh is 1 or -1
    expected = [[0.2, -0.5, 0.5], [-0.1, 0.25, 0.5]]
    for engine in (NumpyEngine(policy), TorchEngine(policy)):
        np.testing.assert_allclose(engine(*_asked(policy, n), 2), np.broadcast_to(expected, (n, 2, 3)), rtol=1e-6)
    policy.high[0] = 0.05
    for engine in (NumpyEngine(policy), TorchEngine(policy)):
        assert engine(*_asked(policy, n), 1)[0, 0, 0] == np.float32(0.05)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy says where a number first overflows
@pytest.mark.parametrize("n", [1, 3, 33])
@pytest.mark.parametrize("form", [*FORMS, UNET], ids=str)
def test_a_plan_that_is_not_finite_is_an_error_at_any_engine_that_names_the_policy(form, n):
    policy = random_policy(**form)
    policy.name_or_path = "runs/diverged"
    kinds = [TorchEngine, _OnCpu] if form == UNET else [NumpyEngine, CpuEngine, RowEngine, TorchEngine, _OnCpu]
    observations, skills = _asked(policy, n)
    odd = observations.copy()
    odd[-1, 4] = np.nan
    for make in kinds:
        with pytest.raises(NonFinitePlan, match=rf"runs/diverged was given observations with nan in row {n - 1}, col"):
            make(policy)(odd, skills, 2)
    for parameter in policy.parameters():
        parameter.mul_(1e30)
    for engine in (*(make(policy) for make in kinds), policy.plan_actions):
        with pytest.raises(NonFinitePlan, match="runs/diverged plans NaN or infinity for row 0"):
            engine(observations, skills, 2)


def test_a_large_finite_plan_is_a_plan():
    policy = random_policy(low=(-3e38, -1.0, -1.0), high=(3e38, 1.0, 1.0))
    assert np.isfinite(policy.plan_actions(*_asked(policy))).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_whole_imagined_plan_that_is_not_finite_is_an_error():
    policy = random_policy(consistency="joint")
    policy.normalizer.scale.fill_(3e38)
    policy.net.outlet.bias.fill_(1e3)
    with pytest.raises(NonFinitePlan, match="plans NaN or infinity"):
        policy.plan(*_asked(policy))


def test_a_huge_network_is_not_copied_for_numpy(monkeypatch):
    policy = random_policy()
    expected = TorchEngine(policy)(*_asked(policy, 2), 8)
    monkeypatch.setattr(engines, "_NUMPY_NUMBERS", 100)
    monkeypatch.setattr(engines, "NumpyEngine", None)
    np.testing.assert_array_equal(policy.engine()(*_asked(policy, 2), 8), expected)
    assert policy.engine(batch_invariant=True)(*_asked(policy, 2), 8).shape == expected.shape


@pytest.mark.parametrize("form", UNETS, ids=str)
def test_a_u_net_is_planned_with_by_torch(form):
    policy = random_policy(**form)
    steps, asked = policy.config.actions_per_plan, _asked(policy)
    assert type(policy.engine()) is TorchEngine
    expected = policy.plan_actions(*asked)
    assert expected.shape == (5, steps, 3) and np.ptp(expected, axis=0).min() > 1e-3
    for engine in (_OnCpu(policy), policy.engine(batch_invariant=True)):
        for asked_steps in (1, steps):
            np.testing.assert_allclose(engine(*asked, asked_steps), expected[:, :asked_steps], atol=2e-5)
    with pytest.raises(ValueError, match="the numpy engine is for MLPs, and this policy is a U-Net; use 'auto'"):
        policy.engine("numpy")


@pytest.mark.parametrize("n", [1, 4])
def test_discrete_actions_are_the_bounds_themselves(n):
    policy = random_policy(discrete_actions=True)
    actions = policy.engine("numpy")(*_asked(policy, n), 8)
    assert ((actions == policy.action_high).sum(-1) == 1).all() and ((actions == policy.action_low).sum(-1) == 2).all()


@pytest.mark.parametrize("n", [1, 4])
def test_far_from_zero_the_numpy_engine_is_as_exact_as_torch(n):
    policy = random_policy(Layout.flat(6))
    policy.normalizer.center.fill_(1e4)
    inputs, skills = _asked(policy, n)
    inputs += 1e4
    np.testing.assert_allclose(
        NumpyEngine(policy)(inputs, skills, 8), TorchEngine(policy)(inputs, skills, 8), atol=5e-5
    )


@pytest.mark.parametrize("layout", [BODY, SCATTERED, DISC], ids=["body", "scattered", "disc"])
@pytest.mark.parametrize("turns_skill", [True, False])
def test_the_heading_frame_is_what_frames_computes(layout, turns_skill):
    generator, read = np.random.default_rng(0), len(layout.policy_inputs)
    inputs, skills = generator.normal(size=(500, read)).astype(np.float32), generator.normal(size=(500, 2))
    joined = np.concatenate([inputs, skills.astype(np.float32)], axis=1)
    states = inputs_to_state(inputs, layout)
    orientation = list(layout.heading.orientation)
    states[:, orientation] /= np.linalg.norm(states[:, orientation], axis=1, keepdims=True)
    joined[:, :read] = states[:, list(layout.policy_inputs)]

    local, yaw = localize(states[:, None], layout)
    turned = turn_skill(joined[:, read:], -yaw) if turns_skill else joined[:, read:]
    expected = np.concatenate([local[:, 0, list(layout.policy_inputs)], turned], axis=1)
    plain = np.abs(local[:, 0, orientation[0]]) > 1e-5  # at zero rounding decides which sign is taken

    frame = HeadingFrame(layout, turns_skill)
    columns, numbers, tensor = joined.copy(), joined.tolist(), torch.from_numpy(joined.copy())
    np.testing.assert_allclose(frame.enter(columns.T, NUMPY), yaw, atol=1e-5)
    np.testing.assert_allclose([frame.enter(row, MATH) for row in numbers], yaw, atol=1e-4)
    np.testing.assert_allclose(frame.enter(tensor.T, (torch.arctan2, torch.cos, torch.sin)).numpy(), yaw, atol=1e-5)
    for found in (columns, np.array(numbers), tensor.numpy()):
        np.testing.assert_allclose(found[plain], expected[plain], atol=1e-4)


@pytest.mark.parametrize("form", FORMS + UNETS[:2], ids=str)
def test_batch_invariant_plans_are_bit_for_bit_those_of_single_rows(form):
    policy = random_policy(**form)
    inputs, skills = _asked(policy, 40)
    engine = policy.engine(batch_invariant=True)
    together = engine(inputs, skills, 5)
    for i in range(40):
        one = inputs[i : i + 1], skills[i : i + 1]
        np.testing.assert_array_equal(engine(*one, 5)[0], together[i])
        np.testing.assert_array_equal(policy.plan_actions(*one, 5)[0], together[i])
    backwards = engine(inputs[::-1], skills[::-1], 5)[::-1]  # the order of the batch does not matter, nor its memory
    np.testing.assert_array_equal(backwards, together)


@pytest.mark.parametrize("n", [1, 6])
def test_a_plan_is_an_array_of_the_callers_own_and_the_inputs_are_left_alone(n):
    policy = random_policy()
    inputs, skills = _asked(policy, n)
    before = inputs.copy(), skills.copy()
    for engine in (NumpyEngine(policy), TorchEngine(policy), RowEngine(policy), _OnCpu(policy)):
        first = engine(inputs, skills, 2)
        kept = first.copy()
        first += 1
        second = engine(inputs, skills, 2)
        np.testing.assert_array_equal(second, kept)
        assert not np.shares_memory(first, second)
        np.testing.assert_array_equal(inputs, before[0])
        np.testing.assert_array_equal(skills, before[1])


def test_arrays_that_cannot_be_written_are_planned_for():
    policy = random_policy()
    inputs, skills = _asked(policy)
    inputs.flags.writeable = skills.flags.writeable = False
    for engine in (NumpyEngine(policy), TorchEngine(policy)):
        assert engine(inputs, skills, 2).shape == (5, 2, 3)


def test_threads_may_share_a_numpy_engine():
    policy = random_policy()
    inputs, skills = _asked(policy, 64)
    engine = NumpyEngine(policy)
    rows = [(inputs[i : i + 1], skills[i : i + 1], 1 + i % 8) for i in range(64)] * 5
    alone = [NumpyEngine(policy)(*row) for row in rows]
    with ThreadPoolExecutor(4) as pool:
        for ours, theirs in zip(pool.map(lambda row: engine(*row), rows), alone, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("form", [{}, {"layout": Layout.flat(6)}, {"consistency": "joint"}, UNET], ids=str)
def test_bfloat16_plans_are_close_but_not_the_same(form):
    policy = random_policy(**form)
    asked = _asked(policy, 50)
    rough, exact = policy.engine("torch", dtype="bfloat16")(*asked, 8), policy.engine("torch")(*asked, 8)
    assert rough.dtype == np.float32
    assert (rough >= policy.action_low).all() and (rough <= policy.action_high).all()
    difference = np.abs(rough - exact) / (policy.action_high - policy.action_low)
    assert 1e-4 < difference.max() < 0.1 and difference.mean() < 0.02
    assert all(parameter.dtype == torch.float32 for parameter in policy.parameters())
    np.testing.assert_array_equal(policy.engine("torch", dtype=torch.bfloat16)(*asked, 8), rough)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({}, CpuEngine),
        ({"dtype": "float32"}, CpuEngine),
        ({"dtype": "bfloat16"}, TorchEngine),
        ({"name": "numpy", "dtype": torch.float32}, NumpyEngine),
        ({"name": "torch"}, TorchEngine),
        ({"batch_invariant": True}, RowEngine),
        ({"name": "numpy", "batch_invariant": True}, RowEngine),
    ],
    ids=str,
)
def test_an_engine_is_the_one_asked_for(arguments, kind):
    assert type(random_policy().engine(**arguments)) is kind


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "jax"}, "expected one of 'auto', 'numpy', 'torch', 'cuda-graph', got 'jax'"),
        ({"dtype": "float16"}, "expected one of 'float32', 'bfloat16', got 'float16'"),
        ({"dtype": torch.float64}, "got torch.float64"),
        ({"name": "numpy", "dtype": "bfloat16"}, "numpy engine computes in float32, got dtype bfloat16; use the 'tor"),
        ({"name": "cuda-graph"}, r"needs the policy on a CUDA device, got cpu; move it with policy.to\('cuda'\)"),
        ({"name": "torch", "batch_invariant": True}, "row by row on the CPU in float32, got engine 'torch'"),
        ({"dtype": "bfloat16", "batch_invariant": True}, "got engine 'auto' and dtype bfloat16; leave both out"),
    ],
    ids=str,
)
def test_an_engine_that_cannot_be_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        random_policy().engine(**arguments)


def test_on_a_cpu_few_rows_go_through_numpy_and_many_through_torch(monkeypatch):
    monkeypatch.setattr(engines, "_NUMPY_BATCH", 4)
    engine = random_policy().engine()
    engine._numpy, engine._torch = (lambda *asked: "numpy"), (lambda *asked: "torch")
    assert [engine(np.zeros((n, 6)), np.zeros((n, 2)), 1) for n in (1, 4, 5)] == ["numpy", "numpy", "torch"]


class _OnCpu(CudaGraphEngine):
    """All of the engine but the graph: what would be recorded is run."""

    _device_type = "cpu"

    def __init__(self, policy):
        super().__init__(policy)
        self.recorded = []

    def _record(self, size, steps):
        self.recorded.append((size, steps))
        width = self._policy._read + self._policy.skill_space.skill_dim
        staged, actions = np.zeros((size, width), np.float32), np.zeros((size, steps, 3), np.float32)

        def replay():
            with torch.inference_mode():
                actions[:] = self._policy.emit(torch.from_numpy(staged), steps).numpy()

        return Recording(staged, actions, replay)


def test_graphs_are_recorded_once_per_power_of_two_and_number_of_steps():
    policy = random_policy()
    engine = _OnCpu(policy)
    for n in (1, 2, 3, 4, 5, 8, 7, 3, 1, 0):
        assert engine(*_asked(policy, n), 2).shape == (n, 2, 3)
    engine(*_asked(policy, 3), 1)
    assert engine.recorded == [(1, 2), (2, 2), (4, 2), (8, 2), (4, 1)]


def test_a_smaller_batch_sees_nothing_of_a_larger_one_before():
    policy = random_policy()
    engine = _OnCpu(policy)
    with pytest.raises(NonFinitePlan):
        engine(np.full((8, 6), np.nan, np.float32), np.zeros((8, 2), np.float32), 2)
    asked = _asked(policy, 5)
    np.testing.assert_allclose(engine(*asked, 2), policy.plan_actions(*asked, 2), atol=2e-5)


def test_only_so_many_recordings_are_kept(monkeypatch):
    monkeypatch.setattr(engines, "_RECORDINGS", 2)
    policy = random_policy()
    engine = _OnCpu(policy)
    for n in (1, 2, 4, 2, 1):
        engine(*_asked(policy, n), 2)
        assert len(engine._recordings) <= 2
    assert engine.recorded == [(1, 2), (2, 2), (4, 2), (1, 2)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("form", FORMS + UNETS[:2], ids=str)
def test_on_a_gpu_graphs_plan_as_torch_does(form):
    policy = random_policy(**form)
    asked = {n: _asked(policy, n, seed=n) for n in (1, 5, 64)}
    expected = {n: TorchEngine(policy)(*asked[n], 3) for n in asked}
    policy.to("cuda")
    rough = policy.engine(dtype="bfloat16")
    for n in (1, 5, 64, 5, 1):
        np.testing.assert_allclose(policy.plan_actions(*asked[n], 3), expected[n], atol=1e-4)
        if not policy.config.discrete_actions:
            np.testing.assert_allclose(rough(*asked[n], 3), expected[n], atol=0.5)
        np.testing.assert_array_equal(
            policy.engine(batch_invariant=True)(*asked[n], 3), policy.cpu().engine(batch_invariant=True)(*asked[n], 3)
        )
        policy.to("cuda")
