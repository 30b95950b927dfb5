"""A plain name for any path, for libraries that take a path for more than its bytes.

Orbax 0.12 looks for the parts of a checkpoint with a glob below a path that it does not
escape: in `run[1]` it finds none, and leaves a checkpoint without arrays. TensorStore
takes every path for UTF-8: under an 8-bit locale it writes beside a folder whose name
is not ASCII. Both go through a link with a plain name.
"""

import contextlib
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

from vdiff_jax.files import orbax_stores
from vdiff_jax.files.place import StorePath

PLAIN = re.compile(r"[A-Za-z0-9_./+=@,-]+")


@contextlib.contextmanager
def plain(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields an absolute path of plain characters that leads to a folder.

    It is the folder's own, or that of a link to it in the folder for temporary files,
    which is removed at the end. A place in an object store is plain already.

    Args:
      folder: A folder; what a link leads to need not be there yet.

    Raises:
      ValueError: If the folder for temporary files has no plain name either.
    """
    if isinstance(folder, StorePath):
        orbax_stores.teach()
        yield folder
        return
    folder = folder.resolve()
    if PLAIN.fullmatch(str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="vdiff_jax-") as scratch:
        if not PLAIN.fullmatch(scratch):
            raise ValueError(
                f"A checkpoint in {str(folder)!r} needs a folder for temporary files"
                f" with a plain name, and that is {scratch!r}: set TMPDIR to one of"
                " letters and digits."
            )
        link = pathlib.Path(scratch) / "folder"
        os.symlink(folder, link, target_is_directory=True)
        yield link
