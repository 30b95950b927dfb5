"""Which files are images by their names, and what is left out beside them."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from vdiff_jax.datasets.images import SUFFIXES
from vdiff_jax.datasets.kept_listings import Trail
from vdiff_jax.datasets.names import from_bytes, to_bytes
from vdiff_jax.files.place import is_in_store

# Read for its labels (labels.py), and so not left out.
DATASET_JSON = "dataset.json"

_TABLES = (".csv", ".tsv", ".jsonl")
_MAY_BE_LABELS = (".json", ".txt", ".npy", ".mat", ".pkl")
_WORDS = ("label", "class", "annotation", "attr", "categor")
# There may be a JSON file beside each image; a few are enough to say so.
_MOST = 8


class LeftOut:
    """Counts what a source does not read, by kind, each with an example."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, str]] = {}

    def __bool__(self) -> bool:
        """True if there is any."""
        return bool(self._kinds)

    def __str__(self) -> str:
        """All kinds in one line."""
        return ", ".join(
            f"{count:,} {kind} ({'such as ' if count > 1 else ''}{first})"
            for kind, (count, first) in sorted(self._kinds.items())
        )

    def add(self, kind: str, name: str, count: int = 1) -> None:
        """Counts a file.

        Args:
          kind: The reason, which fits behind a number.
          name: Name of the file.
          count: Number of files that it stands for.
        """
        before, first = self._kinds.get(kind, (0, name))
        # The first by name, for a folder lists its files in any order.
        self._kinds[kind] = before + count, min(first, name, key=to_bytes)

    def as_json(self) -> dict[str, Any]:
        """{kind: {"count", "first"}}."""
        return {
            kind: {"count": count, "first": first}
            for kind, (count, first) in sorted(self._kinds.items())
        }


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of a folder or an archive, by their names with forward slashes.

    Attributes:
      images: Names of the images, in the order of their bytes.
      left_out: All others.
      beside: Names of files beside the images that labels may be in; a few of them.
    """

    images: list[str]
    left_out: LeftOut
    beside: list[str]


def sort_out(files: Iterable[str], where: str, left_out: LeftOut) -> Listing:
    """Tells images from other files by their suffixes.

    Args:
      files: Names of files.
      where: The folder or archive, for the message.
      left_out: Counts of what was left out before; those of the files are added.

    Raises:
      ValueError: If there are no images; the message lists the suffixes.
    """
    images, suffixes, beside, hidden = [], [], [], set()
    for name in files:
        parts = name.split("/")
        at = next((i for i, part in enumerate(parts) if not is_shown(part)), None)
        if at is not None:
            hidden.add("/".join(parts[: at + 1]))
        elif name.lower().endswith(SUFFIXES):
            images.append(name)
        elif parts[-1] != DATASET_JSON:
            suffix = pathlib.PurePosixPath(name).suffix
            suffixes.append(suffix)
            left_out.add(f"that end in {suffix}" if suffix else "without suffix", name)
            if _may_hold_labels(name):
                beside.append(name)
        else:
            suffixes.append(".json")
    for name in hidden:
        left_out.add("hidden", name)
    if not images:
        raise ValueError(
            f"There are no images ({', '.join(SUFFIXES)}) in {where};"
            f" {_holds(suffixes)}"
            + (f", and {min(hidden)} is hidden." if hidden else ".")
        )
    beside.sort(key=lambda name: (name.count("/"), to_bytes(name)))
    return Listing(sorted(images, key=to_bytes), left_out, beside[:_MOST])


def _holds(suffixes: list[str]) -> str:
    if not suffixes:
        return "it is empty"
    return f"it has {len(suffixes)} files ({', '.join(sorted(set(suffixes)))})"


def is_shown(name: str) -> bool:
    """True for a name that is neither hidden nor one that macOS adds to archives."""
    return not name.startswith(".") and name != "__MACOSX"


def _may_hold_labels(name: str) -> bool:
    path = pathlib.PurePosixPath(name.lower())
    if path.suffix in _TABLES or path.suffix == ".json":
        return True
    words = any(word in path.stem for word in _WORDS)
    return path.suffix in _MAY_BE_LABELS and words


def list_folder(root: pathlib.Path, trail: Trail | None = None) -> Listing:
    """The files below a folder.

    Hidden files and folders are left out, and so are pipes, sockets and devices. Links
    are followed, but not to a folder that they lie in.

    Args:
      root: The folder.
      trail: Takes in every folder that is looked at.

    Raises:
      ValueError: If there is no such folder, if it or one in it cannot be listed, or if
        there are no images.
    """
    left_out = LeftOut()
    files = _files(root, left_out, trail or Trail())
    return sort_out(files, str(root), left_out)


def has_image(root: pathlib.Path) -> bool:
    """True for a folder with an image below it; listed no further than to the first."""
    files = _files(root, LeftOut(), Trail())
    return any(
        name.lower().endswith(SUFFIXES) and all(map(is_shown, name.split("/")))
        for name in files
    )


def _files(root: pathlib.Path, left_out: LeftOut, trail: Trail) -> Iterator[str]:
    """Names of the files below a folder."""
    if not is_in_store(root):
        return _walk(os.fsencode(root), b"", (), left_out, trail)
    return (path.relative_to(root).as_posix() for path in root.rglob("*"))


def _walk(
    root: bytes,
    below: bytes,
    above: tuple[tuple[int, int], ...],
    left_out: LeftOut,
    trail: Trail,
) -> Iterator[str]:
    """Names of the files below a folder; hidden folders by themselves."""
    folder = os.path.join(root, below)
    with _naming(folder):
        facts = os.stat(folder)
    trail.folder(below, facts)
    here = facts.st_dev, facts.st_ino
    if here in above:
        return
    for entry in _entries(folder):
        name = os.path.join(below, entry.name)
        kind = _kind(entry)
        if kind == "folder" and is_shown(from_bytes(entry.name)):
            yield from _walk(root, name, (*above, here), left_out, trail)
            continue
        text = from_bytes(name)
        if entry.is_symlink() and not text.lower().endswith(SUFFIXES):
            # It may become one to a folder, and nothing here would have changed.
            trail.doubt()
        if kind == "other":
            left_out.add("that are pipes, sockets or devices", text)
        else:
            yield text


def _entries(folder: bytes) -> Iterator[os.DirEntry[bytes]]:
    """The entries of a folder, one by one, as there may be a million of them."""
    with _naming(folder), os.scandir(folder) as entries:
        yield from entries


@contextlib.contextmanager
def _naming(folder: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"The folder {os.fsdecode(folder)} cannot be listed ({error.strerror})."
        ) from error


def _kind(entry: os.DirEntry[bytes]) -> Literal["folder", "file", "other"]:
    """The kind of an entry; a link to nowhere is a file, whose reading fails."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file() or not os.path.exists(entry.path):
            return "file"
    except OSError:  # in a circle, or to where one may not look
        return "file"
    return "other"
