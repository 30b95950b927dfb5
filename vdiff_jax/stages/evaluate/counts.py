"""The numbers of images, before any is drawn: which metrics they are too few for."""

import sys
from collections.abc import Collection

from vdiff_jax import parallel
from vdiff_jax.evaluation.metrics import FEWEST, OVERLAP, left_out
from vdiff_jax.from_config.choices import Config

# Real images are compared by halves too.
FEWEST_REAL = 2 * FEWEST["frechet"]


def check_counts(section: Config, real: int) -> None:
    """Refuses too few real images for any metric; prints the metrics that go.

    Args:
      section: The section `evaluate`.
      real: The number of real images.

    Raises:
      ValueError: If there are too few for a Frechet distance.
    """
    if real < FEWEST_REAL:
        raise ValueError(
            f"There are {_images(section, real)}: every distance needs at least"
            f" {FEWEST_REAL}, two in each half."
        )
    if not parallel.is_main():
        return
    missing = left_out(section.num, real)
    if missing:
        print(
            f"evaluate: left out: {_named(missing)}: too few images with"
            f" evaluate.num={section.num} and {_images(section, real)}.",
            file=sys.stderr,
        )
    halves = left_out(real // 2, real // 2).keys() - missing.keys()
    if halves:
        print(
            f"evaluate: left out of the real-vs-real distances: {_named(halves)}: too"
            f" few images in each half of {_images(section, real)}.",
            file=sys.stderr,
        )


def check_num(section: Config) -> None:
    """Refuses an `evaluate.num` that no metric is defined for.

    Raises:
      ValueError: If it is too small.
    """
    if section.num < FEWEST["frechet"]:
        raise ValueError(
            f"evaluate.num={section.num} must be at least {FEWEST['frechet']}: of fewer"
            " images there is no distance."
        )


def _images(section: Config, real: int) -> str:
    field = f"evaluate.reference_num={section.reference_num}"
    return f"{real:,} real images of the {section.reference_split} split ({field})"


def _named(kinds: Collection[str]) -> str:
    """The metrics by name with the fewest images that each takes."""
    groups = [("precision, recall, density and coverage", OVERLAP)]
    groups += [(kind, (kind,)) for kind in FEWEST if kind not in OVERLAP]
    named = [
        f"{words.replace('_', ' ')} (at least {FEWEST[members[0]]})"
        for words, members in groups
        if members[0] in kinds
    ]
    return ", ".join(named)
