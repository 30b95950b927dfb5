"""What a folder of checkpoints has, by its names alone.

Needs neither JAX nor Orbax, for who only looks.
"""

import pathlib

from vdiff_jax.files.place import COMMITTED, is_in_store

# In the folder of a run.
CHECKPOINTS, RESULT = "checkpoints", "result.json"


def steps(folder: pathlib.Path) -> list[int]:
    """The steps of the whole checkpoints in a folder, in order."""
    if not folder.is_dir():
        return []
    numbered = [path for path in folder.iterdir() if path.name.isdigit()]
    if is_in_store(folder):
        numbered = [path for path in numbered if (path / COMMITTED).is_file()]
    return sorted(int(path.name) for path in numbered)


def latest_step(folder: pathlib.Path, at_most: int | None = None) -> int | None:
    """The step of the newest whole checkpoint, up to a step, or None."""
    candidates = [step for step in steps(folder) if at_most is None or step <= at_most]
    return max(candidates, default=None)
