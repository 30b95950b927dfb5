"""A step, compiled while checkpoints and data are being read."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

from vdiff_jax.training.calls import Calls
from vdiff_jax.training.run import Run, Tools
from vdiff_jax.training.saved import latest_step


def compiling_first_call(
    tools: Tools, run: Run
) -> contextlib.AbstractContextManager[Callable[[], None]]:
    """Compiles the first call of a run in a thread, unless that was done before.

    Args:
      tools: Everything that the stage's runs share.
      run: The run.

    Returns:
      A context, as that of `compiling`.
    """
    done = latest_step(run.checkpoints) or 0
    calls = Calls(done, run.num_updates, tools.loop.steps_per_call)
    _, steps = next(iter(calls), (0, 0))
    if not steps or steps in tools.compiled:
        return contextlib.nullcontext(lambda: None)
    state = jax.tree.map(
        lambda leaf, sharding: leaf.update(sharding=sharding),
        tools.abstract_state,
        tools.shardings,
    )
    return compiling(tools.train_step, state, tools.feeder.abstract(steps), run.job)


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
