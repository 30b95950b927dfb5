"""The sources by name, each with its place for a split."""

import pathlib
from typing import Any, Literal

from vdiff_jax.datasets.images import Files, Fit, Images
from vdiff_jax.datasets.source import Source

Split = Literal["train", "test"]
NAMES = ("folder", "lmdb", "npz", "tfds", "cifar10", "digits")


def open_source(
    kind: str,
    *,
    path: pathlib.Path,
    name: str,
    split_name: str,
    split: Split,
    image_shape: tuple[int, int, int],
    resize: Any,
) -> Source:
    """Opens the source of one kind for one split.

    Args:
      kind: One of `NAMES`.
      path: Folder or file with the data.
      name: Name of the data set, for tfds.
      split_name: Name of the split in `path`: a sub-folder, a file, a TFDS split. An
        empty name is the path itself.
      split: The split, for cifar10 and digits, which have their own names for it.
      image_shape: [height, width, channels] that decoded images are brought to.
      resize: How they are resized: a `Resize` for `Fit`.

    Raises:
      ValueError: If there are no data in `path`, or not of that kind.
    """

    def decoded(files: Files) -> Source:
        return Images(files, Fit(image_shape[0], image_shape[2], resize))

    # Imported where they are used: TFDS and scikit-learn take seconds.
    match kind:
        case "folder":
            from vdiff_jax.datasets.folder import Folder

            return decoded(Folder(path / split_name))
        case "lmdb":
            from vdiff_jax.datasets.lmdb import Lmdb

            return decoded(Lmdb(path / split_name, image_shape[0]))
        case "npz":
            from vdiff_jax.datasets.npz import Npz

            return Npz(_array_file(path / split_name, image_shape[0]))
        case "tfds":
            from vdiff_jax.datasets.tfds import TfdsFiles

            return decoded(TfdsFiles(name, split_name, path))
        case "cifar10":
            from vdiff_jax.datasets.cifar10 import cifar10

            return cifar10(path, split)
        case "digits":
            from vdiff_jax.datasets.digits import digits

            return digits(split)
        case _:
            raise ValueError(f"Unknown source {kind!r}; choose from {NAMES}.")


def _array_file(path: pathlib.Path, size: int) -> pathlib.Path:
    """`path` itself, or <size>.npz in it as `prepare` writes, or with .npz or .npy."""
    by_suffix = [path.with_name(path.name + suffix) for suffix in (".npz", ".npy")]
    candidates = [path, path / f"{size}.npz", *by_suffix]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ValueError(
        f"There is none of {', '.join(map(str, candidates))}: set data.path and the"
        " names of the splits."
    )
