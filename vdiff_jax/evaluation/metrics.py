"""All metrics of one set of images against a reference, by their names."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from vdiff_jax.datasets.identity import evenly
from vdiff_jax.evaluation import sample_size
from vdiff_jax.evaluation.features import Features
from vdiff_jax.evaluation.frechet import Rooted, frechet_distance, with_root
from vdiff_jax.evaluation.kernel import kernel_distance
from vdiff_jax.evaluation.moments import Chosen, Moments, moments
from vdiff_jax.evaluation.neighbours import K_DENSITY, overlap
from vdiff_jax.evaluation.scores import SPLITS, inception_score

# Pairs of images are compared among so many: as published for precision and recall
# with ImageNet models, and still a matter of seconds.
MOST_PAIRED = 10_000
# On Inception features metrics have the names of the literature, elsewhere others.
OF_INCEPTION = {
    "frechet": "fid",
    "spatial_frechet": "sfid",
    "score": "inception_score",
    "kernel_distance": "kid",
}
OVERLAP = ("precision", "recall", "density", "coverage")
# The fewest images of each set that a metric is defined for; of what is generated
# alone, for the score. What it takes for a value that means much: `sample_size`.
FEWEST = {
    "frechet": 2,
    "spatial_frechet": 2,
    "kernel_distance": 2,
    **dict.fromkeys(OVERLAP, K_DENSITY + 1),
    "score": SPLITS,
}


def name(metric: str, feature_set: str) -> str:
    """The name of a metric on a set of features: `fid` only on Inception features."""
    if feature_set == "inception":
        return OF_INCEPTION.get(metric, metric)
    return f"{metric}_{feature_set}"


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of the reference, the real images, that the metrics need.

    Attributes:
      pooled: Moments of the features.
      spatial: Moments of the spatial features; None if the set has none.
      features: Features of every image, in their order.
    """

    pooled: Moments
    spatial: Moments | None
    features: Float[np.ndarray, " n features"] | Chosen


def statistics(features: Features) -> Statistics:
    """The statistics of real images, from their features."""
    return Statistics(
        pooled=moments(features.pooled),
        spatial=None if features.spatial is None else moments(features.spatial),
        features=features.pooled,
    )


def left_out(generated: int, real: int) -> dict[str, int]:
    """The metrics that are not defined for so few images, and the fewest they take."""
    return {
        kind: fewest
        for kind, fewest in FEWEST.items()
        if (generated if kind == "score" else min(generated, real)) < fewest
    }


class Measured(NamedTuple):
    """The value of a metric.

    Attributes:
      value: The distance, share or score.
      warning: The reason why it means little; None if it is of enough images.
      residual: Error of the matrix root in a Frechet distance; else None.
    """

    value: float
    warning: str | None
    residual: float | None = None


class Ruler:
    """The metrics of any set of images against one reference."""

    def __init__(self, real: Statistics, feature_set: str):
        """Takes the roots of the reference's covariances, which all distances share."""
        self._count, self._set = real.pooled.count, feature_set
        self._some = real.features[evenly(len(real.features), MOST_PAIRED)]
        self._root = with_root(real.pooled)
        self._spatial_root = None if real.spatial is None else with_root(real.spatial)

    def distance(self, features: Features) -> float:
        """The Frechet distance alone."""
        return frechet_distance(moments(features.pooled), self._root).value

    def measure(self, features: Features) -> dict[str, Measured]:
        """Every metric that the features, and their number, allow, by name.

        Raises:
          ValueError: If there are fewer than two images.
        """
        missing = left_out(len(features.pooled), self._count)
        measured = {"frechet": self._frechet(features.pooled, self._root)}
        if self._spatial_root is not None:
            measured["spatial_frechet"] = self._frechet(
                features.spatial, self._spatial_root
            )
        some = features.pooled[:MOST_PAIRED]
        count = min(len(some), len(self._some))
        measured["kernel_distance"] = Measured(
            kernel_distance(some, self._some),
            sample_size.warning("kernel_distance", count, some.shape[1]),
        )
        if not missing.keys() & OVERLAP:
            shares = overlap(some, self._some)
            warning = sample_size.warning("overlap", count, some.shape[1])
            measured |= {
                kind: Measured(getattr(shares, kind), warning) for kind in OVERLAP
            }
        if features.logits is not None and "score" not in missing:
            measured["score"] = Measured(
                inception_score(features.logits).mean,
                sample_size.warning("inception_score", *features.logits.shape),
            )
        return {name(kind, self._set): value for kind, value in measured.items()}

    def _frechet(self, features: Any, root: Rooted) -> Measured:
        distance = frechet_distance(moments(features), root)
        few = min(len(features), self._count)
        warning = sample_size.warning("frechet_distance", few, features.shape[1])
        return Measured(distance.value, warning, distance.residual)


def real_vs_real(features: Features, feature_set: str) -> dict[str, float]:
    """Every metric of one half of the real images against the other.

    The halves are random: a source may be sorted by class.
    """
    order = np.random.default_rng(0).permutation(len(features.pooled))
    one, other = (
        Features(*(None if part is None else Chosen(part, half) for part in features))
        for half in np.array_split(order, 2)
    )
    ruler = Ruler(statistics(one), feature_set)
    return {kind: metric.value for kind, metric in ruler.measure(other).items()}
