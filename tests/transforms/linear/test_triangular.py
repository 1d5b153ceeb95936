import pyro.distributions as dist
import pytest
import torch

from pyro_resflow.transforms import TriangularAffine


def away_from_the_identity(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_triangular_affine_of_noise_is_a_multivariate_normal(dtype: torch.dtype) -> None:
    affine = away_from_the_identity(TriangularAffine(4)).to(dtype)
    scale_tril = affine.log_scale.exp()[:, None] * affine.unit_triangle()
    expected = dist.MultivariateNormal(affine.shift, scale_tril=scale_tril)
    noise = dist.Normal(torch.zeros(4, dtype=dtype), 1.0).to_event(1)
    found = dist.TransformedDistribution(noise, [affine])
    x = torch.randn(5, 4, dtype=dtype)
    torch.testing.assert_close(found.log_prob(x), expected.log_prob(x))


def test_triangular_affine_starts_as_the_identity_in_one_dimension_and_in_more() -> None:
    for size in (1, 3):
        x = torch.randn(5, size)
        assert torch.equal(TriangularAffine(size)(x), x)


def test_vectors_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected shape \(\*batch, 3\)"):
        TriangularAffine(3)(torch.randn(2))


def test_the_inverse_undoes_it_under_autocast() -> None:
    transform = TriangularAffine(5)
    with torch.no_grad():
        transform.below_diagonal.normal_()
    x = torch.randn(7, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(transform._inverse(transform._call(x)), x, atol=1e-4, rtol=1e-4)
