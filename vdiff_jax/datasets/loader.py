"""Batches for each call of the training step, through the torch `DataLoader`."""

import collections
import contextlib
import itertools
import multiprocessing
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from vdiff_jax.datasets.shuffle import cursor, example_index
from vdiff_jax.datasets.source import Source, read_many
from vdiff_jax.progress import Bar, say

T = TypeVar("T")

# Number of times that a batch is tried, each time with new worker processes.
ATTEMPTS = 3
TIMEOUT_SECONDS = 300.0


class LoaderError(RuntimeError):
    """An error of worker processes that die or hang again and again."""


class Order:
    """The indices of each step's batch, or of some of its rows."""

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        seed: Sequence[int],
        steps: Iterable[int],
        rows: np.ndarray,
    ):
        """Keeps its arguments; the order is computed as it is read.

        Args:
          length: Number of examples of the source.
          batch_size: Examples of a batch, over all hosts.
          seed: Non-negative integers; the order depends on them all.
          steps: The steps, from 0 up.
          rows: Rows of each batch to give.
        """
        self._length, self._batch_size, self._seed = length, batch_size, seed
        self._steps, self._rows = steps, rows.astype(np.uint32)

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
    calls: Iterable[tuple[int, int]],
    num_workers: int = 0,
    rows: np.ndarray | None = None,
    timeout: float = TIMEOUT_SECONDS,
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
      timeout: Seconds without a batch after which the workers are taken for hung.

    Raises:
      ValueError: If an example cannot be read, in the words of the source.
      LoaderError: If workers die or hang at one batch again and again.
    """
    calls, of_steps = itertools.tee(calls)
    steps = (step for first, count in of_steps for step in range(first, first + count))
    rows = np.arange(batch_size) if rows is None else rows
    order = Order(len(source), batch_size=batch_size, seed=seed, steps=steps, rows=rows)
    batches = read_batches(source, order, num_workers, timeout)
    for _, count in calls:
        stack = [next(batches) for _ in range(count)]
        yield {name: np.stack([batch[name] for batch in stack]) for name in stack[0]}


def read_all(
    source: Source, num_workers: int = 0, timeout: float = TIMEOUT_SECONDS
) -> dict[str, np.ndarray]:
    """Every example in its order, as {"image", "label"}; shows its progress.

    Args:
      source: The examples.
      num_workers: Processes that read and decode; 0 reads in this one.
      timeout: Seconds without a batch after which the workers are taken for hung.

    Raises:
      ValueError: If an example cannot be read, in the words of the source.
      LoaderError: If workers die or hang at one batch again and again.
    """
    everything: dict[str, np.ndarray] = {}
    parts = (
        list(range(first, min(first + 256, len(source))))
        for first in range(0, len(source), 256)
    )
    done = 0
    with Bar("read", len(source), delay=2.0) as bar:
        for batch in read_batches(source, parts, num_workers, timeout):
            count = len(batch["label"])
            for name, values in batch.items():
                if name not in everything:
                    shape = (len(source), *values.shape[1:])
                    everything[name] = np.empty(shape, values.dtype)
                everything[name][done : done + count] = values
            done += count
            bar.update(count)
    return everything


class _Asked:
    """Batches that are asked for, kept until they have come, and no longer."""

    def __init__(self, batches: Iterable[list[int]]):
        self._more = iter(batches)
        self._waiting: collections.deque[list[int]] = collections.deque()

    def __iter__(self) -> Iterator[list[int]]:
        """Yields those that have not come yet, and then more."""
        yield from tuple(self._waiting)
        for batch in self._more:
            self._waiting.append(batch)
            yield batch

    def has_come(self) -> None:
        """Takes in that the first of them has come."""
        self._waiting.popleft()


class _LostWorkersError(Exception):
    """An error of a worker process that is dead, or has not answered in time."""


def read_batches(
    source: Source,
    batches: Iterable[list[int]],
    num_workers: int = 0,
    timeout: float = TIMEOUT_SECONDS,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields {"image", "label"} of one batch after another.

    Where workers are lost, new ones go on at the same batch.

    Args:
      source: The examples.
      batches: The indices of each batch; taken as they are needed.
      num_workers: Processes that read and decode; 0 reads in this one, and so is a
        source read that needs no workers.
      timeout: Seconds without a batch after which the workers are taken for hung.

    Raises:
      ValueError: If an example cannot be read, in the words of the source.
      LoaderError: If workers die or hang at one batch again and again.
    """
    if not getattr(source, "needs_workers", True):
        num_workers = 0
    asked, attempts = _Asked(batches), 0
    while True:
        try:
            for batch in _read_once(source, asked, num_workers, timeout):
                asked.has_come()
                attempts = 0
                yield batch
            return
        except _LostWorkersError as error:
            attempts += 1
            if attempts == ATTEMPTS:
                raise LoaderError(
                    f"The loader's worker processes failed {ATTEMPTS} times at one"
                    f" batch ({error}). Is memory short, or a file system hanging?"
                    " Fewer data.workers, or a longer data.worker_timeout, may help."
                ) from error
            say(f"loader: {error}; started new workers.", sys.stderr)


