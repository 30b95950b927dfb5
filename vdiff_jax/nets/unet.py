"""The U-Net of Salimans & Ho (2022), arXiv:2202.00512, and its relatives."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdiff_jax.nets.conditioning import Conditioning, Embedding, LogsnrInput, embed
from vdiff_jax.nets.context import Attended, of_class, with_null
from vdiff_jax.nets.convolution import conv3x3
from vdiff_jax.nets.layers import (
    SALIMANS_HO,
    AttnBlock,
    Images,
    Resample,
    Resized,
    ResnetBlock,
    Style,
    depth_to_space,
    resample,
    space_to_depth,
)
from vdiff_jax.nets.normalization import GroupNorm, at_least_float32, swish_of
from vdiff_jax.nets.transformer import Transformer
from vdiff_jax.types import NOTHING, Condition, PerExample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """One resolution of the U-Net.

    Attributes:
      features: Channels.
      num_blocks: Residual blocks on the way down; one more on the way up.
      num_heads: Attention heads after each block on the way down; 0 for no attention.
      num_heads_up: Attention heads after each block on the way up; None for as many as
        on the way down.
      resample_in_block: If true, a residual block halves the image for the next level
        (BigGAN); else a convolution does (DDPM).
      resample_in_block_up: The same choice for doubling the image on the way up; None
        for the choice made on the way down.
      depth: Layers of the transformer that stands in the place of each attention, and
        attends to the context too; 0 for attention alone.
    """

    features: int
    num_blocks: int
    num_heads: int = 0
    num_heads_up: int | None = None
    resample_in_block: bool = True
    resample_in_block_up: bool | None = None
    depth: int = 0

    def heads(self, how: Resample) -> int:
        """Number of attention heads on the way down or up."""
        if how == "up" and self.num_heads_up is not None:
            return self.num_heads_up
        return self.num_heads

    def in_block(self, how: Resample) -> bool:
        """True if a residual block resamples the image on the way down or up."""
        if how == "up" and self.resample_in_block_up is not None:
            return self.resample_in_block_up
        return self.resample_in_block


# Standard deviation of the features that noise makes, beside 1 of those of z_t.
NOISE_AT_FIRST = 0.1


class UNet(nn.Module):
    """A U-Net conditioned on the log-SNR and, optionally, a class and a weight w.

    At initialisation the output is zero: the last convolution starts at zero.

    Attributes:
      levels: The image's resolution first, then each half of the one before.
      out_channels: Channels of the output: those of the image, or twice as many.
      emb_features: Width of the embedding of log-SNR and class.
      mid_heads: Attention heads in the middle; 0 for no attention.
      mid_depth: Layers of the transformer in the middle, as `Level.depth`.
      context_features: Width of the vectors of the context; 0 for a network without.
      context_tokens: Their number; 0 for one vector, which is the class's own.
      num_classes: 0 for an unconditional network.
      w_features: Width of the sinusoid of the guidance weight w; 0 for a network that
        is not conditioned on w.
      w_scale: Factor of w in the sinusoid: its angle at the highest frequency is
        w_scale * w.
      noise_input: True for a network that takes noise beside z_t, of its shape.
      dropout: Rate in each residual block when training.
      groups: Groups of each group norm; divides every level's channels.
      patch: Folds squares of patch x patch pixels into channels at the input, and back
        at the output.
      style: Differences between families of networks.
      logsnr_input: The map from log-SNR to the sinusoid's time: a mode of
        `conditioning.logsnr_input`.
      timesteps: The log-SNR of each step of a discrete chain, for a network that is
        conditioned on the number of the step; empty for one of ours.
      time_table: If true, a learned vector for each of those steps replaces the
        sinusoid, and a log-SNR takes the vector of the nearest step.
      dtype: Type that the network computes in; parameters and output are float32.
      remat: If true, the gradient computes the inside of each block again instead of
        keeping it: less memory, about a third more work, the same numbers.
    """

    levels: tuple[Level, ...]
    out_channels: int
    emb_features: int
    mid_heads: int = 1
    mid_depth: int = 0
    context_features: int = 0
    context_tokens: int = 0
    num_classes: int = 0
    w_features: int = 0
    w_scale: float = 1000.0
    noise_input: bool = False
    dropout: float = 0.0
    groups: int = 32
    patch: int = 1
    style: Style = SALIMANS_HO
    logsnr_input: LogsnrInput = "inv_cos"
    timesteps: tuple[float, ...] = ()
    time_table: bool = False
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @property
    def class_is_context(self) -> bool:
        """True if the network attends to its class, and else does not see it."""
        return self.context_features > 0 and self.context_tokens == 0

    @property
    def conditioning(self) -> Conditioning:
        """The parts of the embedding that modulates every block."""
        return Conditioning(
            features=self.levels[0].features,
            emb_features=self.emb_features,
            num_classes=0 if self.class_is_context else self.num_classes,
            class_bias=self.style.class_bias,
            w_features=self.w_features,
            w_scale=self.w_scale,
            logsnr_input=self.logsnr_input,
            timesteps=self.timesteps,
            time_table=self.time_table,
            cosine_first=self.style.cosine_first,
            frequency_shift=self.style.frequency_shift,
        )

    @nn.compact
    def __call__(
        self,
        z_t: Images,
        logsnr_t: PerExample,
        condition: Condition = NOTHING,
        *,
        noise: Images | None = None,
        train: bool = False,
    ) -> Float[Array, " batch height width out_channels"]:
        """Predicts x, eps, v or both, as the network was trained to.

        Args:
          z_t: Noisy images. Height and width divide by patch * 2^(levels - 1).
          logsnr_t: Their log-SNR, in nats.
          condition: Their classes, contexts with masks, and the guidance weight w of
            the guided model to imitate; each None for a network that is not made for
            it. An example whose mask has no True gets the null context.
          noise: Standard normal, of the shape of z_t; None for a network without.
          train: Turns dropout on; needs a "dropout" key.

        Returns:
          [batch, height, width, out_channels], float32.

        Raises:
          ValueError: If the image does not divide, or a label, a context, w or noise
            is missing or not wanted.
        """
        self._check(z_t, condition)
        if (noise is not None) != self.noise_input:
            raise ValueError(
                f"A network with noise_input={self.noise_input} got"
                f" {'none' if noise is None else 'noise'}."
            )
        attended = self._attended(condition)
        if self.class_is_context:
            condition = condition._replace(label=None)
        emb = embed(self.conditioning, logsnr_t, condition)
        h = space_to_depth(z_t, self.patch).astype(self.dtype)
        h = 2.0 * h - 1.0 if self.style.center_input else h
        h = conv3x3(self.levels[0].features, dtype=self.dtype, name="conv_in")(h)
        if noise is not None:
            h += self._of_noise(noise)
        skips = [h]

        last = len(self.levels) - 1
        for l, level in enumerate(self.levels):
            for b in range(level.num_blocks):
                h = self._block(level.features, f"down_{l}.block_{b}")(h, emb, train)
                h = self._attend_in(level, "down", f"down_{l}", b, h, attended)
                skips.append(h)
            if l != last:
                h = self._resample(level, "down", f"down_{l}.downsample", h, emb, train)
                skips.append(h)

        if self.style.mid:
            h = self._middle(h, emb, attended, train)

        for l, level in reversed(list(enumerate(self.levels))):
            for b in range(level.num_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(level.features, f"up_{l}.block_{b}")(h, emb, train)
                h = self._attend_in(level, "up", f"up_{l}", b, h, attended)
            if l != 0:
                h = self._resample(level, "up", f"up_{l}.upsample", h, emb, train)

        h = at_least_float32(h)
        norm_out = GroupNorm(self.groups, self.style.epsilon, name="norm_out")
        h = swish_of(h, norm_out(h))
        out_channels = self.patch**2 * self.out_channels
        h = conv3x3(out_channels, zero_init=True, dtype=h.dtype, name="conv_out")(h)
        return depth_to_space(h, self.patch)

    def _of_noise(
        self, noise: Images
    ) -> Float[Array, " batch out_height out_width features"]:
        """The noise at the first features: as if it were further channels of z_t.

        At first it matters little, so that a student begins near the network whose
        weights it takes; at 0, by symmetry, it would have no gradient.
        """
        folded = space_to_depth(noise, self.patch).astype(self.dtype)
        return nn.Conv(
            self.levels[0].features,
            (3, 3),
            use_bias=False,
            kernel_init=nn.initializers.variance_scaling(
                NOISE_AT_FIRST**2, "fan_in", "truncated_normal"
            ),
            dtype=self.dtype,
            name="noise_in",
        )(folded)

    def _check(self, z_t: Images, condition: Condition) -> None:
        label, vectors, _, w = condition
        smallest = self.patch * 2 ** (len(self.levels) - 1)
        if z_t.shape[1] % smallest or z_t.shape[2] % smallest:
            raise ValueError(
                f"An image of {z_t.shape[1]} x {z_t.shape[2]} does not divide by"
                f" {smallest}, which {len(self.levels)} levels and patch={self.patch}"
                " need."
            )
        if (label is not None) != (self.num_classes > 0):
            raise ValueError(
                f"A network with num_classes={self.num_classes} got label={label}."
            )
        if (w is not None) != (self.w_features > 0):
            raise ValueError(f"A network with w_features={self.w_features} got w={w}.")
        expected = (self.context_tokens, self.context_features)
        shape = None if vectors is None else vectors.shape[1:]
        if shape != (expected if self.context_tokens else None):
            raise ValueError(
                f"A network with context_tokens={self.context_tokens} and"
                f" context_features={self.context_features} got a context of {shape}."
            )

    def _attended(self, condition: Condition) -> Attended | None:
        """What transformers attend to beside the image; None for nothing."""
        label, vectors, mask, _ = condition
        if self.class_is_context:
            assert label is not None
            shape = (self.num_classes + 1, self.context_features)
            table = self.param("class_context", nn.initializers.normal(1.0), shape)
            return of_class(jnp.asarray(table), label)
        if vectors is None:
            return None
        if mask is None:
            mask = jnp.ones(vectors.shape[:2], bool)
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        null_context = self.param("null_context", zeros, vectors.shape[1:])
        null_mask = self.param("null_mask", ones, vectors.shape[1:2])
        fixed = [lax.stop_gradient(jnp.asarray(x)) for x in (null_context, null_mask)]
        return with_null(vectors, mask, *fixed)

    def _middle(
        self, h: Images, emb: Embedding, attended: Attended | None, train: bool
    ) -> Images:
        features, scale = self.levels[-1].features, self.style.mid_scale
        h = self._block(features, "mid.block_1", scale=scale)(h, emb, train)
        if self.mid_depth and self.mid_heads:
            name = "mid.transformer_1"
            h = self._transform(self.mid_heads, self.mid_depth, name, h, attended)
        else:
            norm = self.style.mid_norm
            h = self._attend(self.mid_heads, "mid.attn_1", h, norm=norm, scale=scale)
        return self._block(features, "mid.block_2", scale=scale)(h, emb, train)

    def _block(
        self,
        features: int,
        name: str,
        how: Resample | None = None,
        scale: float = 1.0,
    ) -> ResnetBlock:
        # Argument 3 is `train`, counted from self.
        block = (
            nn.remat(ResnetBlock, static_argnums=(3,)) if self.remat else ResnetBlock
        )
        return block(
            features,
            dropout=self.dropout,
            groups=self.groups,
            style=self.style,
            scale=scale,
            how=how,
            dtype=self.dtype,
            name=name,
        )

    def _attend_in(
        self,
        level: Level,
        how: Resample,
        name: str,
        number: int,
        h: Images,
        attended: Attended | None,
    ) -> Images:
        """Attention after a residual block of a level."""
        num_heads = level.heads(how)
        if not level.depth or not num_heads:
            return self._attend(num_heads, f"{name}.attn_{number}", h)
        name = f"{name}.transformer_{number}"
        return self._transform(num_heads, level.depth, name, h, attended)

    def _transform(
        self,
        num_heads: int,
        depth: int,
        name: str,
        h: Images,
        attended: Attended | None,
    ) -> Images:
        if attended is None:
            raise ValueError(
                f"{name} is a transformer, and the network has no context to attend"
                " to: set context_features."
            )
        block = nn.remat(Transformer) if self.remat else Transformer
        return block(num_heads, depth, groups=self.groups, dtype=self.dtype, name=name)(
            h, *attended
        )

    def _attend(
        self,
        num_heads: int,
        name: str,
        h: Images,
        *,
        norm: bool = True,
        scale: float = 1.0,
    ) -> Images:
        if num_heads == 0:
            return h
        block = nn.remat(AttnBlock) if self.remat else AttnBlock
        return block(
            num_heads,
            groups=self.groups if norm else 0,
            epsilon=self.style.epsilon,
            scale=scale,
            dtype=self.dtype,
            name=name,
        )(h)

    def _resample(
        self,
        level: Level,
        how: Resample,
        name: str,
        h: Images,
        emb: Embedding,
        train: bool,
    ) -> Resized:
        if level.in_block(how):
            return self._block(level.features, name, how)(h, emb, train)
        if how == "up":
            h = resample(h, "up")
        return conv3x3(
            level.features,
            strides=2 if how == "down" else 1,
            pad_both_sides=how == "down" and self.style.pad_both_sides,
            dtype=self.dtype,
            name=name,
        )(h)
