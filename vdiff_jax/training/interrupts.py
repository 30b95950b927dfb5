"""SIGINT and SIGTERM in a run: the first is a wish, the second an order."""

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedRunError(RuntimeError):
    """The end of a run that was asked to stop early, with everything saved."""

    def __init__(self, number: int, message: str):
        """Keeps the exit status of a signal, 128 + its number, with a message."""
        super().__init__(message)
        self.exit_status = 128 + number


class Interrupts:
    """A context that notes the first signal; a second ends the process at once.

    Attributes:
      signal: The number of the signal that came, or 0.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        """Takes the signals over, if this is the thread that may."""
        # Python refuses with ValueError in any other thread than the main one.
        with contextlib.suppress(ValueError):
            self._before = {
                number: signal.signal(number, self._note) for number in SIGNALS
            }
        return self

    def __exit__(self, *error: object) -> None:
        """Gives the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        name = signal.Signals(number).name
        if self.signal:
            os.write(sys.stderr.fileno(), f"\n{name} again: ended at once.\n".encode())
            os._exit(128 + number)
        self.signal = number
        message = (
            f"\n{name}: saves after the updates under way; again to end at once.\n"
        )
        os.write(sys.stderr.fileno(), message.encode())
