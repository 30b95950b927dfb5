"""SIGINT and SIGTERM: in a run the first is a wish, the second an order.

Everywhere else they end the command at once. A KeyboardInterrupt would not do: many a
library swallows it where it happens to be raised, in imports and in compiling above
all, and then the command goes on.
"""

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import Any

from vdiff_jax.files.atomic import abandon

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedRunError(RuntimeError):
    """The end of a run that was asked to stop early, with everything saved."""

    def __init__(self, number: int, message: str):
        """Keeps the exit status of a signal, 128 + its number, with a message."""
        super().__init__(message)
        self.exit_status = 128 + number


def end_at_once() -> None:
    """Makes the signals end this process with one line, and no file half written.

    Imports little, for a command to call it before it imports what takes seconds.
    """
    for number in SIGNALS:
        signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    line = f"launch.py: interrupted by {signal.Signals(number).name}; the same command"
    bar = "\n" if os.isatty(2) else ""  # that the line is not written into
    with contextlib.suppress(OSError):
        os.write(2, f"{bar}{line} resumes.\n".encode())
    with contextlib.suppress(Exception):  # it may be in the middle of writing
        sys.stdout.flush()
    with contextlib.suppress(Exception):
        abandon()
    os._exit(128 + number)


class Interrupts:
    """A context that notes the first signal; a second ends the process at once.

    Attributes:
      signal: The number of the signal that came, or 0.
      answered: True if the run ends because of it. A signal that nobody has answered
        is sent again at the end of the context, to whoever had them before.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.answered = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        """Takes the signals over, if this is the thread that may."""
        # Python refuses with ValueError in any other thread than the main one.
        with contextlib.suppress(ValueError):
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, error: type[BaseException] | None, *rest: object) -> None:
        """Gives the signals back, and passes one on that came too late for the run."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.signal and not self.answered and error is None:
            signal.raise_signal(self.signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        name = signal.Signals(number).name
        if self.signal:
            _say(f"\n{name} again: ended at once.\n")
            os._exit(128 + number)
        self.signal = number
        _say(f"\n{name}: saves after the updates under way; again to end at once.\n")


def _say(line: str) -> None:
    """Writes to stderr, if anybody reads it: Ctrl-C ends the tee of a pipe too."""
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), line.encode())
