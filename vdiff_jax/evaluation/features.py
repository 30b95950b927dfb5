"""Sets of features by which images are compared, each with a name of its own.

    inception    the network of FID; needs its weights, see `evaluation.inception`
    classifier   a small network trained on the labelled data themselves
    pixels       the images, averaged to at most 16 x 16 pixels
    <function>   a network of the user's, by the name of the function that makes it

Distances on different sets do not compare. Only those on Inception features have the
names of the literature: FID, sFID, KID, Inception score.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from vdiff_jax import parallel
from vdiff_jax.diffusion import from_pixels
from vdiff_jax.evaluation import classifier
from vdiff_jax.evaluation.inception import weights
from vdiff_jax.files import scratch
from vdiff_jax.files.fingerprints import params_sha256
from vdiff_jax.progress import Bar
from vdiff_jax.types import Params

LARGEST_PIXELS = 16
BATCH_SIZE = 128


class Features(NamedTuple):
    """Features of n images, from which the metrics are computed.

    They are on the host, where many are mapped from a file (`files.scratch`), or inside
    a compiled function.

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
      name: inception, classifier, pixels, judge, or that of a function of the user's.
      params: Parameters of its network.
      apply: (params, uint8 images) -> Features; pure.
      facts: Origin of the network, as JSON; equal facts mean equal features.
    """

    name: str
    params: Params
    apply: Callable[[Params, Array], Features]
    facts: dict[str, Any]

    def check(self, shape: tuple[int, int, int]) -> None:
        """Refuses a network that does not give features of images of this shape.

        Raises:
          ValueError: If they are not of shape [n, k].
        """
        images = jax.ShapeDtypeStruct((2, *shape), np.uint8)
        shape_of_two = jax.eval_shape(self.apply, self.params, images).pooled.shape
        if len(shape_of_two) != 2 or shape_of_two[0] != 2:
            raise ValueError(f"its features of 2 images are {list(shape_of_two)}.")

    def extract(
        self, images: UInt8[np.ndarray, " n height width channels"]
    ) -> Features:
        """Features of images in float32, computed on all devices."""
        extraction = self.begin(len(images))
        name, shown = f"{self.name} features", parallel.is_main()
        with Bar(name, len(images), shown=shown, delay=5.0) as bar:
            return extraction.add(images, bar.update)

    def begin(self, total: int) -> "Extraction":
        """Begins to extract the features of so many images, which come in parts."""
        return Extraction(self, total)


class Extraction:
    """Features of images that come part after part; the images are not kept.

    Each image has the place in a batch that it would have if all came as one array, and
    all batches have one shape. So the features are the same to the last bit however the
    images are parted, and are compiled once.
    """

    def __init__(self, features: FeatureSet, total: int):
        """Puts the parameters on all devices."""
        self._mesh = parallel.make_mesh()
        self._params = parallel.put(features.params, parallel.replicated(self._mesh))
        self._apply, self._total = features.apply, total
        parts = -(-min(BATCH_SIZE, total) // self._mesh.size)
        self._batch_size = parts * self._mesh.size
        self._whole: Features | None = None
        self._done = 0

    @property
    def features(self) -> Features:
        """The features of all images, in their order.

        Raises:
          RuntimeError: If some have not come yet.
        """
        if self._whole is None or self._done < self._total:
            raise RuntimeError(f"{self._done} of {self._total} images have come.")
        return self._whole

    def add(
        self,
        images: UInt8[np.ndarray, " part height width channels"],
        advance: Callable[[int], object] = lambda count: None,
    ) -> Features:
        """Extracts the features of the next images, computed on all devices.

        Args:
          images: The next images.
          advance: Called with the number of images of each batch that is done.

        Returns:
          Their features.
        """
        began, size = self._done, self._batch_size
        # The first batch begins where it would if all images were one array, the last
        # ends there; what is missing in them is filled up with others of the part.
        for first in range(-(began % size), len(images), size):
            index = np.arange(first, first + size) % len(images)
            batch = parallel.put(images[index], parallel.split(self._mesh))
            features = _run(self._apply, self._params, batch)
            features = jax.tree.map(parallel.fetch, features)
            rows = slice(max(-first, 0), len(images) - first)
            self.put(_rows(features, rows))
            advance(len(index[rows]))
        return _rows(self._whole, slice(began, self._done))

    def put(self, part: Features) -> None:
        """Takes the features of the next images, which were extracted before."""
        if self._whole is None:
            self._whole = jax.tree.map(self._empty, part)
        first, self._done = self._done, self._done + count(part)
        assert self._done <= self._total
        arrays = map(jax.tree.leaves, (self._whole, part))
        for whole, values in zip(*arrays, strict=True):
            whole[first : self._done] = values

    def _empty(self, part: np.ndarray) -> np.ndarray:
        return scratch.empty((self._total, *part.shape[1:]), part.dtype)


def count(features: Features) -> int:
    """The number of images that features are of."""
    return len(jax.tree.leaves(features)[0])


def _rows(features: Any, rows: slice) -> Features:
    return jax.tree.map(lambda x: x[rows], features)


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


def of_user(
    path: str, params: Params, apply: Callable[[Params, Array], Array]
) -> FeatureSet:
    """Features of a network of the user's.

    Args:
      path: The function that made it, "package.module:function"; the set is called as
        the function.
      params: Its parameters; statistics are kept by their fingerprint.
      apply: (params, uint8 images [n, height, width, channels]) -> [n, features]; pure,
        of JAX.
    """

    def pooled(params: Params, images: Array) -> Features:
        return Features(jnp.asarray(apply(params, images), np.float32), None, None)

    facts = {"function": path, "params_sha256": params_sha256(params)[:16]}
    return FeatureSet(path.partition(":")[2], params, pooled, facts)


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
