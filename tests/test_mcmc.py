"""HMC and NUTS have one energy function, or raise an error with a remedy."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import HMC, MCMC, NUTS, SVI, RandomWalkKernel, Trace_ELBO
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor, nn

from pyro_resflow import conditional_residual, residual, residual_flow
from pyro_resflow.distributions import Dequantized
from pyro_resflow.flows import Glow
from pyro_resflow.guides import AutoResidualFlow
from pyro_resflow.logdet import (
    Exact,
    Frozen,
    Krylov,
    LogDetEstimator,
    NoTail,
    PowerSeries,
    RussianRoulette,
)
from pyro_resflow.nn import ConvConditioner, GatedAttentionConditioner
from pyro_resflow.transforms import (
    BatchNorm,
    Checkerboard,
    Compose,
    CouplingStep,
    Inverse,
    NoisyEnergyError,
    Residual,
    UniformDequantization,
    initialize,
    is_deterministic,
    set_logdet,
    temporary_logdet,
)
from tests.bases import standard

FROZEN = Krylov(4, tail=NoTail(), probe=Frozen())


pytestmark = pytest.mark.usefixtures("fresh_store")


def prior(flow: dist.TransformModule) -> dist.TransformedDistribution:
    return dist.TransformedDistribution(standard(2), [flow])


def bent(flow: dist.TransformModule) -> dist.TransformModule:
    """The flow with larger weights, so that its density is no normal one."""
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return flow


def chain(
    kernel: object, num_samples: int = 2, warmup_steps: int = 2, **options: object
) -> dict[str, Tensor]:
    mcmc = MCMC(kernel, num_samples, warmup_steps, disable_progbar=True, **options)
    mcmc.run()
    return mcmc.get_samples()


# One function


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fast", ["sampling", "density"])
@pytest.mark.parametrize("logdet", [Exact(), FROZEN], ids=["exact", "frozen"])
def test_log_prob_is_one_function(logdet: object, fast: str, dtype: torch.dtype) -> None:
    flow = residual_flow(2, 2, [8], fast=fast, logdet=logdet).to(dtype)
    x = torch.randn(5, 2, dtype=dtype)
    if fast == "density":
        initialize(flow, x)
    density = dist.TransformedDistribution(
        dist.Normal(torch.zeros(2, dtype=dtype), 1.0).to_event(1), [flow]
    )
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        flow.clear_cache()
        found.append(density.log_prob(x.clone()))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert is_deterministic(flow)


def test_a_fresh_noise_estimate_is_none() -> None:
    flow = residual_flow(2, 2, [8], logdet=Krylov())
    x = torch.randn(5, 2)
    found = []
    for _ in range(2):
        flow.clear_cache()
        found.append(prior(flow).log_prob(x.clone()))
    assert not torch.equal(*found)
    assert not is_deterministic(flow)


def test_the_energys_gradient_is_that_of_the_exact_log_density() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        flow = bent(residual_flow(2, 2, [8], logdet=Exact())).requires_grad_(False)
        x = torch.randn(2, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x: prior(flow).log_prob(x.clone()), (x,))
    finally:
        torch.set_default_dtype(torch.float32)


def test_dropout_is_noise_in_training_mode_only() -> None:
    step = CouplingStep(GatedAttentionConditioner(8, 1, dropout=0.5))
    flow = step(Checkerboard((1, 2, 2)))
    assert not is_deterministic(flow)
    assert is_deterministic(step(Checkerboard((1, 2, 2))).eval())
    density = dist.TransformedDistribution(dist.Normal(torch.zeros(1, 2, 2), 1).to_event(3), flow)
    density.log_prob(torch.randn(16, 1, 2, 2))
    with pytest.raises(ValueError, match=r"its Dropout in training mode .*eval\(\)"):
        chain(NUTS(lambda: pyro.sample("x", density)))
    flow.eval()
    chain(HMC(lambda: pyro.sample("x", density), num_steps=1))


# The refusal


def refusal(name: str) -> str:
    """What the error says. Pyro puts the name of the site in front, and a ValueError of its own
    in the place of ours, where a model is the one to blame."""
    return rf"{name} draws new noise .*set_logdet\(flow, logdet.Exact\(\)\).*guide.*Frozen"


def energy_of_a_prior(flow: dist.TransformModule) -> object:
    return lambda: pyro.sample("x", prior(flow))


@pytest.mark.parametrize("kernel", [HMC, NUTS])
@pytest.mark.parametrize("logdet", [Krylov(), RussianRoulette(), PowerSeries()])
def test_noise_in_the_energy_of_a_model_is_refused(kernel: type, logdet: object) -> None:
    flow = residual_flow(2, 1, [8], logdet=logdet)
    with pytest.raises(ValueError, match=refusal(type(logdet).__name__)):
        chain(kernel(energy_of_a_prior(flow)))


@pytest.mark.parametrize("kernel", [HMC, NUTS])
def test_noise_in_a_potential_function_is_refused(kernel: type) -> None:
    density = prior(residual_flow(2, 1, [8], logdet=Krylov()))
    sampler = kernel(potential_fn=lambda z: -density.log_prob(z["x"]))
    with pytest.raises(NoisyEnergyError, match=refusal("Krylov")):
        chain(sampler, initial_params={"x": torch.zeros(2)})


def test_noise_in_a_compiled_energy_is_refused() -> None:
    flow = residual_flow(2, 1, [8], logdet=Krylov())
    with pytest.raises(ValueError, match=refusal("Krylov")):
        chain(NUTS(energy_of_a_prior(flow), jit_compile=True, ignore_jit_warnings=True))


def test_noise_in_a_random_walk_is_refused() -> None:
    with pytest.raises(ValueError, match=refusal("Krylov")):
        chain(RandomWalkKernel(energy_of_a_prior(residual_flow(2, 1, [8], logdet=Krylov()))))


@pytest.mark.parametrize(
    "flow",
    [
        residual(2, [8], logdet=Krylov()),
        residual(2, [8], fast="density", logdet=Krylov()),
        Inverse(Compose([residual(2, [8], logdet=Krylov()), dist.transforms.permute(2)])),
        dist.torch_transform.ComposeTransformModule([residual(2, [8], logdet=Krylov())]),
        dist.torch_transform.ComposeTransformModule([residual(2, [8], logdet=Krylov()).inv]),
        conditional_residual(2, 1, [8], logdet=Krylov()).condition(torch.zeros(1)),
        Compose([conditional_residual(2, 1, [8], logdet=Krylov()).condition(torch.zeros(1))]),
    ],
    ids=["forward", "inverse", "composition", "pyros", "pyros_inverse", "conditioned", "composed"],
)
def test_noise_is_found_wherever_the_block_is(flow: dist.TransformModule) -> None:
    with pytest.raises(ValueError, match=refusal("Krylov")):
        chain(NUTS(energy_of_a_prior(flow)))


def test_estimators_of_ones_own_have_to_say_that_they_are_deterministic() -> None:
    class Own(LogDetEstimator):
        def value_and_trace(self, net, x, function):
            return Exact().value_and_trace(net, x, function)

    flow = residual(2, [8], logdet=Own())
    with pytest.raises(ValueError, match=refusal("Own")):
        chain(NUTS(energy_of_a_prior(flow)))
    Own.is_deterministic = True
    chain(NUTS(energy_of_a_prior(flow), max_tree_depth=2))


def test_a_flow_that_only_maps_values_may_be_noisy() -> None:
    flow = residual_flow(2, 1, [8], logdet=Krylov())

    def model() -> None:
        z = pyro.sample("z", standard(2))
        pyro.sample("x", dist.Normal(flow(z), 1.0).to_event(1), obs=torch.ones(2))

    samples = chain(NUTS(model, max_tree_depth=2))
    assert samples["z"].isfinite().all()


def test_training_and_scoring_outside_a_sampler_are_left_alone() -> None:
    density = prior(residual_flow(2, 1, [8], logdet=Krylov()))
    scores = []

    def hook(kernel: object, samples: dict[str, Tensor], stage: str, i: int) -> None:
        scores.append(density.log_prob(torch.zeros(2)).item())

    chain(NUTS(lambda: pyro.sample("x", standard(2))), hook_fn=hook)
    assert len(scores) == 4


# Another estimator


def test_set_logdet_reaches_every_block_and_keeps_the_parameters() -> None:
    flow = bent(residual_flow(2, 3, [8], fast="density", logdet=Krylov()))
    x = torch.randn(5, 2)
    before = flow(x)
    set_logdet(flow, Exact())
    blocks = [module for module in flow.modules() if isinstance(module, Residual)]
    assert len(blocks) == 3
    assert all(isinstance(block.logdet, Exact) for block in blocks)
    assert torch.equal(flow._call(x), before)
    first = flow.call_and_ladj(x)[1]
    assert torch.equal(first, flow.call_and_ladj(x)[1])


def test_set_logdet_reaches_the_flow_of_a_distribution() -> None:
    flow = residual_flow(20, blocks=2, fast="density")
    base = dist.Normal(torch.zeros(20), 1.0).to_event(1)
    composed = dist.TransformedDistribution(base, [torch.distributions.ComposeTransform([flow])])
    for prior in (dist.TransformedDistribution(base, [flow]), composed.mask(True)):
        set_logdet(flow, Krylov())
        assert not is_deterministic(prior)
        set_logdet(prior, Exact())
        assert is_deterministic(flow)


def test_temporary_logdet_ends_with_the_block_even_if_that_fails() -> None:
    flow = residual_flow(20, blocks=2)
    usual = [part.logdet for part in flow.modules() if isinstance(part, Residual)]

    def fail() -> None:
        with temporary_logdet(flow, Exact()):
            assert is_deterministic(flow)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert [part.logdet for part in flow.modules() if isinstance(part, Residual)] == usual


def test_temporary_logdet_scores_afresh() -> None:
    flow = residual_flow(20, blocks=1)
    x = torch.randn(3, 20)
    y = flow(x)  # an estimate is computed along, and waits to be asked for
    with temporary_logdet(flow, Exact()):
        inside = flow.log_abs_det_jacobian(x, y)
    set_logdet(flow, Exact())
    assert torch.equal(inside, flow.log_abs_det_jacobian(x, flow(x)))


def test_set_logdet_of_a_model_without_residual_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="found none in Linear"):
        set_logdet(torch.nn.Linear(2, 2), Exact())


# The distributions that are sampled


def z_score(draws: Tensor, expected: Tensor) -> Tensor:
    """How far the mean over a chain is from what is expected, in its standard errors."""
    size = pyro.ops.stats.effective_sample_size(draws[None], sample_dim=1, chain_dim=0)
    return (draws.mean(0) - expected).abs() / (draws.var(0) / size).sqrt()


@pytest.mark.parametrize("fast", ["sampling", "density"])
def test_nuts_samples_a_flow_prior(fast: str) -> None:
    flow = bent(residual_flow(2, 1, [8], fast=fast, logdet=Exact())).requires_grad_(False)
    if fast == "density":
        initialize(flow, torch.randn(100, 2))
    draws = chain(NUTS(energy_of_a_prior(flow), max_tree_depth=3), 120, 40)["x"]
    truth = prior(flow).sample((20000,))
    assert (z_score(draws, truth.mean(0)) < 4.5).all()
    assert (z_score(draws.square(), truth.square().mean(0)) < 4.5).all()


def test_nuts_with_a_flow_prior_and_data_agrees_with_quadrature() -> None:
    flow = bent(residual(1, [8], fast="density", logdet=Exact())).requires_grad_(False)
    density = dist.TransformedDistribution(standard(1), [flow])

    def model() -> None:
        z = pyro.sample("z", density)
        pyro.sample("x", dist.Normal(z, 0.7).to_event(1), obs=torch.tensor([1.0]))

    draws = chain(NUTS(model, max_tree_depth=2), 120, 40)["z"]
    grid = torch.linspace(-8, 8, 2001)[:, None]
    log_joint = density.log_prob(grid) + dist.Normal(grid[:, 0], 0.7).log_prob(torch.tensor(1.0))
    weight = log_joint.softmax(0)
    assert (z_score(draws, (weight @ grid)) < 4.5).all()
    assert (z_score(draws.square(), weight @ grid.square()) < 4.5).all()


def test_frozen_probes_leave_hmc_right_for_the_density_that_they_define() -> None:
    flow = bent(residual(2, [8], fast="density", logdet=FROZEN)).requires_grad_(False)
    kernel = HMC(energy_of_a_prior(flow), step_size=0.5, num_steps=4, adapt_step_size=False)
    draws = chain(kernel, 300, 20)["x"]
    side = torch.linspace(-7, 7, 141)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        weight = prior(flow).log_prob(grid).softmax(0)
    assert (z_score(draws, weight @ grid) < 4.5).all()
    assert (z_score(draws.square(), weight @ grid.square()) < 4.5).all()


# NeuTra


def tilted() -> None:
    """A posterior with a closed form: z has variance 4 and w given z has mean z."""
    z = pyro.sample("z", dist.Normal(1.0, 2.0))
    pyro.sample("w", dist.LogNormal(0.25 * z, 0.5))


def trained_guide(**options: object) -> AutoResidualFlow:
    guide = AutoResidualFlow(tilted, blocks=1, hidden_dims=[8], **options)
    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(tilted, guide, pyro.optim.Adam({"lr": 5e-2}), elbo)
    for _ in range(60):
        svi.step()
    return guide


def test_neutra_samples_the_models_posterior() -> None:
    guide = trained_guide().requires_grad_(False).eval()
    neutra = NeuTraReparam(guide)
    latent = chain(NUTS(neutra.reparam(tilted), max_tree_depth=3), 120, 40)["z_shared_latent"]
    with torch.no_grad():
        draws = neutra.transform_sample(latent)
    assert z_score(draws["z"], torch.tensor(1.0)) < 4.5
    assert z_score((draws["z"] - 1).square(), torch.tensor(4.0)) < 4.5
    log_w = draws["w"].log()
    assert z_score(log_w, torch.tensor(0.25)) < 4.5
    assert z_score((log_w - 0.25 * draws["z"]).square(), torch.tensor(0.25)) < 4.5
    assert not math.isnan(float(draws["w"].sum()))


def test_neutra_of_a_noisy_guide_is_refused_until_it_is_made_deterministic() -> None:
    guide = AutoResidualFlow(tilted, blocks=1, hidden_dims=[8], logdet=Krylov())
    guide()
    guide.requires_grad_(False).eval()
    with pytest.raises(ValueError, match=refusal("Krylov")):
        chain(NUTS(NeuTraReparam(guide).reparam(tilted)))
    guide.set_logdet(Exact())
    samples = chain(NUTS(NeuTraReparam(guide).reparam(tilted), max_tree_depth=2))
    assert samples["z_shared_latent"].shape == (2, 2)


@pytest.mark.parametrize("dropout", [nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout])
def test_every_dropout_is_noise(dropout: type[nn.Module]) -> None:
    flow = Residual(nn.Sequential(nn.Linear(2, 2), dropout(0.5)), logdet=Exact())
    assert not is_deterministic(flow)
    assert is_deterministic(flow.eval())


@pytest.mark.parametrize("norm", [BatchNorm(2), nn.BatchNorm1d(2)])
def test_batch_norms_follow_batches_in_training_mode(norm: nn.Module) -> None:
    flow = norm if isinstance(norm, BatchNorm) else Residual(norm, logdet=Exact())
    assert not is_deterministic(flow)
    assert is_deterministic(flow.eval())


def test_dequantization_is_noise() -> None:
    flow = Glow((1, 4, 4), steps=(1,), network=ConvConditioner(4))
    images = torch.randint(0, 8, (16, 1, 4, 4))
    density = Dequantized(flow.distribution(), UniformDequantization(8), 8)
    density.log_prob(images)
    assert is_deterministic(flow)
    assert not is_deterministic(density)

    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("images", 5):
            pyro.sample("x", density, obs=images)

    with pytest.raises(ValueError, match=r"Dequantized: its log_prob draws new noise"):
        chain(NUTS(model))
