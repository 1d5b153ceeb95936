"""Zuko's numbers that differ from what a user expects, and the warnings about them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("zuko")

from pyro_resflow.interop.zuko import ZukoInverseWarning, ZukoVersionWarning, from_zuko
from pyro_resflow.transforms import Compose
from tests.interop.zuko_flows import ZUKO_FLOWS, D

import zuko  # isort: skip  # after the adapter, which keeps the validation of arguments


@pytest.mark.parametrize("gradients", [False, True])
def test_a_search_that_stops_at_its_bound_is_told(gradients: bool) -> None:
    """f(x) = x / 4 between -10 and 10: what is above 2.5 has no inverse there."""

    def quarter() -> zuko.transforms.MonotonicTransform:
        return zuko.transforms.MonotonicTransform(lambda x: x / 4)

    lazy = zuko.flows.ElementWiseTransform(1, 0, lambda _: quarter(), shapes=[()])
    z = torch.tensor([[0.5], [3.0], [-1.0], [-7.0]])
    with (
        torch.set_grad_enabled(gradients),
        pytest.warns(ZukoInverseWarning, match="inverse is wrong for 2 of 4 samples"),
    ):
        x = from_zuko(lazy)(z)
    torch.testing.assert_close(x[[0, 2]], torch.tensor([[2.0], [-4.0]]), atol=1e-5, rtol=0)
    with pytest.warns(ZukoInverseWarning, match="2 of 4"):
        from_zuko(lazy.inv).inv(z)


@pytest.mark.parametrize("name", ["maf", "nsf", "nice", "cnf"])
def test_an_inverse_that_leads_back_is_no_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ZukoInverseWarning)
        from_zuko(ZUKO_FLOWS[name]())(torch.randn(5, D))


@pytest.mark.parametrize("name", ["NAF", "UNAF", "CNF"])
def test_evaluation_mode_has_the_gradients_of_training_mode(name: str) -> None:
    options = {} if name == "CNF" else {"transforms": 1}
    transform = from_zuko(getattr(zuko.flows, name)(2, hidden_features=(8,), **options))
    z = torch.randn(5, 2)
    gradients = []
    for training in (True, False):
        transform.train(training).zero_grad()
        transform(z).square().sum().backward()
        gradients.append([parameter.grad for parameter in transform.parameters()])
    assert not any(module.training for module in transform.modules())
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize(
    ("saved", "installed", "warns"),
    [("1.4.1", "1.6.0", True), ("1.5.0", "1.6.0", False), ("1.6.0", "1.4.0", True)],
)
def test_weights_of_a_version_with_other_densities_are_told(
    saved: str, installed: str, warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = Compose([from_zuko(ZUKO_FLOWS["maf"]())])
    monkeypatch.setattr(zuko, "__version__", saved)
    state = flow.state_dict()
    monkeypatch.setattr(zuko, "__version__", installed)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        flow.load_state_dict(state)
    told = [str(each.message) for each in found if each.category is ZukoVersionWarning]
    assert len(told) == warns
    assert all(f"saved under zuko {saved}, loaded under {installed}" in text for text in told)


def test_the_version_is_saved_to_files_and_another_librarys_state_loads(tmp_path: Path) -> None:
    flow = from_zuko(ZUKO_FLOWS["maf"]())
    torch.save(flow.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt")
    assert state._metadata[""]["zuko"] == zuko.__version__
    flow.load_state_dict(dict(state))
