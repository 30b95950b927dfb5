"""The holder of a lock, for who only looks: the lock itself is left alone."""

import json
import os
import pathlib
import re
import socket
import time
from typing import NamedTuple

from vdiff_jax.files import lease
from vdiff_jax.files.place import is_in_store

# As `locks` writes it into the file.
_NAME = re.compile(r"host (\S+), pid (\d+)")
# Where Linux lists the locks that are held, each with the file's inode.
_HELD = pathlib.Path("/proc/locks")


class Holder(NamedTuple):
    """The process that holds a lock, or held it last.

    Attributes:
      host: The name of its host.
      pid: Its number there.
      since: The time at which it took the lock, in seconds since the epoch.
      lives: True if it holds it now; None where that cannot be asked, as on another
        host, of which only the lease in a store is seen to be renewed.
    """

    host: str
    pid: int
    since: float
    lives: bool | None

    def __str__(self) -> str:
        """Its host and number."""
        return f"host {self.host}, pid {self.pid}"


def holder_of(path: pathlib.Path) -> Holder | None:
    """The last holder that the file of a lock names; None if it names none.

    Raises:
      OSError: If the file is there and cannot be read.
    """
    try:
        name, status = path.read_text(errors="replace"), path.stat()
    except FileNotFoundError:
        return None
    if is_in_store(path):
        return _of_lease(name, renewed_at=status.st_mtime)
    match = _NAME.fullmatch(name.strip())
    if match is None:  # in the moment in which it is taken
        return None
    host, pid = match[1], int(match[2])
    lives = _is_held(status.st_ino, pid) if host == socket.gethostname() else None
    return Holder(host, pid, status.st_mtime, lives)


def _of_lease(text: str, renewed_at: float) -> Holder:
    content = json.loads(text)
    lives = None
    if lease.is_dead(content):
        lives = False
    elif time.time() - renewed_at < 2 * content["seconds"]:
        lives = True
    return Holder(content["host"], content["pid"], content["since"], lives)


def _is_held(inode: int, pid: int) -> bool:
    """True if a process of this host holds a lock on a file."""
    try:
        lines = _HELD.read_text().splitlines()
    except OSError:  # a system without such a list
        return _is_there(pid)
    return any(f":{inode} " in line for line in lines)


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True
