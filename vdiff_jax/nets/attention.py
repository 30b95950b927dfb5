"""Attention over all pixels or all of a context, as each platform is fast at it."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from vdiff_jax.nets.normalization import at_least_float32

Queries = Float[Array, " batch queries heads channels"]
Keys = Float[Array, " batch keys heads channels"]
Mask = Bool[Array, " batch keys"]


# Under `jit` it is traced once for all layers of a shape.
@jax.jit
def attend(q: Queries, k: Keys, v: Keys, mask: Mask | None = None) -> Queries:
    """Softmax of q k / sqrt(channels) over the keys, times v.

    Args:
      q: Queries, [batch, queries, heads, channels].
      k: Keys, [batch, keys, heads, channels].
      v: Values, of the shape of the keys.
      mask: True for the keys that count, at least one of each example; None for all.
    """
    if mask is None:
        return lax.platform_dependent(
            q, k, v, cpu=attend_on_cpu, default=jax.nn.dot_product_attention
        )
    return lax.platform_dependent(
        q, k, v, mask, cpu=attend_on_cpu, default=attend_by_jax
    )


def attend_by_jax(q: Queries, k: Keys, v: Keys, mask: Mask) -> Queries:
    """The same as `attend` with a mask, by jax's own function."""
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None])


def attend_on_cpu(q: Queries, k: Keys, v: Keys, mask: Mask | None = None) -> Queries:
    """The same as `attend`, normalised at the end.

    The sums of the softmax are one more channel of v. So neither they nor their
    gradient, which XLA is slow at on a CPU, go through the queries x keys weights.

    Args:
      q: Queries, [batch, queries, heads, channels].
      k: Keys, [batch, keys, heads, channels].
      v: Values, of the shape of the keys.
      mask: True for the keys that count, at least one of each example; None for all.
    """
    logits = jnp.einsum("bqhc,bkhc->bhqk", q * q.shape[-1] ** -0.5, k)
    logits = at_least_float32(logits)
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, -jnp.inf)
    largest = lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.exp(logits - largest).astype(v.dtype)
    with_ones = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
    sums = jnp.einsum("bhqk,bkhc->bqhc", weights, with_ones)
    return sums[..., :-1] / sums[..., -1:]
