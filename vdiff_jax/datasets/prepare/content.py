"""By what `prepare` knows that its input is what it was, without reading all of it."""

import errno
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from vdiff_jax.datasets.names import to_bytes

# Of a file that is longer than three of them, three are taken.
_SAMPLE_BYTES = 4096

# All others may be of a disk or a network that went away, and with it all files.
_OF_ONE_FILE = {
    None,  # not of the system: a decoder's
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
}


def is_of_one_file(error: OSError | ValueError) -> bool:
    """True for an error in reading that leaves the files beside it readable."""
    return isinstance(error, ValueError) or error.errno in _OF_ONE_FILE


class Stamp(NamedTuple):
    """Sizes and times of files: where they are equal, nothing has changed.

    Attributes:
      sha256: Hash of them all.
      latest: Name of the file that was changed last.
    """

    sha256: str
    latest: str


def stamp_of_files(root: bytes, names: Sequence[str]) -> Stamp:
    """The sizes and times of files below a folder."""
    digest, latest, last = hashlib.sha256(), -1, ""
    for name in names:
        try:
            facts = os.stat(os.path.join(root, to_bytes(name)))
            size, time = facts.st_size, facts.st_mtime_ns
        except OSError:
            size, time = -1, -1
        digest.update(to_bytes(name) + f"\0{size} {time}\n".encode())
        if time > latest:
            latest, last = time, name
    return Stamp(digest.hexdigest(), last)


def stamp_of_archive(path: pathlib.Path) -> Stamp:
    """The size and time of an archive."""
    facts = path.stat()
    text = f"{facts.st_size} {facts.st_mtime_ns}"
    return Stamp(hashlib.sha256(text.encode()).hexdigest(), path.name)


def sample_of_bytes(data: bytes) -> bytes:
    """The length of a file, and its beginning, middle and end."""
    return _sample(len(data), lambda start, count: data[start : start + count])


def sample_of_file(path: bytes | pathlib.Path) -> bytes:
    """The same of a file on disk, of which nothing else is read.

    Raises:
      OSError: If it cannot be read.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(file).st_size
        return _sample(size, lambda start, count: os.pread(file, count, start))
    finally:
        os.close(file)


def _sample(size: int, read: Callable[[int, int], bytes]) -> bytes:
    if size <= 3 * _SAMPLE_BYTES:
        parts = [read(0, size)]
    else:
        starts = (0, (size - _SAMPLE_BYTES) // 2, size - _SAMPLE_BYTES)
        parts = [read(start, _SAMPLE_BYTES) for start in starts]
    return f"{size} ".encode() + b"".join(parts)


def extended(chain: str, names: Iterable[str], identity: Callable[[str], bytes]) -> str:
    """The hash of the content of some files and of those that came before them.

    Args:
      chain: The hash of those before; "" for none.
      names: Names of the files.
      identity: Gives the part of a file's content that is hashed; an error of the file
        stands for a file that cannot be read.

    Returns:
      64 hexadecimal digits.

    Raises:
      OSError: If it is not of one file.
    """
    for name in names:
        try:
            content = identity(name)
        except (OSError, ValueError) as error:
            if not is_of_one_file(error):
                raise
            content = b"cannot be read"
        of_file = hashlib.sha256(content).digest()
        chain = hashlib.sha256(chain.encode() + to_bytes(name) + of_file).hexdigest()
    return chain
