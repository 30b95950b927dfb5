"""Locks by which a second process sees that a first is at the same work."""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
import sys
from collections.abc import Iterator
from typing import IO

from vdiff_jax.files import lease
from vdiff_jax.files.place import StorePath


class HeldError(ValueError):
    """An error of a lock that another process holds.

    Attributes:
      holder: The host and the process.
    """

    def __init__(self, path: pathlib.Path, holder: str):
        """Names the lock and its holder.

        Args:
          path: The file of the lock.
          holder: The host and the process.
        """
        super().__init__(f"{path} is held by another process ({holder}).")
        self.holder = holder


class Lock:
    """A lock that this process holds until it ends, however it ends.

    The system holds it (flock), not the file, which only names the holder.
    """

    def __init__(self, file: IO[str], path: pathlib.Path):
        """Keeps its parts.

        Args:
          file: The open file.
          path: The name that it had when it was opened.
        """
        self._file, self._path = file, path

    def keeps_others_out(self) -> bool:
        """False once the file is gone or another, on which others find no lock."""
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return False
        own = os.fstat(self._file.fileno())
        return (status.st_dev, status.st_ino) == (own.st_dev, own.st_ino)


@contextlib.contextmanager
def lock(path: pathlib.Path, *, remove: bool = False) -> Iterator[Lock | lease.Lease]:
    """Holds a lock.

    Args:
      path: Its file, made if it is not there, and the folders above it; in an object
        store, its lease, which is removed in the end.
      remove: Remove the file in the end.

    Raises:
      HeldError: If another process holds it.
      OSError: If the file cannot be written.
    """
    if isinstance(path, StorePath):
        with lease.lease(path) as taken:
            if isinstance(taken, str):
                raise HeldError(path, taken)
            yield taken
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a+", encoding="utf-8", errors="replace") as file:
            _take(file, path)
            held = Lock(file, path)
            if not held.keeps_others_out():  # its last holder has just removed it
                continue
            try:
                yield held
            finally:
                if remove and held.keeps_others_out():
                    path.unlink()
            return


def _take(file: IO[str], path: pathlib.Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise HeldError(path, file.read().strip() or "it has not yet a name") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        print(
            f"{path} is on a file system without locks: nothing keeps a second process"
            " out.",
            file=sys.stderr,
        )
    file.truncate(0)
    file.write(f"host {socket.gethostname()}, pid {os.getpid()}\n")
    file.flush()
