"""The lines of metrics.jsonl, for who only looks at the last of them."""

import json
import pathlib
from typing import Any

METRICS = "metrics.jsonl"
# Before the names of metrics of held-out data.
HELD_OUT = "held_out_"
# Some thousand lines; a long run has megabytes.
_MOST_BYTES = 2**18


def last_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The last whole lines of a file, in order; none if it is not there.

    Raises:
      OSError: If it is there and cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = max(0, path.stat().st_size - _MOST_BYTES)
            file.seek(start)
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    whole = [line for line in lines[1 if start else 0 :] if line.endswith(b"}\n")]
    return [json.loads(line) for line in whole]
