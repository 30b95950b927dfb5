"""Files and folders that are there whole or not at all."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path to write to, which replaces `path` when all is well.

    A reader sees the old file or the new one, never half. The writer may leave a file
    or a folder there; after an error it is removed, and `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.half")
    remove(half)
    try:
        yield half
        if half.is_dir():
            remove(path)
        half.replace(path)
    except BaseException:
        remove(half)
        raise


def write_json(path: pathlib.Path, value: Any) -> None:
    """Replaces a file by JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Replaces a file by text, as UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Replaces a file by bytes, which are on the disk when this returns."""
    with replacing(path) as half, half.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def remove(path: pathlib.Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
