"""The sources by name, each with its place for a split."""

import functools
import pathlib
import sys
from typing import Any, Literal

from vdiff_jax.datasets.images import Files, Fit, Images
from vdiff_jax.datasets.labels import classes_of_folder
from vdiff_jax.datasets.source import Source
from vdiff_jax.datasets.splits import Renumbered, common_classes
from vdiff_jax.files.place import check_reachable, is_in_store

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
    other_name: str | None = None,
    latent_size: int = 0,
) -> Source:
    """Opens the source of one kind for one split.

    What lies there and is not read is said on stderr, in a line, once in a process.

    Args:
      kind: One of `NAMES`.
      path: Folder or file with the data.
      name: Name of the data set, for tfds.
      split_name: Name of the split in `path`: a sub-folder, a file, a TFDS split. An
        empty name is the path itself.
      split: The split, for cifar10 and digits, which have their own names for it, and
        for the numbers of the classes, which are those of "train".
      image_shape: [height, width, channels] that decoded images are brought to.
      resize: How they are resized: a `Resize` for `Fit`.
      other_name: Name of the other split; None if there is none.
      latent_size: Height and width of the latents that may be there in the place of
        images; 0 if there is no autoencoder, so that `image_shape` is theirs too.

    Raises:
      ValueError: If there are no data in `path`, or not of that kind; if they cannot
        be read; if the test split has classes that the training split lacks.
    """
    sizes = (latent_size, image_shape[0]) if latent_size else (image_shape[0],)
    check_reachable(path, "data.path")
    try:
        place = path / split_name
        if kind == "npz":
            source = _open_arrays(place, sizes)
        else:
            source = _open(
                kind, place, path, name, split_name, split, image_shape, resize
            )
        if other_name is None or other_name == split_name:
            return source
        other = _classes(kind, path / other_name, sizes)
        return _numbered_alike(source, split, other, path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(
            f"data.path={str(path)!r} cannot be read: {error.filename or path}"
            f" ({reason})."
        ) from error


def _open(
    kind: str,
    place: pathlib.Path,
    path: pathlib.Path,
    name: str,
    split_name: str,
    split: Split,
    image_shape: tuple[int, int, int],
    resize: Any,
) -> Source:
    def decoded(files: Files) -> Source:
        return Images(files, Fit(image_shape[0], image_shape[2], resize))

    # Imported where they are used: TFDS and scikit-learn take seconds.
    match kind:
        case "folder":
            from vdiff_jax.datasets.folder import Folder

            folder = Folder(place)
            for line in folder.unread:
                _print_once(line)
            return decoded(folder)
        case "lmdb":
            _refuse_store(path)
            from vdiff_jax.datasets.lmdb import open_lmdb

            return decoded(open_lmdb(place, image_shape[0]))
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


def _refuse_store(path: pathlib.Path) -> None:
    if is_in_store(path):
        raise ValueError(
            f"data.path={str(path)!r} lies in an object store, and an LMDB is read from"
            " a disk: copy it to this machine, or prepare it with --format npz, which"
            " is read from there (data.source=npz)."
        )


@functools.cache
def _print_once(line: str) -> None:
    print(line, file=sys.stderr)


def _classes(kind: str, place: pathlib.Path, sizes: tuple[int, ...]) -> tuple[str, ...]:
    """The classes of a split that is not opened; () if it is not there or has none."""
    try:
        match kind:
            case "folder":
                return classes_of_folder(place) if place.is_dir() else ()
            case "lmdb":
                from vdiff_jax.datasets.lmdb import Lmdb

                return Lmdb(place, sizes[-1]).classes or ()
            case "npz":
                return getattr(_open_arrays(place, sizes), "classes", None) or ()
    except (OSError, ValueError):  # it says so itself once it is opened
        pass
    return ()


def _numbered_alike(
    source: Source, split: Split, other: tuple[str, ...], path: pathlib.Path
) -> Source:
    """The source with the numbers that its classes have in the training split."""
    own: tuple[str, ...] = tuple(getattr(source, "classes", None) or ())
    if not own or not other:
        return source
    train, test = (own, other) if split == "train" else (other, own)
    classes = common_classes(train, test, str(path))
    return source if classes == own else Renumbered(source, own, classes)


def _open_arrays(path: pathlib.Path, sizes: tuple[int, ...]) -> Source:
    from vdiff_jax.datasets.npz import Npz

    return Npz(_arrays(path, sizes))


def _arrays(path: pathlib.Path, sizes: tuple[int, ...]) -> pathlib.Path:
    """The file of arrays, or the folder of its shards, that a place stands for.

    `path` itself, or <size>.npz or the folder <size> in it as `prepare` writes, or the
    path with .npz or .npy.

    Args:
      path: The place.
      sizes: Of what may be there: of latents and of their images, or of either.
    """
    from vdiff_jax.datasets.npz import is_sharded

    suffixes = (".npz", ".npy") if path.name else ()  # "." and "/" have no name
    by_suffix = [path.with_name(path.name + suffix) for suffix in suffixes]
    # Shards are latents, and of another size than images with an autoencoder.
    shards = path / str(sizes[0])
    files = [path / f"{size}.npz" for size in reversed(sizes)]
    candidates = [path, shards, *files, *by_suffix]
    for candidate in candidates:
        if candidate.is_file() or is_sharded(candidate):
            return candidate
    raise ValueError(
        f"There is none of {', '.join(map(str, candidates))}: set data.path and the"
        " names of the splits."
    )
