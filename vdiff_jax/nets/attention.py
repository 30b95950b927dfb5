"""Attention over all pixels or all of a context, as each platform is fast at it."""

import contextlib
import contextvars
import functools
import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from vdiff_jax.nets.normalization import at_least_float32

Queries = Float[Array, " batch queries heads channels"]
Keys = Float[Array, " batch keys heads channels"]
Mask = Bool[Array, " batch keys"]

# The flag of XLA with which two runs on a GPU end in the same bits.
DETERMINISTIC = "--xla_gpu_exclude_nondeterministic_ops=true"
_PORTABLE = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """What is traced here has no kernel of cuDNN: for programs that are kept."""
    token = _PORTABLE.set(True)
    try:
        yield
    finally:
        _PORTABLE.reset(token)


def attend(q: Queries, k: Keys, v: Keys, mask: Mask | None = None) -> Queries:
    """Softmax of q k / sqrt(channels) over the keys, times v.

    Args:
      q: Queries, [batch, queries, heads, channels].
      k: Keys, [batch, keys, heads, channels].
      v: Values, of the shape of the keys.
      mask: True for the keys that count, at least one of each example; None for all.
    """
    return _attend(q, k, v, mask, fused=mask is None and can_be_fused(q))


# Under `jit` it is traced once for all layers of a shape.
@functools.partial(jax.jit, static_argnames="fused")
def _attend(q: Queries, k: Keys, v: Keys, mask: Mask | None, *, fused: bool) -> Queries:
    if mask is None:
        by_jax = functools.partial(
            jax.nn.dot_product_attention, implementation="cudnn" if fused else None
        )
        return lax.platform_dependent(q, k, v, cpu=attend_on_cpu, default=by_jax)
    return lax.platform_dependent(
        q, k, v, mask, cpu=attend_on_cpu, default=attend_by_jax
    )


def can_be_fused(q: Queries) -> bool:
    """Whether cuDNN has a kernel that never writes the queries x keys weights.

    It needs 16 bits, a GPU of NVIDIA's Ampere or later, and a head's width that divides
    by 8 and is at most 128, on Hopper 256. The sums of its gradient are in another
    order each time: where XLA is told to leave out such kernels, it is left out.

    Args:
      q: The queries.
    """
    if _PORTABLE.get() or q.dtype not in (jnp.bfloat16, jnp.float16):
        return False
    if DETERMINISTIC in os.environ.get("XLA_FLAGS", ""):
        return False
    capability = compute_capability()
    most = 256 if capability >= (9, 0) else 128
    return capability >= (8, 0) and q.shape[-1] <= most and q.shape[-1] % 8 == 0


def compute_capability() -> tuple[int, ...]:
    """That of the first device, such as (9, 0); () where it is no GPU of NVIDIA."""
    device = jax.local_devices()[0]
    if "cuda" not in device.client.platform_version:
        return ()
    return tuple(int(part) for part in device.compute_capability.split("."))


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
