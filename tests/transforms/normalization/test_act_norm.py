"""ActNorm: initialisation, ranges, extremes."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Transform

from pyro_resflow.transforms import ActNorm, initialize


def density(transform: Transform) -> dist.TransformedDistribution:
    """The distribution of three normal numbers after a transform."""
    return dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0).to_event(1), [transform])


@pytest.mark.parametrize("event_dim", [1, 3])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_first_batch_comes_out_normalised_in_either_direction(
    event_dim: int, direction: str
) -> None:
    shape = (50, 3) if event_dim == 1 else (50, 3, 4, 4)
    x = 2 + 5 * torch.randn(*shape)
    norm = ActNorm(3, event_dim=event_dim)
    transform = norm if direction == "forward" else norm.inv
    initialize(transform.inv, x)
    out = transform(x)
    features = out.transpose(0, 1).flatten(1)
    torch.testing.assert_close(features.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.std(1), torch.ones(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_every_pixel_may_have_its_own_scale(direction: str) -> None:
    x = 5 * torch.randn(3, 2, 4) + torch.rand(3, 2, 4) * torch.randn(50, 3, 2, 4)
    norm = ActNorm((3, 2, 4), event_dim=3)
    assert norm.num_features == 24
    transform = norm if direction == "forward" else norm.inv
    initialize(transform.inv, x)
    out = transform(x)
    torch.testing.assert_close(out.mean(0), torch.zeros(3, 2, 4), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.std(0), torch.ones(3, 2, 4), atol=1e-4, rtol=0)
    ladj = norm.log_abs_det_jacobian(x, norm(x))
    torch.testing.assert_close(ladj, norm.log_scale.sum().expand(50))


@pytest.mark.parametrize(("features", "event_dim"), [((3, 4), 3), ((2, 3, 4), 1)])
def test_a_feature_shape_of_other_dimensions_is_named(
    features: tuple[int, ...], event_dim: int
) -> None:
    with pytest.raises(ValueError, match=f"num_features: expected a number or {event_dim} sizes"):
        ActNorm(features, event_dim=event_dim)


def test_second_batch_leaves_the_scale_alone() -> None:
    norm = ActNorm(3)
    initialize(norm, torch.randn(50, 3))
    scale = norm.log_scale.detach().clone()
    density(norm).log_prob(10 * torch.randn(50, 3))
    assert torch.equal(scale, norm.log_scale)


def test_flag_travels_in_the_state_dict() -> None:
    norm = ActNorm(3)
    initialize(norm, 5 * torch.randn(50, 3))
    other = ActNorm(3)
    other.load_state_dict(norm.state_dict())
    x = torch.randn(1, 3)
    torch.testing.assert_close(other(x), norm(x))


def test_loading_an_uninitialised_state_waits_for_a_batch_again() -> None:
    norm = ActNorm(3)
    fresh = {name: value.clone() for name, value in norm.state_dict().items()}
    initialize(norm, torch.randn(50, 3))
    norm.load_state_dict(fresh)
    with pytest.raises(ValueError, match="not initialised"):
        density(norm).log_prob(torch.randn(1, 3))


@pytest.mark.parametrize("shape", [(3,), (1, 3)])
def test_single_sample_cannot_initialise(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not initialised yet, and the 1 sample"):
        density(ActNorm(3)).log_prob(torch.randn(*shape))
    with pytest.raises(ValueError, match="not initialised yet, and the 1 sample"):
        density(ActNorm(3).inv).log_prob(torch.randn(*shape))


def test_initialized_starts_as_the_identity() -> None:
    x = torch.randn(3)
    torch.testing.assert_close(ActNorm(3, initialized=True)(x), x)


def test_constant_features_stay_finite() -> None:
    norm = ActNorm(3)
    initialize(norm.inv, torch.ones(50, 3))
    y, ladj = norm.call_and_ladj(torch.ones(50, 3))
    assert torch.isfinite(y).all()
    assert torch.isfinite(ladj).all()


def test_nan_does_not_initialise() -> None:
    norm = ActNorm(2)
    with pytest.raises(ValueError, match="nan or infinite"):
        initialize(norm, torch.tensor([[0.0, 1.0], [float("nan"), 2.0]]))
    assert not norm.initialized


def test_act_norm_names_a_wrong_width() -> None:
    with pytest.raises(ValueError, match=r"x: expected shape \(\*batch, 3\)"):
        ActNorm(3)(torch.randn(5, 4))
