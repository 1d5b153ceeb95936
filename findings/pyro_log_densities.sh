#!/usr/bin/env bash
# pyro-ppl 1.9.2 with torch 2.14.1
#
# Behaviour: the log-determinant of Sylvester is not that of its map, so the ELBO of a Sylvester guide
# exceeds the log-evidence. MatrixExponential sums 8 terms of a series, but returns the log-determinant
# of the whole series; with large weights its inverse does not invert it. Where AffineAutoregressive
# clips a log-scale, its gradient ignores the clip. RenyiELBO on a subsampled plate takes the logarithm
# of a mean of exponentials of noisy, scaled sums, and therefore exceeds the log-evidence, too.
# One would have guessed: log-determinants agree with an autograd Jacobian; gradients agree with finite
# differences; bounds are lower bounds up to noise (RenyiELBO's documentation calls it strict).
# Output seen:
#   Sylvester: log-determinant -0.306, the Jacobian's -0.268
#   Sylvester, fitted: ELBO -1.72, with the Jacobian -5.74, evidence -3.03
#   MatrixExponential, weights of variance 4: log-determinant -7.85, the Jacobian's 3.20, error of the
#     inverse 17952
#   AffineAutoregressive, clipped: largest gradient of the log-determinant 3.37, by differences
#     0.409
#   RenyiELBO, guide is the posterior: full data -146.8, 10 of 100 rows -109, evidence -146.8
#   Trace_ELBO, guide is the posterior: full data -146.8, 10 of 100 rows -147
source "$(dirname "$0")/venv.sh"
install 'torch==2.14.1' 'pyro-ppl==1.9.2' numpy
run <<'PYTHON'
import math
import sys

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import MatrixExponential, Sylvester, affine_autoregressive
from pyro.infer import RenyiELBO, Trace_ELBO


def true_logdet(transform, x):
    return torch.linalg.slogdet(torch.autograd.functional.jacobian(transform._call, x))[1]


torch.manual_seed(0)
transform = Sylvester(4, count_transforms=2)
for parameter in transform.parameters():
    torch.nn.init.normal_(parameter)
x = torch.randn(4)
value, true = transform.log_abs_det_jacobian(x, transform(x)).item(), true_logdet(transform, x)
print(f"Sylvester: log-determinant {value:.3f}, the Jacobian's {true:.3f}")
wrong = [abs(value - true) > 0.01]

# z ~ N(0, I) in two dimensions, seen through noise of variance 1
prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
seen = torch.ones(2)
evidence = dist.Normal(0.0, math.sqrt(2)).log_prob(seen).sum().item()
transform = Sylvester(2, count_transforms=2)
adam = torch.optim.Adam(transform.parameters(), lr=0.02)


def elbo(noise, logdet):
    z = transform(noise)
    joint = prior.log_prob(z) + dist.Normal(z, 1.0).to_event(1).log_prob(seen)
    return (joint + logdet(noise, z) - prior.log_prob(noise)).mean()


for _ in range(1500):
    adam.zero_grad()
    (-elbo(prior.sample((64,)), transform.log_abs_det_jacobian)).backward()
    adam.step()
noise = prior.sample((1000,))
claimed = elbo(noise, transform.log_abs_det_jacobian).item()
honest = elbo(noise, lambda x, _: torch.stack([true_logdet(transform, row) for row in x])).item()
print(
    f"Sylvester, fitted: ELBO {claimed:.2f}, with the Jacobian {honest:.2f}, "
    f"evidence {evidence:.2f}"
)
wrong += [claimed > evidence + 0.5, honest < evidence]


def randomized(transform, scale):
    for parameter in transform.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return transform.double()


torch.manual_seed(0)
transform, x = randomized(MatrixExponential(4), 2.0), torch.randn(4, dtype=torch.float64)
y = transform(x)
value, true = transform.log_abs_det_jacobian(x, y).item(), true_logdet(transform, x).item()
lost = (transform._inverse(y) - x).abs().max().item()
print(
    f"MatrixExponential, weights of variance 4: log-determinant {value:.2f}, the Jacobian's "
    f"{true:.2f}, error of the inverse {lost:.0f}"
)
wrong += [abs(value - true) > 1, lost > 1]

transform = randomized(affine_autoregressive(4), 2.0)
x.requires_grad_()


def logdet(x):
    return transform.log_abs_det_jacobian(x, transform(x))


(gradient,) = torch.autograd.grad(logdet(x), x)
steps = 1e-6 * torch.eye(4, dtype=torch.float64)
differences = torch.stack([(logdet(x + step) - logdet(x - step)) / 2e-6 for step in steps])
print(
    f"AffineAutoregressive, clipped: largest gradient of the log-determinant "
    f"{gradient.abs().max():.3g}, by differences {differences.abs().max():.3g}"
)
wrong.append((gradient - differences).abs().max() > 1)

torch.manual_seed(0)
data = torch.randn(100) + 0.5
evidence = dist.MultivariateNormal(torch.zeros(100), torch.eye(100) + 1).log_prob(data).item()


def model(rows):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 100, subsample_size=rows) as index:
        pyro.sample("x", dist.Normal(z, 1.0), obs=data[index])


def posterior(rows):
    pyro.sample("z", dist.Normal(data.sum() / 101, 101**-0.5))


def bound(kind, rows, runs):
    estimator = kind(num_particles=200)
    return -sum(estimator.loss(model, posterior, rows) for _ in range(runs)) / runs


renyi, trace = ([bound(kind, rows, 20) for rows in (100, 10)] for kind in (RenyiELBO, Trace_ELBO))
print(
    f"RenyiELBO, guide is the posterior: full data {renyi[0]:.1f}, 10 of 100 rows {renyi[1]:.0f}, "
    f"evidence {evidence:.1f}"
)
print(
    f"Trace_ELBO, guide is the posterior: full data {trace[0]:.1f}, 10 of 100 rows {trace[1]:.0f}"
)
wrong += [renyi[1] > evidence + 10, abs(renyi[0] - evidence) < 0.1, abs(trace[1] - evidence) < 3]
sys.exit(not all(wrong))
PYTHON
