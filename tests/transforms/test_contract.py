"""Pyro's requirements of every transform, over the whole registry."""

import copy
import io
import pickle
from collections.abc import Iterator

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_resflow.transforms import Inverse
from tests.transforms.conditional_registry import CONDITIONAL
from tests.transforms.registry import TRANSFORMS, Case

SHAPES = [(), (3,), (3, 4), (3, 4, 5)]


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=sorted(TRANSFORMS))
def case(request: pytest.FixtureRequest) -> Case:
    return TRANSFORMS[request.param]


@pytest.fixture
def transform(case: Case) -> Transform:
    return case.build()


def test_is_a_bijective_transform_module(transform: Transform) -> None:
    assert isinstance(transform, dist.TransformModule)
    assert transform.bijective
    assert hash(transform) == hash(transform)


def test_inverse_without_cache(case: Case, transform: Transform) -> None:
    x = case.draw(10, *case.event_shape)
    y = transform._call(x)
    found = transform._inverse(y)
    assert (x - found).abs().max() < 1e-9
    torch.testing.assert_close(
        transform.log_abs_det_jacobian(x, y),
        transform.log_abs_det_jacobian(found, y),
        atol=1e-6,
        rtol=0,
    )


def test_inverse_through_the_public_interface(case: Case, transform: Transform) -> None:
    x = case.draw(10, *case.event_shape)
    y = transform(x)
    assert transform.inv(y) is x or (transform.inv(y) - x).abs().max() < 1e-9
    assert (transform.inv(y.clone()) - x).abs().max() < 1e-9


@pytest.mark.parametrize("batch_shape", SHAPES)
def test_shapes(case: Case, transform: Transform, batch_shape: tuple[int, ...]) -> None:
    shape = torch.Size((*batch_shape, *case.event_shape))
    x = case.draw(*shape)
    y = transform(x)
    assert transform.forward_shape(shape) == y.shape
    assert transform.inverse_shape(y.shape) == shape
    assert transform.inv.forward_shape(y.shape) == shape
    assert transform.inv.inverse_shape(shape) == y.shape
    ladj = transform.log_abs_det_jacobian(x, y)
    assert ladj.shape == shape[: len(shape) - transform.domain.event_dim]
    assert transform.inv.log_abs_det_jacobian(y, x).shape == ladj.shape


def test_log_det_against_central_differences(case: Case, transform: Transform) -> None:
    x = case.draw(*case.event_shape)
    size = x.numel()
    step = 1e-5
    columns = []
    for i in range(size):
        offset = torch.zeros(size)
        offset[i] = step
        offset = offset.reshape(x.shape)
        difference = transform._call(x + offset) - transform._call(x - offset)
        columns.append(difference.flatten() / (2 * step))
    expected = torch.linalg.slogdet(torch.stack(columns, dim=1))[1]
    ladj = transform.log_abs_det_jacobian(x, transform(x))
    assert (ladj.sum() - expected).abs() < 1e-4


def test_inverse_has_the_opposite_log_det(case: Case, transform: Transform) -> None:
    x = case.draw(4, *case.event_shape)
    y = transform(x)
    forward = transform.log_abs_det_jacobian(x, y)
    torch.testing.assert_close(transform.inv.log_abs_det_jacobian(y, x), -forward)


def test_one_pass_gives_the_same_as_two(case: Case, transform: Transform) -> None:
    x = case.draw(4, *case.event_shape)
    y, ladj = transform.call_and_ladj(x)
    torch.testing.assert_close(y, transform._call(x))
    torch.testing.assert_close(ladj, transform.log_abs_det_jacobian(x, y))
    found, inverse_ladj = transform.inverse_and_ladj(y)
    torch.testing.assert_close(found, x)
    torch.testing.assert_close(inverse_ladj, ladj)


def test_inverse_of_inverse_is_the_transform(transform: Transform) -> None:
    if isinstance(transform, Inverse) and not hasattr(transform.inv, "remember_inverse"):
        pytest.skip("the inverse of Pyro's own transform is torch's, which knows nothing of ours")
    assert transform.inv.inv is transform
    assert Inverse(transform).inv is transform
    assert Inverse(Inverse(transform)).inv.inv is transform


