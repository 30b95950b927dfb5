"""Arrays that may be larger than memory, for the time of a computation."""

import os
import pathlib
import sys
import tempfile

import numpy as np

from vdiff_jax.files.cache import cache

# What is smaller is held in memory.
FROM_BYTES = 2**28


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array to be written: in memory or, if it is large, mapped from a file.

    The file has no name, and is gone with the array or the process; it lies in
    `scratch` in the user's folder (`files.cache`). The system takes the memory of
    a mapped file back when it needs it. Where there is no room for such a file, the
    array is in memory, and a line on stderr tells so.

    Args:
      shape: Its shape.
      dtype: Its type.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size < FROM_BYTES:
        return np.empty(shape, dtype)
    try:
        return _mapped(cache() / "scratch", shape, dtype, size)
    except (OSError, RuntimeError) as error:
        print(
            f"{size / 2**30:.1f} GiB are held in memory, for there is no room on a disk"
            f" ({error}); VDIFF_JAX_CACHE names a folder with room.",
            file=sys.stderr,
        )
        return np.empty(shape, dtype)


def _mapped(
    folder: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype, size: int
) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        # A write to a page for which there is no room would kill the process.
        os.posix_fallocate(file.fileno(), 0, size)
        # Not as a memmap, whose copies would be memmaps too.
        return np.asarray(np.memmap(file, dtype, "r+", shape=shape))
