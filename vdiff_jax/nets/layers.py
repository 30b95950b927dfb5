"""The parts of the U-Net. Images are NHWC; names are those of released checkpoints."""

from typing import Literal, TypeAlias, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdiff_jax.nets.attention import attend
from vdiff_jax.nets.convolution import conv3x3
from vdiff_jax.nets.normalization import GroupNorm, swish_of
from vdiff_jax.types import PerExample

Images: TypeAlias = Float[Array, " batch height width channels"]
# Images of another size, or with other channels, than those that came in.
Resized: TypeAlias = Float[Array, " batch new_height new_width new_channels"]
Embedding: TypeAlias = Float[Array, " batch features"]
LogsnrInput: TypeAlias = Literal["inv_cos", "linear", "sigmoid"]
Resample: TypeAlias = Literal["up", "down"]


def logsnr_input(
    logsnr: PerExample,
    mode: LogsnrInput,
    linear_range: tuple[float, float] = (-20.0, 20.0),
) -> PerExample:
    """Maps a log-SNR to the number in about [0, 1] that the network is told.

    `inv_cos` is arctan(exp(-logsnr / 2)) / (pi / 2), which for the cosine schedule is
    t; `linear` rises with the log-SNR over `linear_range`; `sigmoid` is alpha^2.

    Raises:
      ValueError: If `mode` is unknown.
    """
    if mode == "inv_cos":
        return jnp.arctan(jnp.exp(-0.5 * jnp.clip(logsnr, -20.0, 20.0))) / (0.5 * np.pi)
    if mode == "linear":
        low, high = linear_range
        return (logsnr - low) / (high - low)
    if mode == "sigmoid":
        return jax.nn.sigmoid(logsnr)
    raise ValueError(
        f"Unknown logsnr_input {mode!r}; choose from {get_args(LogsnrInput)}."
    )


def sinusoid(time: PerExample, features: int) -> Embedding:
    """Sines, then cosines, of `time` at `features // 2` frequencies from 1 to 1e-4.

    Ho et al. (2020), arXiv:2006.11239, with `time` about 0 to 1000.

    Raises:
      ValueError: If `features` is odd or below 4.
    """
    if features % 2 or features < 4:
        raise ValueError(f"features must be even and at least 4, got {features}.")
    half = features // 2
    frequencies = np.exp(-np.log(1e4) * np.arange(half) / (half - 1))
    angles = time[:, None] * frequencies.astype(np.float32)[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


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
    """Two convolutions, modulated by the time embedding, and a shortcut.

    The second convolution starts at zero, so a new block is its shortcut.

    Attributes:
      features: Output channels.
      dropout: Rate before the second convolution.
      groups: Groups of each group norm.
      how: Resamples the image between the first norm and the first convolution.
      dtype: What convolutions compute in.
    """

    features: int
    dropout: float = 0.0
    groups: int = 32
    how: Resample | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Images, emb: Embedding, train: bool = False) -> Resized:
        """Returns [batch, height', width', features]."""
        h = swish_of(x, GroupNorm(self.groups, name="norm1")(x))
        if self.how is not None:
            h, x = resample(h, self.how), resample(x, self.how)
        h = conv3x3(self.features, dtype=self.dtype, name="conv1")(h)

        emb = nn.Dense(2 * self.features, dtype=self.dtype, name="temb_proj")(
            nn.swish(emb)
        )
        scale, shift = jnp.split(emb, 2, axis=-1)
        norm2 = GroupNorm(self.groups, name="norm2")(h).then(scale, shift)
        h = swish_of(h, norm2)
        h = nn.Dropout(self.dropout)(h, deterministic=not train)
        h = conv3x3(self.features, zero_init=True, dtype=self.dtype, name="conv2")(h)

        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="nin_shortcut")(x)
        return x + h


class AttnBlock(nn.Module):
    """Self-attention over all pixels, with a residual connection.

    The output projection starts at zero, so a new block is the identity.

    Attributes:
      num_heads: Heads; they divide the channels.
      groups: Groups of the group norm.
      dtype: What projections and attention compute in.
    """

    num_heads: int
    groups: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Images) -> Images:
        """Returns the shape of `x`."""
        batch, height, width, channels = x.shape
        h = GroupNorm(self.groups, name="norm")(x)(x).astype(self.dtype)
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
        return x + h.reshape(x.shape)