def test_inverse_registers_the_parameters(transform: Transform) -> None:
    composed = dist.torch_transform.ComposeTransformModule([transform.inv])
    parameters = list(composed.parameters())
    assert [id(p) for p in parameters] == [id(p) for p in transform.parameters()]


@pytest.mark.parametrize("cache_size", [0, 1])
def test_with_cache_shares_the_parameters(
    case: Case, transform: Transform, cache_size: int
) -> None:
    other = transform.with_cache(cache_size)
    assert [id(p) for p in other.parameters()] == [id(p) for p in transform.parameters()]
    x = case.draw(4, *case.event_shape)
    torch.testing.assert_close(other(x), transform._call(x))
    assert other.with_cache(cache_size) is other


def test_three_optimizer_steps_lower_the_loss(case: Case, transform: Transform) -> None:
    if not case.trainable:
        pytest.skip("no parameters")
    x = case.draw(20, *case.event_shape)
    base = dist.Normal(torch.zeros(case.event_shape), 1.0).to_event(len(case.event_shape))
    flow = dist.TransformedDistribution(base, [transform])
    with torch.no_grad():
        data = transform(x)
    optimizer = torch.optim.Adam(transform.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = -flow.log_prob(data).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]


def test_copies_after_a_log_prob_compute_the_same(case: Case, transform: Transform) -> None:
    x = case.draw(4, *case.event_shape)
    transform.log_abs_det_jacobian(x, transform(x))
    with torch.no_grad():
        expected = transform._call(x)
        torch.testing.assert_close(copy.deepcopy(transform)._call(x), expected, rtol=0, atol=0)


def test_pickle_and_torch_save_after_a_log_prob(case: Case, transform: Transform) -> None:
    try:
        pickle.dumps(transform)
    except (AttributeError, pickle.PicklingError) as error:
        pytest.skip(f"a part of Pyro's is not picklable: {error}")
    x = case.draw(4, *case.event_shape)
    transform(x)
    file = io.BytesIO()
    torch.save(transform, file)
    file.seek(0)
    with torch.no_grad():
        expected = transform._call(x)
        for loaded in (
            pickle.loads(pickle.dumps(transform)),
            torch.load(file, weights_only=False),
        ):
            torch.testing.assert_close(loaded._call(x), expected, rtol=0, atol=0)


def test_state_dict_round_trip_after_a_log_prob(case: Case, transform: Transform) -> None:
    x = case.draw(4, *case.event_shape)
    transform(x)
    other = case.build()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.7)
        other(x)
        other.load_state_dict(transform.state_dict())
        torch.testing.assert_close(other._call(x), transform._call(x), rtol=0, atol=0)


def test_scoring_again_after_an_optimizer_step(case: Case, transform: Transform) -> None:
    if not case.trainable:
        pytest.skip("no parameters")
    x = case.draw(4, *case.event_shape)
    optimizer = torch.optim.SGD(transform.parameters(), lr=1e-4)
    for _ in range(2):  # pyro#2564: the second backward went through the first one's graph
        optimizer.zero_grad()
        y = transform(x)
        (y.sum() + transform.log_abs_det_jacobian(x, y).sum()).backward()
        optimizer.step()
    torch.testing.assert_close(transform(x), transform._call(x))


def test_backward_twice_without_a_step(case: Case, transform: Transform) -> None:
    if not case.trainable:
        pytest.skip("no parameters")
    x = case.draw(4, *case.event_shape)
    for _ in range(2):
        y = transform(x)
        (y.sum() + transform.log_abs_det_jacobian(x, y).sum()).backward()


def test_sample_then_score_has_gradients(case: Case, transform: Transform) -> None:
    if not case.trainable:
        pytest.skip("no parameters")
    base = dist.Normal(torch.zeros(case.event_shape), 1.0).to_event(len(case.event_shape))
    flow = dist.TransformedDistribution(base, [transform])
    z = flow.sample((3,))
    assert flow.log_prob(z).requires_grad


def test_cache_can_be_cleared(case: Case, transform: Transform) -> None:
    x = case.draw(4, *case.event_shape)
    with torch.no_grad():
        y = transform(x)
        transform.clear_cache()
        assert transform(x) is not y or y is x


