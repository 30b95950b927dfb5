"""The Frechet distance between two sets of features, each taken as a Gaussian.

    |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (R C_b R)^1/2),    R = C_a^1/2

is the squared 2-Wasserstein distance of two Gaussians (Dowson & Landau, 1982). It is
called FID only on Inception features (Heusel et al., 2017, arXiv:1706.08500), which
these need not be.

Both roots are of symmetric matrices, by their eigenvalues, so they are real, and
singular covariances have them too. Eigenvalues that rounding made negative count as
zero.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vdiff_jax.evaluation.moments import Moments


class Rooted(NamedTuple):
    """Moments made ready for many distances, with the root that all of them need.

    Attributes:
      mean: Mean of the features.
      variance: Total variance, tr(C).
      root: R, symmetric.
      residual: |R R - C| / |C| in the Frobenius norm; 0 if C = 0, whose root is exact.
    """

    mean: Float[np.ndarray, " features"]
    variance: float
    root: Float[np.ndarray, " features features"]
    residual: float


class Frechet(NamedTuple):
    """A distance, and the error of the root in it.

    Attributes:
      value: Squared distance, at least 0.
      residual: Error of the reference's root: about 1e-14, unless the root has failed.
    """

    value: float
    residual: float


def with_root(moments: Moments) -> Rooted:
    """Takes the root of the covariance: most of the work of a distance.

    Raises:
      ValueError: If the moments are of fewer than two examples.
    """
    covariance = moments.covariance
    eigenvalues, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.clip(eigenvalues, 0.0, None))) @ vectors.T
    size = np.linalg.norm(covariance)
    error = np.linalg.norm(root @ root - covariance)
    return Rooted(
        mean=moments.mean,
        variance=float(np.trace(covariance)),
        root=root,
        residual=float(error / size) if size else 0.0,
    )


def frechet_distance(generated: Moments, reference: Rooted) -> Frechet:
    """The Frechet distance of two sets; it is the same whichever of them is rooted.

    The value of two equal sets is rounding of either sign: up to about 1e-8 of the
    total variance for each direction in which they do not vary. Below 0 it is returned
    as 0.

    Args:
      generated: Moments of one set.
      reference: Moments of the other set, as `with_root` gives them.

    Raises:
      ValueError: If the moments are of fewer than two examples, or of other features.
    """
    if generated.mean.shape != reference.mean.shape:
        raise ValueError(
            f"Moments of {generated.mean.size} features cannot be compared with those"
            f" of {reference.mean.size}. Take both from one extractor."
        )
    covariance = generated.covariance
    product = reference.root @ covariance @ reference.root
    eigenvalues = np.linalg.eigvalsh(product)
    trace_of_root = np.sqrt(np.clip(eigenvalues, 0.0, None)).sum()
    difference = generated.mean - reference.mean
    variances = np.trace(covariance) + reference.variance
    value = float(difference @ difference + variances - 2.0 * trace_of_root)
    return Frechet(max(value, 0.0), reference.residual)
