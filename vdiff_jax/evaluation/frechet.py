"""The Frechet distance between two sets of features, each taken as a Gaussian."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Moments(NamedTuple):
    """Mean and covariance of a set of features, in float64."""

    mean: Float[np.ndarray, " features"]
    covariance: Float[np.ndarray, " features features"]


def moments(features: Float[np.ndarray, " examples features"]) -> Moments:
    """Mean and unbiased covariance.

    Raises:
      ValueError: If there are fewer than two examples.
    """
    if len(features) < 2:
        raise ValueError(f"Moments need at least two examples, got {len(features)}.")
    features = features.astype(np.float64)
    covariance = np.atleast_2d(np.cov(features, rowvar=False))
    return Moments(features.mean(axis=0), covariance)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2).

    The squared 2-Wasserstein distance of two Gaussians (Dowson & Landau, 1982). It is
    called FID only on Inception features (Heusel et al., 2017, arXiv:1706.08500), which
    these need not be. The root is taken of a symmetric matrix, so it is real.
    """
    root = _square_root(a.covariance)
    eigenvalues = np.linalg.eigvalsh(root @ b.covariance @ root)
    trace_of_root = np.sqrt(np.clip(eigenvalues, 0.0, None)).sum()
    difference = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(difference @ difference + traces - 2.0 * trace_of_root)


def _square_root(
    covariance: Float[np.ndarray, " features features"],
) -> Float[np.ndarray, " features features"]:
    eigenvalues, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.clip(eigenvalues, 0.0, None))) @ vectors.T
