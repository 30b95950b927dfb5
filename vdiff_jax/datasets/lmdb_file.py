"""An LMDB that is read and never written, by any number of processes."""

import functools
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import lmdb


class LmdbFile:
    """The values of an LMDB by their keys.

    Attributes:
      path: The LMDB: a folder with data.mdb, or a file of that form.
    """

    def __init__(self, path: pathlib.Path):
        """Opens it.

        Raises:
          ValueError: If there is no LMDB at `path`, or none that can be read.
        """
        self.path = path.resolve()
        _environment(self.path, os.getpid())

    def get(self, key: bytes, most: int | None = None) -> bytes | None:
        """The value of a key; None if it is not there.

        Args:
          key: The key.
          most: Bytes of it to read, from its beginning; None for all.

        Raises:
          ValueError: If the LMDB is damaged there.
        """
        try:
            environment = _environment(self.path, os.getpid())
            with environment.begin(buffers=True) as transaction:
                value = transaction.get(key)
                return None if value is None else bytes(value[:most])
        except lmdb.Error as error:
            raise ValueError(f"{self.path} is damaged ({error})") from error

    def __len__(self) -> int:
        """Number of keys."""
        return _environment(self.path, os.getpid()).stat()["entries"]

    def __iter__(self) -> Iterator[bytes]:
        """Yields all keys in the order of their bytes; no value is read.

        Raises:
          ValueError: If the LMDB is damaged.
        """
        try:
            with _environment(self.path, os.getpid()).begin() as transaction:
                yield from transaction.cursor().iternext(keys=True, values=False)
        except lmdb.Error as error:
            raise ValueError(f"{self.path} is damaged ({error})") from error


def is_lmdb(path: pathlib.Path) -> bool:
    """True for a folder with data.mdb in it."""
    return (path / "data.mdb").is_file()


@functools.cache
def _environment(path: pathlib.Path, process: int) -> Any:
    """The open LMDB: one for all of a process, and never one from before a fork."""
    del process
    file = path / "data.mdb" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"There is no LMDB at {path} (a folder with data.mdb).")
    try:
        # Random reads from a file that nobody writes: no locks, no read-ahead.
        env = lmdb.open(
            str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False
        )
    except lmdb.Error as error:
        raise ValueError(f"{path} cannot be read as an LMDB ({error})") from error
    whole = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if file.stat().st_size < whole:  # reading beyond the end would kill the process
        env.close()
        raise ValueError(
            f"{file} is cut off: it has {file.stat().st_size:,} of {whole:,} bytes."
        )
    return env
