"""Metrics of two sets of features by nearest neighbours.

Around each example x of a set lies the ball B_k(x) that reaches to its k-th nearest
neighbour in that set, itself not counted. The balls of a set cover its manifold.

  precision   share of generated examples in a B_3 of the real ones
  recall      share of real examples in a B_3 of the generated ones
  density     number of B_5 of the real ones that a generated example is in, mean / 5
  coverage    share of the real examples with a generated one in their B_5

Precision and recall are those of Kynkaanniemi et al. (2019), arXiv:1904.06991, density
and coverage those of Naeem et al. (2020), arXiv:2002.09797. All but density are in
[0, 1]; density is 1 on average where both distributions are equal. Balls shrink as
examples are added, so values compare only between sets of the same sizes.

Distances come from |x|^2 + |y|^2 - 2 x.y in float64, with the mean taken off first so
that features far from zero lose nothing. An example is in a ball if it is within it or
on its edge up to the rounding of that formula: so a duplicate is in every ball of its
twin, and chunks of other sizes give the same values.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vdiff_jax.evaluation.moments import check_finite

K_PRECISION, K_DENSITY = 3, 5
# Rows and columns of the pieces of a pairwise matrix: [1024, 10,000] takes 80 MB.
CHUNK = 1024
# Of such a piece, for `nearest` among more than that.
MOST_NUMBERS = 2**24


class Overlap(NamedTuple):
    """Precision, recall, density and coverage, as the module defines them."""

    precision: float
    recall: float
    density: float
    coverage: float


class Nearest(NamedTuple):
    """The nearest references of each query, nearest first.

    Attributes:
      indices: Indices of the references; the lower first where distances are equal.
      distances: Euclidean distances.
    """

    indices: Int[np.ndarray, " queries k"]
    distances: Float[np.ndarray, " queries k"]


def overlap(
    generated: Float[np.ndarray, " generated features"],
    real: Float[np.ndarray, " real features"],
    *,
    k_precision: int = K_PRECISION,
    k_density: int = K_DENSITY,
    chunk: int = CHUNK,
) -> Overlap:
    """Precision, recall, density and coverage.

    Each of the three pairwise matrices is made once, `chunk` rows at a time. Time grows
    as (generated + real)^2, memory only as chunk (generated + real).

    Args:
      generated: Features of generated examples.
      real: Features of real ones.
      k_precision: k of precision and recall.
      k_density: k of density and coverage.
      chunk: Rows at a time; changes no value.

    Raises:
      ValueError: If k is below 1 or a set has no k-th neighbours, or a feature is not
        finite.
    """
    smaller = min(len(generated), len(real))
    if not 1 <= min(k_precision, k_density) <= max(k_precision, k_density) < smaller:
        raise ValueError(
            f"Neighbours {k_precision=} and {k_density=} need to be at least 1, and"
            f" each set to have more examples than that: the smaller has {smaller}."
        )
    check_finite(generated)
    check_finite(real)
    r3_real, r5_real = _squared_radii(real, (k_precision, k_density), chunk)
    (r3_generated,) = _squared_radii(generated, (k_precision,), chunk)

    precise = inside = 0
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, squares in _squared_distances(generated, real, chunk, rounding=True):
        precise += np.count_nonzero((squares <= r3_real).any(axis=1))
        recalled |= (squares <= r3_generated[rows, None]).any(axis=0)
        within = squares <= r5_real
        inside += np.count_nonzero(within)
        covered |= within.any(axis=0)
    return Overlap(
        precision=float(precise / len(generated)),
        recall=float(recalled.mean()),
        density=float(inside / (k_density * len(generated))),
        coverage=float(covered.mean()),
    )


def nearest(
    queries: Float[np.ndarray, " queries features"],
    references: Float[np.ndarray, " references features"],
    k: int,
    *,
    chunk: int = CHUNK,
) -> Nearest:
    """The training examples that are nearest to samples, which may be copies of them.

    A query that is among the references has itself as nearest, at distance 0. The
    distances are taken from the differences, so they are exact also for near copies.

    Args:
      queries: Features, or pixels as floats, of the samples.
      references: The same of the training examples.
      k: Number of references for each query.
      chunk: Rows at a time; changes no value.

    Raises:
      ValueError: If there are fewer than k references, k is below 1, or a feature is
        not finite.
    """
    if not 1 <= k <= len(references):
        raise ValueError(
            f"Expected k between 1 and the {len(references)} references, got {k=}."
        )
    check_finite(queries)
    check_finite(references)
    indices = np.empty((len(queries), k), np.int64)
    distances = np.empty((len(queries), k))
    at_once = max(1, min(chunk, MOST_NUMBERS // len(references)))
    for rows, squares in _squared_distances(queries, references, chunk, rows=at_once):
        closest = np.sort(np.argpartition(squares, k - 1, axis=1)[:, :k], axis=1)
        query = queries[rows].astype(np.float64)
        exact = np.stack(
            [np.linalg.norm(query - references[index], axis=1) for index in closest.T],
            axis=1,
        )
        order = np.argsort(exact, axis=1, kind="stable")
        indices[rows] = np.take_along_axis(closest, order, axis=1)
        distances[rows] = np.take_along_axis(exact, order, axis=1)
    return Nearest(indices, distances)


def _squared_radii(
    features: Float[np.ndarray, " examples features"], ks: Sequence[int], chunk: int
) -> Float[np.ndarray, " ks examples"]:
    """Squared distance of each example to its k-th neighbour, for each k."""
    places = [k - 1 for k in ks]
    radii = np.empty((len(ks), len(features)))
    for rows, squares in _squared_distances(features, features, chunk):
        # By its place and not by distance 0: a duplicate is a neighbour.
        np.fill_diagonal(squares[:, rows], np.inf)
        squares.partition(places, axis=1)
        radii[:, rows] = squares[:, places].T
    return radii


def _squared_distances(
    queries: Float[np.ndarray, " queries features"],
    references: Float[np.ndarray, " references features"],
    chunk: int,
    *,
    rounding: bool = False,
    rows: int | None = None,
) -> Iterator[tuple[slice, Float[np.ndarray, " rows references"]]]:
    """Yields the matrix of squared distances, some rows of it at a time.

    Args:
      queries: Examples of the rows.
      references: Examples of the columns.
      chunk: Rows at a time, and examples of either that are float64 at a time.
      rows: Rows at a time, where these are to be fewer than `chunk`.
      rounding: Take off the most that rounding may have added. (x - y)^2 is wrong by at
        most about d eps (|x|^2 + |y|^2), and two of them are compared.
    """
    keep = 1.0 - 8 * queries.shape[1] * np.finfo(np.float64).eps * rounding
    centre = references.mean(axis=0, dtype=np.float64)
    at_once = rows or chunk
    for start in range(0, len(queries), at_once):
        of_x = slice(start, start + at_once)
        x = queries[of_x] - centre
        squares = np.empty((len(x), len(references)))
        for column in range(0, len(references), chunk):
            columns = slice(column, column + chunk)
            y = references[columns] - centre
            norms = _squared_norms(x)[:, None] + _squared_norms(y)
            squares[:, columns] = keep * norms - 2.0 * (x @ y.T)
        yield of_x, squares


def _squared_norms(
    x: Float[np.ndarray, " examples features"],
) -> Float[np.ndarray, " examples"]:
    return np.einsum("ef,ef->e", x, x)
