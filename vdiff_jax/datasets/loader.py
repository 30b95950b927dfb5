"""Batches as a function of (seed, step), through the torch `DataLoader`.

The order needs no state: a run that resumes at step n asks for the batches from n on.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from vdiff_jax.datasets.source import Source


def epoch_order(length: int, seed: Sequence[int], epoch: int) -> np.ndarray:
    """The order of one epoch: a permutation that depends on nothing but arguments."""
    return np.random.default_rng([*seed, epoch]).permutation(length)


class Order:
    """The indices of each call's batches: a stream of epochs, cut into batches.

    A batch may begin in one epoch and end in the next, so every example comes once per
    epoch however the sizes divide.
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        seed: Sequence[int],
        calls: Sequence[tuple[int, int]],
    ):
        """Args: the source's length, and (first step, steps) of each call."""
        self._length = length
        self._batch_size = batch_size
        self._seed = seed
        self._calls = calls

    def __len__(self) -> int:
        """Number of calls."""
        return len(self._calls)

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the indices of one call after another."""
        epoch, order = -1, np.empty(0, int)
        for first, steps in self._calls:
            positions = np.arange(first, first + steps)[:, None] * self._batch_size
            positions = (positions + np.arange(self._batch_size)).ravel()
            indices = np.empty_like(positions)
            for e in range(
                positions[0] // self._length, positions[-1] // self._length + 1
            ):
                if e != epoch:
                    epoch, order = e, epoch_order(self._length, self._seed, e)
                here = positions // self._length == e
                indices[here] = order[positions[here] % self._length]
            yield indices.tolist()


def load(
    source: Source,
    *,
    batch_size: int,
    seed: Sequence[int],
    calls: Sequence[tuple[int, int]],
    num_workers: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields, for each call, {"image", "label"} stacked as [steps, batch, ...].

    Args:
      source: The examples.
      batch_size: Examples per update.
      seed: Non-negative integers; the order depends on them all.
      calls: (first step, number of steps) of each call of the training step.
      num_workers: Processes that read and decode; 0 reads in this one.
    """
    order = Order(len(source), batch_size=batch_size, seed=seed, calls=calls)
    loader = DataLoader(
        source,  # pyright: ignore[reportArgumentType]
        batch_sampler=order,
        collate_fn=_stack,
        num_workers=num_workers,
        # A fork would copy the locks of JAX's threads, and could hang.
        multiprocessing_context="spawn" if num_workers else None,
    )
    for examples in loader:
        yield {
            name: value.reshape(-1, batch_size, *value.shape[1:])
            for name, value in examples.items()
        }


def _stack(examples: Any) -> dict[str, np.ndarray]:
    if isinstance(examples, dict):
        return examples
    return {
        "image": np.stack([example["image"] for example in examples]),
        "label": np.array([example["label"] for example in examples], np.int32),
    }
