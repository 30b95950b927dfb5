"""Feeds of the training step: batches from the host, or a whole data set.

Both feeds give the same batches in the same order.
"""

import dataclasses
import functools
from collections.abc import Generator, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from vdiff_jax import parallel
from vdiff_jax.datasets.loader import TIMEOUT_SECONDS, load, prefetch, read_all, stacked
from vdiff_jax.datasets.shuffle import Cursor, cursor, example_index
from vdiff_jax.datasets.source import Source
from vdiff_jax.types import Batch, Condition, Feed

# "auto" keeps up to 1 GiB on every device. CIFAR-10 has 0.15, 16,185 images of
# 64x64 have 0.19.
LIMIT_BYTES = 2**30


@runtime_checkable
class Feeder(Protocol):
    """A source of feeds for the calls of a compiled step, which compiles `read` in."""

    @property
    def length(self) -> int:
        """Number of examples."""
        ...

    def feeds(
        self, calls: Iterable[tuple[int, int]], seed: Sequence[int]
    ) -> Generator[Feed, None, None]:
        """Yields the feed of each call, (first step, number of steps)."""
        ...

    def abstract(self, steps: int) -> Feed:
        """Shapes and devices of the feed of a call; an example is read, at most."""
        ...

    def read(self, data: Any, item: Any) -> Batch:
        """The batch of one step, from `Feed.data` and one of `Feed.items`."""
        ...


@dataclasses.dataclass(frozen=True)
class Streamed:
    """Batches that the host reads; two calls' are under way while one is used.

    Attributes:
      source: The examples.
      batch_size: Examples of a batch over all hosts; each host reads the rows of its
        own devices.
      mesh: The devices.
      num_workers: Processes that read and decode.
      timeout: Seconds without a batch after which the workers are taken for hung.
    """

    source: Source
    batch_size: int
    mesh: Mesh
    num_workers: int
    timeout: float = TIMEOUT_SECONDS

    @property
    def length(self) -> int:
        """Number of examples."""
        return len(self.source)

    def feeds(
        self, calls: Iterable[tuple[int, int]], seed: Sequence[int]
    ) -> Generator[Feed, None, None]:
        """Yields stacks of batches, already on their way to the devices."""
        stacks = load(
            self.source,
            batch_size=self.batch_size,
            seed=seed,
            calls=calls,
            num_workers=self.num_workers,
            rows=parallel.local_rows(self.batch_size, self.mesh),
            timeout=self.timeout,
        )
        yield from prefetch(stacks, self._place)

    def abstract(self, steps: int) -> Feed:
        """Shapes and devices of the stacks."""
        split = parallel.split(self.mesh, axis=1)
        return Feed(_abstract(self.source, (steps, self.batch_size), split))

    def read(self, data: None, item: Batch) -> Batch:
        """The batch of one step, which is the item itself."""
        del data
        return item

    def _place(self, stack: dict[str, np.ndarray]) -> Feed:
        batches = batch_of(stack)
        split = parallel.split(self.mesh, axis=1)
        return Feed(parallel.put_rows(batches, split, self.batch_size))


@dataclasses.dataclass(frozen=True)
class Resident:
    """A data set on every device; the host only sends where each batch begins.

    Attributes:
      source: The examples; all of them must fit on each device.
      batch_size: Examples of a batch over all devices.
      mesh: The devices.
      num_workers: Processes that read and decode.
      timeout: Seconds without a batch after which the workers are taken for hung.
    """

    source: Source
    batch_size: int
    mesh: Mesh
    num_workers: int
    timeout: float = TIMEOUT_SECONDS

    @property
    def length(self) -> int:
        """Number of examples."""
        return len(self.source)

    @functools.cached_property
    def data(self) -> Batch:
        """All examples, on every device; they are read when they are first needed.

        Raises:
          ValueError: If an example cannot be read, in the words of the source.
          LoaderError: If workers die or hang at one batch again and again.
        """
        everything = read_all(self.source, self.num_workers, self.timeout)
        return parallel.put(batch_of(everything), parallel.replicated(self.mesh))

    def feeds(
        self, calls: Iterable[tuple[int, int]], seed: Sequence[int]
    ) -> Generator[Feed, None, None]:
        """Yields cursors, a few bytes a step."""
        for first, steps in calls:
            yield Feed(self._starts(first, steps, seed), self.data)

    def abstract(self, steps: int) -> Feed:
        """Some cursors; shapes and devices of the data."""
        everything = parallel.replicated(self.mesh)
        return Feed(
            self._starts(0, steps, seed=(0,)),
            _abstract(self.source, (self.length,), everything),
        )

    def _starts(self, first: int, steps: int, seed: Sequence[int]) -> Cursor:
        start = functools.partial(
            cursor, batch_size=self.batch_size, length=self.length, seed=seed
        )
        starts = [start(step) for step in range(first, first + steps)]
        return jax.tree.map(lambda *values: np.stack(values), *starts)

    def read(self, data: Batch, item: Cursor) -> Batch:
        """The batch that begins at a cursor."""
        row = jnp.arange(self.batch_size, dtype=jnp.uint32)
        # Without this every device would compute the whole batch.
        row = jax.lax.with_sharding_constraint(row, parallel.split(self.mesh))
        index = example_index(item, row, len(data.image))
        return jax.tree.map(lambda values: values[index], data)


def batch_of(examples: dict[str, np.ndarray]) -> Batch:
    """The batch of stacked examples, as the loader gives them."""
    parts: dict[str, Any] = {
        name: examples.get(name) for name in ("label", "context", "mask")
    }
    return Batch(examples["image"], Condition(**parts))


def _abstract(source: Source, shape: tuple[int, ...], sharding: NamedSharding) -> Batch:
    """Shapes and devices of batches of examples.

    Args:
      source: The examples.
      shape: That of the batches, before the axes of an example.
      sharding: The devices.
    """
    example = batch_of(stacked([source[0]]))
    return jax.tree.map(
        lambda value: jax.ShapeDtypeStruct(
            shape + value.shape[1:],
            jax.dtypes.canonicalize_dtype(value.dtype),
            sharding=sharding,
        ),
        example,
    )


def size_in_bytes(source: Source) -> int:
    """Bytes of all images of a source together, and of their contexts."""
    example = source[0]
    parts = [example[name] for name in ("image", "context", "mask") if name in example]
    return len(source) * sum(np.asarray(part).nbytes for part in parts)
