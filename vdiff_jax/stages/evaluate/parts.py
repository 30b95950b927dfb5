"""The parts of an evaluation under way, on disk for the command to go on from.

Of a part are kept the features of its images, and the first of them; not the pixels,
which may be large.
"""

import pathlib
import zipfile
from collections.abc import Set
from typing import NamedTuple

import numpy as np
from jaxtyping import Num

from vdiff_jax.evaluation.features import Features, count
from vdiff_jax.files.atomic import replacing
from vdiff_jax.files.fingerprints import DamagedError

# What NumPy raises for a file that is none of its own, or half a one.
_UNREADABLE = (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile)

Images = Num[np.ndarray, " n height width channels"]


class Part(NamedTuple):
    """Some of the images of a candidate and a seed.

    Attributes:
      features: Of all its images, by the name of the set.
      seconds: The time that each batch took to draw.
      first_images: The first of its images, those that are shown.
      images: All of them, where an earlier version kept these and no features.
    """

    features: dict[str, Features]
    seconds: list[float]
    first_images: Images
    images: Images | None = None

    def has_features(self, sets: Set[str], num: int) -> bool:
        """True if it has the features of so many images, by all these sets."""
        counts = [count(of_set) for of_set in self.features.values()]
        return self.features.keys() == sets and {*counts} == {num}

    def has_images(self, num: int) -> bool:
        """True if it has so many images, and no features of them."""
        return self.images is not None and len(self.images) == num


def write(path: pathlib.Path, part: Part) -> None:
    """Writes a part, whole or not at all."""
    arrays = {
        f"{name}-{kind}": values
        for name, features in part.features.items()
        for kind, values in features._asdict().items()
        if values is not None
    }
    with replacing(path) as half, half.open("wb") as file:
        np.savez(
            file,
            seconds=np.array(part.seconds),
            first_images=part.first_images,
            **arrays,
        )


def read(path: pathlib.Path) -> Part:
    """Reads what `write` wrote, or a part of an earlier version.

    Raises:
      DamagedError: If the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            arrays = dict(np.load(file, allow_pickle=False))
        seconds = arrays.pop("seconds").tolist()
        if "images" in arrays:
            images = arrays["images"]
            return Part({}, seconds, images[:0], images)
        first_images = arrays.pop("first_images")
        kinds: dict[str, dict[str, np.ndarray]] = {}
        for key, values in arrays.items():
            name, kind = key.split("-")
            kinds.setdefault(name, {})[kind] = values
        none = dict.fromkeys(Features._fields)
        features = {
            name: Features(**{**none, **of_set}) for name, of_set in kinds.items()
        }
        return Part(features, seconds, first_images)
    except _UNREADABLE as error:
        raise DamagedError(
            f"{path} cannot be read ({error}): remove it, and it is drawn again."
        ) from error
