"""The recipes of docs/extending.md work outside of the package, through public names alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Transform

from pyro_resflow import checkpoints, nn
from pyro_resflow.logdet import Exact
from pyro_resflow.transforms import ChannelHalves, Coupling, Monotone, Residual

from .test_docs import ROOT, blocks, run
from .test_imports import ALLOWED, FOUNDATION

PAGE = ROOT / "docs" / "extending.md"


@pytest.fixture(scope="module")
def recipes() -> dict[str, Any]:
    """The names that the page's blocks define."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(PAGE.read_text()):
        run(block, str(PAGE), namespace)
    return namespace


def log_slopes(transform: Transform, x: torch.Tensor) -> torch.Tensor:
    """log|det J| at each x, by automatic differentiation of the values alone."""
    jacobians = [torch.autograd.functional.jacobian(transform, point[None]) for point in x]
    size = x[0].numel()
    return torch.stack([torch.linalg.slogdet(j.reshape(size, size))[1] for j in jacobians])


def test_recipes_use_public_names_alone() -> None:
    for block in blocks(PAGE.read_text()):
        for node in ast.walk(ast.parse(block.code)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("pyro_resflow"):
                part = __import__(node.module, fromlist=["__all__"])
                assert node.module.count(".") <= 1
                assert {alias.name for alias in node.names} <= set(part.__all__)
            elif isinstance(node, ast.Attribute):
                assert not node.attr.startswith("_") or node.attr == "__init__"


def test_the_activation_makes_a_certified_contraction(recipes: dict[str, Any]) -> None:
    block = Residual(nn.LipschitzMLP(3, [16], activation=recipes["Sine"])).double().eval()
    nn.check_contraction(block)
    x = torch.randn(4, 3, dtype=torch.float64)
    y, ladj = block.call_and_ladj(x)
    torch.testing.assert_close(ladj, log_slopes(block, x))
    torch.testing.assert_close(block.inv(y), x)


@pytest.mark.parametrize("kind", [Residual, Monotone])
def test_the_estimator_serves_residual_and_monotone_transforms(
    kind: type[Residual] | type[Monotone], recipes: dict[str, Any]
) -> None:
    net = nn.LipschitzMLP(3, [16]).double().eval()
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    values, gradients = [], []
    for logdet in (recipes["QRLogDet"](), Exact()):
        ladj = kind(net, logdet=logdet).call_and_ladj(x)[1]
        values.append(ladj)
        gradients.append(
            torch.autograd.grad(ladj.sum(), [x, *net.parameters()], materialize_grads=True)
        )
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_coupling_map_is_a_bijection_with_its_log_slope(recipes: dict[str, Any]) -> None:
    coupling = Coupling(ChannelHalves((4,)), recipes["SinhArcsinhMap"](), torch.nn.Linear(2, 4))
    coupling.double()
    x = torch.randn(5, 4, dtype=torch.float64)
    y, ladj = coupling.call_and_ladj(x)
    torch.testing.assert_close(ladj, log_slopes(coupling, x))
    torch.testing.assert_close(coupling.inv(y), x)


def test_the_image_model_scores_and_comes_back_from_a_file(
    recipes: dict[str, Any], tmp_path: Path
) -> None:
    flow = recipes["SinhArcsinhFlow"]((1, 4, 4), couplings=2, width=4).double()
    x = torch.rand(32, 1, 4, 4, dtype=torch.float64)
    flow.distribution().log_prob(x)  # initialises
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    flow.eval()
    _, ladj = flow.inv.call_and_ladj(x[:3])
    torch.testing.assert_close(ladj, log_slopes(flow.inv, x[:3]))
    checkpoints.save(flow, tmp_path / "flow.safetensors")
    own = [recipes["SinhArcsinhFlow"], recipes["SinhArcsinhMap"]]
    loaded = checkpoints.load(tmp_path / "flow.safetensors", classes=own)
    assert torch.equal(loaded.distribution().log_prob(x), flow.distribution().log_prob(x))


def test_the_picture_shows_every_part() -> None:
    drawn = set(re.findall(r'"#222">(\w+)<', (ROOT / "docs/images/house.svg").read_text()))
    assert set(ALLOWED) - FOUNDATION - {"extras"} <= drawn
    assert drawn <= set(ALLOWED)


def test_the_files_to_touch_are_there_and_at_most_four() -> None:
    lists = re.findall(
        r"^In the package: (.*?)\.(?: |$)", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(lists) == 4
    for text in lists:
        files = re.findall(r"`([^`]+)`", text)
        assert 1 <= len(files) <= 4
        for file in files:
            where = [ROOT / file, ROOT / "pyro_resflow" / file]
            assert any(
                path.exists() or (path.stem == "NAME" and path.parent.exists()) for path in where
            )
