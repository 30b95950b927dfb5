"""The diffusion transformer (DiT) of Peebles & Xie (2023), arXiv:2212.09748."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdiff_jax.nets.attention import attend
from vdiff_jax.nets.conditioning import Conditioning, Embedding, LogsnrInput, embed
from vdiff_jax.nets.layers import Images, depth_to_space, space_to_depth
from vdiff_jax.nets.normalization import at_least_float32
from vdiff_jax.types import NOTHING, Condition, PerExample

Tokens = Float[Array, " batch tokens features"]
# Width of the sinusoid of the log-SNR, whatever the width of the network.
TIME_FEATURES = 256
# Added to the variance in every norm, but where a network has a value of its own.
EPSILON = 1e-6


class DiT(nn.Module):
    """A transformer over patches, conditioned on the log-SNR, a class and a weight w.

    The embedding of the condition shifts and scales what each block reads, and gates
    what it adds (adaLN-zero). At initialisation every gate, and the output, is zero.

    Attributes:
      patch: Side of the square of pixels that is one token.
      depth: Number of blocks.
      features: Width of a token; divides by 4 and by `num_heads`.
      num_heads: Heads of each attention.
      out_channels: Channels of the output: those of the image, or twice as many.
      mlp_ratio: Width of the perceptron of a block, in multiples of `features`.
      num_classes: 0 for an unconditional network. An example whose class is left out,
        label -1, has a learned vector of its own.
      w_features: Width of the sinusoid of the guidance weight w; 0 for a network that
        is not conditioned on w.
      w_scale: Factor of w in the sinusoid.
      dropout: Rate in each block when training.
      epsilon: Added to the variance in the norm before each perceptron; other norms add
        1e-6. diffusers has 1e-5 there, by default and for the released networks.
      logsnr_input: The map from log-SNR to the sinusoid's time: a mode of
        `conditioning.logsnr_input`.
      timesteps: The log-SNR of each step of a discrete chain, for a network that is
        conditioned on the number of the step; empty for one of ours.
      dtype: Type that the network computes in; parameters and output are float32.
      remat: If true, the gradient computes the inside of each block again instead of
        keeping it: less memory, about a third more work, the same numbers.
    """

    patch: int
    depth: int
    features: int
    num_heads: int
    out_channels: int
    mlp_ratio: int = 4
    num_classes: int = 0
    w_features: int = 0
    w_scale: float = 1000.0
    dropout: float = 0.0
    epsilon: float = EPSILON
    logsnr_input: LogsnrInput = "inv_cos"
    timesteps: tuple[float, ...] = ()
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @property
    def conditioning(self) -> Conditioning:
        """The parts of the embedding that modulates every block."""
        return Conditioning(
            features=TIME_FEATURES,
            emb_features=self.features,
            num_classes=self.num_classes,
            null_class=True,
            class_bias=False,
            w_features=self.w_features,
            w_scale=self.w_scale,
            logsnr_input=self.logsnr_input,
            timesteps=self.timesteps,
            cosine_first=True,
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
          z_t: Noisy images. Height and width divide by the patch.
          logsnr_t: Their log-SNR, in nats.
          condition: Their classes, and the guidance weight w of the guided model to
            imitate; each None for a network that is not made for it.
          noise: None; the network does not take noise beside z_t.
          train: Turns dropout on; needs a "dropout" key.

        Returns:
          [batch, height, width, out_channels], float32.

        Raises:
          ValueError: If the image does not divide, a label or w is missing or not
            wanted, or there is a context or noise.
        """
        self._check(condition, noise)
        emb = embed(self.conditioning, logsnr_t, condition)
        patches = space_to_depth(z_t, self.patch).astype(self.dtype)
        batch, rows, columns, _ = patches.shape
        h = _dense(self.features, self.dtype, "patch_in")(patches)
        h = h.reshape(batch, rows * columns, self.features)
        places = positions(rows, columns, self.features)[None]
        # float32 is what others keep, also of a network in float64.
        h += places.astype(np.float32).astype(h.dtype)
        # Argument 3 is `train`, counted from self.
        block = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
        for l in range(self.depth):
            h = block(
                num_heads=self.num_heads,
                mlp_ratio=self.mlp_ratio,
                epsilon=self.epsilon,
                dropout=self.dropout,
                dtype=self.dtype,
                name=f"block_{l}",
            )(h, emb, train)

        h = at_least_float32(h)
        shift, scale = _modulation(emb, 2, self.features, h.dtype, "modulation_out")
        h = modulated(h, shift, scale, EPSILON)
        zeros = nn.initializers.zeros
        out_channels = self.patch**2 * self.out_channels
        h = nn.Dense(out_channels, kernel_init=zeros, dtype=h.dtype, name="out")(h)
        return depth_to_space(h.reshape(batch, rows, columns, -1), self.patch)

    def _check(self, condition: Condition, noise: Images | None) -> None:
        label, context, _, w = condition
        if (label is not None) != (self.num_classes > 0):
            raise ValueError(
                f"A network with num_classes={self.num_classes} got label={label}."
            )
        if (w is not None) != (self.w_features > 0):
            raise ValueError(f"A network with w_features={self.w_features} got w={w}.")
        if context is not None:
            raise ValueError("A DiT is not conditioned on a context, and got one.")
        if noise is not None:
            raise ValueError("A DiT does not take noise beside z_t, and got some.")
        if self.features % self.num_heads or self.features % 4:
            raise ValueError(
                f"features={self.features} must divide by num_heads={self.num_heads}"
                " and by 4."
            )


