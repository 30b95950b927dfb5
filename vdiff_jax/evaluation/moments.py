"""Mean and covariance of features that come in parts, in float64."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int

CHUNK = 4096


class Chosen:
    """Some rows of an array, in an order of their own; taken as they are asked for."""

    def __init__(
        self,
        rows: Float[np.ndarray, " examples features"],
        index: Int[np.ndarray, " chosen"],
    ):
        """Keeps the array and the numbers of its rows."""
        self._rows, self._index = rows, index

    @property
    def shape(self) -> tuple[int, int]:
        """The number of rows, and of features."""
        return len(self._index), self._rows.shape[1]

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._index)

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        """Some of the rows, by their places in this order."""
        return self._rows[self._index[which]]


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of a set of features; sets in parts are merged.

    Attributes:
      count: Number of examples.
      mean: Their mean; zeros if there are none.
      scatter: Sum over them of (x - mean)(x - mean)^T.
    """

    count: int
    mean: Float[np.ndarray, " features"]
    scatter: Float[np.ndarray, " features features"]

    @property
    def covariance(self) -> Float[np.ndarray, " features features"]:
        """The unbiased covariance: scatter / (count - 1).

        Raises:
          ValueError: If there are fewer than two examples.
        """
        if self.count < 2:
            raise ValueError(
                f"A covariance needs at least two examples, got {self.count}."
            )
        return self.scatter / (self.count - 1)


def moments(features: Float[np.ndarray, " examples features"] | Chosen) -> Moments:
    """Moments of any number of examples, none included.

    Only `CHUNK` examples at a time are copied to float64.

    Raises:
      ValueError: If a feature is not finite.
    """
    num_features = features.shape[1]
    none = Moments(0, np.zeros(num_features), np.zeros((num_features, num_features)))
    parts = (
        _moments(features[start : start + CHUNK])
        for start in range(0, len(features), CHUNK)
    )
    return functools.reduce(merge, parts, none)


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the examples of both, exact up to rounding.

        mean    = mean_a + (n_b / n) difference
        scatter = S_a + S_b + (n_a n_b / n) difference difference^T

    with n = n_a + n_b and difference = mean_b - mean_a (Chan, Golub & LeVeque, 1983).
    No large sums are subtracted, so a mean far from zero costs no accuracy.
    """
    count = a.count + b.count
    share = b.count / max(count, 1)
    difference = b.mean - a.mean
    between = a.count * share * np.outer(difference, difference)
    return Moments(count, a.mean + share * difference, a.scatter + b.scatter + between)


def _moments(part: Float[np.ndarray, " examples features"]) -> Moments:
    check_finite(part)
    part = part.astype(np.float64)
    mean = part.mean(axis=0)
    centred = part - mean
    return Moments(len(part), mean, centred.T @ centred)


def check_finite(features: Float[np.ndarray, " examples features"] | Chosen) -> None:
    """Refuses features of which no distance can be taken.

    Raises:
      ValueError: If a feature is not finite.
    """
    bad = sum(
        np.count_nonzero(~np.isfinite(features[start : start + CHUNK]).all(axis=1))
        for start in range(0, len(features), CHUNK)
    )
    if bad:
        raise ValueError(
            f"{bad} of {len(features)} examples have features that are not finite."
            " Look at their images: the sampler or the extractor made a NaN."
        )
