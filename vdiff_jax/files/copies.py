"""Copies on this machine of what is in object stores, for libraries without them."""

import contextlib
import hashlib
import pathlib
import tempfile
from collections.abc import Iterator

from vdiff_jax.files.cache import cache
from vdiff_jax.files.place import StorePath


@contextlib.contextmanager
def on_this_machine(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path of this machine with the content of a file or a folder.

    It is the path itself, or that of a copy, which is removed at the end.

    Args:
      path: What libraries read that know nothing of stores.
    """
    if not isinstance(path, StorePath):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="vdiff_jax-") as scratch:
        copy = pathlib.Path(scratch) / path.name
        path.download(copy)
        yield copy


def kept_on_this_machine(path: pathlib.Path) -> pathlib.Path:
    """The path itself, or a copy that stays for other processes.

    What has changed is copied anew.

    Args:
      path: A file or a folder; what is not there is returned as it is.
    """
    if not isinstance(path, StorePath) or not path.exists():
        return path
    key = hashlib.sha256(f"{path} {path.version()}".encode()).hexdigest()[:24]
    copy = cache() / "objects" / key / path.name
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=copy.parent) as scratch:
            half = pathlib.Path(scratch) / path.name
            path.download(half)
            try:
                half.replace(copy)
            except OSError:
                if not copy.exists():  # else another process has just made it
                    raise
    return copy
