"""The file of contexts that `prepare` is given, and which of them each image has.

contexts       floats, [contexts, tokens, width]
names          the image of each context, by its name in PATH; without it, the
images in the order of the bytes of their names
index          integers: the row of `contexts` that each name (or image) has;
without it, row i
masks, null_context, null_mask    see contexts.py above
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vdiff_jax.datasets.array_files import map_arrays
from vdiff_jax.datasets.contexts import Table, table_of
from vdiff_jax.datasets.names import from_bytes, to_bytes
from vdiff_jax.datasets.prepare.archives import Input
from vdiff_jax.datasets.prepare.npz_file import Stream, write_npz
from vdiff_jax.datasets.prepare.parts import Parts

_BLOCK_BYTES = 2**24


@dataclasses.dataclass(frozen=True)
class GivenContexts:
    """Contexts for all images.

    Attributes:
      about: {"path", "sha256"} of their file.
      table: All of them, mapped if they are many.
      row: For each split, the row of each image by its name in the split.
    """

    about: dict[str, str]
    table: Table
    row: dict[str, dict[str, int]]


def read_contexts(path: pathlib.Path, files: Input, parts: Parts) -> GivenContexts:
    """Reads a file of contexts, and finds those of the images.

    Raises:
      ValueError: If an array is missing or of another form, or an image has no context
        or one that is not finite.
    """
    arrays = map_arrays(path)
    table = table_of(arrays, path)
    row_of = _rows_by_name(arrays, files.listing.images, len(table.contexts), path)
    row = {}
    for split, part in parts.of.items():
        of_part = row[split] = {}
        for name, original in part.names.items():
            in_splits = f"{split}/{name}" if split else name
            number = row_of.get(original, row_of.get(in_splits))
            if number is None:
                raise ValueError(f"{path} has no context for {in_splits}.")
            of_part[name] = number
        _check_finite(table, of_part, path)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    absolute = from_bytes(os.fsencode(path.resolve()))
    return GivenContexts({"path": absolute, "sha256": sha256}, table, row)


def _rows_by_name(
    arrays: Mapping[str, np.ndarray],
    listed: Sequence[str],
    most: int,
    path: pathlib.Path,
) -> dict[str, int]:
    index = arrays.get("index")
    if index is None:
        index = np.arange(most)
    elif index.ndim != 1 or index.dtype.kind not in "iu" or not index.size:
        raise ValueError(
            f"{path}: index must be integers of shape [images], but is {index.dtype} of"
            f" shape {index.shape}."
        )
    elif index.min() < 0 or index.max() >= most:
        raise ValueError(
            f"{path}: index has rows {index.min()} to {index.max()}, but there are"
            f" {most} contexts."
        )
    names = arrays.get("names")
    if names is None:
        if len(index) != len(listed):
            raise ValueError(
                f"{path} has no names, and so must have a context for each of the"
                f" {len(listed)} images in the order of their names, but has"
                f" {len(index)}."
            )
        return dict(zip(listed, index.tolist(), strict=True))
    if names.shape != index.shape or names.dtype.kind not in "US":
        raise ValueError(
            f"{path}: names must be {len(index)} texts, one for each row, but are"
            f" {names.dtype} of shape {names.shape}."
        )
    row_of = dict(zip(map(_text, names.tolist()), index.tolist(), strict=True))
    if len(row_of) < len(names):
        texts, counts = np.unique(names, return_counts=True)
        raise ValueError(f"{path}: names has {_text(texts[counts > 1][0])} twice.")
    return row_of


def _text(name: Any) -> str:
    return from_bytes(bytes(name) if isinstance(name, bytes) else to_bytes(str(name)))


def _check_finite(table: Table, row: Mapping[str, int], path: pathlib.Path) -> None:
    rows = np.unique(list(row.values()))
    for some, contexts in _blocks(table, rows):
        finite = np.isfinite(contexts).all(axis=(1, 2))
        if not finite.all():
            wrong = some[np.argmin(finite)]
            name = next(name for name, each in row.items() if each == wrong)
            raise ValueError(f"{path}: the context of {name} is not finite.")


def write_contexts(path: pathlib.Path, table: Table, rows: np.ndarray) -> None:
    """Writes some rows of a table, as contexts.py above reads them.

    Args:
      path: The file to be written.
      table: All rows.
      rows: Those to keep, in order.
    """
    blocks = (contexts.tobytes() for _, contexts in _blocks(table, rows))
    shape = (len(rows), *table.contexts.shape[1:])
    arrays: dict[str, np.ndarray | Stream] = {
        "contexts": Stream(shape, _dtype(table), blocks),
        "masks": table.masks[rows],
    }
    if table.null is not None:
        arrays["null_context"] = table.null.context.astype(_dtype(table))
        arrays["null_mask"] = np.array(table.null.mask)
    write_npz(path, arrays)


def _blocks(table: Table, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows, and their contexts as they are written, a few megabytes at a time."""
    of_one = max(table.contexts[:1].nbytes, 1)
    count = max(_BLOCK_BYTES // of_one, 1)
    with np.errstate(over="ignore"):  # what becomes infinite is seen
        for first in range(0, len(rows), count):
            some = rows[first : first + count]
            yield some, np.ascontiguousarray(table.contexts[some], _dtype(table))


def _dtype(table: Table) -> np.dtype:
    half = table.contexts.dtype == np.float16
    return np.dtype("<f2" if half else "<f4")
