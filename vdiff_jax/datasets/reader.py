"""Examples of a source as they are needed, so that not all pixels are held."""

import functools
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Int, Int32

from vdiff_jax.datasets.loader import TIMEOUT_SECONDS, read_all, read_batches
from vdiff_jax.datasets.source import Source

PART = 128
# What is decoded again and again is held, if it takes no more than this.
HELD_BYTES = 2**28


class Reader:
    """Reads a source part after part, or in batches of any of its examples.

    Attributes:
      source: The examples.
    """

    def __init__(
        self, source: Source, num_workers: int = 0, timeout: float = TIMEOUT_SECONDS
    ):
        """Reads nothing yet.

        Args:
          source: The examples.
          num_workers: Processes that read and decode; 0 reads in this one.
          timeout: Seconds without a batch after which the workers are taken for hung.
        """
        self.source = source
        self._num_workers, self._timeout = num_workers, timeout

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.source)

    @functools.cached_property
    def labels(self) -> Int32[np.ndarray, " examples"]:
        """All labels; if the source cannot give them alone, all examples are read.

        Raises:
          ValueError: If an example cannot be read, in the words of the source.
          LoaderError: If workers die or hang at one batch again and again.
        """
        labels = getattr(self.source, "labels", None)
        if labels is None:
            labels = np.concatenate([part["label"] for part in self.parts()])
        return np.asarray(labels, np.int32)

    def parts(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields {"image", "label"} of all examples in their order, 128 at a time.

        Raises:
          ValueError: If an example cannot be read, in the words of the source.
          LoaderError: If workers die or hang at one batch again and again.
        """
        everything = np.arange(len(self))
        return self.batches(
            everything[first : first + PART] for first in range(0, len(self), PART)
        )

    def batches(
        self, batches: Iterable[Int[np.ndarray, " batch"]]
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields {"image", "label"} of the examples with these indices, as batches.

        Args:
          batches: The indices of each batch.

        Raises:
          ValueError: If an example cannot be read, in the words of the source.
          LoaderError: If workers die or hang at one batch again and again.
        """
        held = self._held
        if held is not None:
            for index in batches:
                yield {name: values[index] for name, values in held.items()}
        else:
            lists = (index.tolist() for index in batches)
            yield from read_batches(
                self.source, lists, self._num_workers, self._timeout
            )

    @functools.cached_property
    def _held(self) -> dict[str, np.ndarray] | None:
        """All examples, if they are costly to read and small; else None."""
        size = len(self) * np.asarray(self.source[0]["image"]).nbytes
        needs_workers = getattr(self.source, "needs_workers", True)
        is_costly = getattr(self.source, "is_costly", needs_workers)
        if not is_costly or size > HELD_BYTES:
            return None
        return read_all(self.source, self._num_workers, self._timeout)
