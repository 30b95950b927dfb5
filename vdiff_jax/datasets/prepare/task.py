"""What is to be prepared, and how."""

import dataclasses
import os
import pathlib

from vdiff_jax.datasets.images import Fit, Resize
from vdiff_jax.datasets.names import to_bytes
from vdiff_jax.datasets.prepare.encoding import Encoding
from vdiff_jax.files.place import check_reachable, is_in_store


@dataclasses.dataclass(frozen=True)
class Task:
    """A preparation: the images, the place of the output and its form.

    Attributes:
      path: Folder, zip or tar.
      out: The folder to be made.
      sizes: Heights and widths; every image is decoded once for all of them.
      format: One of `FORMATS`.
      splits: Folders in `path`, each prepared into a folder of that name; by default
        all of `path` goes straight into `out`.
      resize: How images are resized: a `Resize` for `Fit`.
      channels: 1 or 3.
      workers: Processes that decode; 0 decodes in this one.
      strict: If true, a file that cannot be read ends the work.
      encoding: How images are encoded to latents; None leaves them images.
    """

    path: pathlib.Path
    out: pathlib.Path
    sizes: tuple[int, ...]
    format: str
    splits: tuple[str, ...] = ("",)
    resize: Resize = "area"
    channels: int = 3
    workers: int = 0
    strict: bool = False
    encoding: Encoding | None = None

    @staticmethod
    def folder(out: pathlib.Path, split: str) -> pathlib.Path:
        """The folder of a split in `out`, or in the unfinished form of it."""
        return out / os.fsdecode(to_bytes(split))

    def fits(self) -> list[Fit]:
        """The fit to each of the sizes.

        Raises:
          ValueError: If a size, the channels or the resize is out of range.
        """
        return [Fit(size, self.channels, self.resize) for size in self.sizes]


def check(task: Task) -> None:
    """Refuses a task that cannot be; nothing is opened.

    Raises:
      ValueError: In one line.
    """
    task.fits()
    if task.workers < 0:
        raise ValueError(f"--workers must be at least 0, got {task.workers}.")
    for split in task.splits:
        if split.startswith("/") or ".." in split.split("/"):
            raise ValueError(f"--splits names folders in PATH, which {split!r} is not.")
    if task.out.name in ("", ".."):
        raise ValueError(f"--out={task.out} is to be a folder of a name of its own.")
    out, path = task.out.resolve(), task.path.resolve()
    if out == path:
        raise ValueError(f"--out and PATH are both {path}: choose another --out.")
    if out.is_relative_to(path) and path.is_dir() and not out.exists():
        raise ValueError(
            f"--out={task.out} lies in PATH, {task.path}, whose images are to stay what"
            " they are: choose a folder outside of it."
        )
    if is_in_store(task.path):
        raise ValueError(
            f"{task.path} lies in an object store, and images are prepared from a disk:"
            " copy it to this machine; --out may be in a store."
        )
    if not task.path.exists():
        raise ValueError(
            f"{task.path} is not a folder, a zip or a tar: nothing is there."
        )
    _check_stores(task)
    if task.encoding is not None:
        task.encoding.check(task.sizes, task.channels, task.format)


def _check_stores(task: Task) -> None:
    """Refuses an output in a store that cannot be there."""
    if is_in_store(task.out) and task.format == "lmdb":
        raise ValueError(
            f"--out={task.out} lies in an object store, and an LMDB is read from a"
            " disk: add --format npz."
        )
    check_reachable(task.out, "--out")
