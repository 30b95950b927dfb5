"""The memory that measuring images takes, and its growth with their number.

    python -m benchmarks.memory                  # long on a CPU, for Inception
    python -m benchmarks.memory --sets pixels    # a minute

As many real images as generated ones, of 256 x 256 random pixels made on the fly, are
measured by the pixels and by an Inception network of random weights: `parts` as the
evaluate stage does it, part after part, and `held` with all pixels in memory. Each is a
process of its own, whose peak of resident memory is given, and the growth of that peak
for each thousand images of each side. A thousand images are 188 MiB of pixels.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import ClassVar

import jax
import numpy as np

from benchmarks import contest
from benchmarks.startup import Table
from vdiff_jax.datasets.loader import read_all
from vdiff_jax.datasets.reader import Reader
from vdiff_jax.evaluation import features, metrics
from vdiff_jax.evaluation.features import Features, FeatureSet
from vdiff_jax.evaluation.inception.network import IMAGE_SIZE, InceptionV3
from vdiff_jax.evaluation.metrics import Ruler

SIDE = 256
GENERATED_PART = 512


@dataclasses.dataclass(frozen=True)
class Noise:
    """So many images of random pixels, made as they are read.

    Attributes:
      num: The number of images.
      seed: The seed of all of them.
    """

    num: int
    seed: int
    needs_workers: ClassVar[bool] = False

    def __len__(self) -> int:
        """Number of images."""
        return self.num

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One image."""
        draw = np.random.default_rng((self.seed, index))
        image = draw.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        return {"image": image, "label": np.int32(0)}


def main() -> None:
    """Runs, and prints a table."""
    options, machine, table = _parse(), contest.machine(), Table()
    print(contest.introduction(machine), flush=True)
    for name in options.sets:
        # All pixels beside Inception would show nothing that they do not show here.
        for way in WAYS if name == "pixels" else ("parts",):
            _add(table, name, way, options.num)
    print(table)
    if options.json:
        contest.write(options.json, machine, table.rows())


def _add(table: Table, name: str, way: str, few: int) -> None:
    """Adds the peaks of so many images and of 4 times as many, and the growth."""
    peaks = {num: contest.alone(_peak, name, way, num) for num in (few, 4 * few)}
    for num, peak in peaks.items():
        table.add(f"{name}, {way}, {num:,} images of each side", "MiB", peak)
    growth = 1000 * (peaks[4 * few] - peaks[few]) / (3 * few)
    table.add(f"{name}, {way}: growth by 1,000", "MiB", growth)
    print(f"{name}, {way}: {peaks}", file=sys.stderr, flush=True)


def _peak(name: str, way: str, num: int) -> float:
    """MiB of this process when all has been measured."""
    feature_set = SETS[name]()
    real, generated = (WAYS[way](feature_set, Noise(num, seed)) for seed in range(2))
    Ruler(metrics.statistics(real), name).measure(generated)
    peak = contest.peak_mib()
    if peak is None:
        raise RuntimeError("Only Linux tells the peak of a process.")
    return peak


def _in_parts(feature_set: FeatureSet, noise: Noise) -> Features:
    """The features of images that are let go part after part."""
    extraction = feature_set.begin(len(noise))
    for images in _parts(noise):
        extraction.add(images)
    return extraction.features


def _parts(noise: Noise) -> Iterator[np.ndarray]:
    """Real images in parts as they are read, generated ones as they are drawn."""
    if noise.seed:
        for first in range(0, len(noise), GENERATED_PART):
            numbers = range(first, min(first + GENERATED_PART, len(noise)))
            yield np.stack([noise[number]["image"] for number in numbers])
    else:
        for part in Reader(noise).parts():
            yield part["image"]


def _held(feature_set: FeatureSet, noise: Noise) -> Features:
    """The features of images that are all held."""
    return feature_set.extract(read_all(noise)["image"])


def _inception() -> FeatureSet:
    """The network of FID with random weights."""
    image = np.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    params = jax.jit(InceptionV3().init)(jax.random.key(0), image)["params"]
    return FeatureSet("inception", params, features._inception, {})


WAYS: dict[str, Callable[[FeatureSet, Noise], Features]] = {
    "parts": _in_parts,
    "held": _held,
}
SETS = {"pixels": features.of_pixels, "inception": _inception}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=500, help="images, and 4 times it")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=[*SETS])
    parser.add_argument("--json", type=pathlib.Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
