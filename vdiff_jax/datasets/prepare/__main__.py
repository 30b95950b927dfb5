r"""Prepares images once: turned, cropped, resized, checked, in files that read fast.

    python -m vdiff_jax.datasets.prepare photos/ --out data/cars64 --size 64

PATH is a folder, a zip or a tar of JPEG, PNG and WebP files, flat or with one folder
for each class, or an LMDB of LSUN. The largest square in the centre of each is resized.
Files that cannot be read are left out and listed. The output appears under its name
when it is whole; the same command goes on where an interrupted one stopped.
"""

import argparse
import concurrent.futures
import io
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, get_args

import lmdb

from vdiff_jax.datasets.images import Resize
from vdiff_jax.datasets.names import from_bytes
from vdiff_jax.datasets.prepare.task import Task
from vdiff_jax.datasets.prepare.work import prepare
from vdiff_jax.datasets.prepare.writers import FORMATS

SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 2 for a mistake of the user's."""
    # Names of files are bytes, and need not be printable.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        task = _parse(arguments)
        about = prepare(task)
    except ValueError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 2
    except (OSError, lmdb.Error, concurrent.futures.BrokenExecutor) as error:
        print(
            f"prepare: {error}; the same command goes on when that is mended.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("prepare: interrupted; the same command goes on.", file=sys.stderr)
        return 130
    for split, facts in about["splits"].items():
        print(_summary(task.folder(task.out, split), task.sizes, facts))
    return 0


def _summary(folder: pathlib.Path, sizes: Sequence[int], facts: dict[str, Any]) -> str:
    unreadable = facts["unreadable"]
    lines = [
        f"{folder}: {facts['pictures']:,} images at {', '.join(map(str, sizes))},"
        f" {len(facts['classes'])} classes, {len(unreadable)} unreadable files left out"
    ]
    lines += [f"  {name} {reason}" for name, reason in list(unreadable.items())[:SHOWN]]
    if len(unreadable) > SHOWN:
        lines.append(f"  ... and {len(unreadable) - SHOWN} more, in prepared.json")
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help.")


def _parse(arguments: Sequence[str] | None) -> Task:
    parser = _Parser(
        prog="python -m vdiff_jax.datasets.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=_path, help="a folder, a zip, a tar or an LMDB")
    parser.add_argument("--out", type=_path, required=True, help="to be made")
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        action="extend",
        required=True,
        help="one or several, in one pass",
    )
    parser.add_argument("--format", choices=FORMATS, default="lmdb")
    parser.add_argument(
        "--splits",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="folders in PATH, such as train and test, to be prepared side by side",
    )
    resizes = [how for how in get_args(Resize) if how != "pad"]
    parser.add_argument("--resize", choices=resizes, default="area")
    parser.add_argument("--channels", type=int, choices=(1, 3), default=3)
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes that decode"
    )
    parser.add_argument(
        "--strict", action="store_true", help="end at a file that cannot be read"
    )
    given = parser.parse_args(arguments)
    # As the shell completes them.
    named = [from_bytes(os.fsencode(name)) for name in given.splits or [""]]
    splits = [name.removeprefix("./").rstrip("/") for name in named]
    return Task(
        path=given.path,
        out=given.out,
        sizes=tuple(dict.fromkeys(given.size)),
        format=given.format,
        splits=tuple(dict.fromkeys(splits)),
        resize=given.resize,
        channels=given.channels,
        workers=given.workers,
        strict=given.strict,
    )


def _path(text: str) -> pathlib.Path:
    """A path as people write it; the shell expands ~ in `--out ~/x` only."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path names nothing")
    return pathlib.Path(os.path.expanduser(text))


if __name__ == "__main__":
    sys.exit(main())
