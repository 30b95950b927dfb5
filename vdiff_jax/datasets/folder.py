"""A folder of images, flat or with one sub-folder for each class."""

import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from vdiff_jax.datasets.images import SUFFIXES


class Folder:
    """The images under a folder, in the order of their names.

    Attributes:
      classes: Names of the sub-folders, sorted; empty for a flat folder.
      labels: int32, the number of each image's class; None for a flat folder.
    """

    def __init__(self, root: pathlib.Path):
        """Lists the folder; nothing is opened.

        Raises:
          ValueError: If there is no such folder, if there are no images in it, or if
            some lie in sub-folders and some do not.
        """
        if not root.is_dir():
            raise ValueError(
                f"There is no folder {root}: data.path and the names of the splits say"
                " where the images are; data.held_out_fraction splits one folder."
            )
        names = list_images(root)
        self._root = str(root)
        # Bytes of one width: a list of a million strings would be copied page by page
        # into every worker.
        self._names = np.array([os.fsencode(name) for name in names])
        self.classes, self.labels = classify(names, str(root))

    def __len__(self) -> int:
        """Number of images."""
        return len(self._names)

    def read(self, index: int) -> tuple[bytes, int | None]:
        """A file and its label."""
        label = None if self.labels is None else int(self.labels[index])
        # A third of the time of `Path.read_bytes`, which small files would notice.
        with open(
            os.path.join(self._root, self.name(index)), "rb", buffering=0
        ) as file:
            return file.read(), label

    def name(self, index: int) -> str:
        """The path below the folder, with forward slashes."""
        return os.fsdecode(bytes(self._names[index]))


def list_images(root: pathlib.Path) -> list[str]:
    """Paths of the images below a folder, by code point, with forward slashes.

    Hidden files and folders are left out. Links are followed, but not to a folder that
    they lie in.

    Raises:
      ValueError: If there are none; the message lists the suffixes in the folder.
    """
    files = [path.relative_to(root).as_posix() for path in _walk(root, ())]
    return images_among(files, str(root))


def _walk(
    folder: pathlib.Path, above: tuple[pathlib.Path, ...]
) -> Iterator[pathlib.Path]:
    here = folder.resolve()
    if here in above:
        return
    for path in folder.iterdir():
        if path.is_dir():
            if is_shown(path.name):
                yield from _walk(path, (*above, here))
        else:
            yield path


def is_shown(name: str) -> bool:
    """True for a name that is neither hidden nor one that macOS adds to archives."""
    return not name.startswith(".") and name != "__MACOSX"


def images_among(files: Sequence[str], where: str) -> list[str]:
    """The names that are images, by their suffixes, sorted by code point.

    Raises:
      ValueError: If there are none.
    """
    shown = [name for name in files if all(is_shown(part) for part in name.split("/"))]
    images = [name for name in shown if name.lower().endswith(SUFFIXES)]
    if not images:
        suffixes = sorted({pathlib.PurePosixPath(name).suffix for name in shown})
        raise ValueError(
            f"There are no images ({', '.join(SUFFIXES)}) in {where}; "
            + (
                f"it has {len(shown)} files ({', '.join(suffixes)})."
                if shown
                else "it is empty."
            )
        )
    return sorted(images)


def classify(
    names: Sequence[str], where: str
) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Classes and labels from the first folder of each name.

    Raises:
      ValueError: If some of the images lie in a folder and some do not.
    """
    folders = [name.partition("/")[0] if "/" in name else "" for name in names]
    classes = tuple(sorted(set(folders)))
    if classes == ("",):
        return (), None
    if "" in classes:
        loose = names[folders.index("")]
        raise ValueError(
            f"{where} has images in folders, which are classes, and others that lie"
            f" beside these folders, such as {loose}: sort them into classes too."
        )
    number = {name: i for i, name in enumerate(classes)}
    return classes, np.array([number[folder] for folder in folders], np.int32)
