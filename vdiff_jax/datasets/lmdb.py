"""Images in an LMDB, with a layout that other tools read too.

    length           the number of images, in decimal
    {size}-{i:05d}   image i at that size: a PNG, JPEG or WebP file
    labels           int32, little-endian: the class of each image; may be absent
    meta             JSON: "sizes", "classes", "names"; may be absent

`length` and the images are the layout of many PyTorch projects, whose files are read
as they are. `python -m vdiff_jax.datasets.prepare` writes all four.
"""

import functools
import json
import os
import pathlib
from typing import Any

import lmdb
import numpy as np


class Lmdb:
    """The images of one size in an LMDB.

    Attributes:
      labels: int32, or None.
      classes: Names of the classes, or None if the LMDB has none.
    """

    def __init__(self, path: pathlib.Path, size: int):
        """Opens the index; images are read one by one, by `read`.

        Raises:
          ValueError: If there is no LMDB at `path`, or none of this layout and size.
        """
        self._path, self._size = path.resolve(), size
        length = self._get("length")
        if length is None or not length.isdigit():
            raise ValueError(
                f"{path} is an LMDB of another layout: its key 'length' is"
                f" {length!r} (docs/data.md has the layout)."
            )
        self._length = int(length)
        meta = json.loads(self._get("meta") or b"{}")
        if not self._length or self._get(self._key(0)) is None:
            raise ValueError(
                f"{path} has no image {self._key(0)!r}: it holds {self._length}"
                f" images of sizes {meta.get('sizes', 'it does not list')}, and"
                f" data.image_size is {size}."
            )
        labels = self._get("labels")
        self.labels = None if labels is None else np.frombuffer(labels, "<i4")
        if self.labels is not None and len(self.labels) != self._length:
            raise ValueError(
                f"{path} has {self._length} images and {len(self.labels)} labels."
            )
        self.classes = tuple(meta["classes"]) if "classes" in meta else None
        names = meta.get("names")
        self._names = names and np.array([os.fsencode(name) for name in names])

    def __len__(self) -> int:
        """Number of images."""
        return self._length

    def read(self, index: int) -> tuple[bytes, int | None]:
        """An image and its label."""
        data = self._get(self._key(index))
        if data is None:
            raise ValueError(f"{self._path} has no key {self._key(index)!r}")
        return data, None if self.labels is None else int(self.labels[index])

    def name(self, index: int) -> str:
        """The name of the file that an image was prepared from, or its number."""
        if self._names is None:
            return f"example {index}"
        return os.fsdecode(bytes(self._names[index]))

    def _key(self, index: int) -> str:
        return image_key(self._size, index)

    def _get(self, key: str) -> bytes | None:
        try:
            with _environment(self._path, os.getpid()).begin() as transaction:
                return transaction.get(key.encode())
        except lmdb.Error as error:
            raise ValueError(f"{self._path} is damaged ({error})") from error


def image_key(size: int, index: int) -> str:
    """The key of an image."""
    return f"{size}-{index:05d}"


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
