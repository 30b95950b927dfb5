"""Arrays of images or latents in .npz and .npy files, mapped into memory.

    images, latents or arr_0   uint8 or floats, [examples, height, width, channels]
    labels or arr_1            integers, [examples]; may be absent
    classes, names             bytes, UTF-8; may be absent
    context, mask              floats, [examples, tokens, width], and bool, [examples,
                               tokens]; or integers, [examples]: rows of the table in
                               contexts.npz beside the file (contexts.py)

A folder of such files, 00000.npz and on, is one data set. Pickled objects are never
read.
"""

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from vdiff_jax.datasets.array_files import map_arrays
from vdiff_jax.datasets.contexts import Context, Table, table_of
from vdiff_jax.datasets.names import from_bytes
from vdiff_jax.datasets.source import Example

_IMAGES, _LABELS = ("images", "latents", "arr_0"), ("labels", "arr_1")
CONTEXTS = "contexts.npz"


def shard_name(number: int) -> str:
    """The name of a shard, a file with some of a folder's examples."""
    return f"{number:05d}.npz"


def is_sharded(path: pathlib.Path) -> bool:
    """True for a folder of shards."""
    return (path / shard_name(0)).is_file()


class Npz:
    """The examples of an .npz or .npy file, or of a folder of shards.

    Attributes:
      labels: int32, or None.
      classes: Names of the classes, or None if the file has none.
      null_context: The context of an example whose own is left out, or None.
      needs_workers: False: reading is copying.
    """

    needs_workers = False

    def __init__(self, path: pathlib.Path):
        """Maps the files; nothing but labels is read, unless they are compressed.

        Raises:
          ValueError: If it is not such a file, with a list of its arrays; if a shard is
            missing, or is of another kind than the first.
        """
        self._path = path
        self._shards = _open_shards(path) if path.is_dir() else [_Shard(path)]
        first = self._shards[0]
        self._ends = np.cumsum([len(shard.images) for shard in self._shards])
        self.labels: np.ndarray | None = None
        if first.labels is not None:
            each = [shard.labels for shard in self._shards if shard.labels is not None]
            self.labels = each[0] if len(each) == 1 else np.concatenate(each)
        self.classes = first.classes
        table = first.table
        self.null_context: Context | None = None if table is None else table.null

    def __len__(self) -> int:
        """Number of examples."""
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Example:
        """One example."""
        shard, row = self._place(index)
        return shard.take(row)

    def __getitems__(self, indices: Sequence[int]) -> Example:
        """Many examples, stacked."""
        index = np.asarray(indices)
        if len(self._shards) == 1:
            return self._shards[0].take(index)
        number = np.searchsorted(self._ends, index, side="right")
        many: Example = {}
        for k in np.unique(number):
            places = np.flatnonzero(number == k)
            shard = self._shards[k]
            taken = shard.take(index[places] - (self._ends[k] - len(shard.images)))
            for name, values in taken.items():
                if name not in many:
                    shape = (len(index), *values.shape[1:])
                    many[name] = np.empty(shape, values.dtype)
                many[name][places] = values
        return many

    def name(self, index: int) -> str:
        """The name of the file that an example was prepared from, or its number."""
        shard, row = self._place(index)
        return f"example {index}" if shard.names is None else _text(shard.names[row])

    def _place(self, index: int) -> "tuple[_Shard, int]":
        index = range(len(self))[index]
        k = int(np.searchsorted(self._ends, index, side="right"))
        shard = self._shards[k]
        return shard, index - (int(self._ends[k]) - len(shard.images))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the path only: another process maps the files anew."""
        return Npz, (self._path,)


def _open_shards(folder: pathlib.Path) -> "list[_Shard]":
    paths = sorted(x for x in folder.iterdir() if re.fullmatch(r"\d{5}\.npz", x.name))
    for number, path in enumerate(paths):
        if path.name != shard_name(number):
            raise ValueError(
                f"{folder} lacks {shard_name(number)}, one of the shards up to"
                f" {paths[-1].name}: copy it again."
            )
    if not paths:
        raise ValueError(f"{folder} has no {shard_name(0)}, the first of its shards.")
    first = _Shard(paths[0])
    shards = [first, *(_Shard(path, first.table) for path in paths[1:])]
    for path, shard in zip(paths, shards, strict=True):
        if shard.kind != first.kind:
            raise ValueError(
                f"{path} has {shard.kind}, but {paths[0].name} beside it {first.kind}:"
                " all shards must be of one kind."
            )
    return shards


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What all shards of a data set have in common."""

    shape: tuple[int, ...]
    dtype: str
    has_labels: bool
    classes: tuple[str, ...] | None
    context_shape: tuple[int, int] | None


class _Shard:
    """One file; the number of examples, and where contexts are, is its own."""

    def __init__(self, path: pathlib.Path, table: Table | None = None):
        """Maps a file.

        Args:
          path: The file.
          table: That of `contexts.npz` beside it, if it was read before.
        """
        arrays = map_arrays(path)
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
        self.images = images
        self.labels = None if labels is None else labels.astype(np.int32)
        classes = arrays.get("classes")
        self.classes = None if classes is None else tuple(map(_text, classes))
        self.names = arrays.get("names")
        self.table, self._rows = _contexts(arrays, path, len(images), table)

    @property
    def kind(self) -> _Kind:
        return _Kind(
            self.images.shape[1:],
            str(self.images.dtype),
            self.labels is not None,
            self.classes,
            None if self.table is None else self.table.shape,
        )

    def take(self, which: int | np.ndarray) -> Example:
        """One example, or many, stacked."""
        example = {"image": self.images[which]}
        if self.labels is not None:
            example["label"] = self.labels[which]
        if self.table is not None:
            rows = which if self._rows is None else self._rows[which]
            example |= self.table.take(rows)
        return example


def _contexts(
    arrays: dict[str, np.ndarray],
    path: pathlib.Path,
    length: int,
    table: Table | None,
) -> tuple[Table | None, np.ndarray | None]:
    """The table, and each example's row in it; None for example i in row i."""
    context = arrays.get("context")
    if context is None:
        return None, None
    if context.shape[:1] != (length,):
        raise ValueError(
            f"{path}: context must be one for each of the {length} examples, but has"
            f" shape {context.shape}."
        )
    if context.ndim != 1 or context.dtype.kind not in "iu":
        return table_of(arrays, path, ("context", "mask")), None
    if table is None:
        place = path.with_name(CONTEXTS)
        table = table_of(map_arrays(place), place)
    if context.min() < 0 or context.max() >= len(table.contexts):
        raise ValueError(
            f"{path}: context has rows {context.min()} to {context.max()}, but"
            f" {CONTEXTS} beside it {len(table.contexts)} contexts."
        )
    return table, context


def _text(name: Any) -> str:
    return from_bytes(bytes(name)) if isinstance(name, bytes) else str(name)


def _first(arrays: dict[str, np.ndarray], names: Sequence[str]) -> np.ndarray | None:
    return next((arrays[name] for name in names if name in arrays), None)
