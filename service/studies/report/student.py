"""Student's t test of paired differences, without a library: the report's service has none for it.

The distribution's tail is I_x(ν/2, ½) with x = ν/(ν + t²), the regularized incomplete beta function, which is evaluated
by its continued fraction (Abramowitz and Stegun 26.5.8) with Lentz's algorithm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Final

_TINY: Final = 1e-300
_TERMS: Final = 500


def paired_p_value(differences: Sequence[float]) -> float | None:
    """How probable a mean at least as far from 0 is, were there no difference (two-sided). None for fewer than two."""
    if len(differences) < 2:
        return None
    mean, deviation = fmean(differences), stdev(differences)
    if deviation == 0:
        return 1.0 if mean == 0 else 0.0
    return two_sided(mean / (deviation / math.sqrt(len(differences))), len(differences) - 1)


def two_sided(t: float, degrees: int) -> float:
    """P(|T| ≥ |t|) of Student's distribution with so many degrees of freedom."""
    whole = degrees + t * t
    return incomplete_beta(degrees / 2, 0.5, degrees / whole, t * t / whole)


def incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """I_x(a, b), regularized, for a, b > 0 and 0 ≤ x ≤ 1; `rest` is 1 − x, which the caller may know more exactly."""
    if x <= 0 or rest <= 0:
        return float(rest <= 0)
    front = math.exp(a * math.log(x) + b * math.log(rest) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))
    # The fraction converges fast below this point, and its mirror image above.
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, rest) / b


def _fraction(a: float, b: float, x: float) -> float:
    numerator, denominator = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = denominator
    for m in range(1, _TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        change = 1.0
        for term in (even, odd):
            denominator = 1 / _away_from_zero(1 + term * denominator)
            numerator = _away_from_zero(1 + term / numerator)
            change = denominator * numerator
            value *= change
        if abs(change - 1) < 1e-15:
            return value
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
