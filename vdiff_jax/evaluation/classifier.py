"""Features of a small classifier that is trained on the data themselves.

They need no download and suit data that look nothing like ImageNet. The distance on
them is called `frechet_classifier`; it is not FID, and compares only with itself.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8

from vdiff_jax.datasets.reader import Reader
from vdiff_jax.diffusion import from_pixels
from vdiff_jax.files.fingerprints import params_sha256
from vdiff_jax.nets.convolution import conv3x3
from vdiff_jax.types import Params

NUM_UPDATES = 600
BATCH_SIZE = 128
MOST_PIXELS = 2**22  # of a batch of held-out images
SPATIAL_CHANNELS = 7  # as many as sFID takes of the Inception network


class Classifier(nn.Module):
    """Convolutions down to at most 4x4 pixels, and a layer of features."""

    num_classes: int
    num_features: int = 64

    @nn.compact
    def __call__(
        self, x: Float[Array, " batch height width channels"]
    ) -> tuple[
        Float[Array, " batch features"],
        Float[Array, " batch spatial"],
        Float[Array, " batch classes"],
    ]:
        """Returns features, spatial features and class logits."""
        h = nn.relu(conv3x3(32, name="conv_in")(x))
        level = 0
        while h.shape[1] > 4:
            h = nn.avg_pool(h, (2, 2), strides=(2, 2))
            h = nn.relu(conv3x3(64, name=f"conv_{level}")(h))
            level += 1
        spatial = h[..., :SPATIAL_CHANNELS].reshape(h.shape[0], -1)
        h = h.reshape(h.shape[0], -1)
        h = nn.relu(nn.Dense(self.num_features, name="features")(h))
        return h, spatial, nn.Dense(self.num_classes, name="logits")(h)


class Judge(nn.Module):
    """A second classifier, which checks that an image is of the class it was drawn for.

    It shares nothing with the one that gives features, so that a model which is good by
    these is not good by the judge for that alone: strided convolutions of 5 x 5, no
    pooling, and other activations.
    """

    num_classes: int

    @nn.compact
    def __call__(
        self, x: Float[Array, " batch height width channels"]
    ) -> Float[Array, " batch classes"]:
        """Returns class logits."""
        h = nn.gelu(nn.Conv(48, (5, 5), name="conv_in")(x))
        level = 0
        while h.shape[1] > 4:
            h = nn.gelu(nn.Conv(96, (5, 5), strides=(2, 2), name=f"conv_{level}")(h))
            level += 1
        h = nn.gelu(nn.Dense(128, name="hidden")(h.reshape(h.shape[0], -1)))
        return nn.Dense(self.num_classes, name="logits")(h)


def judge(
    params: Params, images: UInt8[Array, " batch height width channels"]
) -> Float[Array, " batch classes"]:
    """Class logits of the judge."""
    net = Judge(num_classes=params["params"]["logits"]["bias"].size)
    logits: Any = net.apply(params, from_pixels(images))
    return logits


class Trained(NamedTuple):
    """A classifier after training.

    Attributes:
      params: Parameters of the network.
      accuracy: Share of the held-out data that it classifies rightly, in [0, 1].
      sha256: Fingerprint of the parameters.
    """

    params: Params
    accuracy: float
    sha256: str

    @property
    def facts(self) -> dict[str, Any]:
        """Accuracy and fingerprint, for a report."""
        return {
            "held_out_accuracy": round(self.accuracy, 4),
            "params_sha256": self.sha256[:16],
        }


def apply(
    params: Params, images: UInt8[Array, " batch height width channels"]
) -> tuple[Array, Array, Array]:
    """Features, 7 channels of the last convolution with their places, class logits."""
    outputs: Any = Classifier(
        num_classes=params["params"]["logits"]["bias"].size
    ).apply(params, from_pixels(images))
    return outputs


def train(
    examples: Reader,
    held_out: Reader,
    *,
    kind: Literal["classifier", "judge"] = "classifier",
    seed: int = 0,
    advance: Callable[[int], None] = lambda updates: None,
) -> Trained:
    """Trains with a fixed seed: the same data give the same features.

    Args:
      examples: Training images and their classes, read batch after batch.
      held_out: Those on which the accuracy is measured.
      kind: The network that gives features, or the judge.
      seed: Seed of the initialisation and the order.
      advance: Called with the number of updates that were made since the last call.

    Raises:
      ValueError: If the images are all of one class.
    """
    labels = examples.labels
    if labels.max() == labels.min():
        raise ValueError(
            "Classifier features need labelled data of at least two classes; these have"
            " one. Leave the evaluate stage out."
        )
    network, logits_of = {
        "classifier": (Classifier, lambda *given: apply(*given)[2]),
        "judge": (Judge, judge),
    }[kind]
    net = network(num_classes=int(labels.max()) + 1)
    # On one device: the sums of a small network are not worth their communication.
    shape = np.shape(examples.source[0]["image"])
    params = jax.jit(net.init)(jax.random.key(seed), jnp.zeros((1, *shape)))
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, NUM_UPDATES))
    order = np.random.default_rng(seed).integers(
        len(examples), size=(NUM_UPDATES, BATCH_SIZE)
    )

    def loss(params: Params, image: Array, target: Array) -> Array:
        logits = logits_of(params, image)
        return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()

    @jax.jit
    def update(
        params: Params, opt_state: optax.OptState, image: Array, target: Array
    ) -> tuple[Params, optax.OptState]:
        grads = jax.grad(loss)(params, image, target)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state

    opt_state = optimizer.init(params)
    for batch in examples.batches(order):
        params, opt_state = update(params, opt_state, batch["image"], batch["label"])
        jax.block_until_ready(params)  # what is only queued is not made
        advance(1)
    predict = jax.jit(lambda image: logits_of(params, image).argmax(axis=1))
    return Trained(
        params=jax.tree.map(np.asarray, params),
        accuracy=_accuracy(predict, held_out),
        sha256=params_sha256(params),
    )


def _accuracy(predict: Callable[[Any], Array], held_out: Reader) -> float:
    """The share of images whose class is predicted."""
    height, width, _ = np.shape(held_out.source[0]["image"])
    most = max(1, min(1024, MOST_PIXELS // (height * width)))
    parts = np.array_split(np.arange(len(held_out)), -(-len(held_out) // most))
    right = [
        np.asarray(predict(batch["image"])) == batch["label"]
        for batch in held_out.batches(parts)
    ]
    return float(np.concatenate(right).mean())
