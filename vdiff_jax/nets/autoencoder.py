"""Autoencoders of images: to latents, and back.

One network covers those of latent diffusion models (Rombach et al., 2022,
arXiv:2112.10752): a Gaussian of latents for each image, or latents of which the decoder
takes the nearest entries of a codebook. Both are convolutions and residual blocks, with
attention only in the middle.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from vdiff_jax.nets.convolution import conv3x3
from vdiff_jax.nets.layers import (
    AttnBlock,
    Images,
    Resized,
    ResnetBlock,
    Style,
    resample,
)
from vdiff_jax.nets.normalization import GroupNorm, at_least_float32, swish_of

Latents = Float[Array, " batch small_height small_width latent_channels"]
Encoded = Float[Array, " batch small_height small_width encoded_channels"]
Codes = Float[Array, " codes latent_channels"]
Inputs = Num[Array, " batch *event"]
Results = Num[Array, " batch *result"]

# Of the logarithm of the variance of latents: beyond, it is not to be believed.
LOG_VARIANCE_RANGE = (-30.0, 20.0)
# The parts of the parameters that `decode` reads.
OF_DECODER = ("decoder", "post_quant_conv", "quantize")


@dataclasses.dataclass(frozen=True)
class Codebook:
    """The size of a codebook.

    Attributes:
      num: Number of its entries.
      width: Channels of each.
    """

    num: int
    width: int


class Autoencoder(nn.Module):
    """An encoder of images and a decoder of latents, used as its two methods.

    `net.apply({"params": params}, x, method=net.encode)`, and so `net.decode`.

    Attributes:
      channels: Of each level: the image's resolution first, then each half of the one
        before.
      num_blocks: Residual blocks of each level of the encoder; the decoder has one
        more.
      z_channels: Channels where the encoder ends and the decoder begins.
      image_channels: Channels of the image.
      codebook: Its size; None for an encoder of means and log-variances.
      mid_attention: If true, there is attention in the middle of both halves.
      use_quant_conv: If true, a linear map follows the encoder.
      use_post_quant_conv: If true, a linear map precedes the decoder.
      groups: Groups of each group norm; divides every level's channels.
      epsilon: Added to the variance in every group norm.
      dtype: Type that the network computes in; parameters, latents and decoded images
        are float32.
    """

    channels: tuple[int, ...]
    num_blocks: int = 2
    z_channels: int = 4
    image_channels: int = 3
    codebook: Codebook | None = None
    mid_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    groups: int = 32
    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @property
    def factor(self) -> int:
        """The size of an image over that of its latents."""
        return 2 ** (len(self.channels) - 1)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents that `decode` takes."""
        return self.z_channels if self.codebook is None else self.codebook.width

    def setup(self) -> None:
        """Makes the parts, under the names that their parameters have."""
        moments = 2 if self.codebook is None else 1
        self.encoder = self._half(Encoder, moments * self.z_channels)
        self.decoder = self._half(Decoder, self.image_channels)
        if self.use_quant_conv:
            self.quant_conv = nn.Dense(moments * self.latent_channels)
        if self.use_post_quant_conv:
            self.post_quant_conv = nn.Dense(self.z_channels)
        if self.codebook is not None:
            self.quantize = nn.Embed(self.codebook.num, self.codebook.width)

    def encode(self, x: Images) -> Encoded:
        """Encodes images.

        Args:
          x: [batch, height, width, image_channels] in [-1, 1]; height and width divide
            by `factor`.

        Returns:
          [batch, height / factor, width / factor, ...] in float32: with a codebook
          latents, before they are replaced by its entries; else the means of the
          latents and then the logarithms of their variances, twice `latent_channels`.

        Raises:
          ValueError: If an image has other channels, or does not divide.
        """
        _check_channels("An image", x, self.image_channels)
        if x.shape[1] % self.factor or x.shape[2] % self.factor:
            raise ValueError(
                f"An image of {x.shape[1]} x {x.shape[2]} does not divide by"
                f" {self.factor}, which an autoencoder of {len(self.channels)} levels"
                " needs: crop or resize it."
            )
        encoded = self.encoder(x)
        if self.use_quant_conv:
            encoded = self.quant_conv(encoded)
        if self.codebook is not None:
            return encoded
        mean, log_variance = jnp.split(encoded, 2, axis=-1)
        log_variance = jnp.clip(log_variance, *LOG_VARIANCE_RANGE)
        return jnp.concatenate([mean, log_variance], axis=-1)

    def decode(self, latents: Latents) -> Resized:
        """Decodes latents; with a codebook, its nearest entries instead of them.

        Args:
          latents: [batch, height, width, latent_channels], as the encoder gives them
            and not scaled.

        Returns:
          Images [batch, height * factor, width * factor, image_channels], about [-1, 1]
          and not clipped, in float32.

        Raises:
          ValueError: If latents have other channels.
        """
        _check_channels("A latent", latents, self.latent_channels)
        latents = at_least_float32(latents)
        if self.codebook is not None:
            codes = jnp.asarray(self.quantize.embedding)
            codes = codes[nearest_code(latents, codes)]
            # The sum is the code itself; the gradient passes to the latents.
            latents = codes + (latents - lax.stop_gradient(latents))
        if self.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)

    def __call__(self, x: Images) -> Images:
        """Images there and back, through the means of their latents."""
        return self.decode(self.encode(x)[..., : self.latent_channels])

    def _half(self, kind: "type[Half]", out_channels: int) -> "Half":
        return kind(
            out_channels,
            channels=self.channels,
            num_blocks=self.num_blocks,
            mid_attention=self.mid_attention,
            groups=self.groups,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )


