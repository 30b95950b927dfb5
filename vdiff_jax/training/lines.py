"""Files of JSON lines that grow with a run: appended to, or in a store written anew."""

import json
import pathlib
import time
from typing import Any, Protocol, runtime_checkable

from vdiff_jax.files.atomic import write_text
from vdiff_jax.files.place import is_in_store

METRICS = "metrics.jsonl"
# Before the names of metrics of held-out data.
HELD_OUT = "held_out_"
# A file in a store is written as a whole, at most this often between two checkpoints.
SECONDS_BETWEEN_WRITES = 10.0
# Some thousand lines, for who only looks; a long run has megabytes.
_MOST_BYTES = 2**18


@runtime_checkable
class Lines(Protocol):
    """A file of lines, each a JSON object with its "step"."""

    def drop_later(self, step: int) -> None:
        """Drops the lines beyond a step, which a resumed run logs again."""
        ...

    def append(self, line: str) -> None:
        """Adds a line, with its end."""
        ...

    def flush(self) -> None:
        """Makes sure that all lines are where they are to lie."""
        ...


def of(path: pathlib.Path) -> Lines:
    """The lines of a file, wherever it lies."""
    return _InStore(path) if is_in_store(path) else _OnDisk(path)


def last_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The last whole lines of a file, in order; none if it is not there.

    Raises:
      OSError: If it is there and cannot be read.
    """
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            start = file.seek(max(0, end - _MOST_BYTES))
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    whole = [line for line in lines[1 if start else 0 :] if line.endswith(b"}\n")]
    return [json.loads(line) for line in whole]


class _OnDisk:
    def __init__(self, path: pathlib.Path):
        self._path = path

    def drop_later(self, step: int) -> None:
        if self._path.exists():
            # A killed run, or a full disk, leaves half a line.
            text = self._path.read_text(errors="replace")
            write_text(self._path, "".join(_up_to(text, step)))

    def append(self, line: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)

    def flush(self) -> None:
        pass


class _InStore:
    """Lines that are kept, since an object cannot be appended to."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._lines: list[str] = []
        self._written, self._written_at = 0, 0.0

    def drop_later(self, step: int) -> None:
        if self._path.exists():
            self._lines = _up_to(self._path.read_text(errors="replace"), step)
            self._written = -1  # it may have fewer lines now
            self.flush()

    def append(self, line: str) -> None:
        self._lines.append(line)
        if time.monotonic() - self._written_at > SECONDS_BETWEEN_WRITES:
            self.flush()

    def flush(self) -> None:
        if len(self._lines) != self._written:
            write_text(self._path, "".join(self._lines))
            self._written, self._written_at = len(self._lines), time.monotonic()


def _up_to(text: str, step: int) -> list[str]:
    """The whole lines of a text up to a step."""
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("}\n")]
    return [line for line in whole if json.loads(line)["step"] <= step]
