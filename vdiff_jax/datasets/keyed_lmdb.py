"""An LMDB whose every value is an image, by any key: LSUN's own layout.

Yu et al. (2015), "LSUN: Construction of a Large-scale Image Dataset using Deep
Learning": one LMDB for each category and split, hash -> WebP file, no labels.
"""

import pathlib
from typing import Optional

import numpy as np

from vdiff_jax.datasets.lmdb_file import LmdbFile
from vdiff_jax.datasets.metadata import is_image
from vdiff_jax.datasets.names import from_bytes

# Keys that are turned into one array at a time, as they are listed.
_BLOCK = 2**16


class KeyedLmdb:
    """The images of an LMDB in the order of their keys.

    The keys are listed once, which reads no image, and kept as bytes of one width: 40
    bytes for each image of LSUN.
    """

    def __init__(self, file: LmdbFile, keys: np.ndarray):
        """Keeps its parts.

        Args:
          file: The LMDB.
          keys: Its keys: bytes, [images].
        """
        self._file, self._keys = file, keys

    @classmethod
    def open(cls, path: pathlib.Path) -> Optional["KeyedLmdb"]:
        """The images of an LMDB of this layout; None for one of another.

        Raises:
          ValueError: If there is no LMDB at `path`, or none that can be read.
        """
        file = LmdbFile(path)
        first = next(iter(file), None)
        if first is None or file.get(b"length") is not None:
            return None
        if not is_image(file.get(first) or b""):
            return None
        return cls(file, _listed(file))

    def __len__(self) -> int:
        """Number of images."""
        return len(self._keys)

    def read(self, index: int) -> tuple[bytes, int | None]:
        """An image; there are no labels."""
        data = self._file.get(bytes(self._keys[index]))
        if data is None:
            raise ValueError(f"{self._file.path} has no key {self.name(index)!r}")
        return data, None

    def name(self, index: int) -> str:
        """The key of an image."""
        return from_bytes(bytes(self._keys[index]))


def _listed(file: LmdbFile) -> np.ndarray:
    blocks, block = [], []
    for key in file:
        block.append(key)
        if len(block) == _BLOCK:
            blocks.append(np.array(block))
            block = []
    return np.concatenate([*blocks, np.array(block, "S")])
