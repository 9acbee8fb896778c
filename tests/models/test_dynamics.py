import pytest
import torch

from didi_gym.core.layout import Layout
from didi_gym.models.dynamics import DynamicsEnsemble
from didi_gym.training import DynamicsConfig, Run, train_dynamics
from didi_gym.training.losses import dynamics_loss
from tests.examples import BODY, point_dataset


def _ensemble(layout=BODY, members=3):
    torch.manual_seed(0)
    return DynamicsEnsemble(layout, 2, members=members, width=16)


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_a_rollout_is_the_one_step_model_fed_back_row_by_row_through_its_member(batch):
    dynamics, horizon = _ensemble(), 5
    first, actions = torch.randn(batch, 8), torch.randn(batch, horizon, 2)
    rolled = dynamics.rollout(first, actions)
    assert rolled.shape == (batch, horizon + 1, 8)
    for row in range(batch):
        state = first[row].expand(3, 1, 8)
        for step in range(horizon + 1):
            torch.testing.assert_close(rolled[row, step], state[row % 3, 0], rtol=1e-4, atol=1e-5)
            if step < horizon:
                state = dynamics(state, actions[row, step].expand(3, 1, 2))


def test_relative_positions_are_predicted_but_never_read():
    dynamics = _ensemble()
    first, actions = torch.randn(6, 8), torch.randn(6, 4, 2)
    moved = first.clone()
    moved[:, :2] += 5
    near, far = dynamics.rollout(first, actions), dynamics.rollout(moved, actions)
    torch.testing.assert_close(far[..., 2:], near[..., 2:])
    torch.testing.assert_close(far[..., :2], near[..., :2] + 5)


def test_gradients_reach_every_action():
    actions = torch.randn(4, 5, 2, requires_grad=True)
    _ensemble().rollout(torch.randn(4, 8), actions)[:, -1].sum().backward()
    assert (actions.grad.abs().sum((0, 2)) > 0).all()


def test_the_loss_counts_each_step_in_units_of_the_datas_change():
    dynamics = _ensemble(Layout.flat(1), members=1)
    with torch.no_grad():
        dynamics.net.weights[-1].zero_()  # predicts that nothing changes
    dynamics.delta_scale.fill_(0.5)
    states = torch.tensor([[[[0.0], [0.5], [2.0]]]])
    loss, metrics = dynamics_loss(dynamics, states, torch.zeros(1, 1, 3, 2))
    assert metrics["dynamics/one_step"].item() == pytest.approx(0.5)  # smooth L1 of 1
    assert metrics["dynamics/last_step"].item() == pytest.approx(3.5)  # smooth L1 of 4
    assert loss.item() == pytest.approx(2.0)


def test_it_learns_a_point_that_moves_by_its_action():
    dataset = point_dataset()
    config = DynamicsConfig(steps=500, batch_size=64, width=64, members=2, unroll=4, learning_rate=3e-3)
    dynamics = train_dynamics(Run(dataset, horizon=8, progress=False), config)
    scale = 0.1 / torch.from_numpy(dataset.observations.max(0) - dataset.observations.min(0)) * 2
    first, actions = torch.zeros(8, 2), torch.rand(8, 6, 2) * 1.6 - 0.8
    rolled = dynamics.rollout(first, actions)
    travelled = (rolled[:, -1] - first) / scale
    torch.testing.assert_close(travelled, actions.sum(1), atol=0.35, rtol=0.15)
