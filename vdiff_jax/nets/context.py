"""The vectors that a network attends to: given with an example, or of its class."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vdiff_jax.types import Labels

Vectors = Float[Array, " batch tokens width"]
Mask = Bool[Array, " batch tokens"]

# Parameters that are a model's data, which no update changes.
FIXED = ("null_context", "null_mask")


class Attended(NamedTuple):
    """What a network attends to beside its image.

    Attributes:
      vectors: The vectors of each example.
      mask: True for those that count; None if all do.
    """

    vectors: Vectors
    mask: Mask | None = None


def of_class(table: Float[Array, " rows width"], label: Labels) -> Attended:
    """One vector for each example: the row of its class.

    Args:
      table: A row for each class, and a last one for an example whose class is left
        out.
      label: The classes; -1 for one that is left out.
    """
    row = jnp.where(label < 0, len(table) - 1, label)
    return Attended(table[row][:, None])


def with_null(
    context: Vectors,
    mask: Mask,
    null_context: Float[Array, " tokens width"],
    null_mask: Float[Array, " tokens"],
) -> Attended:
    """The context, with the null context where the context is left out.

    Args:
      context: The vectors of each example.
      mask: True for those that count; of an example whose context is left out, none.
      null_context: The vectors to take there.
      null_mask: 1 for those of them that count, 0 for others.
    """
    left_out = ~mask.any(axis=1)
    return Attended(
        jnp.where(left_out[:, None, None], null_context, context),
        jnp.where(left_out[:, None], null_mask > 0.5, mask),
    )
