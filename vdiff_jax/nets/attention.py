"""Attention over all pixels, written as each platform is fast at it."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vdiff_jax.nets.normalization import at_least_float32

Heads = Float[Array, " batch pixels heads channels"]


def attend(q: Heads, k: Heads, v: Heads) -> Heads:
    """Softmax of q k / sqrt(channels) over all pixels, times v.

    Args:
      q: Queries, [batch, pixels, heads, channels].
      k: Keys, of the same shape.
      v: Values, of the same shape.
    """
    return lax.platform_dependent(
        q, k, v, cpu=attend_on_cpu, default=jax.nn.dot_product_attention
    )


def attend_on_cpu(q: Heads, k: Heads, v: Heads) -> Heads:
    """The same as `attend`, normalised at the end.

    The sums of the softmax are one more channel of v. So neither they nor their
    gradient, which XLA is slow at on a CPU, go through the pixels x pixels weights.

    Args:
      q: Queries, [batch, pixels, heads, channels].
      k: Keys, of the same shape.
      v: Values, of the same shape.
    """
    logits = jnp.einsum("bqhc,bkhc->bhqk", q * q.shape[-1] ** -0.5, k)
    logits = at_least_float32(logits)
    largest = lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.exp(logits - largest).astype(v.dtype)
    with_ones = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
    sums = jnp.einsum("bhqk,bkhc->bqhc", weights, with_ones)
    return sums[..., :-1] / sums[..., -1:]
