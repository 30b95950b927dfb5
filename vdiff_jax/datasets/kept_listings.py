"""Listings of large folders, kept so that a later start need not list them again.

To list a million files takes seconds on a disk and minutes on a network. What came of
it is an .npz file in the user's folder (`files.cache`), which is taken if each of
the folders, and each file that was read beside the images, still has the inode, the
size and the times that it had: those of a folder change when an entry of it comes or
goes. What changed within two seconds before it was listed may change again in the same
tick of a clock, and is not kept. Neither is what a program mounts (FUSE), for some of
these, of object stores, know no times; nor are small folders, which are listed as
quickly.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from vdiff_jax.datasets.array_files import check_whole, map_arrays
from vdiff_jax.datasets.names import from_bytes, to_bytes
from vdiff_jax.files.cache import cache

LEAST_IMAGES = 5000
SETTLED_NS = 2 * 10**9
MOUNTS = pathlib.Path("/proc/self/mountinfo")
# To be raised when the same files are to give another listing.
_FORM = 1

Facts = tuple[int, int, int, int]


def facts_of(path: bytes | str) -> Facts:
    """Inode, size and the two times, in ns, of a file or folder; zeros for none."""
    try:
        return _facts(os.stat(path))
    except OSError:
        return 0, 0, 0, 0


def _facts(stat: os.stat_result) -> Facts:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


class Trail:
    """The folders and files that a listing depends on, as they were before it."""

    def __init__(self) -> None:
        """Begins with none."""
        self._facts: dict[bytes, Facts] = {}
        self._devices: set[int] = set()
        self._is_sure = True
        self._began = time.time_ns()

    def folder(self, below: bytes, stat: os.stat_result) -> None:
        """Adds a folder, by its path below the one that is listed."""
        self._facts[below] = _facts(stat)
        self._devices.add(stat.st_dev)

    def file(self, below: bytes, root: bytes) -> None:
        """Adds a file that is about to be read; it need not be there."""
        self._facts[below] = facts_of(os.path.join(root, below))

    def doubt(self) -> None:
        """Takes in that the listing depends on something else as well."""
        self._is_sure = False

    @property
    def can_be_kept(self) -> bool:
        """True if every later change will show."""
        if not self._is_sure or self._devices & _mounted_by_programs():
            return False
        latest = max(time for facts in self._facts.values() for time in facts[2:])
        return latest < self._began - SETTLED_NS

    def arrays(self) -> dict[str, np.ndarray]:
        """Paths and facts, to be kept."""
        facts = _as_array(self._facts.values())
        return {"paths": np.array(list(self._facts)), "facts": facts}


def _mounted_by_programs() -> set[int]:
    """The devices of file systems in user space, as far as the system tells."""
    try:
        lines = MOUNTS.read_bytes().splitlines()
    except OSError:
        return set()
    devices = set()
    for line in lines:
        before, _, after = line.partition(b" - ")
        if after.startswith(b"fuse"):
            major, minor = before.split()[2].split(b":")
            devices.add(os.makedev(int(major), int(minor)))
    return devices


class Listed(NamedTuple):
    """What is known of a folder of images.

    Attributes:
      names: Bytes, [images]: their paths below the folder, in order.
      classes: Names of the classes; () for none.
      labels: int32, [images]; None without classes.
      unread: Lines on what lies there and is not read.
    """

    names: np.ndarray
    classes: tuple[str, ...]
    labels: np.ndarray | None
    unread: list[str]


@dataclasses.dataclass(frozen=True)
class KeptFile:
    """A file with a listing, as it was when it was opened.

    Attributes:
      path: The file.
      facts: By which it is known; another listing has another inode.
    """

    path: pathlib.Path
    facts: Facts

    @property
    def is_there(self) -> bool:
        """True if the file is still the same."""
        return facts_of(str(self.path)) == self.facts

    def listed(self) -> Listed:
        """The listing, whose arrays are mapped: processes share their memory.

        Raises:
          ValueError: If another file has taken its place, or it cannot be read.
        """
        arrays = map_arrays(self.path)
        if not self.is_there or {"names", "classes", "unread"} - arrays.keys():
            raise ValueError(f"{self.path} is not the listing that was opened.")
        classes, unread = (
            [from_bytes(bytes(text)) for text in arrays[name]]
            for name in ("classes", "unread")
        )
        # Not as a memmap, whose copies would be memmaps too.
        labels = arrays.get("labels")
        labels = None if labels is None else np.asarray(labels)
        return Listed(np.asarray(arrays["names"]), tuple(classes), labels, unread)


def kept(
    root: pathlib.Path, list_anew: Callable[[Trail], Listed]
) -> tuple[Listed, KeptFile | None]:
    """The listing of a folder, from before if it still fits, and the file it is in.

    Args:
      root: The folder, on this machine.
      list_anew: Lists it, and adds to the trail all that it looks at.
    """
    path = _path(root)
    if path is not None and (fitting := _fitting(path, root)):
        return fitting
    trail = Trail()
    listed = list_anew(trail)
    if path is None or len(listed.names) < LEAST_IMAGES or not trail.can_be_kept:
        return listed, None
    with contextlib.suppress(OSError):  # it is full, or may not be written
        _write(path, listed, trail)
    return _fitting(path, root) or (listed, None)


def _path(root: pathlib.Path) -> pathlib.Path | None:
    """Where the listing of a folder is kept; None for a user without a home."""
    # The lines on what is not read have the name by which it was asked for.
    key = b"\0".join(
        [b"%d" % _FORM, os.fsencode(root), os.path.realpath(os.fsencode(root))]
    )
    try:
        return cache() / "listings" / f"{hashlib.sha256(key).hexdigest()[:24]}.npz"
    except RuntimeError:
        return None


def _fitting(path: pathlib.Path, root: pathlib.Path) -> tuple[Listed, KeptFile] | None:
    """The listing of a folder and its file, if that is whole and still fits."""
    file = KeptFile(path, facts_of(str(path)))
    if not any(file.facts):
        return None
    try:
        check_whole(path)
        arrays = map_arrays(path)
        below, top = arrays["paths"], os.fsencode(root)
        now = [facts_of(os.path.join(top, bytes(each))) for each in below]
        if not np.array_equal(_as_array(now), arrays["facts"]):
            return None
        return file.listed(), file
    except (KeyError, ValueError):
        return None


def _as_array(facts: Iterable[Facts]) -> np.ndarray:
    return np.array([[value % 2**64 for value in each] for each in facts], "u8")


def _write(path: pathlib.Path, listed: Listed, trail: Trail) -> None:
    arrays: dict[str, Any] = {**trail.arrays(), "names": listed.names}
    for name, texts in (("classes", listed.classes), ("unread", listed.unread)):
        arrays[name] = np.array([to_bytes(text) for text in texts], "S")
    if listed.labels is not None:
        arrays["labels"] = listed.labels
    path.parent.mkdir(parents=True, exist_ok=True)
    # A place of its own for each process that lists the same folder now.
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        half = pathlib.Path(scratch) / path.name
        with half.open("wb") as file:
            np.savez(file, **arrays)
        half.replace(path)
