"""The cost of a training step: operations by hand, linear memory, fixed roulette."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.published_sizes import PUBLISHED, FlowSize
from benchmarks.scale_check import SMALL, TOLERANCE, measure_in_fresh_process
from benchmarks.step_cost import (
    Cost,
    Peak,
    flops,
    mean_of,
    meta_step,
    norm_flops,
    peak_bytes,
    predict,
)
from pyro_resflow.flows import ConvBlock
from pyro_resflow.logdet import Geometric, Krylov
from pyro_resflow.nn import LipschitzConvNet, LipschitzLayer, SpectralNorm
from pyro_resflow.nn.lipschitz.squaring import SCALINGS, SQUARINGS_BETWEEN

WIDTH, BATCH = 64, 8
SIZE = FlowSize((2, 8, 8), (1,), {"network": ConvBlock(WIDTH), "end_blocks": 0}, batch=BATCH)


def pass_by_hand(channels: int, width: int, pixels: int) -> int:
    """Operations of one image through convolutions 3x3, 1x1, 3x3."""
    return 2 * pixels * (9 * channels * width + width * width + 9 * width * channels)


@lru_cache
def predicted(memory: str) -> Cost:
    return predict(SIZE, memory)


def test_counter_agrees_with_a_hand_count_of_convolutions() -> None:
    with torch.device("meta"):
        net = LipschitzConvNet((2, 8, 8), (WIDTH, WIDTH))
        x = torch.empty(BATCH, 2, 8, 8, requires_grad=True)
        net(x)
    for layer in net:
        if isinstance(layer, LipschitzLayer):
            layer.effective_weight = weight_alone(layer.weight)  # measuring it is counted apart
    with FlopCounterMode(display=False) as counter:
        y = net(x)
    assert counter.get_total_flops() == BATCH * pass_by_hand(2, WIDTH, 64)
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    # by the input and by the weight
    assert counter.get_total_flops() == 2 * BATCH * pass_by_hand(2, WIDTH, 64)


def weight_alone(weight: Tensor) -> object:
    return lambda gain: weight


def test_norms_are_measured_on_the_short_side() -> None:
    step = meta_step(SIZE, "recompute", 1)
    step(step.images(2))
    found = norm_flops(step)
    patches = 2 * 64 * (9 * 2) ** 2  # the Gram matrix of a kernel's patches, at every pixel
    # the 1x1 convolution is a small matrix: its Gram matrix, and that one's squares
    squares = (1 + SCALINGS * SQUARINGS_BETWEEN) * 2 * WIDTH**3
    by_hand = SpectralNorm.cycle * 2 * patches + squares
    # the Krylov space, its start and the far side of the pair come on top
    assert by_hand < found < 2 * by_hand
    # the norms' gradients, of two kernels at every pixel and of a matrix, are counted with them
    gradients = 2 * (2 * 64 * WIDTH * 9 * 2) + 2 * WIDTH**2
    assert found - gradients - squares < 0.1 * SpectralNorm.cycle * 2 * pass_by_hand(2, WIDTH, 64)


@pytest.mark.parametrize("memory", ["recompute", "keep"])
def test_one_more_term_costs_one_more_pass(memory: str) -> None:
    counts = [flops(meta_step(SIZE, memory, further), BATCH) for further in (1, 2, 3)]
    one_pass = BATCH * pass_by_hand(2, WIDTH, 64)
    # the small products of Arnoldi's method come on top
    assert counts[1] - counts[0] == pytest.approx(one_pass, rel=0.03)
    assert counts[2] - counts[1] == pytest.approx(one_pass, rel=0.03)


def test_keeping_activations_saves_operations_and_costs_memory() -> None:
    deeper = replace(SIZE, blocks=(3,))  # recomputing pays where there are other blocks to keep
    recompute, keep = predict(deeper, "recompute"), predict(deeper, "keep")
    assert keep.flops < recompute.flops
    assert keep.peak.per_image > recompute.peak.per_image
    assert keep.parameters == recompute.parameters
    assert keep.state == recompute.state


def test_state_is_weights_buffers_average_and_moments() -> None:
    step = meta_step(SIZE, "recompute", 1)
    step(step.images(2))
    weights = sum(parameter.nbytes for parameter in step.flow.parameters())
    buffers = sum(buffer.nbytes for buffer in step.flow.buffers())
    scalars = 8 + 4 * len(list(step.flow.parameters()))  # of the average and of Adam, its steps
    assert step.state_bytes() == 4 * weights + 2 * buffers + scalars


@pytest.mark.parametrize("memory", ["recompute", "keep"])
def test_peak_is_the_line_and_never_above_it(memory: str) -> None:
    peak = predicted(memory).peak
    step = meta_step(SIZE, memory, 1)
    step(step.images(2))
    for batch in (BATCH, 2 * BATCH, 100):
        found = peak_bytes(step, batch)
        assert found <= peak.at(batch) * (1 + 1e-9)
        assert found == pytest.approx(peak.at(batch), rel=0.02)


def test_line_through_two_batches() -> None:
    peak = Peak.through((2, 110), (10, 150))
    assert peak == Peak(fixed=100, per_image=5)
    assert peak.at(4) == 120


def test_largest_batch_fits_and_one_more_does_not() -> None:
    cost = Cost(parameters=0, state=1000, image=5, peak=Peak(500, 95), flops=0, norm_flops=0)
    assert cost.largest_batch(1500) == 0
    assert cost.largest_batch(1599) == 0
    assert cost.largest_batch(1600) == 1
    assert cost.largest_batch(2000) == 5
    assert cost.largest_batch(100) == 0


def test_mean_number_of_further_terms() -> None:
    assert mean_of(Geometric(0.5)) == pytest.approx(1)
    assert mean_of(Krylov().tail) == pytest.approx(0.5)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_sizes_have_the_parameters_of_the_authors_code(name: str) -> None:
    size = PUBLISHED[name]
    flow = size.build(Krylov(), "meta")
    count = sum(parameter.numel() for parameter in flow.parameters())
    assert count == pytest.approx(size.authors_parameters, rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["recompute", "keep"])
@pytest.mark.parametrize("name", sorted(SMALL))
def test_predictions_agree_with_measurements_in_a_fresh_process(name: str, memory: str) -> None:
    cost = predict(SMALL[name], memory)
    measured = measure_in_fresh_process(name, memory)
    assert measured["peak"] == pytest.approx(cost.peak.at(SMALL[name].batch), rel=TOLERANCE)
    assert measured["flops"] == pytest.approx(cost.flops, rel=TOLERANCE)
