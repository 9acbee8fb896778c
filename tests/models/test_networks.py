import numpy as np
import pytest
import torch

from didi_gym.models.networks import EnsembleMLP, NumpyResidualMLP, ResidualMLP, time_embedding
from didi_gym.models.normalizer import Normalizer
from tests.examples import BODY, body_states


def _trained_net() -> ResidualMLP:
    """A network in which every weight and bias, the norms' too, is away from where it starts."""
    torch.manual_seed(0)
    net = ResidualMLP(6, 10, 3, width=32, depth=3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return net


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_the_numpy_copy_computes_what_torch_computes(batch):
    net = _trained_net()
    x, condition = torch.randn(batch, 6) * 3, torch.randn(batch, 3)
    copy = NumpyResidualMLP(net.state_dict(), 3)
    expected = net(x, condition).detach().numpy()
    for outputs in (10, 4):
        rows = copy(x.numpy(), condition.numpy(), outputs)
        assert rows.dtype == np.float32 and rows.shape == (batch, outputs)
        np.testing.assert_allclose(rows, expected[:, :outputs], atol=1e-5)
        for row, one, z in zip(rows, x.numpy(), condition.numpy(), strict=True):
            np.testing.assert_allclose(copy(one, z, outputs), row, atol=1e-5)


def test_the_numpy_copy_takes_the_units_of_its_inputs_into_its_weights():
    net = _trained_net()
    x, condition, scale = torch.randn(5, 6), torch.randn(5, 3), torch.rand(6) + 0.1
    copy = NumpyResidualMLP(net.state_dict(), 3, scale.numpy())
    expected = net(x / scale, condition).detach().numpy()
    np.testing.assert_allclose(copy(x.numpy(), condition.numpy()), expected, atol=1e-5)


@pytest.mark.parametrize("bias", [-500.0, 500.0])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_the_numpy_copy_survives_extreme_inputs(bias, shape):
    torch.manual_seed(0)
    net = ResidualMLP(2, 2, 1, width=8, depth=1)
    with torch.no_grad():
        net.firsts[0].bias.add_(torch.linspace(0, bias, 8))
    x, condition = torch.full((*shape, 2), 1e4), torch.ones(*shape, 1)
    output = NumpyResidualMLP(net.state_dict(), 1)(x.numpy(), condition.numpy())
    np.testing.assert_allclose(output, net(x, condition).detach().numpy(), rtol=1e-4, atol=1e-4)


def test_the_condition_matters_to_every_output():
    torch.manual_seed(0)
    net = ResidualMLP(4, 5, 2, width=16, depth=1)
    x = torch.randn(1, 4)
    assert (net(x, torch.zeros(1, 2)) != net(x, torch.ones(1, 2))).all()


def test_ensemble_members_are_independent():
    torch.manual_seed(0)
    net = EnsembleMLP(3, 4, 2, width=16)
    x = torch.randn(1, 5, 4).expand(3, 5, 4).clone()
    before = net(x)
    assert not torch.allclose(before[0], before[1])
    with torch.no_grad():
        net.weights[0][1] += 1
    after = net(x)
    assert (
        torch.equal(before[0], after[0]) and torch.equal(before[2], after[2]) and not torch.equal(before[1], after[1])
    )


def test_time_embeddings_differ_between_diffusion_steps():
    embedding = time_embedding(torch.arange(100), 32)
    distance = torch.cdist(embedding, embedding) + torch.eye(100) * 10
    assert embedding.shape == (100, 32) and distance.min() > 0.1


def test_limits_map_to_the_unit_interval_and_constant_dimensions_stay_finite():
    normalizer = Normalizer.from_limits(np.array([0.0, -3.0, 5.0]), np.array([4.0, -1.0, 5.0]))
    x = torch.tensor([[0.0, -3.0, 5.0], [4.0, -1.0, 5.0]])
    assert normalizer.normalize(x).tolist() == [[-1, -1, 0], [1, 1, 0]]
    torch.testing.assert_close(normalizer.denormalize(normalizer.normalize(x)), x)


def test_fitted_limits_ignore_single_outliers_and_keep_directions():
    windows = body_states(40_000).reshape(-1, 4, 8)
    windows[..., 6] *= 5  # vx varies more than vy, but they are one vector
    windows[0, 1, 7] = 1e6
    normalizer = Normalizer.fit(windows, BODY)
    assert normalizer.scale[6] == normalizer.scale[7] < 100
    assert normalizer.scale[0] == normalizer.scale[1]
    assert normalizer.center[[0, 1, 6, 7]].tolist() == [0, 0, 0, 0]
