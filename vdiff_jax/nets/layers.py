"""The parts of the U-Net. Images are NHWC; names are those of released checkpoints."""

import dataclasses
from typing import Literal, TypeAlias

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdiff_jax.nets.attention import attend
from vdiff_jax.nets.conditioning import Embedding
from vdiff_jax.nets.convolution import conv3x3
from vdiff_jax.nets.normalization import GroupNorm, swish_of

Images: TypeAlias = Float[Array, " batch height width channels"]
# Images of another size, or with other channels, than those that came in.
Resized: TypeAlias = Float[Array, " batch new_height new_width new_channels"]
Resample: TypeAlias = Literal["up", "down"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    """Differences between families of U-Nets, beside their sizes.

    The defaults are those of Salimans & Ho (2022), arXiv:2202.00512.

    Attributes:
      film: If true, the embedding scales and shifts the output of the second norm of a
        block; else it is added before that norm (Ho et al., 2020, arXiv:2006.11239).
      epsilon: Added to the variance in every group norm.
      pad_both_sides: If true, a convolution that halves an image pads it at all four
        sides, as torch's does; else at the right and the bottom, as TensorFlow's.
      cosine_first: Argument of `sinusoid`.
      frequency_shift: Argument `shift` of `sinusoid`.
      class_bias: If true, the embedding of the class adds a bias.
      mid: If true, there are blocks in the middle.
      mid_norm: If true, the attention in the middle has a norm.
      mid_scale: Divisor of the sums of the residual connections in the middle.
      center_input: If true, the network takes images in [0, 1].
      linear_projection: If true, diffusers keeps the outer maps of a transformer as
        matrices; else, as convolutions of one pixel. The numbers are the same.
    """

    film: bool = True
    epsilon: float = 1e-6
    pad_both_sides: bool = False
    cosine_first: bool = False
    frequency_shift: int = 1
    class_bias: bool = True
    mid: bool = True
    mid_norm: bool = True
    mid_scale: float = 1.0
    center_input: bool = False
    linear_projection: bool = False


SALIMANS_HO = Style()
# Of Ho et al. (2020), and of the models that were released with it.
DDPM = Style(film=False, class_bias=False)
# Of Dhariwal & Nichol (2021), arXiv:2105.05233, as consistency models have it.
ADM = Style(
    epsilon=1e-5, pad_both_sides=True, cosine_first=True, frequency_shift=0,
    class_bias=False,
)  # fmt: skip


def resample(x: Images, how: Resample) -> Resized:
    """Halves an image by 2x2 means, or doubles it by repeating pixels."""
    if how == "down":
        return nn.avg_pool(x, (2, 2), strides=(2, 2))
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def space_to_depth(x: Images, patch: int) -> Resized:
    """Folds each patch x patch square of pixels into channels.

    Raises:
      ValueError: If the image does not divide into patches.
    """
    batch, height, width, channels = x.shape
    if height % patch or width % patch:
        raise ValueError(
            f"patch={patch} does not divide an image of {height} x {width}."
        )
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // patch, width // patch, patch**2 * channels)


def depth_to_space(x: Images, patch: int) -> Resized:
    """The inverse of `space_to_depth`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, patch, patch, channels // patch**2)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * patch, width * patch, channels // patch**2)


class ResnetBlock(nn.Module):
    """Two convolutions, modulated by an embedding if there is one, and a shortcut.

    The second convolution starts at zero, so a new block is its shortcut.

    Attributes:
      features: Output channels.
      dropout: Rate before the second convolution.
      groups: Groups of each group norm.
      style: Style of the network.
      scale: Divisor of the sum with the shortcut.
      how: Resamples the image between the first norm and the first convolution.
      dtype: Type that convolutions compute in.
    """

    features: int
    dropout: float = 0.0
    groups: int = 32
    style: Style = SALIMANS_HO
    scale: float = 1.0
    how: Resample | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Images, emb: Embedding | None = None, train: bool = False
    ) -> Resized:
        """Returns [batch, height', width', features]."""
        h = swish_of(x, self._norm("norm1")(x))
        if self.how is not None:
            h, x = resample(h, self.how), resample(x, self.how)
        h = conv3x3(self.features, dtype=self.dtype, name="conv1")(h)

        film, norm2 = self.style.film, self._norm("norm2")
        if emb is not None:
            width = (2 if film else 1) * self.features
            emb = nn.Dense(width, dtype=self.dtype, name="temb_proj")(nn.swish(emb))
        if emb is not None and film:
            h = swish_of(h, norm2(h).then(*jnp.split(emb, 2, axis=-1)))
        else:
            h = h if emb is None else h + emb[:, None, None]
            h = swish_of(h, norm2(h))
        h = nn.Dropout(self.dropout)(h, deterministic=not train)
        h = conv3x3(self.features, zero_init=True, dtype=self.dtype, name="conv2")(h)

        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="nin_shortcut")(x)
        return (x + h) / self.scale if self.scale != 1.0 else x + h

    def _norm(self, name: str) -> GroupNorm:
        return GroupNorm(self.groups, self.style.epsilon, name=name)


class AttnBlock(nn.Module):
    """Self-attention over all pixels, with a residual connection.

    The output projection starts at zero, so a new block is the identity.

    Attributes:
      num_heads: Heads; they divide the channels.
      groups: Groups of the group norm; 0 for no norm.
      epsilon: Added to the variance in the group norm.
      scale: Divisor of the sum with the input.
      dtype: Type that projections and attention compute in.
    """

    num_heads: int
    groups: int = 32
    epsilon: float = 1e-6
    scale: float = 1.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Images) -> Images:
        """Returns the shape of `x`."""
        batch, height, width, channels = x.shape
        h = x
        if self.groups:
            h = GroupNorm(self.groups, self.epsilon, name="norm")(x)(x)
        h = h.astype(self.dtype)
        h = h.reshape(batch, height * width, channels)
        heads = (self.num_heads, channels // self.num_heads)
        q, k, v = (
            nn.DenseGeneral(heads, dtype=self.dtype, name=name)(h)
            for name in ("q", "k", "v")
        )
        h = nn.DenseGeneral(
            channels,
            axis=(-2, -1),
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="proj_out",
        )(attend(q, k, v))
        h = x + h.reshape(x.shape)
        return h / self.scale if self.scale != 1.0 else h
