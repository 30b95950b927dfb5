"""Prepares images, and goes on where an interrupted run stopped."""

import contextlib
import dataclasses
import hashlib
import itertools
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from vdiff_jax.datasets.prepare.archives import Input, open_input
from vdiff_jax.datasets.prepare.content import extended
from vdiff_jax.datasets.prepare.encoding import Named, encoded
from vdiff_jax.datasets.prepare.given_contexts import GivenContexts, read_contexts
from vdiff_jax.datasets.prepare.parts import Part, find_parts
from vdiff_jax.datasets.prepare.pool import Chunk, converted
from vdiff_jax.datasets.prepare.record import (
    Progress,
    check_begun,
    describe,
    finished,
    read_progress,
)
from vdiff_jax.datasets.prepare.shards import ContextsOfSplit, ShardWriter
from vdiff_jax.datasets.prepare.task import Task, check
from vdiff_jax.datasets.prepare.writers import Writer, make_writer
from vdiff_jax.files.atomic import write_json
from vdiff_jax.files.cache import cache
from vdiff_jax.files.locks import HeldError, lock
from vdiff_jax.files.place import StorePath, is_in_store, remove_tree
from vdiff_jax.progress import Bar

CHUNK = 32


def prepare(task: Task) -> dict[str, Any]:
    """Does a task, or goes on with it; does nothing if it is done.

    What is in the input and not read is said on stderr.

    Returns:
      The content of `prepared.json`: the task; what is left out of the input; and for
      each split "pictures" (their number), "classes", the "unreadable" files with the
      reasons and a hash of the "content".

    Raises:
      ValueError: If the task cannot be, if `out` or its unfinished form is of another
        task or of other content, if another process is at work on it, if there are no
        images, or, with `strict`, if a file cannot be read.
      OSError: If the input cannot be read at all, or the output cannot be written.
    """
    check(task)
    try:
        with lock(task.out.with_name(f"{task.out.name}.lock"), remove=True):
            return _prepare(task)
    except HeldError as error:
        raise ValueError(
            f"Another `prepare` is at work on {task.out} ({error.holder}): wait for it,"
            " stop it, or choose another --out."
        ) from error


def _prepare(task: Task) -> dict[str, Any]:
    partial = _partial(task.out)
    with contextlib.ExitStack() as to_undo:
        to_undo.callback(_remove_new, partial, _decompressed(partial))
        files = open_input(task.path, partial)
        with contextlib.closing(files):
            parts = find_parts(files, task.path, task.splits)
            for line in parts.unread:
                print(f"prepare: {line}", file=sys.stderr)
            contexts = None
            if task.encoding is not None and task.encoding.contexts is not None:
                contexts = read_contexts(task.encoding.contexts, files, parts)
            about = describe(task, files, parts, contexts)
            if _is_finished(task.out):
                return finished(task, files, parts, about)
            check_begun(task, partial, files, parts, about)
            to_undo.pop_all()  # from here on `partial` is of this task
            partial.mkdir(parents=True, exist_ok=True)
            write_json(partial / "task.json", about)
            about["splits"] = {
                split: _prepare_split(
                    task,
                    files,
                    part,
                    task.folder(partial, split),
                    _of_split(contexts, split),
                )
                for split, part in parts.of.items()
            }
    about["left_out"] = parts.left_out
    write_json(partial / "prepared.json", about)
    if isinstance(task.out, StorePath):
        # Before it is tidied: should it fail, the same command begins here.
        task.out.upload(partial, left_out=_only_for_work(partial))
        _tidy(partial)
        remove_tree(partial)
    else:
        _tidy(partial)
        os.replace(partial, task.out)
    return about


def _partial(out: pathlib.Path) -> pathlib.Path:
    """The place of an unfinished output; of one in a store it is on this machine."""
    name = f"{out.name}.partial"
    if not is_in_store(out):
        return out.with_name(name)
    key = hashlib.sha256(str(out).encode()).hexdigest()[:24]
    return cache() / "prepare" / key / name


def _is_finished(out: pathlib.Path) -> bool:
    """True if an output is there; one that was half uploaded is uploaded again."""
    return (out / "prepared.json").is_file() if is_in_store(out) else out.exists()


def _decompressed(partial: pathlib.Path) -> set[pathlib.Path]:
    return set(partial.glob("decompressed-*"))


def _remove_new(partial: pathlib.Path, before: set[pathlib.Path]) -> None:
    """Removes an archive that was decompressed for nothing."""
    for path in _decompressed(partial) - before:
        path.unlink()
    with contextlib.suppress(OSError):  # not there, or begun for another task
        partial.rmdir()


def _tidy(partial: pathlib.Path) -> None:
    """Removes the files that only an unfinished preparation needs."""
    for path in _only_for_work(partial):
        path.unlink()


def _only_for_work(partial: pathlib.Path) -> list[pathlib.Path]:
    """These files; task.json last, as it says of what task the others are."""
    patterns = ("decompressed*", "progress.json", "*.raw", "*.half", "task.json")
    return [path for pattern in patterns for path in partial.rglob(pattern)]


