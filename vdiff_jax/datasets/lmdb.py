"""Images in an LMDB, in one of two layouts.

Ours, which is that of many PyTorch projects too:

    length           the number of images, in decimal
    {size}-{i:05d}   image i at that size: a PNG, JPEG or WebP file
    labels           int32, little-endian: the class of each image; may be absent
    meta             JSON: "sizes", "classes", "names"; may be absent

`python -m vdiff_jax.datasets.prepare` writes all four. And that of LSUN, whose keys are
hashes and whose values are WebP or JPEG files of any size; `keyed_lmdb` reads it.
"""

import contextlib
import functools
import json
import pathlib
from typing import Any

import numpy as np

from vdiff_jax.datasets.images import Files
from vdiff_jax.datasets.keyed_lmdb import KeyedLmdb
from vdiff_jax.datasets.lmdb_file import LmdbFile
from vdiff_jax.datasets.names import from_bytes, to_bytes

# No text of JSON can have this in it, for there a quotation mark is escaped.
_NAMES = b', "names": ['
_GLANCE_BYTES = 2**20


def open_lmdb(path: pathlib.Path, size: int) -> Files:
    """The images of an LMDB of either layout.

    Args:
      path: The LMDB.
      size: Of the sizes in an LMDB of our layout, the one to read.

    Raises:
      ValueError: If there is no LMDB at `path`, or none of these layouts and this size.
    """
    keyed = KeyedLmdb.open(path)
    return Lmdb(path, size) if keyed is None else keyed


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
        self._file, self._size = LmdbFile(path), size
        length = self._file.get(b"length")
        if length is None or not length.isdigit():
            raise ValueError(
                f"{path} is an LMDB of another layout: its key 'length' is"
                f" {length!r} (docs/data.md has the layout)."
            )
        self._length = int(length)
        meta = self._meta()
        if not self._length or self._file.get(self._key(0)) is None:
            raise ValueError(
                f"{path} has no image {image_key(size, 0)!r}: it holds {self._length}"
                f" images of sizes {meta.get('sizes', 'it does not list')}, and"
                f" data.image_size is {size}."
            )
        labels = self._file.get(b"labels")
        if labels is not None and len(labels) != 4 * self._length:
            raise ValueError(
                f"{path} has {self._length} images and {len(labels) / 4:g} labels."
            )
        self.labels = None if labels is None else np.frombuffer(labels, "<i4")
        self.classes = tuple(meta["classes"]) if "classes" in meta else None

    def _meta(self, *, names: bool = False) -> dict[str, Any]:
        """The facts on all images, their names only if these are asked for."""
        if not names:
            # A million names come to 50 MB; `prepare` writes them last.
            start = self._file.get(b"meta", _GLANCE_BYTES) or b""
            with contextlib.suppress(ValueError):
                meta = json.loads(start.partition(_NAMES)[0] + b"}")
                if meta.keys() >= {"sizes", "classes"}:
                    return meta
        try:
            meta = json.loads(self._file.get(b"meta") or b"{}")
        except ValueError as error:
            path = self._file.path
            raise ValueError(f"{path}: its key 'meta' is no JSON ({error}).") from error
        return meta if isinstance(meta, dict) else {}

    @functools.cached_property
    def _names(self) -> np.ndarray | None:
        names = self._meta(names=True).get("names")
        return names and np.array([to_bytes(name) for name in names])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the path only: another process opens the LMDB anew."""
        return Lmdb, (self._file.path, self._size)

    def __len__(self) -> int:
        """Number of images."""
        return self._length

    def read(self, index: int) -> tuple[bytes, int | None]:
        """An image and its label."""
        data = self._file.get(self._key(index))
        if data is None:
            key = image_key(self._size, index)
            raise ValueError(f"{self._file.path} has no key {key!r}")
        return data, None if self.labels is None else int(self.labels[index])

    def name(self, index: int) -> str:
        """The name of the file that an image was prepared from, or its number."""
        if self._names is None:
            return f"example {index}"
        return from_bytes(bytes(self._names[index]))

    def _key(self, index: int) -> bytes:
        return image_key(self._size, index).encode()


def image_key(size: int, index: int) -> str:
    """The key of an image."""
    return f"{size}-{index:05d}"
