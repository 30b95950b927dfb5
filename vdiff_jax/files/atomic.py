"""Files and folders that are there whole or not at all.

In an object store an object is whole or not there. A folder takes the place of another
object by object: what marks it as a result goes first and comes last.
"""

import contextlib
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from vdiff_jax.files import lease
from vdiff_jax.files.place import StorePath

# What writers of this process have begun: their halves, and where these are to go.
_UNDER_WAY: dict[pathlib.Path, pathlib.Path] = {}


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path to write to, which replaces `path` when all is well.

    A reader sees the old file or the new one, never half. The writer may leave a file
    or a folder there; after an error it is removed, and `path` is unchanged. For a path
    in an object store it lies in the folder for temporary files, until it is whole.
    """
    if isinstance(path, StorePath):
        with _uploaded_to(path) as half:
            yield half
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.half")
    remove(half)
    _UNDER_WAY[half] = path
    try:
        with naming(path):
            yield half
        if half.is_dir():
            _swap(half, path)
        else:
            half.replace(path)
    except BaseException:
        remove(half)
        raise
    finally:
        _UNDER_WAY.pop(half, None)


@contextlib.contextmanager
def _uploaded_to(path: StorePath) -> Iterator[pathlib.Path]:
    """Yields a path of this machine to write to, which goes to a store at the end."""
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="vdiff_jax-"))
    _UNDER_WAY[scratch] = scratch
    try:
        half = scratch / path.name
        with naming(half):  # the disk that may be full is this machine's
            yield half
        lease.check(path)
        if half.is_dir():
            path.rmtree()
        path.upload(half)
    finally:
        remove(scratch)
        _UNDER_WAY.pop(scratch, None)


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Adds a path to what the system says of an error, where no path is: a full disk.

    Args:
      path: What is written.

    Raises:
      OSError: With the path.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def abandon() -> None:
    """Removes what is half written, as of an error, for a process that ends at once."""
    for half, path in list(_UNDER_WAY.items()):
        if not path.exists() and _aside(path).exists():
            _aside(path).rename(path)
        with contextlib.suppress(OSError):
            remove(half)


def _aside(path: pathlib.Path) -> pathlib.Path:
    """Where a folder is while another takes its place."""
    return path.with_name(f".{path.name}.old")


def _swap(half: pathlib.Path, path: pathlib.Path) -> None:
    """Puts a folder in the place of what is there, which to remove may take long."""
    old = _aside(path)
    remove(old)
    if path.exists():
        path.rename(old)
    try:
        half.replace(path)
    except BaseException:
        if old.exists():
            old.rename(path)
        raise
    remove(old)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Replaces a file by JSON; see `to_json`."""
    write_text(path, to_json(value, indent=2) + "\n")


def to_json(value: Any, **style: Any) -> str:
    """A value as JSON, which has no NaN and no infinity: they become null.

    Args:
      value: Dictionaries, lists, texts and numbers.
      **style: As `json.dumps` takes it: indent, sort_keys.

    Raises:
      TypeError: If there is anything else in it that JSON has not.
    """
    try:
        return json.dumps(value, allow_nan=False, **style)
    except ValueError:  # a number that is not finite, or a circle
        return json.dumps(_finite(value), allow_nan=False, **style)


def _finite(value: Any) -> Any:
    """The same value with None for every number that is not finite."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_text(path: pathlib.Path, text: str) -> None:
    """Replaces a file by text, as UTF-8; names of files are the bytes they are."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Replaces a file by bytes, which are on the disk when this returns."""
    if isinstance(path, StorePath):
        lease.check(path)
        path.write_bytes(content)
        return
    with replacing(path) as half, half.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def remove(path: pathlib.Path) -> None:
    """Removes a file, a link or a folder, if it is there."""
    if isinstance(path, StorePath):
        path.rmtree()
        path.unlink(missing_ok=True)
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
