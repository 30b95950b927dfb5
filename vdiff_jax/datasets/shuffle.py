"""The order of the data: an index as a pure function of (seed, step, row).

Examples come as a stream of epochs, cut into batches: a batch may begin in one epoch
and end in the next, so every example comes once per epoch however the sizes divide, and
none is left out. Nothing is stored, so a run may begin at any step, and a device can
compute the same order as the host.

The permutation of an epoch is the swap-or-not shuffle of Hoang, Morris & Rogaway
(2012), "An Enciphering Scheme Based on a Card Shuffle", CRYPTO, Fig. 1: in each round
the numbers below `length` are paired, and each pair is exchanged or not by a hash of
it. Unlike a sort or a table it needs no memory and gives one index at a time.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# A number takes one of 2**ROUNDS paths: many more than there are examples.
ROUNDS = 40
MAX_LENGTH = 2**31


class Cursor(NamedTuple):
    """The start of a batch: in an epoch, `offset` examples from its beginning.

    Attributes:
      key: uint32, `key_of` the seed.
      epoch: uint32, from 0.
      offset: uint32, below the length of the data.
    """

    key: Any
    epoch: Any
    offset: Any


def key_of(seed: Sequence[int]) -> int:
    """One 32-bit key from all the numbers of a seed; they must not be negative."""
    # The length, because a SeedSequence does not tell (0,) from (0, 0).
    return int(np.random.SeedSequence([len(seed), *seed]).generate_state(1)[0])


def cursor(step: int, *, batch_size: int, length: int, seed: Sequence[int]) -> Cursor:
    """The start of the batch of a step.

    Args:
      step: Number of the step, from 0.
      batch_size: Examples of a batch, over all hosts.
      length: Number of examples.
      seed: Non-negative integers; the order depends on them all.

    Raises:
      ValueError: If there are no examples, or too many for 31 bits.
    """
    if not 0 < length < MAX_LENGTH:
        raise ValueError(f"Expected 1 to 2**31 - 1 examples, got {length}.")
    epoch, offset = divmod(step * batch_size, length)
    as_array = (np.array(value, np.uint32) for value in (key_of(seed), epoch, offset))
    return Cursor(*as_array)


def batch_indices(
    step: int, *, batch_size: int, length: int, seed: Sequence[int]
) -> list[int]:
    """The examples of the batch of a step, row by row.

    Args:
      step: Number of the step, from 0.
      batch_size: Examples of a batch, over all hosts.
      length: Number of examples.
      seed: Non-negative integers; the order depends on them all.

    Raises:
      ValueError: If there are no examples, or too many for 31 bits.
    """
    start = cursor(step, batch_size=batch_size, length=length, seed=seed)
    rows = np.arange(batch_size, dtype=np.uint32)
    return example_index(start, rows, length).tolist()


def example_index(start: Cursor, row: Any, length: int) -> Any:
    """The examples in some rows of the batch that begins at a cursor.

    Args:
      start: The cursor; scalar arrays of NumPy or JAX.
      row: Rows of the batch, uint32; of the same library.
      length: Number of examples.

    Returns:
      Indices below `length`, uint32, of the shape of `row`.
    """
    position = start.offset + row
    return shuffled(
        position % length, length, start.key, start.epoch + position // length
    )


def shuffled(position: Any, length: int, key: Any, epoch: Any) -> Any:
    """Maps a position in an epoch to an example: a permutation of range(length).

    Args:
      position: uint32 [n], below `length`; of NumPy or JAX, as the other arguments.
      length: Number of examples, at most 2**31 - 1.
      key: uint32 scalar; other keys give other orders.
      epoch: uint32 [n]; so do other epochs.
    """
    xp = position.__array_namespace__()
    index = position
    of_epoch = _hash(_hash(epoch) ^ key)
    for i in range(ROUNDS):
        of_round = _hash(of_epoch + xp.asarray(i, dtype=xp.uint32))
        partner = (of_round % length + (length - index)) % length
        coin = _hash(_hash(xp.maximum(index, partner)) ^ of_round) >> 31
        index = xp.where(coin == 1, partner, index)
    return index


def _hash(x: Any) -> Any:
    """The 32-bit finalizer of MurmurHash3 (Appleby, public domain): a bijection."""
    xp = x.__array_namespace__()
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * xp.asarray(factor, dtype=xp.uint32)
    return x ^ (x >> 16)
