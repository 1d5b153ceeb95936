"""Live bytes, counted by hand and by torch's allocator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.live_memory import LiveMemory
from benchmarks.published_sizes import FlowSize
from benchmarks.step_cost import predict
from benchmarks.training_step import TrainingStep
from pyro_resflow.flows import ConvBlock
from pyro_resflow.logdet import Krylov

SIZE = FlowSize((1, 16, 16), (1,), {"network": ConvBlock(32), "end_blocks": 1}, batch=128)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_counts_tensors_while_they_live(device: str) -> None:
    x = torch.ones(1000, device=device)
    with LiveMemory() as memory:
        y = x + 1
        assert memory.live == 4000
        z = y.exp()
        assert memory.live == 8000
        del y
        assert memory.live == 4000
    assert memory.peak == 8000
    del z
    assert memory.live == 0


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_views_are_no_new_memory(device: str) -> None:
    x = torch.ones(10, 100, device=device)
    with LiveMemory() as memory:
        outside = x.t()[3:]
        assert memory.live == 0
        y = x * 2
        view = y[0]
        del y
        assert memory.live == 4000  # the view keeps all of it
        view.add_(1)
        assert memory.live == 4000
        del view, outside
    assert memory.live == 0


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_counts_what_a_graph_keeps_and_the_gradients(device: str) -> None:
    weight = torch.ones(1000, device=device, requires_grad=True)
    with LiveMemory() as memory:
        loss = weight.exp().exp().sum()
        assert memory.live == 2 * 4000 + 4  # both results of exp, and the sum
        loss.backward()
        del loss
        assert memory.live == 4000  # the gradient
        weight.grad = None
    assert memory.live == 0


def allocated(step: TrainingStep, path: Path) -> int:
    """The most bytes that torch's allocator has handed out during a step, by its profiler."""
    images = step.images(SIZE.batch)
    step.optimizer.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(images)
    profiler.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    memory = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
    live = peak = 0
    for event in memory:
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("mode", ["recompute", "keep"])
def test_prediction_on_meta_is_what_the_allocator_hands_out(mode: str, tmp_path: Path) -> None:
    step = TrainingStep(SIZE.build(Krylov(memory=mode), "cpu"))
    step(step.images(SIZE.batch))
    found = allocated(step, tmp_path / "trace.json")
    assert found == pytest.approx(predict(SIZE, mode).peak.at(SIZE.batch), rel=0.1)
