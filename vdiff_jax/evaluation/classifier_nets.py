"""The networks of `classifier`: two that give features, and two judges."""

from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vdiff_jax.diffusion import from_pixels
from vdiff_jax.nets.convolution import conv3x3
from vdiff_jax.nets.layers import space_to_depth
from vdiff_jax.types import Params

SPATIAL_CHANNELS = 7  # as many as sFID takes of the Inception network
LARGEST = 32  # places in a row that ResidualClassifier looks at

Images: TypeAlias = UInt8[Array, " batch height width channels"]
Logits: TypeAlias = Float[Array, " batch classes"]
# Features, spatial features and class logits.
Outputs: TypeAlias = tuple[
    Float[Array, " batch features"], Float[Array, " batch spatial"], Logits
]


class Classifier(nn.Module):
    """For small images: convolutions down to 4x4 pixels, and a layer of features."""

    num_classes: int
    num_features: int = 64

    @nn.compact
    def __call__(self, x: Float[Array, " batch height width channels"]) -> Outputs:
        """Returns features, spatial features and class logits."""
        h = nn.relu(conv3x3(32, name="conv_in")(x))
        level = 0
        while h.shape[1] > 4:
            h = nn.avg_pool(h, (2, 2), strides=(2, 2))
            h = nn.relu(conv3x3(64, name=f"conv_{level}")(h))
            level += 1
        spatial = _spatial(h)
        h = h.reshape(h.shape[0], -1)
        h = nn.relu(nn.Dense(self.num_features, name="features")(h))
        return h, spatial, nn.Dense(self.num_classes, name="logits")(h)


class ResidualClassifier(nn.Module):
    """For photographs: residual convolutions, whose mean over the places is features.

    It has no norms, and begins with every residual at zero. Images of more than 32
    pixels are seen at 32 x 32 places, so that they cost as much.

    Attributes:
      num_classes: Number of classes.
      width: Channels at 32 x 32; twice as many at each half of that.
    """

    num_classes: int
    width: int

    @nn.compact
    def __call__(self, x: Float[Array, " batch height width channels"]) -> Outputs:
        """Returns features, spatial features and class logits."""
        stride = max(1, x.shape[1] // LARGEST)
        size, strides = (2 * stride + 1, 2 * stride + 1), (stride, stride)
        h = nn.Conv(self.width, size, strides=strides, name="conv_in")(x)
        level = 0
        while h.shape[1] > 4:
            level += 1
            width = self.width * 2**level
            h = nn.avg_pool(h, (2, 2), strides=(2, 2))
            h = conv3x3(width, name=f"conv_{level}")(nn.relu(h))
            residual = conv3x3(width, zero_init=True, name=f"residual_{level}")
            h = h + residual(nn.relu(h))
        h = nn.relu(h)
        features = h.mean(axis=(1, 2))
        logits = nn.Dense(self.num_classes, name="logits")(features)
        return features, _spatial(h), logits


class Judge(nn.Module):
    """A second classifier, which checks that an image is of the class it was drawn for.

    For small images. It shares nothing with the one that gives features, so that a
    model which is good by that is not good by the judge for that alone: strided
    convolutions of 5 x 5, no pooling, and other activations.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, " batch height width channels"]) -> Logits:
        """Returns class logits."""
        h = nn.gelu(nn.Conv(48, (5, 5), name="conv_in")(x))
        level = 0
        while h.shape[1] > 4:
            h = nn.gelu(nn.Conv(96, (5, 5), strides=(2, 2), name=f"conv_{level}")(h))
            level += 1
        h = nn.gelu(nn.Dense(128, name="hidden")(h.reshape(h.shape[0], -1)))
        return nn.Dense(self.num_classes, name="logits")(h)


class FoldingJudge(nn.Module):
    """The judge of photographs, which shares nothing with ResidualClassifier.

    It folds squares into channels instead of pooling them, and has no residuals. On a
    CPU the gradient of a strided convolution would take twice as long.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, " batch height width channels"]) -> Logits:
        """Returns class logits."""
        stride = max(1, x.shape[1] // LARGEST)
        h = nn.avg_pool(x, (stride, stride), strides=(stride, stride))
        level = 0
        while h.shape[1] > 4:
            level += 1
            even = h.shape[1] // 2 * 2
            h = space_to_depth(h[:, :even, :even], 2)
            h = nn.gelu(conv3x3(64 * level, name=f"conv_{level}")(h))
        h = nn.gelu(nn.Dense(128, name="hidden")(h.reshape(h.shape[0], -1)))
        return nn.Dense(self.num_classes, name="logits")(h)


def apply(params: Params, images: Images) -> Outputs:
    """Features, 7 channels of the last convolution with their places, class logits."""
    num_classes = params["params"]["logits"]["bias"].size
    if "features" in params["params"]:
        net: nn.Module = Classifier(num_classes=num_classes)
    else:
        width = params["params"]["conv_in"]["bias"].size
        net = ResidualClassifier(num_classes=num_classes, width=width)
    outputs: Any = net.apply(params, from_pixels(images))
    return outputs


def judge(params: Params, images: Images) -> Logits:
    """Class logits of a judge."""
    num_classes = params["params"]["logits"]["bias"].size
    kind = Judge if "conv_in" in params["params"] else FoldingJudge
    net: nn.Module = kind(num_classes=num_classes)
    logits: Any = net.apply(params, from_pixels(images))
    return logits


def moved(key: jax.Array, images: Images, *, flip: bool) -> Images:
    """Images that are shifted by up to two pixels, and mirrored by chance if `flip`."""
    shift_key, flip_key = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    corner = jax.random.randint(shift_key, (len(images), 2), 0, 5)

    def crop(image: Array, corner: Array) -> Array:
        first = (corner[0], corner[1], 0)
        return jax.lax.dynamic_slice(image, first, images.shape[1:])

    images = jax.vmap(crop)(padded, corner)
    mirrored = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1)) & flip
    return jnp.where(mirrored, images[:, :, ::-1], images)


def _spatial(
    h: Float[Array, " batch height width channels"],
) -> Float[Array, " batch spatial"]:
    return h[..., :SPATIAL_CHANNELS].reshape(h.shape[0], -1)
