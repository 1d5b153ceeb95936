"""One registry of log-determinant estimators, for tests that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pyro_resflow.logdet import (
    AdaptiveKrylov,
    EstimatedInElbo,
    Exact,
    Gaussian,
    Geometric,
    Krylov,
    LogDetEstimator,
    Poisson,
    PowerSeries,
    RussianRoulette,
)


@dataclass(frozen=True)
class Case:
    """An estimator in one of its settings.

    Attributes:
        make: makes it; takes the estimator's further arguments.
        is_noisy: whether two calls give two values.
        is_unbiased: whether its mean is the log-determinant.
        is_testable_by_draws: whether its variance is finite for contractions near the limit.
        is_variant: whether another case has the same class.
    """

    make: Callable[..., LogDetEstimator]
    is_noisy: bool = True
    is_unbiased: bool = True
    is_testable_by_draws: bool = True
    is_variant: bool = False


# above the square of the Lipschitz constants in the tests: finite variance
HEAVY = Geometric(0.95)

CASES: dict[str, Case] = {
    "exact": Case(Exact, is_noisy=False),
    "exact in chunks": Case(partial(Exact, chunk_size=1), is_noisy=False, is_variant=True),
    "in elbo": Case(EstimatedInElbo, is_noisy=False),
    "krylov": Case(Krylov),
    "krylov keep": Case(partial(Krylov, memory="keep"), is_variant=True),
    "krylov probes": Case(partial(Krylov, 1, num_probes=2), is_variant=True),
    "krylov gaussian": Case(partial(Krylov, probe=Gaussian()), is_variant=True),
    "adaptive": Case(partial(AdaptiveKrylov, 0.1, tail=Geometric(0.5))),
    "roulette": Case(partial(RussianRoulette, 2, tail=HEAVY)),
    "roulette keep": Case(partial(RussianRoulette, 2, tail=HEAVY, memory="keep"), is_variant=True),
    "roulette published": Case(
        partial(RussianRoulette, 2, tail=Poisson(2.0), probe=Gaussian()),
        is_testable_by_draws=False,
        is_variant=True,
    ),
    "series": Case(PowerSeries, is_unbiased=False),
}

UNBIASED_BY_DRAWS = [
    name
    for name, case in CASES.items()
    if case.is_noisy and case.is_unbiased and case.is_testable_by_draws
]
"""Those whose mean over many draws can be compared with the exact value."""

ONE_OF_EACH_CLASS = [name for name, case in CASES.items() if not case.is_variant]


def estimator(name: str, **options: object) -> LogDetEstimator:
    """One of ``CASES``, with further arguments."""
    return CASES[name].make(**options)
