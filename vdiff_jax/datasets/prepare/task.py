"""Prepares images, and goes on where an interrupted run stopped."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vdiff_jax.datasets.folder import classify
from vdiff_jax.datasets.images import Fit, Resize
from vdiff_jax.datasets.prepare.archives import Input, open_input
from vdiff_jax.datasets.prepare.writers import Writer, convert, make_writer
from vdiff_jax.files.atomic import write_json
from vdiff_jax.progress import Bar

CHUNK = 32


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

    def fits(self) -> list[Fit]:
        """The fit to each of the sizes.

        Raises:
          ValueError: If a size, the channels or the resize is out of range.
        """
        return [Fit(size, self.channels, self.resize) for size in self.sizes]


@dataclasses.dataclass
class Progress:
    """The state of a split that is being prepared.

    Attributes:
      inputs: Number of files dealt with, in their order.
      unreadable: Names of those that cannot be read, each with the reason.
      finished: True once the output of the split is whole.
    """

    inputs: int = 0
    unreadable: dict[str, str] = dataclasses.field(default_factory=dict)
    finished: bool = False


def prepare(task: Task) -> dict[str, Any]:
    """Does a task, or goes on with it; does nothing if it is done.

    Returns:
      The content of `prepared.json`: the task, and for each split "pictures" (their
      number), "classes" and the "unreadable" files with the reasons.

    Raises:
      ValueError: If `out` or its unfinished form is of another task, if there are no
        images, or, with `strict`, if a file cannot be read.
      OSError: If the output cannot be written.
    """
    task.fits()
    partial = task.out.with_name(f"{task.out.name}.partial")
    with contextlib.closing(open_input(task.path, partial)) as files:
        names = {split: _names_of(files, task.path, split) for split in task.splits}
        about = _describe(task, names)
        if task.out.exists():
            (partial / "decompressed.tar").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not there, or begun for another task
                partial.rmdir()
            return _already_there(task.out, about)
        _claim(partial, about)
        about["splits"] = {
            split: _prepare_split(task, files, names[split], partial / split)
            for split in task.splits
        }
    write_json(partial / "prepared.json", about)
    _tidy(partial)
    os.replace(partial, task.out)
    return about


def _names_of(files: Input, path: pathlib.Path, split: str) -> dict[str, str]:
    """The images of a split: name in the split -> name in the input."""
    names = files.names
    if not path.is_dir():
        # An archive often has one folder of its own name around everything.
        around = {name.partition("/")[0] if "/" in name else "" for name in names}
        if len(around) == 1 and not around & {"", split}:
            names = [name.partition("/")[2] for name in names]
    prefix = f"{split}/" if split else ""
    chosen = {
        name.removeprefix(prefix): original
        for name, original in zip(names, files.names, strict=True)
        if name.startswith(prefix)
    }
    if not chosen:
        raise ValueError(f"There are no images in a folder {split!r} of {path}.")
    return chosen


def _describe(task: Task, names: dict[str, dict[str, str]]) -> dict[str, Any]:
    """The facts that must be equal for a run to go on with the work of another."""
    classes = {
        split: classify(list(of), str(task.path))[0] for split, of in names.items()
    }
    if len(set(classes.values())) > 1:
        raise ValueError(
            f"The splits of {task.path} have different classes: {classes}."
        )
    listing = json.dumps([list(of.values()) for of in names.values()])
    return {
        "path": str(task.path.resolve()),
        "sizes": list(task.sizes),
        "format": task.format,
        "resize": task.resize,
        "channels": task.channels,
        "splits": list(task.splits),
        "listing_sha256": hashlib.sha256(listing.encode()).hexdigest(),
    }


def _already_there(out: pathlib.Path, about: dict[str, Any]) -> dict[str, Any]:
    prepared = _read_json(out / "prepared.json")
    if prepared is None or {**prepared, "splits": list(prepared["splits"])} != about:
        raise ValueError(
            f"{out} is there already, and was not made from these files in this way."
            " Remove it, or choose another --out."
        )
    return prepared


def _claim(partial: pathlib.Path, about: dict[str, Any]) -> None:
    begun = _read_json(partial / "task.json")
    if begun is not None and begun != about:
        raise ValueError(
            f"{partial} was begun from other files or in another way. Remove it to"
            " start again, or choose another --out."
        )
    partial.mkdir(parents=True, exist_ok=True)
    write_json(partial / "task.json", about)


def _tidy(partial: pathlib.Path) -> None:
    """Removes the files that only an unfinished preparation needs."""
    for pattern in ("task.json", "decompressed.*", "progress.json", "*.raw", "*.half"):
        for path in list(partial.rglob(pattern)):
            path.unlink()


def _prepare_split(
    task: Task, files: Input, names: dict[str, str], folder: pathlib.Path
) -> dict[str, Any]:
    """Writes one split, from where an earlier run stopped; returns its facts."""
    progress = Progress(**(_read_json(folder / "progress.json") or {}))
    _refuse(progress.unreadable, task)
    if not progress.finished:
        opened = make_writer(task.format, folder, task.sizes, task.channels)
        with contextlib.closing(opened) as writer:
            _write(task, files, names, folder, progress, writer)
            _finish(task, names, progress, writer)
        progress.finished = True
        _save(folder, progress)
    return {
        "pictures": len(names) - len(progress.unreadable),
        "classes": list(classify(list(names), str(task.path))[0]),
        "unreadable": progress.unreadable,
    }


def _write(
    task: Task,
    files: Input,
    names: dict[str, str],
    folder: pathlib.Path,
    progress: Progress,
    writer: Writer,
) -> None:
    left = list(names.items())[progress.inputs :]
    chunks = [left[i : i + CHUNK] for i in range(0, len(left), CHUNK)]
    name = f"prepare {folder.name.removesuffix('.partial')}"
    with Bar(name, len(names), unit="files", done=progress.inputs) as bar:
        for chunk, results in _converted(task, files, chunks):
            images, unreadable = _sort_out(chunk, results)
            _refuse(unreadable, task)
            writer.write(progress.inputs - len(progress.unreadable), images)
            # After the images: a chunk that is written twice is the same.
            progress.inputs += len(chunk)
            progress.unreadable |= unreadable
            _save(folder, progress)
            bar.update(len(chunk))


def _finish(
    task: Task, names: dict[str, str], progress: Progress, writer: Writer
) -> None:
    readable = np.array([name not in progress.unreadable for name in names])
    if not readable.any():
        raise ValueError(
            f"None of the {len(names)} files of {task.path} can be read; the first,"
            f" {next(iter(names))}: {next(iter(progress.unreadable.values()))}."
        )
    # The classes of all files, so that one keeps its number if no file of it is left.
    classes, labels = classify(list(names), str(task.path))
    writer.finish(
        list(itertools.compress(names, readable)),
        None if labels is None else labels[readable],
        classes,
    )


def _sort_out(
    chunk: Sequence[tuple[str, str]], results: Sequence[tuple[bytes, ...] | str]
) -> tuple[list[tuple[bytes, ...]], dict[str, str]]:
    images, unreadable = [], {}
    for (name, _), result in zip(chunk, results, strict=True):
        if isinstance(result, str):
            unreadable[name] = result
        else:
            images.append(result)
    return images, unreadable


def _refuse(unreadable: dict[str, str], task: Task) -> None:
    if unreadable and task.strict:
        name, reason = next(iter(unreadable.items()))
        raise ValueError(
            f"{name} in {task.path} {reason}. Without --strict it is left out."
        )


Chunk = list[tuple[str, str]]


def _converted(
    task: Task, files: Input, chunks: Sequence[Chunk]
) -> Iterator[tuple[Chunk, list[tuple[bytes, ...] | str]]]:
    """Chunks in their order, each with the results of `convert` for its files.

    This process reads, since an archive has one reader; the workers decode.
    """
    fits = task.fits()
    as_png = task.format == "lmdb"
    if not task.workers:
        for chunk in chunks:
            yield chunk, convert(_read(files, chunk), fits, as_png)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([convert.__module__])
    with concurrent.futures.ProcessPoolExecutor(task.workers, context) as pool:
        waiting: collections.deque[tuple[Chunk, Any]] = collections.deque()
        for chunk in chunks:
            contents = _read(files, chunk)
            waiting.append((chunk, pool.submit(convert, contents, fits, as_png)))
            if len(waiting) > 2 * task.workers:
                chunk, future = waiting.popleft()
                yield chunk, future.result()
        for chunk, future in waiting:
            yield chunk, future.result()


def _read(files: Input, chunk: Chunk) -> list[bytes | Exception]:
    contents: list[bytes | Exception] = []
    for _, original in chunk:
        try:
            contents.append(files.read(original))
        except (OSError, ValueError) as error:
            contents.append(error)
    return contents


def _save(folder: pathlib.Path, progress: Progress) -> None:
    write_json(folder / "progress.json", dataclasses.asdict(progress))


def _read_json(path: pathlib.Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None
