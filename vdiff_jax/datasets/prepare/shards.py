"""Output of `prepare` for latents: a folder of .npz files for each size (npz.py)."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vdiff_jax.datasets.contexts import Table
from vdiff_jax.datasets.names import to_bytes, unmirrored
from vdiff_jax.datasets.npz import CONTEXTS, shard_name
from vdiff_jax.datasets.prepare.given_contexts import write_contexts
from vdiff_jax.datasets.prepare.npz_file import Stream, stream_of_file, write_npz


class ContextsOfSplit(NamedTuple):
    """The contexts of the images of a split.

    Attributes:
      table: The contexts.
      row: The row of each image, by its name.
    """

    table: Table
    row: Mapping[str, int]


class ShardWriter:
    """A writer of latents by number; the same number again replaces one."""

    def __init__(
        self,
        folder: pathlib.Path,
        sizes: Sequence[int],
        *,
        channels: int,
        dtype: np.dtype,
        shard_bytes: int,
        contexts: ContextsOfSplit | None = None,
    ):
        """Makes a folder for each size.

        Args:
          folder: The folder around them.
          sizes: Height and width of each of an image's latents.
          channels: Channels of them all.
          dtype: Type of the latents.
          shard_bytes: The most bytes of latents in a file; at least one is in each.
          contexts: Those of the images, or None.
        """
        self._folders = [folder / str(size) for size in sizes]
        self._shapes = [(size, size, channels) for size in sizes]
        self._dtype, self._contexts = dtype, contexts
        self._counts = [
            max(shard_bytes // (math.prod(shape) * dtype.itemsize), 1)
            for shape in self._shapes
        ]
        for each in self._folders:
            each.mkdir(parents=True, exist_ok=True)

    def write(self, first: int, images: Sequence[tuple[bytes, ...]]) -> None:
        """Writes latents number `first` and on, each at all sizes."""
        for k, count in enumerate(self._counts):
            latents = [of_sizes[k] for of_sizes in images]
            while latents:
                shard, row = divmod(first + len(images) - len(latents), count)
                some = latents[: count - row]
                latents = latents[len(some) :]
                path = self._raw(k, shard)
                path.touch()
                with path.open("r+b") as file:
                    file.seek(row * len(some[0]))
                    file.write(b"".join(some))

    def finish(
        self, names: Sequence[str], labels: np.ndarray | None, classes: Sequence[str]
    ) -> None:
        """Makes the files, of which an earlier run may have made some.

        Args:
          names: Name of each image, mirrored copies among them.
          labels: int32, the class of each image; None without classes.
          classes: Names of the classes.
        """
        of_all = {"names": np.array([to_bytes(name) for name in names])}
        if labels is not None:
            of_all["labels"] = labels.astype(np.int32)
        if self._contexts is not None:
            rows = [self._contexts.row[unmirrored(name)] for name in names]
            used, context = np.unique(rows, return_inverse=True)
            of_all["context"] = context.astype(np.int32)
            for folder in self._folders:
                write_contexts(folder / CONTEXTS, self._contexts.table, used)
        of_each = {"classes": np.array([to_bytes(name) for name in classes], "S")}
        for k, count in enumerate(self._counts):
            for shard in range(math.ceil(len(names) / count)):
                rows = slice(shard * count, (shard + 1) * count)
                arrays = {name: values[rows] for name, values in of_all.items()}
                self._finish(k, shard, {**arrays, **of_each})

    def close(self) -> None:
        """Does nothing: no file is open between two calls."""

    def _raw(self, k: int, shard: int) -> pathlib.Path:
        """The bare values of a shard, until there are all."""
        return (self._folders[k] / shard_name(shard)).with_suffix(".raw")

    def _finish(self, k: int, shard: int, arrays: Mapping[str, np.ndarray]) -> None:
        raw, path = self._raw(k, shard), self._folders[k] / shard_name(shard)
        if path.exists() and not raw.exists():
            return
        shape = (len(arrays["names"]), *self._shapes[k])
        with raw.open("rb") as file:
            latents: Stream = stream_of_file(file, shape, self._dtype)
            write_npz(path, {"latents": latents, **arrays})
        raw.unlink()  # so that one shard at most is there twice
