"""How far a score can be trusted: intervals of one model, and tests of two models on the same rows."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

_Z95 = 1.959963984540054  # of the normal distribution
_RESAMPLES = 2000


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, `right` of `n` (Wilson 1927)."""
    share, spread = right / n, _Z95**2 / n
    middle = (share + spread / 2) / (1 + spread)
    reach = _Z95 * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def even_chance(a: int, b: int) -> float:
    """How likely a split at least as uneven as `a` to `b` is where both sides are equally likely (exact, two-sided).

    Of rows that only one of two models got right it is McNemar's test; of rows with a lower and a higher loss, the
    sign test. 1 where there are no such rows.
    """
    n, least = a + b, min(a, b)
    tail, term = 0.0, -n * math.log(2.0)  # log of C(n, i) / 2**n
    for i in range(least + 1):
        tail += math.exp(term)
        term += math.log((n - i) / (i + 1)) if i < n else 0.0
    return min(1.0, 2 * tail)


def bootstrap_interval(
    sums: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of sum(sums) / sum(counts) over rows drawn again with replacement (percentiles; Efron 1979)."""
    rng, n = np.random.default_rng(seed), len(sums)
    drawn = (rng.integers(n, size=n) for _ in range(_RESAMPLES))
    low, high = np.percentile([float(sums[at].sum() / counts[at].sum()) for at in drawn], [2.5, 97.5])
    return float(low), float(high)
