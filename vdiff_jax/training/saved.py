"""What a folder of checkpoints has, by its names alone.

Needs neither JAX nor Orbax, for who only looks.
"""

import pathlib

# In the folder of a run.
CHECKPOINTS, RESULT = "checkpoints", "result.json"


def steps(folder: pathlib.Path) -> list[int]:
    """The steps of the whole checkpoints in a folder, in order."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def latest_step(folder: pathlib.Path, at_most: int | None = None) -> int | None:
    """The step of the newest whole checkpoint, up to a step, or None."""
    candidates = [step for step in steps(folder) if at_most is None or step <= at_most]
    return max(candidates, default=None)
