"""Properties of all conditioners, and of each one."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from pyro_resflow.nn import (
    Conditioner,
    ConvConditioner,
    GatedAttentionConditioner,
    GatedConv,
    GatedEncoder,
    GatedMaxout,
    GatedSelfAttention,
    ResidualConditioner,
    TransformerConditioner,
    WeightNormConv2d,
    initialize_by,
)

CONDITIONERS: dict[str, Conditioner] = {
    "residual": ResidualConditioner(8, 2),
    "gated": GatedAttentionConditioner(8, 2),
    "gated_maxout": GatedAttentionConditioner(8, 2, mixing=GatedMaxout()),
    "gated_alone": GatedAttentionConditioner(8, 2, mixing=None),
    "gated_as_for_imagenet": GatedAttentionConditioner(
        8, 2, convolution=WeightNormConv2d, last_activation=True
    ),
    "conv": ConvConditioner(8),
    "conv_weight_norm": ConvConditioner(8, WeightNormConv2d),
    "transformer": TransformerConditioner(8, blocks=2, heads=2),
}
SHAPE = (3, 4, 6)
STARTING_AT_ZERO = (ConvConditioner, TransformerConditioner)


@pytest.fixture(params=sorted(CONDITIONERS))
def recipe(request: pytest.FixtureRequest) -> Conditioner:
    return CONDITIONERS[request.param]


def started(net: nn.Module, context_channels: int = 0) -> nn.Module:
    """The network, initialised, in evaluation mode and away from where it starts."""
    context = images(20, context_channels)
    initialize_by(lambda a: net(a, context), [torch.randn(20, *SHAPE)])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net.eval()


def images(number: int, channels: int) -> Tensor | None:
    return torch.randn(number, channels, *SHAPE[1:]) if channels else None


@pytest.mark.parametrize("context_channels", [0, 5])
def test_shapes_of_full_and_empty_batches(recipe: Conditioner, context_channels: int) -> None:
    net = started(recipe(SHAPE, 7, context_channels), context_channels)
    for number in (4, 1, 0):
        out = net(torch.randn(number, *SHAPE), images(number, context_channels))
        assert out.shape == (number, 7, *SHAPE[1:])


def test_starts_at_or_near_zero(recipe: Conditioner) -> None:
    net = recipe(SHAPE, 7)
    initialize_by(net, [torch.randn(50, *SHAPE)])
    out = net(torch.randn(50, *SHAPE))
    assert out.abs().max() <= (0 if isinstance(recipe, STARTING_AT_ZERO) else 0.6)


def test_every_parameter_learns(recipe: Conditioner) -> None:
    net = started(recipe(SHAPE, 7, 5), 5)
    net(torch.randn(20, *SHAPE), images(20, 5)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_input_and_context_matter(recipe: Conditioner) -> None:
    net = started(recipe(SHAPE, 7, 5), 5)
    a, context = torch.randn(4, *SHAPE), images(4, 5)
    out = net(a, context)
    assert (net(a + 1, context) - out).abs().max() > 1e-3
    assert (net(a, -context) - out).abs().max() > 1e-3


def test_samples_do_not_mix_in_evaluation_mode(recipe: Conditioner) -> None:
    net = started(recipe(SHAPE, 7))
    a = torch.randn(4, *SHAPE)
    alone = torch.cat([net(sample[None]) for sample in a])
    torch.testing.assert_close(net(a), alone, atol=1e-5, rtol=1e-5)


def test_copies_and_pickles(recipe: Conditioner) -> None:
    net = started(recipe(SHAPE, 7))
    a = torch.randn(4, *SHAPE)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(other(a), net(a), rtol=0, atol=0)
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_runs_on_meta_without_values(recipe: Conditioner) -> None:
    with torch.device("meta"):
        net = recipe(SHAPE, 7, 5)
        out = net(torch.empty(4, *SHAPE), torch.empty(4, 5, *SHAPE[1:]))
    assert out.is_meta
    assert out.shape == (4, 7, *SHAPE[1:])


@pytest.mark.parametrize("context", [None, torch.zeros(4, 6, 4, 6), torch.zeros(5)])
def test_wrong_context_is_named(recipe: Conditioner, context: Tensor | None) -> None:
    with pytest.raises(ValueError, match=r"context: expected shape \(N, 5, H, W\)"):
        recipe(SHAPE, 7, 5)(torch.randn(4, *SHAPE), context)
    with pytest.raises(ValueError, match="context: expected None"):
        recipe(SHAPE, 7)(torch.randn(4, *SHAPE), torch.zeros(4, 5, 4, 6))


def numbers(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_maxout_has_as_many_parameters_as_attention_and_sees_one_pixel() -> None:
    attention = GatedAttentionConditioner(8, 1)
    maxout = GatedAttentionConditioner(8, 1, mixing=GatedMaxout())
    assert numbers(attention(SHAPE, 7)) == numbers(maxout(SHAPE, 7))
    corner = torch.zeros(1, *SHAPE)
    corner[..., 0, 0] = 1
    reach = {}
    for name, recipe in (("attention", attention), ("maxout", maxout)):
        net = started(recipe(SHAPE, 7))
        changed = (net(corner) - net(torch.zeros(1, *SHAPE))).abs().amax((0, 1)) > 0
        reach[name] = changed
    assert reach["attention"].all()
    assert not reach["maxout"][:, -1].any()  # 3x3 three times reaches three pixels


def test_published_block_count() -> None:
    """Flow++'s network on a checkerboard half of CIFAR-10, counted in the authors' code."""
    c, out = 96, 3 * 98
    block = (9 * 2 * c * c + c) + (2 * c * 2 * c + 2 * c) + 2 * c  # gated convolution, norm
    block += (c * 3 * c + 3 * c) + (c * 2 * c + 2 * c) + 2 * c  # attention, norm
    expected = 32 * 16 * c + (9 * 3 * c + c) + 10 * block + (9 * c * out + out)
    with torch.device("meta"):
        assert numbers(GatedAttentionConditioner()((3, 32, 16), out)) == expected


def test_attention_follows_its_formula() -> None:
    torch.manual_seed(0)
    layer = GatedSelfAttention(2)(4, 0.0, WeightNormConv2d)
    x, positions = torch.randn(3, 4, 2, 3), torch.randn(4, 2, 3)
    found = layer(x, positions)
    query, key, value = layer.project(x + positions).flatten(2).chunk(3, dim=1)
    heads = []
    for h in range(2):
        q, k, v = (part[:, 2 * h : 2 * h + 2] for part in (query, key, value))
        weights = (torch.einsum("ndi,ndj->nij", q, k) / 2**0.5).softmax(-1)
        heads.append(torch.einsum("nij,ndj->ndi", weights, v))
    a, b = layer.gate(torch.cat(heads, 1).reshape(x.shape)).chunk(2, dim=1)
    torch.testing.assert_close(found, x + a * b.sigmoid())


def test_a_transformer_is_the_encoder_of_torch() -> None:
    """torch.nn.TransformerEncoder with the same weights computes the same."""
    torch.manual_seed(0)
    net = started(TransformerConditioner(8, blocks=2, heads=2)(SHAPE, 5))
    layer = nn.TransformerEncoderLayer(
        8,
        2,
        32,
        dropout=0.0,
        activation=partial(nn.functional.gelu, approximate="tanh"),
        layer_norm_eps=1e-6,
        batch_first=True,
        norm_first=True,
    )
    encoder = nn.TransformerEncoder(layer, 2, net.norm, enable_nested_tensor=False)
    for block, torchs in zip(net.blocks, encoder.layers, strict=True):
        pairs = {
            "self_attn.in_proj_weight": block.project.weight,
            "self_attn.in_proj_bias": block.project.bias,
        }
        own = {
            "self_attn.out_proj": block.join,
            "linear1": block.expand,
            "linear2": block.contract,
            "norm1": block.norms[0],
            "norm2": block.norms[1],
        }
        for name, part in own.items():
            pairs |= {f"{name}.weight": part.weight, f"{name}.bias": part.bias}
        torchs.load_state_dict(pairs)
    a = torch.randn(3, *SHAPE)
    tokens = net.first(a.flatten(2).transpose(1, 2)) + net.positions
    expected = net.last(encoder(tokens)).transpose(1, 2).reshape(3, 5, *SHAPE[1:])
    torch.testing.assert_close(net(a), expected)


def test_heads_that_do_not_divide_are_named() -> None:
    with pytest.raises(ValueError, match="heads: expected a divisor of the 6 channels, got 4"):
        TransformerConditioner(6, heads=4)(SHAPE, 7)
    with pytest.raises(ValueError, match="heads: expected a divisor of the 6 channels, got 4"):
        GatedAttentionConditioner(6)(SHAPE, 7)


def test_dropout_is_for_training_only() -> None:
    net = GatedAttentionConditioner(8, 2, dropout=0.5)(SHAPE, 7)
    a = torch.randn(4, *SHAPE)
    net(a)
    assert not torch.equal(net(a), net(a))
    net.eval()
    assert torch.equal(net(a), net(a))


def test_encoder_of_published_size() -> None:
    """The image's features in the authors' dequantizer of CIFAR-10."""
    c = 32
    gated = (9 * 2 * c * c + c) + (9 * 2 * c * 2 * c + 2 * c)
    with torch.device("meta"):
        net = GatedEncoder()((6, 32, 16))
    assert numbers(net) == (9 * 6 * c + c) + 3 * gated


def test_gated_convolution_is_near_the_identity_at_first() -> None:
    x = torch.randn(20, 8, 4, 4)
    assert (GatedConv(8)(x) - x).std() < 0.1


def test_residual_network_reads_both_signs_of_the_normalised_input() -> None:
    net = started(ResidualConditioner(8, 0)(SHAPE, 7))
    seen: list[Tensor] = []
    net.first.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    a = torch.randn(4, *SHAPE)
    net(a)
    normalized = (
        2
        * (a - net.input_norm.running_mean[:, None, None])
        / (net.input_norm.running_var[:, None, None] + net.input_norm.eps).sqrt()
    )
    torch.testing.assert_close(seen[0], torch.cat([normalized, -normalized], 1).relu())
