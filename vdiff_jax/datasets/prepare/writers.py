"""Outputs of `prepare`, as lmdb.py and npz.py read them: an LMDB, or .npz files."""

import io
import json
import pathlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import lmdb
import numpy as np
import PIL.Image

from vdiff_jax.datasets.images import Fit, decode
from vdiff_jax.datasets.lmdb import image_key
from vdiff_jax.datasets.names import to_bytes
from vdiff_jax.datasets.prepare.npz_file import stream_of_file, write_npz

FORMATS = ("lmdb", "npz")


def convert(
    files: Sequence[bytes | Exception], fits: Sequence[Fit], as_png: bool
) -> list[tuple[bytes, ...] | str]:
    """Decodes each file and encodes it at each size, in a worker process.

    Args:
      files: The bytes of each file, or the error in reading it.
      fits: One for each size.
      as_png: Encode the results as PNG files, else as bare pixels.

    Returns:
      For each file its images, one for each size, or the reason why it has none.
    """
    return [_convert(data, fits, as_png) for data in files]


def _convert(
    data: bytes | Exception, fits: Sequence[Fit], as_png: bool
) -> tuple[bytes, ...] | str:
    if isinstance(data, Exception):
        return str(data) or type(data).__name__
    try:
        image = decode(data)
        arrays = [fit(image) for fit in fits]
    except ValueError as error:
        return str(error)
    return tuple(_png(array) if as_png else array.tobytes() for array in arrays)


def _png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(
        file, "PNG"
    )
    return file.getvalue()


@runtime_checkable
class Writer(Protocol):
    """A writer of images by number; the same number again replaces an image."""

    def write(self, first: int, images: Sequence[tuple[bytes, ...]]) -> None:
        """Writes images number `first` and on, each at all sizes."""
        ...

    def finish(
        self, names: Sequence[str], labels: np.ndarray | None, classes: Sequence[str]
    ) -> None:
        """Completes the output.

        Args:
          names: Name of each image.
          labels: int32, the class of each image; None without classes.
          classes: Names of the classes.
        """
        ...

    def close(self) -> None:
        """Closes the files."""
        ...


def make_writer(
    format: str, folder: pathlib.Path, sizes: Sequence[int], channels: int
) -> Writer:
    """A writer of one of `FORMATS`, which goes on where an earlier one stopped.

    Args:
      format: One of `FORMATS`.
      folder: The folder to write; made if it is not there.
      sizes: Height and width of each of an image's encodings.
      channels: 1 or 3.

    Raises:
      ValueError: If the format is unknown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if format == "lmdb":
        return LmdbWriter(folder, sizes)
    if format == "npz":
        return NpzWriter(folder, sizes, channels)
    raise ValueError(f"Unknown format {format!r}; choose from {FORMATS}.")


class LmdbWriter:
    """A writer of the layout of lmdb.py."""

    def __init__(
        self, folder: pathlib.Path, sizes: Sequence[int], map_size: int = 2**30
    ):
        """Opens the LMDB, whose map doubles as often as it is full.

        Args:
          folder: Folder of the LMDB.
          sizes: Height and width of each of an image's encodings.
          map_size: Bytes of the map to begin with.
        """
        self._folder, self._sizes = folder, sizes
        # Synchronised once, at the end: what a killed process wrote is not lost.
        self._env = lmdb.open(str(folder), map_size=map_size, sync=False)

    def write(self, first: int, images: Sequence[tuple[bytes, ...]]) -> None:
        """Writes images number `first` and on, each at all sizes."""
        self._put(
            {
                image_key(size, first + i).encode(): data
                for i, of_sizes in enumerate(images)
                for size, data in zip(self._sizes, of_sizes, strict=True)
            }
        )

    def finish(
        self, names: Sequence[str], labels: np.ndarray | None, classes: Sequence[str]
    ) -> None:
        """Writes the number of images, names, classes and labels.

        Args:
          names: Name of each image.
          labels: int32, the class of each image; None without classes.
          classes: Names of the classes.
        """
        meta = {"sizes": list(self._sizes), "classes": list(classes)}
        values = {
            b"length": str(len(names)).encode(),
            b"meta": json.dumps({**meta, "names": list(names)}).encode(),
        }
        if labels is not None:
            values[b"labels"] = labels.astype("<i4").tobytes()
        self._put(values)
        self._env.sync(True)

    def close(self) -> None:
        """Closes the LMDB."""
        self._env.close()
        (self._folder / "lock.mdb").unlink(missing_ok=True)

    def _put(self, values: dict[bytes, bytes]) -> None:
        while True:
            try:
                with self._env.begin(write=True) as transaction:
                    for key, value in values.items():
                        transaction.put(key, value)
                return
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])


class NpzWriter:
    """A writer of the layout of npz.py, uncompressed so that it can be mapped."""

    def __init__(self, folder: pathlib.Path, sizes: Sequence[int], channels: int):
        """Opens a file of bare pixels for each size, until their number is known.

        Args:
          folder: Folder of the files.
          sizes: Height and width of each of an image's encodings.
          channels: 1 or 3.
        """
        self._folder, self._sizes = folder, sizes
        self._shapes = [(size, size, channels) for size in sizes]
        self._files = []
        for size in sizes:
            path = folder / f"{size}.raw"
            path.touch()
            self._files.append(path.open("r+b"))

    def write(self, first: int, images: Sequence[tuple[bytes, ...]]) -> None:
        """Writes images number `first` and on, each at all sizes."""
        for k, (file, shape) in enumerate(zip(self._files, self._shapes, strict=True)):
            file.seek(first * int(np.prod(shape)))
            file.write(b"".join(of_sizes[k] for of_sizes in images))
            file.flush()

    def finish(
        self, names: Sequence[str], labels: np.ndarray | None, classes: Sequence[str]
    ) -> None:
        """Makes the archives of the pixels, names, classes and labels.

        Args:
          names: Name of each image.
          labels: int32, the class of each image; None without classes.
          classes: Names of the classes.
        """
        arrays = {
            "names": np.array([to_bytes(name) for name in names]),
            "classes": np.array([to_bytes(name) for name in classes], "S"),
        }
        if labels is not None:
            arrays["labels"] = labels.astype(np.int32)
        for file, size, shape in zip(
            self._files, self._sizes, self._shapes, strict=True
        ):
            images = stream_of_file(file, (len(names), *shape), np.dtype(np.uint8))
            write_npz(self._folder / f"{size}.npz", {"images": images, **arrays})

    def close(self) -> None:
        """Closes the files of bare pixels; `prepare` removes them in the end."""
        for file in self._files:
            file.close()
