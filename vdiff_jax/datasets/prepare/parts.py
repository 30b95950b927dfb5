"""The splits of an input: which images are in each, and of which classes."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vdiff_jax.datasets.labels import label, unread_line
from vdiff_jax.datasets.listing import DATASET_JSON
from vdiff_jax.datasets.prepare.archives import Input
from vdiff_jax.datasets.splits import common_classes, renumbered


@dataclasses.dataclass(frozen=True)
class Part:
    """The images of a split.

    Attributes:
      names: Name in the split -> name in the input.
      classes: Names of the classes, the same in all splits that have some.
      labels: int32, the class of each image; None without classes.
    """

    names: dict[str, str]
    classes: tuple[str, ...]
    labels: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Parts:
    """All splits of an input.

    Attributes:
      of: Each split by its name.
      left_out: {kind of file: {"count", "first"}} of what is in no split.
      unread: Lines on what is not read, for people.
    """

    of: dict[str, Part]
    left_out: dict[str, Any]
    unread: list[str]


def find_parts(files: Input, path: pathlib.Path, splits: Sequence[str]) -> Parts:
    """Sorts the images of an input into splits and classes.

    Args:
      files: The input.
      path: Where it lies.
      splits: Folders in it; "" for all of it. Classes have the numbers of "train" or,
        if there is none, of the first.

    Raises:
      ValueError: If a split has no images, if the classes of one are not among those
        that decide on the numbers, or for the reasons of `label`.
    """
    listing = files.listing
    around = _around(files, path, splits)
    roots = {split: f"{around}{split}/" if split else around for split in splits}
    taken: list[str] = []
    parts, lines = {}, []
    for split, root in roots.items():
        names = {
            name.removeprefix(root): name
            for name in listing.images
            if name.startswith(root)
        }
        if not names:
            raise ValueError(f"There are no images in a folder {split!r} of {path}.")
        beside = [name for name in listing.beside if name.startswith(root)]
        taken += beside
        labelled = label(
            list(names),
            str(path / split),
            lambda name, most, root=root: files.beside(root + name, most),
            [name.removeprefix(root) for name in beside],
        )
        parts[split] = Part(names, labelled.classes, labelled.labels)
        lines.append(labelled.unread)
    above = [name for name in listing.beside if name not in taken]
    if around not in roots.values() and files.beside(around + DATASET_JSON, 1):
        above.insert(0, around + DATASET_JSON)
    lines.append(unread_line(above, str(path), files.beside))
    left_out = listing.left_out
    chosen = tuple(roots.values())
    outside = [name for name in listing.images if not name.startswith(chosen)]
    if outside:
        left_out.add("images outside of the splits", outside[0], len(outside))
    if left_out:
        lines.insert(0, f"{path}: left out {left_out}.")
    return Parts(
        _numbered_alike(parts, path),
        left_out.as_json(),
        [line for line in lines if line],
    )


def _around(files: Input, path: pathlib.Path, splits: Sequence[str]) -> str:
    """The folder of its own name that an archive often has around everything."""
    if path.is_dir() or files.beside(DATASET_JSON, 1) is not None:
        return ""
    folders = {
        name.partition("/")[0] if "/" in name else "" for name in files.listing.images
    }
    if len(folders) > 1 or folders & {"", *(s.partition("/")[0] for s in splits)}:
        return ""
    return f"{folders.pop()}/"


def _numbered_alike(parts: dict[str, Part], path: pathlib.Path) -> dict[str, Part]:
    train = parts["train" if "train" in parts else next(iter(parts))]
    alike = {}
    for split, part in parts.items():
        classes = part.classes
        if part.labels is not None and train.classes:
            classes = common_classes(train.classes, part.classes, str(path))
            labels = renumbered(part.labels, part.classes, classes)
            part = dataclasses.replace(part, classes=classes, labels=labels)
        alike[split] = part
    return alike
