"""Classes and labels of images: from dataset.json, or from the folders they lie in.

`dataset.json` is that of StyleGAN and EDM: {"labels": [["00000/img00000000.png", 3],
...]}, or null for none. Where it is there, folders are no classes.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vdiff_jax.datasets.listing import DATASET_JSON, has_image, is_shown
from vdiff_jax.datasets.names import from_bytes, to_bytes

# Read of a JSON file to see if it speaks of labels.
_GLANCE_BYTES = 2**16


@dataclasses.dataclass(frozen=True)
class Labelled:
    """The classes of some images.

    Attributes:
      classes: Names of the classes, in the order of their numbers; () for none.
      labels: int32, the number of each image's class; None without classes.
      unread: A line on labels that are there and are not read; "" for none.
    """

    classes: tuple[str, ...]
    labels: np.ndarray | None
    unread: str = ""


def label(
    names: Sequence[str],
    where: str,
    read: Callable[[str, int], bytes | None],
    beside: Sequence[str] = (),
) -> Labelled:
    """The classes of images.

    Args:
      names: Names of the images.
      where: The folder or archive, for messages.
      read: (name, most bytes or -1) -> the beginning of a file beside the images, or
        None if it is not there.
      beside: Names of other files that labels may be in.

    Raises:
      ValueError: If dataset.json has no label for an image; or, without it, if some of
        the images lie in a folder and some do not.
    """
    content = read(DATASET_JSON, -1)
    pairs = None if content is None else _pairs(content)
    unread = [] if content is None or pairs is not None else [DATASET_JSON]
    line = unread_line([*unread, *beside], where, read)
    if pairs is None:
        return Labelled(*classify(names, where), line)
    if not pairs:
        return Labelled((), None, line)
    numbers = [number for _, number in pairs]
    if not all(type(number) is int and number >= 0 for number in numbers):
        line = unread_line([DATASET_JSON, *beside], where, read)
        return Labelled((), None, line)
    return Labelled(*_labelled(names, dict(pairs), where), line)


def _pairs(content: bytes) -> list[tuple[str, Any]] | None:
    """The pairs of a dataset.json, none if it says that there are no labels.

    None for a file of another form.
    """
    try:
        labels = json.loads(content)["labels"]
        return [(_plain(name), number) for name, number in labels or ()]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _plain(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _labelled(
    names: Sequence[str], number: dict[str, int], where: str
) -> tuple[tuple[str, ...], np.ndarray]:
    missing = [name for name in names if name not in number]
    if missing:
        raise ValueError(
            f"{DATASET_JSON} in {where} has no label for {len(missing)} of"
            f" {len(names)} images, such as {missing[0]}: add them, or remove it."
        )
    labels = np.array([number[name] for name in names], np.int32)
    # Of all that it lists, so that a class keeps its place if no image of it is there.
    return tuple(map(str, range(max(number.values()) + 1))), labels


def unread_line(
    names: Sequence[str], where: str, read: Callable[[str, int], bytes | None]
) -> str:
    """A line on files that may hold labels and are not read; "" if there are none.

    Args:
      names: Names of the files; one of JSON counts if it speaks of labels.
      where: The folder or archive.
      read: As of `label`.
    """
    unread = [name for name in names if _speaks_of_labels(name, read)]
    if not unread:
        return ""
    return (
        f"{', '.join(unread)} in {where} may hold labels, which are not read: classes"
        f" are sub-folders, or whole numbers in a {DATASET_JSON} (docs/data.md)."
    )


def _speaks_of_labels(name: str, read: Callable[[str, int], bytes | None]) -> bool:
    if not name.lower().endswith(".json"):
        return True
    try:
        return b"label" in (read(name, _GLANCE_BYTES) or b"").lower()
    except (OSError, ValueError):
        return False


def classify(
    names: Sequence[str], where: str
) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Classes and labels from the first folder of each name.

    Raises:
      ValueError: If some of the images lie in a folder and some do not.
    """
    place: dict[str, int] = {}  # of each folder among all, in the order of the names
    folders = (name.partition("/")[0] if "/" in name else "" for name in names)
    places = np.fromiter(
        (place.setdefault(folder, len(place)) for folder in folders), np.int32
    )
    classes = tuple(sorted(place, key=to_bytes))
    if classes == ("",):
        return (), None
    if "" in classes:
        loose = names[int(np.argmax(places == place[""]))]
        raise ValueError(
            f"{where} has images in folders, which are classes, and others that lie"
            f" beside these folders, such as {loose}: sort them into classes too."
        )
    number = {name: i for i, name in enumerate(classes)}
    return classes, np.array([number[folder] for folder in place], np.int32)[places]


def classes_of_folder(root: pathlib.Path) -> tuple[str, ...]:
    """The classes of a folder of images, without listing all of it; () for none."""
    path = root / DATASET_JSON
    pairs = _pairs(path.read_bytes()) if path.is_file() else None
    if pairs is not None:
        numbers = [number for _, number in pairs]
        if not numbers or not all(type(number) is int for number in numbers):
            return ()
        return tuple(map(str, range(max(numbers) + 1)))
    folders = [path for path in root.iterdir() if is_shown(path.name) and path.is_dir()]
    names = [from_bytes(os.fsencode(each.name)) for each in folders if has_image(each)]
    return tuple(sorted(names, key=to_bytes))