def nearest_code(
    latents: Latents, codes: Codes
) -> Int[Array, " batch small_height small_width"]:
    """The number of the code nearest to each latent, by squared distance.

    In full precision on every device: another code is another patch of the image.

    Args:
      latents: [batch, height, width, channels].
      codes: [codes, channels].
    """
    products = jnp.einsum(
        "bhwc,kc->bhwk", latents, codes, precision=lax.Precision.HIGHEST
    )
    # All but the square of the latent, which is the same for every code.
    distances = jnp.square(codes).sum(axis=-1)[None, None, None] - 2.0 * products
    return jnp.argmin(distances, axis=-1)


def in_parts(
    function: Callable[[Array], Array], examples: Inputs, at_once: int
) -> Results:
    """The function of a batch, computed for some of its examples at a time.

    The memory that it takes is that of so many examples, whatever the size of the
    batch. Each part has every so-many-th example, so that a batch that is split over
    devices keeps all of them busy in each part.

    Args:
      function: Maps each example by itself: a batch of any size, to as many.
      examples: [batch, ...].
      at_once: The most examples at a time, on all devices together; the largest number
        up to it that divides the batch is taken.

    Returns:
      [batch, ...], in order.

    Raises:
      ValueError: If `at_once` is below 1.
    """
    if at_once < 1:
        raise ValueError(f"at_once={at_once} must be at least 1.")
    batch = len(examples)
    size = max(n for n in range(1, max(min(at_once, batch), 1) + 1) if batch % n == 0)
    if size >= batch:
        return function(examples)
    parts = batch // size
    columns = examples.reshape(size, parts, *examples.shape[1:])

    def part(i: Int[Array, ""] | int) -> Array:
        return function(lax.dynamic_index_in_dim(columns, i, axis=1, keepdims=False))

    def with_part(i: Int[Array, ""], results: Array) -> Array:
        return lax.dynamic_update_index_in_dim(results, part(i), i, axis=1)

    like = jax.eval_shape(part, 0)
    results = jnp.zeros((size, parts, *like.shape[1:]), like.dtype)
    results = lax.fori_loop(0, parts, with_part, results)
    return results.reshape(batch, *like.shape[1:])


class Half(nn.Module):
    """An encoder or a decoder; see `Autoencoder` for its attributes.

    Attributes:
      out_channels: Channels of the output.
    """

    out_channels: int
    channels: tuple[int, ...]
    num_blocks: int
    mid_attention: bool
    groups: int
    epsilon: float
    dtype: DTypeLike

    def _block(self, level: int, name: str, h: Images) -> Resized:
        return ResnetBlock(
            self.channels[level],
            groups=self.groups,
            style=Style(epsilon=self.epsilon),
            dtype=self.dtype,
            name=name,
        )(h)

    def _conv(self, features: int, name: str, h: Images, strides: int = 1) -> Resized:
        return conv3x3(features, strides=strides, dtype=self.dtype, name=name)(h)

    def _middle(self, h: Images) -> Images:
        h = self._block(-1, "mid.block_1", h)
        if self.mid_attention:
            h = AttnBlock(
                1, self.groups, self.epsilon, dtype=self.dtype, name="mid.attn_1"
            )(h)
        return self._block(-1, "mid.block_2", h)

    def _out(self, h: Images) -> Resized:
        h = at_least_float32(h)
        h = swish_of(h, GroupNorm(self.groups, self.epsilon, name="norm_out")(h))
        return conv3x3(self.out_channels, dtype=h.dtype, name="conv_out")(h)


class Encoder(Half):
    """Images to features that are smaller by a factor of two for each further level."""

    @nn.compact
    def __call__(self, x: Images) -> Encoded:
        """Returns [batch, height / factor, width / factor, out_channels], float32."""
        h = self._conv(self.channels[0], "conv_in", x.astype(self.dtype))
        for l, features in enumerate(self.channels):
            for b in range(self.num_blocks):
                h = self._block(l, f"down_{l}.block_{b}", h)
            if l != len(self.channels) - 1:
                h = self._conv(features, f"down_{l}.downsample", h, strides=2)
        return self._out(self._middle(h))


class Decoder(Half):
    """The levels of the encoder backwards, with one more block in each."""

    @nn.compact
    def __call__(self, z: Encoded) -> Resized:
        """Returns [batch, height * factor, width * factor, out_channels], float32."""
        h = self._conv(self.channels[-1], "conv_in", z.astype(self.dtype))
        h = self._middle(h)
        for l, features in reversed(list(enumerate(self.channels))):
            for b in range(self.num_blocks + 1):
                h = self._block(l, f"up_{l}.block_{b}", h)
            if l != 0:
                h = self._conv(features, f"up_{l}.upsample", resample(h, "up"))
        return self._out(h)


def _check_channels(what: str, x: Array, channels: int) -> None:
    if x.shape[-1] != channels:
        raise ValueError(
            f"{what} of {x.shape[-1]} channels came to an autoencoder that takes"
            f" {channels}: give it [batch, height, width, {channels}]."
        )
