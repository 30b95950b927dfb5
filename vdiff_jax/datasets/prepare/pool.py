"""Processes that decode, one that reads, and an interrupt that ends them in order."""

import collections
import concurrent.futures
import contextlib
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import signal
from collections.abc import Iterable, Iterator
from typing import Any

from vdiff_jax.datasets.prepare.archives import Input
from vdiff_jax.datasets.prepare.content import is_of_one_file
from vdiff_jax.datasets.prepare.task import Task
from vdiff_jax.datasets.prepare.writers import convert

Chunk = list[tuple[str, str]]


def converted(
    task: Task, files: Input, chunks: Iterable[Chunk]
) -> Iterator[tuple[Chunk, list[tuple[bytes, ...] | str]]]:
    """Chunks in their order, each with the results of `convert` for its files.

    This process reads, since an archive has one reader; the workers decode.

    Raises:
      OSError: If the input cannot be read, and not one file of it alone.
    """
    fits = task.fits()
    as_png = task.format == "lmdb"
    if not task.workers:
        for chunk in chunks:
            yield chunk, convert(_read(files, chunk), fits, as_png)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([convert.__module__])
    with _interrupts_held():
        multiprocessing.forkserver.ensure_running()
    pool = concurrent.futures.ProcessPoolExecutor(task.workers, context)
    try:
        waiting: collections.deque[tuple[Chunk, Any]] = collections.deque()
        for chunk in chunks:
            contents = _read(files, chunk)
            waiting.append((chunk, pool.submit(convert, contents, fits, as_png)))
            if len(waiting) > 2 * task.workers:
                chunk, future = waiting.popleft()
                yield chunk, future.result()
        for chunk, future in waiting:
            yield chunk, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Holds Ctrl-C back for a while, and for good in processes that are started here.

    It reaches every process of a terminal; this one decides and ends the others.
    """
    multiprocessing.resource_tracker.ensure_running()  # which lets them through again
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _read(files: Input, chunk: Chunk) -> list[bytes | Exception]:
    contents: list[bytes | Exception] = []
    for _, original in chunk:
        try:
            contents.append(files.read(original))
        except (OSError, ValueError) as error:
            if not is_of_one_file(error):
                raise
            contents.append(error)
    return contents