def _of_split(contexts: GivenContexts | None, split: str) -> ContextsOfSplit | None:
    if contexts is None:
        return None
    return ContextsOfSplit(contexts.table, contexts.row[split])


def _prepare_split(
    task: Task,
    files: Input,
    part: Part,
    folder: pathlib.Path,
    contexts: ContextsOfSplit | None,
) -> dict[str, Any]:
    """Writes one split, from where an earlier run stopped; returns its facts."""
    progress = read_progress(folder)
    _refuse(progress.unreadable, task)
    if progress.inputs and not progress.content:  # begun by version 0.2
        names = itertools.islice(part.names.values(), progress.inputs)
        progress.content = extended("", names, files.identity)
    if not progress.finished:
        with contextlib.closing(_writer(task, folder, contexts)) as writer:
            _write(task, files, part.names, folder, progress, writer)
            _finish(task, part, progress, writer)
        progress.finished = True
        _save(folder, progress)
    return {
        "pictures": _copies(task) * (len(part.names) - len(progress.unreadable)),
        "classes": list(part.classes),
        "unreadable": progress.unreadable,
        "content": progress.content,
    }


def _writer(
    task: Task, folder: pathlib.Path, contexts: ContextsOfSplit | None
) -> Writer:
    encoding = task.encoding
    if encoding is None:
        return make_writer(task.format, folder, task.sizes, task.channels)
    return ShardWriter(
        folder,
        encoding.latent_sizes(task.sizes),
        channels=encoding.encoder.encoded_channels,
        dtype=np.dtype(encoding.dtype).newbyteorder("<"),
        shard_bytes=encoding.shard_bytes,
        contexts=contexts,
    )


def _copies(task: Task) -> int:
    return 1 if task.encoding is None else task.encoding.copies


def _write(
    task: Task,
    files: Input,
    names: dict[str, str],
    folder: pathlib.Path,
    progress: Progress,
    writer: Writer,
) -> None:
    left = itertools.islice(names.items(), progress.inputs, None)
    # One after another: of a million files all would be millions of objects.
    chunks = iter(lambda: list(itertools.islice(left, CHUNK)), [])
    name = f"prepare {folder.name.removesuffix('.partial')}"
    unit = "files" if task.encoding is None else "images"
    with Bar(name, len(names), unit=unit, done=progress.inputs) as bar:
        for chunk, unreadable, images in _made(task, files, chunks):
            _refuse(unreadable, task)
            readable = progress.inputs - len(progress.unreadable)
            writer.write(_copies(task) * readable, images)
            # After the images: a chunk that is written twice is the same.
            progress.inputs += len(chunk)
            originals = [original for _, original in chunk]
            progress.content = extended(progress.content, originals, files.identity)
            progress.unreadable |= unreadable
            _save(folder, progress)
            bar.update(len(chunk))


def _made(
    task: Task, files: Input, chunks: Iterable[Chunk]
) -> Iterator[tuple[Chunk, dict[str, str], list[tuple[bytes, ...]]]]:
    """Chunks in their order, each with its unreadable files and what is written."""
    sorted_out = (
        ((chunk, unreadable), images)
        for chunk, results in converted(task, files, chunks)
        for images, unreadable in [_sort_out(chunk, results)]
    )
    if task.encoding is None:
        for (chunk, unreadable), images in sorted_out:
            yield chunk, unreadable, [pixels for _, pixels in images]
        return
    shapes = [(size, size, task.channels) for size in task.sizes]
    for (chunk, unreadable), images in encoded(sorted_out, task.encoding, shapes):
        yield chunk, unreadable, images


def _finish(task: Task, part: Part, progress: Progress, writer: Writer) -> None:
    names = part.names
    readable = np.array([name not in progress.unreadable for name in names])
    if not readable.any():
        raise ValueError(
            f"None of the {len(names)} files of {task.path} can be read; the first,"
            f" {next(iter(names))}: {next(iter(progress.unreadable.values()))}."
        )
    names = list(itertools.compress(names, readable))
    labels = None if part.labels is None else part.labels[readable]
    if task.encoding is not None:
        names = task.encoding.names(names)
        labels = None if labels is None else np.repeat(labels, _copies(task))
    writer.finish(names, labels, part.classes)


def _sort_out(
    chunk: Sequence[tuple[str, str]], results: Sequence[tuple[bytes, ...] | str]
) -> tuple[Named, dict[str, str]]:
    images, unreadable = [], {}
    for (name, _), result in zip(chunk, results, strict=True):
        if isinstance(result, str):
            unreadable[name] = result
        else:
            images.append((name, result))
    return images, unreadable


def _refuse(unreadable: dict[str, str], task: Task) -> None:
    if unreadable and task.strict:
        name, reason = next(iter(unreadable.items()))
        raise ValueError(
            f"{name} in {task.path} {reason}. Without --strict it is left out."
        )


def _save(folder: pathlib.Path, progress: Progress) -> None:
    write_json(folder / "progress.json", dataclasses.asdict(progress))
