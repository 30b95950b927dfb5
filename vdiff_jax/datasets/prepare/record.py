"""What an output was made of: by this a later run knows if it may take it, or go on.

Content decides. It is looked at where sizes and times of the input are not what they
were, so that what was merely copied or moved is the same.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from typing import Any

from vdiff_jax.datasets.names import from_bytes
from vdiff_jax.datasets.prepare.archives import Input
from vdiff_jax.datasets.prepare.content import extended
from vdiff_jax.datasets.prepare.given_contexts import GivenContexts
from vdiff_jax.datasets.prepare.parts import Parts
from vdiff_jax.datasets.prepare.task import Task

# Facts that a preparation of images has not.
_OF_LATENTS = {"autoencoder", "dtype", "mirror", "contexts"}


@dataclasses.dataclass
class Progress:
    """The state of a split that is being prepared.

    Attributes:
      inputs: Number of files dealt with, in their order.
      unreadable: Names of those that cannot be read, each with the reason.
      content: The hash of their content, by `extended`.
      finished: True once the output of the split is whole.
    """

    inputs: int = 0
    unreadable: dict[str, str] = dataclasses.field(default_factory=dict)
    content: str = ""
    finished: bool = False


def describe(
    task: Task, files: Input, parts: Parts, contexts: GivenContexts | None = None
) -> dict[str, Any]:
    """The facts by which a run sees if it may go on with the work of another.

    Args:
      task: The task.
      files: The input.
      parts: Its splits.
      contexts: Those of the images, or None.
    """
    listing = json.dumps([list(part.names.values()) for part in parts.of.values()])
    labels = hashlib.sha256()
    for part in parts.of.values():
        labels.update(json.dumps(part.classes).encode())
        labels.update(b"" if part.labels is None else part.labels.tobytes())
    about = {
        "path": from_bytes(os.fsencode(task.path.resolve())),
        "sizes": list(task.sizes),
        "format": task.format,
        "resize": task.resize,
        "channels": task.channels,
        "splits": list(task.splits),
        "listing_sha256": hashlib.sha256(listing.encode()).hexdigest(),
        "labels_sha256": labels.hexdigest(),
        "stamp": files.stamp().sha256,
    }
    if task.encoding is not None:
        about |= {
            "autoencoder": task.encoding.encoder.about,
            "dtype": task.encoding.dtype,
            "mirror": task.encoding.mirror,
            "contexts": None if contexts is None else contexts.about,
        }
    return about


def _is_of(recorded: Any, about: dict[str, Any]) -> bool:
    """True if the record is of this task; its files may have other content."""
    if not isinstance(recorded, dict) or "splits" not in recorded:
        return False
    recorded = {**recorded, "splits": list(recorded["splits"])}
    compared = (about.keys() | _OF_LATENTS) - {"stamp", "path"}
    if "stamp" not in recorded:  # of version 0.2, which went by the path
        compared = about.keys() - {"stamp", "labels_sha256"}
    return all(_plain(recorded.get(key)) == _plain(about.get(key)) for key in compared)


def _plain(fact: Any) -> Any:
    """A fact without the path of a file that is known by its content."""
    if not isinstance(fact, dict):
        return fact
    return {key: value for key, value in fact.items() if key != "path"}


def _is_untouched(recorded: dict[str, Any], about: dict[str, Any]) -> bool:
    """True if the input is where it was, with the sizes and times that it had.

    And for a record of version 0.2, which has none.
    """
    if "stamp" not in recorded:
        return True
    return all(recorded[key] == about[key] for key in ("path", "stamp"))


def finished(
    task: Task, files: Input, parts: Parts, about: dict[str, Any]
) -> dict[str, Any]:
    """The record of the output that is there, if it is of this task and this content.

    Args:
      task: The task.
      files: The input.
      parts: Its splits.
      about: The facts of the task, by `describe`.

    Raises:
      ValueError: If it is of another, or no output of `prepare`.
    """
    prepared = read_json(task.out / "prepared.json")
    if not _is_of(prepared, about):
        raise ValueError(
            f"{task.out} is there already, and was not made from these files in this"
            " way. Remove it, or choose another --out."
        )
    if not _is_untouched(prepared, about):
        for split, part in parts.of.items():
            content = extended("", part.names.values(), files.identity)
            if content != prepared["splits"][split]["content"]:
                raise _changed(task, task.out, files)
    return prepared


def check_begun(
    task: Task,
    partial: pathlib.Path,
    files: Input,
    parts: Parts,
    about: dict[str, Any],
) -> None:
    """Refuses to go on with work that was begun for another task or other content.

    Args:
      task: The task.
      partial: The unfinished form of its output; it need not be there.
      files: The input.
      parts: Its splits.
      about: The facts of the task, by `describe`.

    Raises:
      ValueError: If it was.
    """
    begun = read_json(partial / "task.json")
    if begun is None:  # not begun, or tidied and then killed
        begun = read_json(partial / "prepared.json")
    if begun is None:
        return
    if not _is_of(begun, about):
        raise ValueError(
            f"{partial} was begun from other files or in another way. Remove it to"
            " start again, or choose another --out."
        )
    if _is_untouched(begun, about):
        return
    for split, part in parts.of.items():
        progress = read_progress(task.folder(partial, split))
        names = itertools.islice(part.names.values(), progress.inputs)
        if extended("", names, files.identity) != progress.content:
            raise _changed(task, partial, files)


def _changed(task: Task, place: pathlib.Path, files: Input) -> ValueError:
    return ValueError(
        f"{place} was made from {task.path} as it was; its images have changed since,"
        f" {files.stamp().latest} last. Remove {place.name}, or choose another --out."
    )


def read_progress(folder: pathlib.Path) -> Progress:
    """The state of a split that was begun, or of one that was not."""
    return Progress(**(read_json(folder / "progress.json") or {}))


def read_json(path: pathlib.Path) -> Any:
    """The content of a file of JSON; None if it is not there.

    Raises:
      ValueError: If it is damaged.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it.") from error
