"""Numbers of images that metrics need before their values mean much.

With n images (the smaller of two sets), d features and c classes:

  frechet_distance   n >= 10 d. The covariance of n <= d images is singular. Above, n
      images lie from their own distribution, to leading order in 1 / n, at no more
      than (d + 5) / (4 n) of its total variance, and at that if all directions vary
      alike: a fortieth at 10 d. The bias depends on n and on the model (Chong &
      Forsyth, 2020, arXiv:1911.07023), so only distances of equal n compare; published
      FIDs are of 50,000.
  kernel_distance    n >= 1,000. It is unbiased for every n, but noisier than the usual
      average over subsets of 1,000.
  overlap            n >= 2,500. A share of n images has a standard error of up to
      1 / (2 sqrt(n)): 0.01 at 2,500.
  inception_score    n >= 50 c in each part, or the usual 5,000. A part of n images
      scores too low by up to (c - 1) / (2 n), relative, which is the bias of the
      entropy of a histogram (Miller, 1955): 0.01 at 50 c.
"""

from typing import Literal

from vdiff_jax.evaluation.scores import SPLITS

Metric = Literal["frechet_distance", "kernel_distance", "overlap", "inception_score"]


def warning(metric: Metric, num_images: int, num_features: int) -> str | None:
    """A warning for a metric of too few images.

    Args:
      metric: The function that measures.
      num_images: Images in the smaller set.
      num_features: Features of an image; for the Inception score, classes.

    Returns:
      A sentence for people, or None if there are enough.
    """
    needed = _needed(metric, num_features)
    if num_images >= needed:
        return None
    trouble = {
        "frechet_distance": "its bias is more than a fortieth of the variance",
        "kernel_distance": "it is noisier than the usual subsets of 1,000",
        "overlap": "its standard error may be more than 0.01",
        "inception_score": "it is biased downwards by more than the usual",
    }[metric]
    if metric == "frechet_distance" and num_images <= num_features:
        trouble = f"the covariance of {num_features:,} features is singular"
    return (
        f"{metric} of only {num_images:,} images: {trouble}. Take at least {needed:,}."
    )


def _needed(metric: Metric, num_features: int) -> int:
    if metric == "frechet_distance":
        return 10 * num_features
    if metric == "kernel_distance":
        return 1000
    if metric == "overlap":
        return 2500
    return SPLITS * min(50 * num_features, 5000)
