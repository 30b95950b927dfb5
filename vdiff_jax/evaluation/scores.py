"""Scores of one set of examples, which need no other to compare with."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vdiff_jax.evaluation.moments import Chosen, check_finite

SPLITS = 10


class InceptionScore(NamedTuple):
    """An Inception score: mean and standard deviation over the parts."""

    mean: float
    std: float


def inception_score(
    logits: Float[np.ndarray, " examples classes"] | Chosen,
    *,
    splits: int = SPLITS,
    seed: int = 0,
) -> InceptionScore:
    """exp(mean over x of KL(p(y | x) || p(y))), for each of some parts.

    Salimans et al. (2016), arXiv:1606.03498. It is in [1, classes]: 1 where the
    classifier predicts the same for every example, the number of classes where it is
    sure of each and all are equally frequent. Scores of one classifier compare with no
    other's; only the Inception network gives the published ones.

    Args:
      logits: Class logits of any classifier.
      splits: Parts, of equal sizes up to one example. They are drawn at random, since
        examples may come in the order of their classes.
      seed: Seed of the draw of the parts.

    Raises:
      ValueError: If there are fewer examples than parts, no parts, or a logit is not
        finite.
    """
    if not 1 <= splits <= len(logits):
        raise ValueError(
            f"Expected between 1 and {len(logits)} splits, as many as examples, got"
            f" {splits=}."
        )
    check_finite(logits)
    order = np.random.default_rng(seed).permutation(len(logits))
    scores = [_score(logits[part]) for part in np.array_split(order, splits)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(logits: Float[np.ndarray, " examples classes"]) -> float:
    logits = logits.astype(np.float64)
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    # In logarithms, so that a class that no example may be of gives 0 and not 0 * inf.
    log_marginal = np.logaddexp.reduce(log_p, axis=0) - np.log(len(logits))
    divergence = (np.exp(log_p) * (log_p - log_marginal)).sum(axis=1)
    return float(np.exp(divergence.mean()))
