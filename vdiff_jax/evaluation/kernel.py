"""The kernel distance between two sets of features.

The squared maximum mean discrepancy of the kernel

    k(x, y) = (x . y / d + 1)^3

for features of d dimensions (Binkowski et al., 2018, arXiv:1801.01401). It is called
KID only on Inception features, which these need not be.

It is estimated from all pairs. Usual implementations average over 100 random subsets of
1,000 instead: their value has the same mean, and is noisier.
"""

import numpy as np
from jaxtyping import Float

from vdiff_jax.evaluation.moments import check_finite

CHUNK = 2048


def kernel_distance(
    generated: Float[np.ndarray, " generated features"],
    real: Float[np.ndarray, " real features"],
    *,
    chunk: int = CHUNK,
) -> float:
    """The unbiased estimate of the squared discrepancy.

        mean of k(x_i, x_j) + mean of k(y_i, y_j) - 2 mean of k(x_i, y_j)

    where i != j in the first two means. For two equal distributions its mean is 0, so
    that it is often below 0.

    Args:
      generated: Features of one set.
      real: Features of the other; the distance is symmetric.
      chunk: Rows at a time; bounds the memory, and changes no value beyond rounding.

    Raises:
      ValueError: If a set has fewer than two examples, or a feature is not finite.
    """
    smaller = min(len(generated), len(real))
    if smaller < 2:
        raise ValueError(
            f"The kernel distance needs at least 2 examples of each, got {smaller}."
        )
    check_finite(generated)
    check_finite(real)
    between = _sum(generated, real, chunk) / (len(generated) * len(real))
    return _within(generated, chunk) + _within(real, chunk) - 2.0 * between


def _within(x: Float[np.ndarray, " m features"], chunk: int) -> float:
    """The mean of k(x_i, x_j) over i != j."""
    squares = np.square(x.astype(np.float64)).sum(axis=1)
    diagonal = float(_cube(squares / x.shape[1] + 1.0).sum())
    return (_sum(x, x, chunk) - diagonal) / (len(x) * (len(x) - 1))


def _sum(
    x: Float[np.ndarray, " m features"], y: Float[np.ndarray, " n features"], chunk: int
) -> float:
    """The sum of k(x_i, y_j), in float64."""
    columns = y.astype(np.float64).T / y.shape[1]
    rows = (x[start : start + chunk] for start in range(0, len(x), chunk))
    return float(
        sum(_cube(row.astype(np.float64) @ columns + 1.0).sum() for row in rows)
    )


def _cube(base: np.ndarray) -> np.ndarray:
    return base * base * base  # `base**3` takes a logarithm of each
