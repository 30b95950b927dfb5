"""A step, compiled while checkpoints and data are being read."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def compiling(step: Any, *arguments: Any) -> Iterator[Callable[[], None]]:
    """Compiles a step in a thread; waits for it at the end.

    XLA cannot be left in the middle: a process that ends meanwhile is aborted.

    Args:
      step: A function under `jax.jit`.
      arguments: Its arguments, or their shapes and devices.

    Yields:
      A function that waits until it is compiled; a call of the step finds it then.
    """
    thread = threading.Thread(target=_compile, args=(step, *arguments), daemon=True)
    thread.start()
    try:
        yield thread.join
    finally:
        thread.join()


def _compile(step: Any, *arguments: Any) -> None:
    # What goes wrong here goes wrong in the first call too, which has somebody to tell.
    with contextlib.suppress(Exception):
        step.lower(*arguments).compile()
