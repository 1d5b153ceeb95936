"""The cost of loading is in proportion to the file, or a limit rejects the file first."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_resflow import residual_flow
from pyro_resflow.checkpoints import (
    CorruptCheckpointError,
    LimitError,
    Limits,
    NotRebuildableError,
    info,
    load,
    load_reference,
    save,
)
from pyro_resflow.checkpoints.budget import OPERATION, AllocationBudget
from pyro_resflow.flows import ConvBlock, ResidualFlow
from pyro_resflow.nn import LipschitzMLP
from pyro_resflow.transforms import ActNorm, Compose
from tests.checkpoints.forgeries import forge, reference_file
from tests.checkpoints.test_reading import changed


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "many"])
def test_limits_are_positive_integers(value: Any) -> None:
    for name in ("header", "depth", "entries", "instructions", "memory", "growth"):
        with pytest.raises(ValueError, match=f"{name}: expected a positive integer, got"):
            Limits(**{name: value})


def doubled(levels: int, kind: str) -> Any:
    """A few entries, each with two references to the one before: 2 to the levels written out."""
    node: Any = {"class": "nn.ELU", "arguments": {}, "id": 0}
    for level in range(levels):
        pair = [node, {"ref": level}]
        whole = {
            "compose": {"class": "transforms.Compose", "arguments": {"parts": pair}},
            "recipe": {
                "class": "flows.ConvBlock",
                "arguments": {"activation": pair[0], "kernel_sizes": pair[1]},
            },
        }[kind]
        node = {**whole, "id": level + 1}
    return node


@pytest.mark.parametrize("kind", ["compose", "recipe"])
@pytest.mark.parametrize("where", ["flow", "key", "setting"])
def test_references_count_as_what_they_refer_to(kind: str, where: str, saved: Path) -> None:
    node = doubled(20, kind)

    def change(description: dict[str, Any]) -> None:
        if where == "setting":
            description["settings"] = {"0": {"logdet": node}}
        else:
            description["flow"] = node if where == "flow" else {"dict": [[node, 1]]}

    changed(saved, change)
    for read in (load, info):
        with pytest.raises(
            LimitError, match="more entries, counting referenced ones, than limits"
        ):
            read(saved)


def test_few_references_are_no_reason_to_refuse(saved: Path) -> None:
    changed(saved, lambda d: d.update(flow=doubled(7, "recipe")))
    with pytest.raises(CorruptCheckpointError, match="ConvBlock: kernel_sizes: expected a seq"):
        load(saved)
    with pytest.raises(LimitError, match=r"limits: entries=300\."):
        load(saved, limits=Limits(entries=300))
    assert "flows.ConvBlock" in str(info(saved))


@pytest.mark.parametrize("wrap", [lambda n: [n], lambda n: {"tuple": [n]}], ids=["list", "tuple"])
def test_deep_nesting_is_refused(wrap: Callable[[Any], Any], saved: Path) -> None:
    node: Any = 1
    for _ in range(100):
        node = wrap(node)
    flow = {"class": "transforms.Compose", "arguments": {"parts": {"dict": [[node, 1]]}}}
    changed(saved, lambda d: d.update(flow=flow))
    for read in (load, info):
        with pytest.raises(LimitError, match="nested deeper than limits: depth=64"):
            read(saved)


def test_flows_inside_flows_are_within_the_limits(path: Path) -> None:
    flow: Any = ActNorm(2)
    for _ in range(15):
        flow = Compose([flow])
    save(flow, path)
    assert type(load(path)) is Compose


def test_what_load_would_refuse_is_not_saved(path: Path) -> None:
    flow = residual_flow(2, 3, [4])
    for limits in (Limits(entries=50), Limits(depth=3)):
        with pytest.raises(NotRebuildableError, match="load would refuse the file"):
            save(flow, path, limits=limits)
    with pytest.raises(NotRebuildableError, match=r"would refuse the file: .*needs more than"):
        save(flow, path, limits=Limits(memory=100, growth=1))
    assert not path.exists()


def test_long_headers_and_pickles_are_refused(saved: Path) -> None:
    save(ActNorm(2), saved, notes={"long": "x" * 2000})
    for read in (load, info):
        with pytest.raises(LimitError, match=r"header has \d,\d+ bytes; limits: header=1,000"):
            read(saved, limits=Limits(header=1000))
    for read in (load_reference, info):
        with pytest.raises(LimitError, match="bytes; limits: header=1,000"):
            read(reference_file("mnist_tiny"), limits=Limits(header=1000))


HUGE: dict[str, Any] = {
    "size": {"class": "transforms.ActNorm", "arguments": {"num_features": 10**12}},
    "product": {
        "class": "nn.LipschitzMLP",
        "arguments": {"input_dim": 10**6, "hidden_dims": [10**6]},
    },
    "blocks": {
        "class": "flows.ResidualFlow",
        "arguments": {"event_shape": [1, 4, 4], "blocks": [10**9, 1]},
    },
    "mask": {
        "class": "pyro.AutoRegressiveNN",
        "arguments": {"input_dim": 10**6, "hidden_dims": [10**6]},
    },
}


@pytest.mark.parametrize("name", sorted(HUGE))
def test_a_few_bytes_do_not_become_a_large_flow(name: str, saved: Path) -> None:
    changed(saved, lambda d: d.update(flow=HUGE[name]))
    with pytest.raises(LimitError, match="bytes, too many for a file of this size"):
        load(saved, limits=Limits(memory=2**20))


def test_a_power_is_not_computed_before_it_is_known_to_be_small(saved: Path) -> None:
    flow = {"class": "flows.RealNVP", "arguments": {"event_shape": [1, 8, 8], "scales": 10**6}}
    changed(saved, lambda d: d.update(flow=flow))
    with pytest.raises(
        CorruptCheckpointError, match=r"divisible by 2\*\*999999 for 999999 squeezes"
    ):
        load(saved)


def test_a_large_flow_in_a_file_of_its_size_is_loaded(path: Path) -> None:
    flow = LipschitzMLP(300, [400])
    save(flow, path, limits=Limits(memory=1))
    load(path, limits=Limits(memory=1), certify=False)


def test_a_budget_counts_before_memory_is_taken() -> None:
    with AllocationBudget(1000) as budget, pytest.raises(LimitError, match="1,000 bytes"):
        torch.zeros(10**12)
    with AllocationBudget(2**20) as budget:
        x = torch.zeros(10, 10)
        x.t().add_(1)
        x[0]
    assert budget.limit - budget.left == 400 + 4 * OPERATION
    with AllocationBudget(2**20), pytest.raises(LimitError):  # of two vectors a matrix
        torch.zeros(1000, 1) * torch.zeros(1000)
    with AllocationBudget(2**20) as budget:  # a size that depends on values
        torch.ones(100).nonzero()
    assert budget.limit - budget.left == 400 + 800 + 2 * OPERATION


def test_a_budget_lets_random_numbers_be(path: Path) -> None:
    torch.manual_seed(0)
    expected = residual_flow(3).state_dict()
    torch.manual_seed(0)
    with AllocationBudget(2**26):
        found = residual_flow(3).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("option", "value"),
    [("idim", 10**7), ("imagesize", 2**20), ("nblocks", "1000000000-2"), ("kernels", "3-9999999")],
)
def test_options_of_the_references_are_not_believed(
    option: str, value: Any, tmp_path: Path
) -> None:
    path = forge(tmp_path / "f.pth", lambda saved: setattr(saved["args"], option, value))
    with pytest.raises(LimitError, match="too many for a file of this size"):
        load_reference(path, limits=Limits(memory=2**20, growth=1))


def test_refused_files_take_no_memory(saved: Path) -> None:
    changed(saved, lambda d: d.update(flow=doubled(20, "compose")))
    tracemalloc.start()
    try:
        with pytest.raises(LimitError):
            load(saved)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_flows_of_published_widths_are_within_the_limits() -> None:
    """On the meta device, where nothing is allocated: the budget counts all the same."""
    with torch.device("meta"):
        for limits in (Limits(), Limits(memory=1)):  # of small files and of large ones
            with AllocationBudget(10**12) as budget:
                flow = ResidualFlow((3, 32, 32), [1, 1], network=ConvBlock(512))
            size = sum(t.numel() * t.element_size() for t in flow.state_dict().values())
            assert budget.limit - budget.left < 0.2 * limits.allocation(size)


def test_a_name_is_not_looked_up_in_torch(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of torch's modules are imported when their name is first looked up."""
    looked_up: list[str] = []
    monkeypatch.setattr(torch, "__getattr__", looked_up.append)
    assert torch.onnx_or_so is None  # this is how it would be noticed
    node = {"dtype": "onnx_or_so"}
    changed(saved, lambda d: d["flow"]["arguments"].update(more=node))
    with pytest.raises(CorruptCheckpointError, match="'onnx_or_so' is not a valid 'dtype'"):
        load(saved)
    assert looked_up == ["onnx_or_so"]
