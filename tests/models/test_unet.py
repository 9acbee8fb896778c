import pytest
import torch

from didi_gym.models.config import UNetConfig
from didi_gym.models.prior import DiffusionPrior
from didi_gym.models.unet import TemporalUNet

SMALL = UNetConfig(channels=8, multipliers=(1, 2, 4))


def _net(steps, output_dim=3, config=SMALL):
    torch.manual_seed(0)
    return TemporalUNet(steps, 5, output_dim, 2, config)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 16, 33])
@pytest.mark.parametrize("given", [1, None])
def test_any_number_of_steps_goes_in_and_comes_out(steps, given):
    net = _net(steps)
    given = given or steps
    output = net(torch.randn(4, given * 5), torch.randn(4, 2))
    assert output.shape == (4, steps * 3)
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("multipliers", [(1,), (1, 1), (1, 3, 2, 2)])
def test_any_levels_can_be_chosen(multipliers):
    net = _net(9, config=UNetConfig(6, multipliers))  # six channels do not divide into eight groups
    assert net(torch.randn(2, 45), torch.randn(2, 2)).shape == (2, 27)


def test_steps_that_are_not_given_are_zero():
    net, condition = _net(6), torch.randn(2, 2)
    first = torch.randn(2, 5)
    whole = torch.cat([first, torch.zeros(2, 25)], dim=1)
    assert torch.equal(net(first, condition), net(whole, condition))


@torch.no_grad()
def _reach(config):
    """Steps from an input to the farthest output that it changes, other than through the statistics of the norms."""
    net = TemporalUNet(1024, 1, 1, 1, config).double()
    for name, parameter in net.named_parameters():
        parameter.fill_(float(name.endswith("weight")))  # all ways add up
    for module in net.modules():
        if isinstance(module, torch.nn.GroupNorm | torch.nn.Mish):
            module.forward = lambda x: x
    x = torch.zeros(1, 1024, dtype=torch.float64)
    x[0, 512] = 1
    changed = net(x, torch.zeros(1, 1, dtype=torch.float64))[0].nonzero()[:, 0]
    return min(512 - int(changed.min()), int(changed.max()) - 512)


def test_the_released_levels_see_a_horizon_of_128_from_its_first_step():
    assert _reach(UNetConfig(channels=2)) == 141
    assert _reach(UNetConfig(channels=2, multipliers=(1, 4))) < 128 / 2


def test_every_step_depends_on_the_condition():
    net, x = _net(16), torch.randn(1, 80)
    changed = net(x, torch.zeros(1, 2)) - net(x, torch.ones(1, 2))
    assert (changed != 0).all()


def test_the_released_sizes_have_as_many_weights_as_the_released_network():
    """3.7 million at halfcheetah's 17 states and 6 actions."""
    net = TemporalUNet(128, 23, 23, 3, UNetConfig())
    assert 3.6e6 < sum(p.numel() for p in net.parameters()) < 3.8e6


def test_a_prior_with_a_u_net_denoises_every_step_and_leaves_the_first_state_alone():
    torch.manual_seed(0)
    prior = DiffusionPrior(7, 3, 2, network="unet", unet=SMALL, diffusion_steps=10)
    x, first = torch.randn(4, 7, 5), torch.randn(4, 3)
    x0 = prior.denoise(x, torch.arange(4), first)
    assert x0.shape == x.shape and torch.equal(x0[:, 0, :3], first)
    later = prior.denoise(x, torch.arange(4) + 5, first)
    assert ((x0 - later)[:, 1:] != 0).all()
    drawn = prior.sample(first, torch.Generator().manual_seed(0))
    assert drawn.shape == x.shape and torch.equal(drawn[:, 0, :3], first)
