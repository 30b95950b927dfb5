"""Transformer blocks in a U-Net: its pixels attend to each other and to a context.

Those of latent diffusion (Rombach et al., 2022, arXiv:2112.10752), as in diffusers.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vdiff_jax.nets.attention import attend
from vdiff_jax.nets.layers import Images
from vdiff_jax.nets.normalization import GroupNorm

Pixels = Float[Array, " batch pixels channels"]
Context = Float[Array, " batch tokens context_width"]
Mask = Bool[Array, " batch tokens"]

# Of these blocks, whatever the other norms of a network add.
GROUP_NORM_EPSILON = 1e-6
LAYER_NORM_EPSILON = 1e-5


class Transformer(nn.Module):
    """Layers of self-attention, cross-attention and a gated map, with a shortcut.

    The output projection starts at zero, so a new block is the identity.

    Attributes:
      num_heads: Heads; they divide the channels.
      depth: Layers.
      groups: Groups of the group norm.
      dtype: Type that projections and attention compute in.
    """

    num_heads: int
    depth: int = 1
    groups: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Images, context: Context, mask: Mask | None = None) -> Images:
        """Returns the shape of `x`.

        Args:
          x: The image.
          context: The vectors that every pixel attends to.
          mask: True for those that count; None if all do.
        """
        batch, height, width, channels = x.shape
        h = GroupNorm(self.groups, GROUP_NORM_EPSILON, name="norm")(x)(x)
        h = h.astype(self.dtype).reshape(batch, height * width, channels)
        h = nn.Dense(channels, dtype=self.dtype, name="proj_in")(h)
        for i in range(self.depth):
            layer = Layer(self.num_heads, dtype=self.dtype, name=f"layer_{i}")
            h = layer(h, context, mask)
        h = nn.Dense(
            channels,
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="proj_out",
        )(h)
        return x + h.reshape(x.shape)


class Layer(nn.Module):
    """One layer of a transformer, each of whose three parts has a norm and a shortcut.

    Attributes:
      num_heads: Heads of both attentions; they divide the channels.
      dtype: Type to compute in.
    """

    num_heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Pixels, context: Context, mask: Mask | None = None) -> Pixels:
        """Returns the shape of `h`."""
        normed = self._norm("norm1", h)
        h += self._attention("attn1")(normed, normed)
        h += self._attention("attn2")(self._norm("norm2", h), context, mask)
        return h + GatedMap(dtype=self.dtype, name="ff")(self._norm("norm3", h))

    def _norm(self, name: str, h: Pixels) -> Pixels:
        return nn.LayerNorm(LAYER_NORM_EPSILON, dtype=self.dtype, name=name)(h)

    def _attention(self, name: str) -> "Attention":
        return Attention(self.num_heads, dtype=self.dtype, name=name)


class Attention(nn.Module):
    """Attention of pixels to vectors: the pixels themselves, or a context.

    Attributes:
      num_heads: Heads; they divide the channels of the pixels.
      dtype: Type to compute in.
    """

    num_heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Pixels, vectors: Context, mask: Mask | None = None) -> Pixels:
        """Returns the shape of `h`."""
        channels = h.shape[-1]
        heads = (self.num_heads, channels // self.num_heads)
        q, k, v = (
            nn.DenseGeneral(heads, use_bias=False, dtype=self.dtype, name=name)(inputs)
            for name, inputs in (("q", h), ("k", vectors), ("v", vectors))
        )
        out = nn.DenseGeneral(channels, axis=(-2, -1), dtype=self.dtype, name="out")
        return out(attend(q, k, v, mask))


class GatedMap(nn.Module):
    """Two linear maps, and between them a product with a GELU: GEGLU.

    Shazeer (2020), arXiv:2002.05202. The GELU is that of the error function; the
    approximation by a tanh, jax's default, differs by 1e-4.

    Attributes:
      dtype: Type to compute in.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Pixels) -> Pixels:
        """Returns the shape of `h`."""
        channels = h.shape[-1]
        wide = nn.Dense(8 * channels, dtype=self.dtype, name="proj")(h)
        values, gates = jnp.split(wide, 2, axis=-1)
        h = values * nn.gelu(gates, approximate=False)
        return nn.Dense(channels, dtype=self.dtype, name="out")(h)
