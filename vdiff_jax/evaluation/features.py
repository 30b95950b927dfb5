"""Sets of features by which images are compared, each with a name of its own.

    inception    the network of FID; needs its weights, see `evaluation.inception`
    classifier   a small network trained on the labelled data themselves
    pixels       the images, averaged to at most 16 x 16 pixels

Distances on different sets do not compare. Only those on Inception features have the
names of the literature: FID, sFID, KID, Inception score.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, UInt8

from vdiff_jax import parallel
from vdiff_jax.diffusion import from_pixels
from vdiff_jax.evaluation import classifier
from vdiff_jax.evaluation.inception import weights
from vdiff_jax.progress import Bar
from vdiff_jax.types import Params

LARGEST_PIXELS = 16
BATCH_SIZE = 128


class Features(NamedTuple):
    """Features of n images, from which the metrics are computed.

    They are on the host, or inside a compiled function.

    Attributes:
      pooled: [n, features], for all metrics but the next two.
      spatial: [n, features] with the place in the image, for the spatial Frechet
        distance; None if the set has none.
      logits: [n, classes], for the Inception score; None if the set has none.
    """

    pooled: Any
    spatial: Any
    logits: Any


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """A way to compute features, with a name.

    Attributes:
      name: inception, classifier, pixels or judge.
      params: Parameters of its network.
      apply: (params, uint8 images) -> Features; pure.
      facts: Origin of the network, as JSON; equal facts mean equal features.
    """

    name: str
    params: Params
    apply: Callable[[Params, Array], Features]
    facts: dict[str, Any]

    def extract(
        self, images: UInt8[np.ndarray, " n height width channels"]
    ) -> Features:
        """Features of images in float32, computed on all devices."""
        mesh = parallel.make_mesh()
        params = parallel.put(self.params, parallel.replicated(mesh))
        batch_size = -(-min(BATCH_SIZE, len(images)) // mesh.size) * mesh.size
        parts = []
        name, shown = f"{self.name} features", parallel.is_main()
        with Bar(name, len(images), shown=shown, delay=5.0) as bar:
            for first in range(0, len(images), batch_size):
                # The last batch is filled up from the start: one shape, compiled once.
                index = np.arange(first, first + batch_size) % len(images)
                batch = parallel.put(images[index], parallel.split(mesh))
                features = _run(self.apply, params, batch)
                parts.append(jax.tree.map(parallel.fetch, features))
                bar.update(min(batch_size, len(images) - first))
        whole = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        return jax.tree.map(lambda x: x[: len(images)], whole)


@partial(jax.jit, static_argnums=0)
def _run(
    apply: Callable[[Params, Array], Features], params: Params, images: Array
) -> Features:
    return apply(params, images)


def of_inception(path: pathlib.Path) -> FeatureSet:
    """The network of FID, with weights from a file.

    Raises:
      ValueError: If the file has not the weights of that network.
    """
    inception = weights.load(path)
    facts = {
        "weights": path.name,
        "of_fid": inception.known,
        "sha256": inception.sha256,
    }
    return FeatureSet("inception", inception.params, _inception, facts)


def _inception(params: Params, images: Array) -> Features:
    features = weights.apply(params, images)
    return Features(features.pool3, features.spatial, features.logits)


def of_classifier(trained: classifier.Trained) -> FeatureSet:
    """Features of a classifier that was trained on the data."""
    return FeatureSet("classifier", trained.params, _classifier, trained.facts)


def _classifier(params: Params, images: Array) -> Features:
    return Features(*classifier.apply(params, images))


def of_judge(trained: classifier.Trained) -> FeatureSet:
    """Logits of the judge, which are no features to measure distances by."""
    return FeatureSet("judge", trained.params, _judge, trained.facts)


def _judge(params: Params, images: Array) -> Features:
    return Features(None, None, classifier.judge(params, images))


def of_pixels() -> FeatureSet:
    """Pixels of the images, in [-1, 1], averaged to at most 16 x 16."""
    facts = {"largest": LARGEST_PIXELS}
    return FeatureSet("pixels", {}, _pixels, facts)


def _pixels(params: Params, images: Array) -> Features:
    del params
    x = from_pixels(images)
    height, width = (min(size, LARGEST_PIXELS) for size in x.shape[1:3])
    x = jax.image.resize(x, (len(x), height, width, x.shape[3]), "linear")
    return Features(x.reshape(len(x), -1), None, None)
