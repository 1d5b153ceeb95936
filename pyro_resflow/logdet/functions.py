"""Functions of a Jacobian whose traces are log-determinants."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SpectralFunction:
    r"""A sum of logarithms, :math:`f(z) = \sum_i s_i \log(1 + t_i z)`.

    The trace of f(J) is a sum of log-determinants. Its gradient follows from the derivative of f,
    a sum of inverses:

    .. math:: \mathrm{tr} f(J) = \sum_i s_i \log|\det(I + t_i J)|, \qquad
              f'(z) = \sum_i \frac{s_i t_i}{1 + t_i z} = \sum_{k \ge 0} d_k z^k.

    Args:
        terms: the pairs :math:`(s_i, t_i)`, with :math:`|t_i| \le 1`.
    """

    terms: tuple[tuple[float, float], ...]

    def derivative_coefficient(self, power: int) -> float:
        r"""The coefficient :math:`d_k = \sum_i s_i t_i (-t_i)^k` of f'.

        f itself has the coefficient :math:`d_{k-1}/k` of :math:`z^k`.
        """
        return sum(s * t * (-t) ** power for s, t in self.terms)


LOG_ONE_PLUS = SpectralFunction(((1.0, 1.0),))
r""":math:`\log(1 + z)`, for :math:`x \mapsto x + g(x)`."""

LOG_CAYLEY = SpectralFunction(((1.0, -1.0), (-1.0, 1.0)))
r""":math:`\log\frac{1 - z}{1 + z} = -2\,\mathrm{artanh}\,z`, for the Cayley transform
:math:`x \mapsto (I - J)(I + J)^{-1} x`, whose nonlinear form is a monotone block."""
