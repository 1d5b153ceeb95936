"""Batch normalisation: averages, gradients through the batch, modes, and repeated batches."""

from __future__ import annotations

from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_resflow.transforms import BatchNorm, Compose, Squeeze, initialize


def batch(number: int = 50, *size: int) -> Tensor:
    scale = torch.tensor([0.5, 2.0, 5.0]).reshape(3, *[1] * len(size))
    return 3 + scale * torch.randn(number, 3, *size)


def score(norm: BatchNorm, x: Tensor) -> None:
    """Score vectors under the distribution that normalises to standard normal ones."""
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    dist.TransformedDistribution(base, [norm.inv]).log_prob(x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(), (4, 2)])
def test_first_batch_comes_out_normalised(size: tuple[int, ...], training: bool) -> None:
    norm = BatchNorm(3, event_dim=1 + len(size)).train(training)
    x = batch(50, *size)
    initialize(norm.inv, x)
    assert norm.num_batches == 1
    y = norm(x).transpose(0, 1).flatten(1)
    torch.testing.assert_close(y.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(1, correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_averages_are_of_all_batches_at_first_and_then_decay() -> None:
    norm = BatchNorm(3, momentum=0.25)
    batches = [batch() for _ in range(8)]
    means = torch.stack([x.mean(0) for x in batches])
    for number, x in enumerate(batches, 1):
        score(norm, x)
        if number == 4:
            torch.testing.assert_close(norm.mean, means[:4].mean(0))
    weights = 0.25 * 0.75 ** torch.arange(3, -1, -1.0)
    expected = 0.75**4 * means[:4].mean(0) + (weights[:, None] * means[4:]).sum(0)
    torch.testing.assert_close(norm.mean, expected)


def test_training_normalises_by_averages_that_the_batch_is_already_in() -> None:
    norm = BatchNorm(3)
    initialize(norm.inv, batch())
    x = batch()
    y, ladj = norm.call_and_ladj(x)
    scale = (norm.variance + norm.epsilon).rsqrt()
    torch.testing.assert_close(y, (x - norm.mean) * scale)
    torch.testing.assert_close(ladj, scale.log().sum().expand(50))
    torch.testing.assert_close(norm._inverse(y), x)


@pytest.mark.parametrize("size", [(), (2, 2)])
def test_gradient_goes_through_the_batchs_part_in_the_averages(size: tuple[int, ...]) -> None:
    norm = BatchNorm(3, event_dim=1 + len(size), momentum=0.3).double()
    initialize(norm.inv, batch(5, *size).double())
    norm(batch(5, *size).double())
    start = {name: value.clone() for name, value in norm.state_dict().items()}
    cotangent = torch.randn(4, 3, *size, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        norm.load_state_dict(start)
        y, ladj = norm.call_and_ladj(x)
        return (y * cotangent).sum() + ladj.sum()

    x = batch(4, *size).double().requires_grad_()
    assert torch.autograd.gradcheck(loss, (x,))


def test_evaluation_and_the_inverse_leave_the_averages_alone() -> None:
    norm = BatchNorm(3)
    initialize(norm.inv, batch())
    mean = norm.mean.clone()
    norm.inv(batch())
    norm.eval()
    norm(batch())
    assert torch.equal(norm.mean, mean)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("cache_size", [0, 1])
def test_density_takes_each_batch_in_once(cache_size: int, grad: bool) -> None:
    norm = BatchNorm(3, event_dim=3)
    encoder = Compose([norm, Squeeze()], cache_size=cache_size)
    base = dist.Normal(torch.zeros(12, 1, 1), 1.0).to_event(3)
    flow = dist.TransformedDistribution(base, [encoder.inv])
    with torch.set_grad_enabled(grad):
        flow.log_prob(batch(16, 2, 2))
        assert norm.num_batches == 1
        flow.log_prob(x := batch(16, 2, 2))
        assert norm.num_batches == 2
        flow.log_prob(x)  # the same again at once is no other batch
        assert norm.num_batches == 2
        flow.log_prob(batch(16, 2, 2))
    assert norm.num_batches == 3


def test_log_det_of_the_same_batch_again_keeps_its_gradient() -> None:
    norm = BatchNorm(3, cache_size=0)
    initialize(norm.inv, batch())
    x = batch().requires_grad_()
    y, ladj = norm.call_and_ladj(x)
    (expected,) = torch.autograd.grad(ladj.sum(), x)
    (again,) = torch.autograd.grad(norm.log_abs_det_jacobian(x, y).sum(), x)
    torch.testing.assert_close(again, expected)
    assert expected.abs().max() > 0


def test_nan_neither_starts_nor_spoils_the_averages() -> None:
    norm = BatchNorm(3)
    bad = batch()
    bad[3, 1] = torch.nan
    with pytest.raises(ValueError, match="nan or infinite"):
        initialize(norm.inv, bad)
    assert not norm.initialized
    initialize(norm.inv, batch())
    mean = norm.mean.clone()
    norm(bad)
    assert torch.equal(norm.mean, mean)
    assert norm.num_batches == 1


def test_averages_travel_in_the_state_dict() -> None:
    norm, other = BatchNorm(3), BatchNorm(3).eval()
    initialize(norm.inv, batch())
    other.load_state_dict(norm.state_dict())
    x = torch.randn(3)
    torch.testing.assert_close(other(x), norm.eval()(x))
    assert set(norm.state_dict()) == {"mean", "variance", "num_batches", "initialized"}


def test_waiting_again_forgets_the_averages() -> None:
    norm = BatchNorm(3)
    for _ in range(3):
        score(norm, batch())
    norm.await_batch()
    x = batch()
    score(norm, x)
    torch.testing.assert_close(norm.mean, x.mean(0))


@pytest.mark.parametrize("shape", [(3,), (1, 3)])
def test_batch_of_one_value_is_named(shape: tuple[int, ...]) -> None:
    norm = BatchNorm(3)
    with pytest.raises(ValueError, match="1 sample"):
        score(norm, torch.randn(shape))
    initialize(norm.inv, batch())
    with pytest.raises(ValueError, match="more than one value of each feature"):
        norm(torch.randn(shape))
    assert norm.eval()(torch.randn(shape)).shape == shape


@pytest.mark.parametrize(
    ("options", "message"),
    [({"event_dim": 2}, "event_dim: expected 1"), ({"momentum": 0.0}, "momentum: expected")],
)
def test_bad_options_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchNorm(3, **options)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"x: expected shape \(\*batch, 3\)"):
        BatchNorm(3)(torch.randn(7, 4))
    with pytest.raises(ValueError, match=r"y: expected shape \(\*batch, 3, 2, 2\)"):
        BatchNorm(3, event_dim=3).inv(torch.randn(7, 4, 2, 2))


def halves_train(rank: int, folder: str) -> None:
    """One of two processes, each with half of the batch; saves the gradient of its inputs."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    norm, first, second = BatchNorm(3), batch(32), batch(8)
    score(norm, first[16 * rank : 16 * rank + 16])
    half = slice(4 * rank, 4 * rank + 4)
    x = second[half].requires_grad_()
    y, ladj = norm.call_and_ladj(x)
    (y.pow(3).sum() + ladj.sum()).backward()
    torch.save([norm.mean, norm.variance, y.detach(), x.grad], f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(halves_train, (str(tmp_path),), nprocs=2)
    torch.manual_seed(0)
    norm, first, x = BatchNorm(3), batch(32), batch(8).requires_grad_()
    score(norm, first)
    y, ladj = norm.call_and_ladj(x)
    (y.pow(3).sum() + ladj.sum()).backward()
    results = [torch.load(tmp_path / str(rank)) for rank in (0, 1)]
    for mean, variance, _, _ in results:
        torch.testing.assert_close(mean, norm.mean)
        torch.testing.assert_close(variance, norm.variance)
    torch.testing.assert_close(torch.cat([result[2] for result in results]), y.detach())
    torch.testing.assert_close(torch.cat([result[3] for result in results]), x.grad)
