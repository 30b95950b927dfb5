"""The Inception network that FID is defined on.

Inception-v3 (Szegedy et al., 2015, arXiv:1512.00567) as it is in the TensorFlow graph
of 2015-12-05, which is not the network of the paper, nor that of torchvision:

- average pooling counts only the pixels inside of the image;
- the last block pools by the maximum, where the one before it takes the average;
- there are 1008 classes, and no auxiliary classifier.

It runs only in inference. Batch norm is a product and a sum per channel then, which
conversion folds into the kernel and the bias of the convolution before it. Layers have
the names of the released weights; the graph calls Mixed_5b .. Mixed_7c mixed ..
mixed_10.

All is float32: TensorFloat-32, the default of some GPUs, changes features in the third
digit.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vdiff_jax.nets.layers import Images, Resized

IMAGE_SIZE = 299
NUM_CLASSES = 1008
SPATIAL_CHANNELS = 7

# One convolution of a chain: output channels, and the kernel's height and width.
Layer = tuple[int, int, int]


class Features(NamedTuple):
    """Features of a batch of images, from which the metrics are computed.

    Attributes:
      pool3: The mean over the last image: for FID (Heusel et al., 2017,
        arXiv:1706.08500), KID, precision and recall.
      spatial: 7 channels of 17 x 17 pixels from the 1x1 branch of Mixed_6d: for sFID
        (Nash et al., 2021, arXiv:2103.03841).
      logits: Class logits, without the bias: for Inception Score (Salimans et al.,
        2016, arXiv:1606.03498) as it is usually computed on this graph.
    """

    pool3: Float[Array, " batch 2048"]
    spatial: Float[Array, " batch 2023"]
    logits: Float[Array, " batch 1008"]


class InceptionV3(nn.Module):
    """The network, from images to features; weights.py reads its weights."""

    @nn.compact
    def __call__(self, x: Float[Array, " batch 299 299 3"]) -> Features:
        """Features of images in [-1, 1)."""
        x = _convolve(x, "Conv2d_1a_3x3", (32, 3, 3), strides=2, padding="VALID")
        x = _convolve(x, "Conv2d_2a_3x3", (32, 3, 3), padding="VALID")
        x = _convolve(x, "Conv2d_2b_3x3", (64, 3, 3))
        x = _halve(x)
        x = _convolve(x, "Conv2d_3b_1x1", (80, 1, 1))
        x = _convolve(x, "Conv2d_4a_3x3", (192, 3, 3), padding="VALID")
        x = _halve(x)
        x = _mixed_35x35(x, "Mixed_5b", pool_features=32)
        x = _mixed_35x35(x, "Mixed_5c", pool_features=64)
        x = _mixed_35x35(x, "Mixed_5d", pool_features=64)
        x = _to_17x17(x, "Mixed_6a")
        x = _mixed_17x17(x, "Mixed_6b", width=128)
        x = _mixed_17x17(x, "Mixed_6c", width=160)
        x = _mixed_17x17(x, "Mixed_6d", width=160)
        # The 1x1 branch has the first of the channels.
        spatial = x[..., :SPATIAL_CHANNELS].reshape(x.shape[0], -1)
        x = _mixed_17x17(x, "Mixed_6e", width=192)
        x = _to_8x8(x, "Mixed_7a")
        x = _mixed_8x8(x, "Mixed_7b", _average(x))
        x = _mixed_8x8(x, "Mixed_7c", _maximum(x))
        pool3 = x.mean(axis=(1, 2))
        classify = nn.Dense(
            NUM_CLASSES, use_bias=False, precision=lax.Precision.HIGHEST, name="fc"
        )
        return Features(pool3, spatial, classify(pool3))


def _mixed_35x35(x: Images, name: str, pool_features: int) -> Resized:
    return _join(
        _convolve(x, f"{name}.branch1x1", (64, 1, 1)),
        _chain(x, f"{name}.branch5x5", (48, 1, 1), (64, 5, 5)),
        _chain(x, f"{name}.branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3)),
        _convolve(_average(x), f"{name}.branch_pool", (pool_features, 1, 1)),
    )


def _to_17x17(x: Images, name: str) -> Resized:
    double = _chain(x, f"{name}.branch3x3dbl", (64, 1, 1), (96, 3, 3))
    return _join(
        _convolve(x, f"{name}.branch3x3", (384, 3, 3), strides=2, padding="VALID"),
        _convolve(
            double, f"{name}.branch3x3dbl_3", (96, 3, 3), strides=2, padding="VALID"
        ),
        _halve(x),
    )


def _mixed_17x17(x: Images, name: str, width: int) -> Resized:
    row, column = (width, 1, 7), (width, 7, 1)
    return _join(
        _convolve(x, f"{name}.branch1x1", (192, 1, 1)),
        _chain(x, f"{name}.branch7x7", (width, 1, 1), row, (192, 7, 1)),
        _chain(
            x, f"{name}.branch7x7dbl", (width, 1, 1), column, row, column, (192, 1, 7)
        ),
        _convolve(_average(x), f"{name}.branch_pool", (192, 1, 1)),
    )


def _to_8x8(x: Images, name: str) -> Resized:
    single = _chain(x, f"{name}.branch3x3", (192, 1, 1))
    double = _chain(x, f"{name}.branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1))
    return _join(
        _convolve(
            single, f"{name}.branch3x3_2", (320, 3, 3), strides=2, padding="VALID"
        ),
        _convolve(
            double, f"{name}.branch7x7x3_4", (192, 3, 3), strides=2, padding="VALID"
        ),
        _halve(x),
    )


def _mixed_8x8(x: Images, name: str, pooled: Images) -> Resized:
    single = _chain(x, f"{name}.branch3x3", (384, 1, 1))
    double = _chain(x, f"{name}.branch3x3dbl", (448, 1, 1), (384, 3, 3))
    return _join(
        _convolve(x, f"{name}.branch1x1", (320, 1, 1)),
        _convolve(single, f"{name}.branch3x3_2a", (384, 1, 3)),
        _convolve(single, f"{name}.branch3x3_2b", (384, 3, 1)),
        _convolve(double, f"{name}.branch3x3dbl_3a", (384, 1, 3)),
        _convolve(double, f"{name}.branch3x3dbl_3b", (384, 3, 1)),
        _convolve(pooled, f"{name}.branch_pool", (192, 1, 1)),
    )


def _chain(x: Images, name: str, *layers: Layer) -> Resized:
    """Convolutions named `name`_1, `name`_2 ..."""
    for number, layer in enumerate(layers, 1):
        x = _convolve(x, f"{name}_{number}", layer)
    return x


def _convolve(
    x: Images, name: str, layer: Layer, *, strides: int = 1, padding: str = "SAME"
) -> Resized:
    features, *kernel_size = layer
    convolution = nn.Conv(
        features,
        kernel_size,
        strides=strides,
        padding=padding,
        precision=lax.Precision.HIGHEST,
        name=name,
    )
    return nn.relu(convolution(x))


def _join(*branches: Array) -> Array:
    return jnp.concatenate(branches, axis=-1)


def _halve(x: Images) -> Resized:
    return nn.max_pool(x, (3, 3), strides=(2, 2))


def _average(x: Images) -> Images:
    return nn.avg_pool(
        x, (3, 3), strides=(1, 1), padding="SAME", count_include_pad=False
    )


def _maximum(x: Images) -> Images:
    return nn.max_pool(x, (3, 3), strides=(1, 1), padding="SAME")
