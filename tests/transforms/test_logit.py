"""The logit: ends, numerical stability, domain."""

import pytest
import torch

from pyro_resflow.transforms import Logit


@pytest.mark.parametrize("alpha", [1e-6, 0.05])
def test_logit_is_finite_at_the_ends_and_maps_back(alpha: float) -> None:
    x = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    y, ladj = Logit(alpha).call_and_ladj(x)
    assert torch.isfinite(y).all()
    assert torch.isfinite(ladj).all()
    torch.testing.assert_close(Logit(alpha).inv(y), x)


def test_logit_log_det_is_stable_far_out() -> None:
    y = torch.tensor([-80.0, 80.0])
    _, ladj = Logit(0.05).inverse_and_ladj(y)
    torch.testing.assert_close(ladj, torch.full((2,), 80.0 + torch.log1p(torch.tensor(-0.1))))


def test_logit_domain_is_what_it_can_map() -> None:
    domain = Logit(0.05, event_dim=1).domain
    assert domain.check(torch.tensor([0.0, 1.0]))
    assert not domain.check(torch.tensor([0.0, 1.2]))


def test_logit_names_a_bad_margin() -> None:
    with pytest.raises(ValueError, match="alpha"):
        Logit(0.5)
