"""The i-ResNet classifier: structure, reconstruction, learning."""

from __future__ import annotations

import copy

import pytest
import torch

from pyro_resflow.classifiers import IResNetClassifier
from pyro_resflow.nn import check_contraction
from pyro_resflow.transforms import ActNorm, Residual


def small(**options: object) -> IResNetClassifier:
    options = {"blocks": (2, 1), "hidden_channels": (8, 8), "padding": 5, **options}
    return IResNetClassifier((3, 8, 8), 4, **options)


def test_published_configuration_is_the_default() -> None:
    with torch.device("meta"):
        net = IResNetClassifier()
    blocks = [module for module in net.modules() if isinstance(module, Residual)]
    shapes = [block.net.event_shape for block in blocks]
    assert shapes == [(16, 32, 32)] * 7 + [(64, 16, 16)] * 7 + [(256, 8, 8)] * 7
    widths = [next(block.net.parameters()).shape[0] for block in blocks]
    assert widths == [32] * 7 + [64] * 7 + [128] * 7
    assert len([module for module in net.modules() if isinstance(module, ActNorm)]) == 21


def test_a_classifier_without_padding_has_as_many_features_as_the_image() -> None:
    net = small(padding=0)
    x = torch.rand(16, 3, 8, 8)
    with torch.no_grad():
        features = net.features(x)
        assert features.shape == (16, 12, 4, 4)
        assert (net.reconstruct(features) - x).abs().max() < 1e-5


def test_features_give_the_image_back() -> None:
    net = small()
    x = torch.rand(16, 3, 8, 8)
    with torch.no_grad():
        features = net.features(x)
        assert features.shape == (16, 32, 4, 4)
        assert features[0].numel() == 8 * 8 * 8
        assert (net.reconstruct(features) - x).abs().max() < 1e-5
    check_contraction(net)


def test_reconstruction_is_differentiable() -> None:
    net = small()
    features = net.features(torch.rand(16, 3, 8, 8)).detach().requires_grad_()
    net.reconstruct(features).square().sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert features.grad.abs().sum() > 0


def test_learns_to_tell_bright_from_dark() -> None:
    net = small()
    labels = torch.randint(0, 2, (64,))
    x = 0.5 * torch.rand(64, 3, 8, 8) + 0.3 * labels.view(-1, 1, 1, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(15):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()
    missing = [name for name, parameter in net.named_parameters() if parameter.grad is None]
    assert not missing
    net.eval()
    with torch.no_grad():
        assert (net(x).argmax(1) == labels).float().mean() > 0.95
        assert (net.reconstruct(net.features(x)) - x).abs().max() < 1e-4


def test_copies_and_states_compute_the_same() -> None:
    net = small()
    x = torch.rand(16, 3, 8, 8)
    with torch.no_grad():
        net(x)
        net.eval()
        expected = net(x)
        other = small().eval()
        other.load_state_dict(net.state_dict())
        torch.testing.assert_close(other(x), expected)
        torch.testing.assert_close(copy.deepcopy(net)(x), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_channels": (8,)}, "one width for each of 2 scales"),
        ({"blocks": (-1, 1)}, "expected at least 0 at each scale"),
        ({"padding": -1}, "channels"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_bad_images_are_named() -> None:
    with pytest.raises(ValueError, match="x: expected shape"):
        small()(torch.rand(2, 1, 8, 8))


def test_a_negative_padding_is_named() -> None:
    with pytest.raises(ValueError, match="padding: expected a number of channels"):
        IResNetClassifier((1, 8, 8), 3, blocks=(1,), hidden_channels=(4,), padding=-1)
