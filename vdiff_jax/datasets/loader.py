"""Batches for each call of the training step, through the torch `DataLoader`."""

import multiprocessing
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
import tqdm
from torch.utils.data import DataLoader

from vdiff_jax.datasets.order import cursor, example_index
from vdiff_jax.datasets.source import Source, read_many

T = TypeVar("T")


class Order:
    """The indices of each step's batch, or of some of its rows. See `order`."""

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        seed: Sequence[int],
        steps: Sequence[int],
        rows: np.ndarray,
    ):
        """Args: the source's length, the steps, and which rows of their batches."""
        self._length, self._batch_size, self._seed = length, batch_size, seed
        self._steps, self._rows = steps, rows.astype(np.uint32)

    def __len__(self) -> int:
        """Number of steps."""
        return len(self._steps)

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the indices of one step after another."""
        for step in self._steps:
            start = cursor(
                step, batch_size=self._batch_size, length=self._length, seed=self._seed
            )
            yield example_index(start, self._rows, self._length).tolist()


def load(
    source: Source,
    *,
    batch_size: int,
    seed: Sequence[int],
    calls: Sequence[tuple[int, int]],
    num_workers: int = 0,
    rows: np.ndarray | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields, for each call, {"image", "label"} stacked as [steps, rows, ...].

    Args:
      source: The examples.
      batch_size: Examples per update, over all hosts.
      seed: Non-negative integers; the order depends on them all.
      calls: (first step, number of steps) of each call of the training step.
      num_workers: Processes that read and decode; 0 reads in this one, and so is a
        source read that needs no workers.
      rows: The rows of each batch that this host reads; by default all.

    Raises:
      ValueError: If an example cannot be read, in the words of the source.
    """
    steps = [step for first, count in calls for step in range(first, first + count)]
    rows = np.arange(batch_size) if rows is None else rows
    order = Order(len(source), batch_size=batch_size, seed=seed, steps=steps, rows=rows)
    batches = _read(source, order, num_workers)
    for _, count in calls:
        stack = [next(batches) for _ in range(count)]
        yield {name: np.stack([batch[name] for batch in stack]) for name in stack[0]}


def read_all(source: Source, num_workers: int = 0) -> dict[str, np.ndarray]:
    """Every example in its order, as {"image", "label"}; shows its progress."""
    everything: dict[str, np.ndarray] = {}
    parts = [
        list(range(first, min(first + 256, len(source))))
        for first in range(0, len(source), 256)
    ]
    with tqdm.tqdm(
        desc="read", total=len(source), unit=" images", delay=2.0, dynamic_ncols=True
    ) as bar:
        for part, batch in zip(parts, _read(source, parts, num_workers), strict=True):
            for name, values in batch.items():
                if name not in everything:
                    shape = (len(source), *values.shape[1:])
                    everything[name] = np.empty(shape, values.dtype)
                everything[name][part] = values
            bar.update(len(part))
    return everything


def _read(
    source: Source, batches: Any, num_workers: int
) -> Iterator[dict[str, np.ndarray]]:
    if not getattr(source, "needs_workers", True):
        num_workers = 0
    loader = DataLoader(
        _Reader(source),  # pyright: ignore[reportArgumentType]
        batch_sampler=batches,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        multiprocessing_context=_processes() if num_workers else None,
    )
    for batch in loader:
        if isinstance(batch, ValueError):
            raise batch
        yield {name: value.numpy() for name, value in batch.items()}


def _processes() -> Any:
    """Workers are forks of a small server, which imports what they need only once.

    A fork of this process would copy the locks of JAX's threads, and could hang. Every
    worker runs the main script up to its guard, hence what that imports.
    """
    main = vars(sys.modules["__main__"]).values()
    imported = [value.__name__ for value in main if isinstance(value, ModuleType)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *imported])
    return context


class _Reader:
    """Reads batches as tensors, which reach this process through shared memory."""

    def __init__(self, source: Source):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor] | ValueError:
        # The loader would hide the message of an error in the traceback of a worker.
        try:
            batch = _stacked(read_many(self._source, indices))
        except ValueError as error:
            return error
        return {name: torch.from_numpy(value) for name, value in batch.items()}


def _stacked(examples: Any) -> dict[str, np.ndarray]:
    if isinstance(examples, list):
        names = examples[0].keys()
        examples = {name: [example[name] for example in examples] for name in names}
    # Of a mapped file too, tensors want arrays that they could write to.
    batch = {
        name: np.require(value, requirements=["C", "W"])
        for name, value in examples.items()
    }
    return {**batch, "label": batch["label"].astype(np.int32)}


def _as_it_is(batch: Any) -> Any:
    return batch


def prefetch(
    items: Iterator[T], prepare: Callable[[T], Any], size: int = 2
) -> Iterator[Any]:
    """Prepares items in a thread, up to `size` ahead of their use.

    Args:
      items: Drawn one at a time, in that thread.
      prepare: Applied to each there, such as to begin its copy to a device.
      size: How many may wait.

    Raises:
      Exception: What `items` or `prepare` raise, at their place in the order.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(size)
    stopped = threading.Event()
    end = object()

    def put(value: Any, error: BaseException | None = None) -> None:
        while not stopped.is_set():
            try:
                return ready.put((value, error), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(prepare(item))
                if stopped.is_set():
                    return
            put(end)
        except BaseException as error:
            put(end, error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            value, error = ready.get()
            if error is not None:
                raise error
            if value is end:
                return
            yield value
    finally:
        stopped.set()
        thread.join()
