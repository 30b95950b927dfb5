"""Arrays of images or latents in .npz and .npy files, mapped into memory.

    images, latents or arr_0   uint8 or floats, [examples, height, width, channels]
    labels or arr_1            integers, [examples]; may be absent
    classes, names             bytes, UTF-8; may be absent

Pickled objects are never read.
"""

import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vdiff_jax.datasets.names import from_bytes
from vdiff_jax.datasets.source import Arrays, Example

# What NumPy and the standard library raise for files that are damaged, encrypted or
# compressed in an unknown way.
_UNREADABLE = (
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
_IMAGES, _LABELS = ("images", "latents", "arr_0"), ("labels", "arr_1")


class Npz:
    """The examples of an .npz or .npy file.

    Attributes:
      labels: int32, or None.
      classes: Names of the classes, or None if the file has none.
      needs_workers: False: reading is copying.
    """

    needs_workers = False

    def __init__(self, path: pathlib.Path):
        """Maps the file; nothing but its labels is read, unless it is compressed.

        Raises:
          ValueError: If it is not such a file; the message lists its arrays.
        """
        try:
            arrays = _map_npy(path) if path.suffix == ".npy" else _map_npz(path)
        except FileNotFoundError:
            raise ValueError(f"There is no file {path}.") from None
        except _UNREADABLE as error:
            raise ValueError(f"{path} cannot be read as arrays ({error}).") from error
        images, labels = _first(arrays, _IMAGES), _first(arrays, _LABELS)
        if images is None or images.ndim != 4 or not len(images):
            shapes = {name: array.shape for name, array in arrays.items()}
            raise ValueError(
                f"{path} needs an array {' or '.join(_IMAGES)} of shape [examples,"
                f" height, width, channels]; it has {shapes}."
            )
        if labels is not None and (
            labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"
        ):
            raise ValueError(
                f"{path}: labels must be one integer for each of the {len(images)}"
                f" examples, but are {labels.dtype} of shape {labels.shape}."
            )
        self._path = path
        self.labels = None if labels is None else labels.astype(np.int32)
        self._arrays = Arrays(images, self.labels)
        classes = arrays.get("classes")
        self.classes = None if classes is None else tuple(map(_text, classes))
        self._names = arrays.get("names")

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._arrays)

    def __getitem__(self, index: int) -> Example:
        """One example."""
        return self._arrays[index]

    def __getitems__(self, indices: Sequence[int]) -> Example:
        """Many examples, stacked."""
        return self._arrays.__getitems__(indices)

    def name(self, index: int) -> str:
        """The name of the file that an example was prepared from, or its number."""
        if self._names is None:
            return f"example {index}"
        return _text(self._names[index])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the path only: another process maps the file anew."""
        return Npz, (self._path,)


def _text(name: Any) -> str:
    return from_bytes(bytes(name)) if isinstance(name, bytes) else str(name)


def _first(arrays: dict[str, np.ndarray], names: Sequence[str]) -> np.ndarray | None:
    return next((arrays[name] for name in names if name in arrays), None)


def _map_npy(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The array of an .npy file, and labels from <name>_labels.npy if it is there."""
    arrays = {"images": np.load(path, mmap_mode="r", allow_pickle=False)}
    labels = path.with_name(f"{path.stem}_labels.npy")
    if labels.is_file():
        arrays["labels"] = np.load(labels, allow_pickle=False)
    return arrays


def _map_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, mapped where they are stored uncompressed.

    `np.load` reads the members of an .npz whole, whatever its `mmap_mode`.
    """
    arrays = {}
    with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as loaded:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            name = member.filename.removesuffix(".npy")
            large = member.file_size > 2**20
            if large and member.compress_type == zipfile.ZIP_STORED:
                arrays[name] = _map_member(path, member)
            else:
                arrays[name] = loaded[name]
    return arrays


def _map_member(path: pathlib.Path, member: zipfile.ZipInfo) -> np.ndarray:
    with path.open("rb") as file:
        # The local header repeats the name and has an extra field of its own length.
        file.seek(member.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", file.read(4))
        file.seek(name_length + extra_length, os.SEEK_CUR)
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError(f"array {member.filename} holds Python objects")
        order = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", file.tell(), shape, order)
