"""What every metric asks of its input."""

import numpy as np
from jaxtyping import Float


def check_finite(features: Float[np.ndarray, " examples features"]) -> None:
    """Refuses features that no distance can be taken of.

    Raises:
      ValueError: If a feature is not finite.
    """
    bad = np.count_nonzero(~np.isfinite(features).all(axis=1))
    if bad:
        raise ValueError(
            f"{bad} of {len(features)} examples have features that are not finite."
            " Look at their pictures: the sampler or the extractor made a NaN."
        )
