"""i-ResNet for the density of images: structure, learned prior, biased and unbiased estimators."""

from __future__ import annotations

import pytest
import torch

from pyro_resflow.flows import ConvBlock, IResNet
from pyro_resflow.logdet import Exact, PowerSeries
from pyro_resflow.nn import ELU, check_contraction
from pyro_resflow.transforms import ActNorm, Residual, Split, initialize, set_logdet


def small(**options: object) -> IResNet:
    options = {"blocks": (2, 1), "network": ConvBlock(8, activation=ELU), **options}
    return IResNet((1, 8, 8), **options)


def members(flow: IResNet, kind: type) -> list[torch.nn.Module]:
    return [module for module in flow.modules() if isinstance(module, kind)]


def test_an_act_norm_comes_before_each_block_and_one_at_the_end_is_the_prior() -> None:
    parts = [part for part in small().modules() if isinstance(part, ActNorm | Residual)]
    assert [type(part) for part in parts] == [ActNorm, Residual] * 3 + [ActNorm]
    assert parts[-1].num_features == 64
    assert len(members(small(), Split)) == 1


def test_published_configuration_is_the_default() -> None:
    with torch.device("meta"):
        flow = IResNet((3, 32, 32))
    blocks = members(flow, Residual)
    assert len(blocks) == 48
    assert [block.net.event_shape for block in blocks[::16]] == [
        (12, 16, 16),
        (24, 8, 8),
        (48, 4, 4),
    ]
    layers = [m for m in blocks[1].net if hasattr(m, "weight")]
    assert [layer.weight.shape[0] for layer in layers] == [512, 512, 12]
    assert {layer.norm.coefficient for layer in layers} == {0.9}
    assert isinstance(blocks[1].net[0], ELU)
    assert not isinstance(blocks[0].net[0], ELU)  # the very first block skips its activation
    assert isinstance(blocks[0].logdet, PowerSeries)
    assert blocks[0].logdet.terms == 5


def test_scores_samples_and_reconstructs_images() -> None:
    flow = small()
    x = torch.rand(16, 1, 8, 8)
    d = flow.distribution()
    assert d.log_prob(x).shape == (16,)
    assert d.sample((2, 3)).shape == (2, 3, 1, 8, 8)
    with torch.no_grad():
        assert (flow._call(flow.inv(x)) - x).abs().max() < 1e-5
        assert flow.encoder.call_and_ladj(x[:0])[1].shape == (0,)
        assert flow.encoder.inverse_and_ladj(torch.empty(0, 64))[1].shape == (0,)
    check_contraction(flow)


def test_first_batch_standardises_the_noise() -> None:
    flow = small()
    x = torch.rand(50, 1, 8, 8)
    initialize(flow, x)
    with torch.no_grad():
        z = flow.inv(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(64), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.std(0), torch.ones(64), rtol=0, atol=1e-3)


def test_log_det_is_that_of_the_whole_jacobian() -> None:
    flow = small(blocks=(1, 1), logdet=Exact()).double()
    initialize(flow, torch.rand(20, 1, 8, 8, dtype=torch.float64))
    x = torch.rand(1, 8, 8, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(flow.inv._call, x).reshape(64, 64)
    z, ladj = flow.inv.call_and_ladj(x)
    assert z.shape == (64,)
    torch.testing.assert_close(ladj, torch.linalg.slogdet(jacobian)[1])


def test_estimator_can_be_exchanged_for_an_unbiased_one() -> None:
    flow = small()
    set_logdet(flow, Exact())
    x = torch.rand(4, 1, 8, 8)
    initialize(flow, x)
    with torch.no_grad():
        d = flow.distribution()
        assert torch.equal(d.log_prob(x.clone()), d.log_prob(x.clone()))


@pytest.mark.parametrize("options", [{"squeeze_first": False}, {"factor_out": False}])
def test_squeeze_and_factoring_out_are_optional(options: dict[str, bool]) -> None:
    flow = small(**options)
    assert flow.distribution().log_prob(torch.rand(16, 1, 8, 8)).shape == (16,)


def test_bad_shape_is_named() -> None:
    with pytest.raises(ValueError, match="divisible by 8"):
        IResNet((3, 4, 4))
