"""Group normalisation and swish, with one pass over the image.

Whatever a group norm does to a channel of an image, and what an embedding then does to
it, is one multiplication and one addition. So the norm gives these two numbers, and
`swish_of` takes them. flax's norm works in the shape of groups, whose few channels
leave a CPU's vector units idle: with a swish it takes 3 to 5 times as long.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Images = Float[Array, " batch height width channels"]
PerChannel = Float[Array, " batch channels"]


def at_least_float32(x: Float[Array, " ..."]) -> Float[Array, " ..."]:
    """Numbers in float32; those in float64 stay so."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Affine(NamedTuple):
    """An affine map of each channel of each image: x * factor + offset."""

    factor: PerChannel
    offset: PerChannel

    def then(self, scale: PerChannel, shift: PerChannel) -> "Affine":
        """This map, followed by * (1 + scale) + shift."""
        scale, shift = at_least_float32(scale), at_least_float32(shift)
        return Affine(self.factor * (1.0 + scale), self.offset * (1.0 + scale) + shift)

    def __call__(self, x: Images) -> Images:
        """The mapped image, in float32 or finer."""
        return x * self.factor[:, None, None] + self.offset[:, None, None]


class GroupNorm(nn.Module):
    """Group normalisation: mean 0 and variance 1 per group, then a scale and a bias.

    Wu & He (2018), arXiv:1803.08494.

    Attributes:
      groups: They divide the channels.
      epsilon: Added to the variance.
    """

    groups: int
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Images) -> Affine:
        """Returns the map to apply to `x`."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x = at_least_float32(x)
        mean = mean_of_group(x.mean(axis=(1, 2)), self.groups)
        mean_of_square = mean_of_group(jnp.square(x).mean(axis=(1, 2)), self.groups)
        # Rounding may take the difference below zero.
        variance = jnp.maximum(mean_of_square - jnp.square(mean), 0.0)
        factor = scale[None] * lax.rsqrt(variance + self.epsilon)
        return Affine(factor, bias[None] - mean * factor)


# Under `jit` it is traced once for all norms of a shape, which are dozens.
@functools.partial(jax.jit, static_argnames="groups")
def mean_of_group(values: PerChannel, groups: int) -> PerChannel:
    """The mean over its group, for each channel, as each platform is fast at it."""
    reshape, product = (
        functools.partial(function, groups=groups)
        for function in (mean_by_reshape, mean_by_product)
    )
    return lax.platform_dependent(values, cpu=product, default=reshape)


def mean_by_reshape(values: PerChannel, groups: int) -> PerChannel:
    """The mean over its group, for each channel."""
    batch, channels = values.shape
    means = values.reshape(batch, groups, -1).mean(axis=-1)
    return jnp.repeat(means, channels // groups, axis=1)


def mean_by_product(values: PerChannel, groups: int) -> PerChannel:
    """The same, by the matrix of ones where a channel belongs to a group.

    On a CPU, XLA would do what follows a reshape pixel by pixel, which is slow; what
    follows a product of matrices it does once for each channel.
    """
    size = values.shape[-1] // groups
    group = jnp.arange(values.shape[-1])[:, None] // size
    member = (group == jnp.arange(groups)[None]).astype(values.dtype)
    exact = functools.partial(lax.dot, precision=lax.Precision.HIGHEST)
    return exact(exact(values, member) / size, member.T)


@jax.custom_vjp
def swish_of(x: Images, affine: Affine) -> Images:
    """The swish of affine(x), in the dtype of x; the gradient keeps nothing but x."""
    return nn.swish(affine(x)).astype(x.dtype)


def _forward(x: Images, affine: Affine) -> tuple[Images, tuple[Images, Affine]]:
    return swish_of(x, affine), (x, affine)


def _backward(saved: tuple[Images, Affine], dh: Images) -> tuple[Images, Affine]:
    x, affine = saved
    # Else the compiler would see that this was computed before, and keep that.
    y = affine(lax.optimization_barrier(x))
    sigmoid = nn.sigmoid(y)
    dy = dh * sigmoid * (1.0 + y * (1.0 - sigmoid))
    d_factor, d_offset = (dy * x).sum(axis=(1, 2)), dy.sum(axis=(1, 2))
    dx = dy * affine.factor[:, None, None]
    return dx.astype(x.dtype), Affine(d_factor, d_offset)


swish_of.defvjp(_forward, _backward)