def _read_once(
    source: Source, batches: _Asked, num_workers: int, timeout: float
) -> Iterator[dict[str, np.ndarray]]:
    if not num_workers:
        for indices in batches:
            yield stacked(read_many(source, indices))
        return
    from torch.utils.data import DataLoader  # here, because it takes seconds

    loader = DataLoader(
        _Reader(source),  # pyright: ignore[reportArgumentType]
        batch_sampler=batches,  # pyright: ignore[reportArgumentType]
        collate_fn=_as_it_is,
        num_workers=num_workers,
        worker_init_fn=_leave_interrupts_to_the_run,
        multiprocessing_context=_processes(),
    )
    iterator = iter(loader)
    with _Watch(getattr(iterator, "_workers", []), timeout) as watch:
        while True:
            try:
                with watch.waiting():
                    batch = next(iterator)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                if not _is_of_a_lost_worker(error):
                    raise
                raise _LostWorkersError(watch.reason or _one_line(error)) from error
            if isinstance(batch, ValueError):
                raise batch
            yield {name: value.numpy() for name, value in batch.items()}


class _Watch:
    """A thread that kills workers which do not bring a batch in time.

    The loader's own timeout does not see a worker that stops while it hands a batch
    over. The loader does notice dead workers.

    Attributes:
      reason: The reason for which they were killed, or "".
    """

    def __init__(self, workers: Sequence[Any], timeout: float):
        self.reason = ""
        self._workers, self._timeout = workers, timeout
        self._since: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Watches the time inside the `with`, which must not exceed the timeout."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def _look(self) -> None:
        while not self._ended.wait(self._timeout / 10):
            since = self._since
            if since is not None and time.monotonic() - since > self._timeout:
                self.reason = f"no batch came for {self._timeout:g} s"
                for worker in self._workers:
                    worker.kill()

    def __enter__(self) -> "_Watch":
        if self._workers:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self.reason or isinstance(error[1], _LostWorkersError):
            for worker in self._workers:
                worker.kill()  # one that hangs would not end otherwise


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _is_of_a_lost_worker(error: Exception) -> bool:
    """True if the loader noticed a dead worker, or could not fetch a batch from one."""
    text = str(error)
    if "Caught " in text:  # an error that a worker raised itself is passed on
        return False
    if isinstance(error, RuntimeError):
        return "exited unexpectedly" in text or "killed by signal" in text
    return True


def _leave_interrupts_to_the_run(worker: int) -> None:
    """Ignores Ctrl-C in a worker: it reaches every process, and the run decides."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _processes() -> Any:
    """The context of the workers: forks of a small server, which imports only once.

    A fork of this process would copy the locks of JAX's threads, and could hang. Every
    worker runs the main script up to its guard, so the server imports the main script's
    modules too.
    """
    main = vars(sys.modules["__main__"]).values()
    imported = [value.__name__ for value in main if isinstance(value, ModuleType)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch.utils.data", *imported])
    return context


class _Reader:
    """A reader of batches as tensors, which come through shared memory."""

    def __init__(self, source: Source):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitems__(self, indices: list[int]) -> dict[str, Any] | ValueError:
        import torch  # here, because it takes seconds

        # The loader would hide the message of an error in the traceback of a worker.
        try:
            batch = stacked(read_many(self._source, indices))
        except ValueError as error:
            return error
        return {name: torch.from_numpy(value) for name, value in batch.items()}


def stacked(examples: Any) -> dict[str, np.ndarray]:
    """Examples along a new first axis.

    Args:
      examples: A list of them; or what `read_many` gives.
    """
    if isinstance(examples, list):
        names = examples[0].keys()
        examples = {name: [example[name] for example in examples] for name in names}
    # Tensors want arrays that they could write to, and a mapped file's are not.
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
      items: The items, which that thread takes one at a time.
      prepare: Applied to each in that thread, such as to begin its copy to a device.
      size: Number of prepared items that may wait.

    Raises:
      Exception: Any error of `items` or `prepare`, at its place in the order.
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
