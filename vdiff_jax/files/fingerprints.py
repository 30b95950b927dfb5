"""Fingerprints of arrays, by which a reader sees that nothing has changed."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, UInt32

from vdiff_jax import parallel
from vdiff_jax.types import Params


class DamagedError(RuntimeError):
    """A file or checkpoint of which a part is gone, or that has changed."""


class UnreadableError(OSError):
    """A file or checkpoint that may be sound, but cannot be looked at."""


def params_sha256(params: Params) -> str:
    """Fingerprint of the leaves as float32 bytes, in the order of their names."""
    digest = hashlib.sha256()
    for _, leaf in sorted(named_leaves(params), key=lambda named: named[0]):
        digest.update(parallel.fetch(jnp.asarray(leaf, jnp.float32)).tobytes())
    return digest.hexdigest()


def fingerprint(tree: Any) -> dict[str, int]:
    """A number for each array, by name, that changes if any of its bits does.

    It does not depend on the devices that hold the arrays: sums of integers have no
    order.
    """
    # All are under way on the devices before the first is waited for.
    numbers = [(name, _fingerprint(leaf)) for name, leaf in named_leaves(tree)]
    return {name: int(number) for name, number in numbers}


@jax.jit
def _fingerprint(leaf: Array) -> UInt32[Array, ""]:
    """The sum of the bits of each value times an odd number of its place, mod 2^32."""
    bits = lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        place = place * np.uint32(size % 2**32)
        place = place + lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    # Odd, so that one changed value always shows: Knuth's multiplicative hash.
    factor = place * np.uint32(2654435761) * np.uint32(2) + np.uint32(1)
    return (bits.astype(jnp.uint32) * factor).sum(dtype=jnp.uint32)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree with their paths, such as `['conv_in']['kernel']`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