def test_single_precision(case: Case) -> None:
    torch.set_default_dtype(torch.float32)
    transform = case.build()
    x = case.draw(4, *case.event_shape)
    y = transform(x)
    assert y.dtype == torch.float32
    assert transform.log_abs_det_jacobian(x, y).dtype == torch.float32
    assert (transform._inverse(y) - x).abs().max() < 1e-5


# Conditional transforms


@pytest.fixture(params=sorted(CONDITIONAL))
def conditional(request: pytest.FixtureRequest) -> dist.conditional.ConditionalTransformModule:
    torch.manual_seed(0)
    return CONDITIONAL[request.param](3, 2)


@pytest.fixture
def conditioned(conditional: dist.conditional.ConditionalTransformModule) -> Transform:
    return conditional.condition(torch.randn(1, 2))


def test_conditioned_inverse_and_log_det(conditioned: Transform) -> None:
    x = torch.randn(10, 3)
    y = conditioned._call(x)
    found = conditioned._inverse(y)
    assert (found - x).abs().max() < 1e-9
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda s: conditioned._call(s)[0], row) for row in x]
    )
    expected = torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(conditioned.log_abs_det_jacobian(x, y), expected)


def test_conditional_inverse_agrees_with_the_conditioned_one(
    conditional: dist.conditional.ConditionalTransformModule,
) -> None:
    context, x = torch.randn(7, 2), torch.randn(7, 3)
    assert conditional.inv.inv is conditional
    torch.testing.assert_close(
        conditional.inv.condition(context)(x), conditional.condition(context).inv(x)
    )
    assert len(list(conditional.inv.parameters())) == len(list(conditional.parameters()))


@pytest.mark.parametrize("context_shape", [(), (7,), (6, 7), (1,)])
@pytest.mark.parametrize("batch_shape", [(), (7,), (6, 7), (5, 6, 7)])
def test_context_and_input_batches_broadcast(
    conditional: dist.conditional.ConditionalTransformModule,
    context_shape: tuple[int, ...],
    batch_shape: tuple[int, ...],
) -> None:
    context, x = torch.randn(*context_shape, 2), torch.randn(*batch_shape, 3)
    transform = conditional.condition(context)
    expected = torch.broadcast_shapes(context_shape, batch_shape)
    y, ladj = transform.call_and_ladj(x)
    assert y.shape == (*expected, 3)
    assert ladj.shape == expected
    assert transform.forward_shape(x.shape) == y.shape
    row = conditional.condition(context.expand(*expected, 2).reshape(-1, 2)[-1])
    torch.testing.assert_close(
        y.reshape(-1, 3)[-1], row(x.expand(*expected, 3).reshape(-1, 3)[-1])
    )


@pytest.mark.parametrize("cache_size", [0, 1])
def test_conditional_compose_module(
    conditional: dist.conditional.ConditionalTransformModule, cache_size: int
) -> None:
    stack = dist.conditional.ConditionalComposeTransformModule(
        [conditional, CONDITIONAL["conditional_residual"](3, 2)], cache_size=cache_size
    )
    transform = stack.condition(torch.randn(7, 2))
    x = torch.randn(7, 3)
    y = transform(x)
    assert (transform.inv(y.clone()) - x).abs().max() < 1e-8
    assert transform.log_abs_det_jacobian(x, y).shape == (7,)


def test_gradients_reach_the_context_and_its_network(
    conditional: dist.conditional.ConditionalTransformModule,
) -> None:
    context = torch.randn(7, 2, requires_grad=True)
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    flow = dist.TransformedDistribution(base, [conditional.condition(context)])
    flow.log_prob(torch.randn(7, 3)).sum().backward()
    assert context.grad is not None
    assert context.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in conditional.parameters())


def test_conditioned_distribution_takes_the_contexts_batch(
    conditional: dist.conditional.ConditionalTransformModule,
) -> None:
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    flow = dist.conditional.ConditionalTransformedDistribution(base, [conditional])
    conditioned: dist.TransformedDistribution = flow.condition(torch.randn(7, 2))
    assert conditioned.batch_shape == (7,)
    sample: Tensor = conditioned.sample((5,))
    assert sample.shape == (5, 7, 3)
    assert conditioned.log_prob(sample).shape == (5, 7)