class Block(nn.Module):
    """Self-attention, then a perceptron; each modulated, gated and added.

    Attributes:
      num_heads: Heads; they divide the features.
      mlp_ratio: Width of the perceptron, in multiples of the features.
      epsilon: Added to the variance in the norm before the perceptron.
      dropout: Rate after the attention and inside the perceptron.
      dtype: Type that projections and attention compute in.
    """

    num_heads: int
    mlp_ratio: int = 4
    epsilon: float = EPSILON
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Tokens, emb: Embedding, train: bool = False) -> Tokens:
        """Returns the shape of `h`."""
        features = h.shape[-1]
        parts = _modulation(emb, 6, features, self.dtype, "modulation")
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = parts
        read = modulated(h, shift, scale, EPSILON).astype(self.dtype)
        h += gate[:, None] * self._attend(read, train)
        read = modulated(h, shift_mlp, scale_mlp, self.epsilon).astype(self.dtype)
        return h + gate_mlp[:, None] * self._perceptron(read, train)

    def _attend(self, h: Tokens, train: bool) -> Tokens:
        features = h.shape[-1]
        heads = (self.num_heads, features // self.num_heads)
        q, k, v = (
            nn.DenseGeneral(heads, kernel_init=_XAVIER, dtype=self.dtype, name=name)(h)
            for name in ("q", "k", "v")
        )
        h = nn.DenseGeneral(
            features,
            axis=(-2, -1),
            kernel_init=_XAVIER,
            dtype=self.dtype,
            name="proj_out",
        )(attend(q, k, v))
        return nn.Dropout(self.dropout)(h, deterministic=not train)

    def _perceptron(self, h: Tokens, train: bool) -> Tokens:
        shape, features = h.shape, h.shape[-1]
        # On a CPU gradients of weights take 3 times as long with two axes to sum over.
        h = h.reshape(-1, features)
        h = _dense(self.mlp_ratio * features, self.dtype, "mlp_in")(h)
        h = nn.gelu(h, approximate=True)
        h = nn.Dropout(self.dropout)(h, deterministic=not train)
        return _dense(features, self.dtype, "mlp_out")(h).reshape(shape)


def modulated(h: Tokens, shift: Embedding, scale: Embedding, epsilon: float) -> Tokens:
    """Tokens of mean 0 and variance 1, times 1 + scale, plus shift; float32 or finer.

    Args:
      h: Tokens.
      shift: Of each example.
      scale: Of each example.
      epsilon: Added to the variance.
    """
    h = at_least_float32(h)
    centred = h - h.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    shift, scale = at_least_float32(shift), at_least_float32(scale)
    normal = centred * lax.rsqrt(variance + epsilon)
    return normal * (1.0 + scale[:, None]) + shift[:, None]


def positions(rows: int, columns: int, features: int) -> np.ndarray:
    """The fixed embedding of each token's place, row by row.

    Sines, then cosines, of the column, then of the row, at `features // 4` frequencies
    that fall from 1 and stop one short of 1e-4.

    Args:
      rows: Tokens of a column.
      columns: Tokens of a row.
      features: Width of a token; divides by 4.

    Returns:
      Shape [rows * columns, features], float64.
    """
    frequencies = 1e-4 ** (np.arange(features // 4) / (features // 4))
    row, column = np.mgrid[:rows, :columns].reshape(2, -1, 1)
    waves = [
        wave(place * frequencies)
        for place in (column, row)
        for wave in (np.sin, np.cos)
    ]
    return np.concatenate(waves, axis=1)


_XAVIER = nn.initializers.xavier_uniform()


def _dense(features: int, dtype: DTypeLike, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=_XAVIER, dtype=dtype, name=name)


def _modulation(
    emb: Embedding, count: int, features: int, dtype: DTypeLike, name: str
) -> list[Embedding]:
    """So many vectors that the embedding gives; zero at initialisation."""
    zeros = nn.initializers.zeros
    parts = nn.Dense(count * features, kernel_init=zeros, dtype=dtype, name=name)
    return jnp.split(parts(nn.swish(emb)), count, axis=-1)
