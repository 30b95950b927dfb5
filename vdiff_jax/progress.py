"""The progress of long work: a bar on a terminal, elsewhere a line now and then.

A bar redraws its line with carriage returns, which fill a file. Where stderr is no
terminal, whole lines are written instead: one each half minute, and one at the end.
"""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import tqdm

SECONDS_BETWEEN_LINES = 30.0


class Bar:
    """How far some work is, on stderr; a context, at whose end it is closed.

    Attributes:
      done: The units that are done.
    """

    def __init__(
        self,
        name: str,
        total: int,
        *,
        unit: str = "images",
        done: int = 0,
        shown: bool = True,
        delay: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Begins to count the time.

        Args:
          name: The work, for people.
          total: The units of all of it.
          unit: Their name.
          done: Those that were done before.
          shown: False shows nothing: of several hosts, all but one.
          delay: Seconds in which nothing is shown yet.
          clock: Seconds, of any origin.
        """
        terminal = sys.stderr.isatty()
        self.done = done
        self._name, self._total, self._unit = name, total, unit
        self._lines, self._clock, self._delay = shown and not terminal, clock, delay
        self._notes: Mapping[str, str] = {}
        self._began = self._line_at = clock()
        self._before = self._done_at_line = done
        self._bar = tqdm.tqdm(
            desc=name,
            initial=done,
            total=total,
            unit=f" {unit}",
            unit_scale=total >= 10_000,
            dynamic_ncols=True,
            delay=delay,
            disable=not (shown and terminal),
        )

    def update(self, units: int) -> None:
        """Counts units that were done since the last call."""
        self.done += units
        self._bar.update(units)
        now, units = self._clock(), self.done - self._done_at_line
        seconds, rest = now - self._line_at, self._total - self.done
        if self._lines and units and rest and seconds >= SECONDS_BETWEEN_LINES:
            self._line(units, seconds, f"{_interval(rest * seconds / units)} left")
            self._line_at, self._done_at_line = now, self.done

    def note(self, values: Mapping[str, str]) -> None:
        """Shows these beside the bar, or in the lines, until there are others."""
        self._notes = values
        self._bar.set_postfix(values, refresh=False)

    def close(self) -> None:
        """Ends the bar; writes a last line, of all the time."""
        self._bar.close()
        seconds = self._clock() - self._began
        if self._lines and seconds >= self._delay:
            units = self.done - self._before
            self._line(units, seconds, f"in {_interval(seconds)}")
        self._lines = False

    def __enter__(self) -> "Bar":
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes it, whatever happened."""
        self.close()

    def _line(self, units: int, seconds: float, ending: str) -> None:
        rate = _rate(units / seconds if seconds else 0.0)
        notes = "".join(f", {name} {value}" for name, value in self._notes.items())
        print(
            f"{self._name}: {self.done:,} / {self._total:,} {self._unit},"
            f" {rate} {self._unit}/s, {ending}{notes}",
            file=sys.stderr,
            flush=True,
        )


def say(text: str, file: Any = None) -> None:
    """Prints a whole line, above the bar if there is one.

    Args:
      text: The line.
      file: An open text file; None is stdout.
    """
    tqdm.tqdm.write(text, file=file)


def _interval(seconds: float) -> str:
    return tqdm.tqdm.format_interval(seconds)


def _rate(units_per_second: float) -> str:
    digits = ",.0f" if units_per_second >= 100 else ".3g"
    return format(units_per_second, digits)
