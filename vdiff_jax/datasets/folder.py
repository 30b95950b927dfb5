"""A folder of images, flat or with one sub-folder for each class."""

import functools
import os
import pathlib
from typing import Any

import numpy as np

from vdiff_jax.datasets.kept_listings import KeptFile, Listed, Trail, kept
from vdiff_jax.datasets.labels import label
from vdiff_jax.datasets.listing import list_folder
from vdiff_jax.datasets.names import from_bytes, to_bytes
from vdiff_jax.files.place import is_in_store


class Folder:
    """The images under a folder, in the order of their names.

    Attributes:
      classes: Names of the sub-folders, sorted, or numbers as in its dataset.json;
        empty without classes.
      labels: int32, the number of each image's class; None without classes.
      unread: Lines on what lies there and is not read: other files, labels.
    """

    def __init__(self, root: pathlib.Path):
        """Lists the folder; no image is opened.

        Raises:
          ValueError: If there is no such folder, if there are no images in it, if some
            lie in sub-folders and some do not, or if dataset.json lacks a label.
        """
        _check_is_folder(root)
        self._root = os.fsencode(root)
        self._store = root if is_in_store(root) else None
        # The file that other processes map, in the place of a copy for each.
        self._file: KeptFile | None = None
        if self._store is None:
            listed, self._file = kept(root, functools.partial(self._list, root))
        else:  # which has no times of folders by which a change would show
            listed = self._list(root, Trail())
        self._names, self.classes, self.labels, self.unread = listed

    def _list(self, root: pathlib.Path, trail: Trail) -> Listed:
        def beside(name: str, most: int) -> bytes | None:
            if self._store is None:
                trail.file(to_bytes(name), self._root)
            return self._beside(name, most)

        listing = list_folder(root, trail)
        # Bytes of one width: a list of a million strings would be copied page by page
        # into every worker.
        names = np.array([to_bytes(name) for name in listing.images])
        labelled = label(listing.images, str(root), beside, listing.beside)
        left_out = f"{root}: left out {listing.left_out}." if listing.left_out else ""
        unread = [line for line in (left_out, labelled.unread) if line]
        return Listed(names, labelled.classes, labelled.labels, unread)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: not the names, if another process can map them."""
        state = dict(self.__dict__)
        if self._file is None or not self._file.is_there:
            return {**state, "_file": None}
        del state["_names"], state["labels"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes what was pickled; maps what was not."""
        self.__dict__.update(state)
        if self._file is not None:
            listed = self._file.listed()
            self._names, self.labels = listed.names, listed.labels

    def __len__(self) -> int:
        """Number of images."""
        return len(self._names)

    def read(self, index: int) -> tuple[bytes, int | None]:
        """A file and its label."""
        label = None if self.labels is None else int(self.labels[index])
        if self._store is not None:
            return (self._store / self.name(index)).read_bytes(), label
        # A third of the time of `Path.read_bytes`, which small files would notice.
        path = os.path.join(self._root, bytes(self._names[index]))
        with open(path, "rb", buffering=0) as file:
            return file.read(), label

    def name(self, index: int) -> str:
        """The path below the folder, with forward slashes."""
        return from_bytes(bytes(self._names[index]))

    def _beside(self, name: str, most: int) -> bytes | None:
        """The beginning of a file that is no image; None if it is not there."""
        if self._store is not None:
            place = self._store / name
            content = place.read_bytes() if place.is_file() else None
            return content if content is None or most < 0 else content[:most]
        path = os.path.join(self._root, to_bytes(name))
        if not os.path.isfile(path):
            return None
        with open(path, "rb") as file:
            return file.read(most)


def _check_is_folder(root: pathlib.Path) -> None:
    if root.is_dir():
        return
    if root.is_file():
        raise ValueError(
            f"{root} is a file and not a folder of images: `python -m"
            " vdiff_jax.datasets.prepare` reads archives."
        )
    raise ValueError(
        f"There is no folder {root}: data.path and the names of the splits say where"
        " the images are; data.held_out_fraction splits one folder."
    )
