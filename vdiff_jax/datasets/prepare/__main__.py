r"""Prepares images once: turned, cropped, resized, checked, in files that read fast.

    python -m vdiff_jax.datasets.prepare photos/ --out data/cars64 --size 64

PATH is a folder, a zip or a tar of JPEG, PNG and WebP files, flat or with one folder
for each class, or an LMDB of LSUN. The largest square in the centre of each is resized.
Files that cannot be read are left out and listed. The output appears under its name
when it is whole; the same command goes on where an interrupted one stopped.

With --encode they are encoded by an autoencoder, and latents are stored: the mean and
the log-variance of each or, of one with a codebook, what comes before it.
"""

import argparse
import concurrent.futures
import dataclasses
import io
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, get_args

import lmdb

from vdiff_jax.datasets.images import Resize
from vdiff_jax.datasets.names import from_bytes
from vdiff_jax.datasets.prepare.encoding import DTYPES, Encoding
from vdiff_jax.datasets.prepare.task import Task, check
from vdiff_jax.datasets.prepare.work import CHUNK, prepare
from vdiff_jax.datasets.prepare.writers import FORMATS
from vdiff_jax.files.place import path_of

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
        print(_summary(task, task.folder(task.out, split), facts))
    return 0


def _summary(task: Task, folder: pathlib.Path, facts: dict[str, Any]) -> str:
    unreadable = facts["unreadable"]
    what = f"images at {', '.join(map(str, task.sizes))}"
    if task.encoding is not None:
        sizes = task.encoding.latent_sizes(task.sizes)
        what = f"latents at {', '.join(map(str, sizes))} of {what}"
    lines = [
        f"{folder}: {facts['pictures']:,} {what},"
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
    parser.add_argument(
        "--format", choices=FORMATS, help="lmdb; with --encode always npz"
    )
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
    of_latents = parser.add_argument_group("latents")
    of_latents.add_argument(
        "--encode",
        type=_path,
        metavar="FOLDER",
        help="an autoencoder of diffusers, or a pipeline with one",
    )
    of_latents.add_argument(
        "--latent_scale",
        type=float,
        help="the scale of its latents, if its config.json tells none",
    )
    of_latents.add_argument(
        "--dtype", choices=DTYPES, help="of the stored latents; float16"
    )
    of_latents.add_argument(
        "--mirror", action="store_true", help="encode a mirrored copy of each image too"
    )
    of_latents.add_argument(
        "--context",
        type=_path,
        metavar="FILE.npz",
        help="a context for each image, such as the embedding of its caption",
    )
    given = parser.parse_args(arguments)
    # As the shell completes them.
    named = [from_bytes(os.fsencode(name)) for name in given.splits or [""]]
    splits = [name.removeprefix("./").rstrip("/") for name in named]
    task = Task(
        path=given.path,
        out=given.out,
        sizes=tuple(dict.fromkeys(given.size)),
        format=given.format or ("lmdb" if given.encode is None else "npz"),
        splits=tuple(dict.fromkeys(splits)),
        resize=given.resize,
        channels=given.channels,
        workers=given.workers,
        strict=given.strict,
    )
    return dataclasses.replace(task, encoding=_encoding(task, given))


def _encoding(task: Task, given: argparse.Namespace) -> Encoding | None:
    if given.encode is None:
        for name in ("latent_scale", "dtype", "mirror", "context"):
            if getattr(given, name):
                raise ValueError(f"--{name} is for latents: name an --encode FOLDER.")
        return None
    check(task)  # before what takes seconds
    # The one import from a layer above, for the command stands on top of all; and here,
    # so that neither the workers, which import this module, nor who prepares images has
    # to wait for JAX.
    from vdiff_jax.interop.encoder import open_encoder

    encoding = Encoding(
        open_encoder(
            given.encode,
            scale=given.latent_scale or 0.0,
            batch_size=CHUNK * (2 if given.mirror else 1),
        ),
        dtype=given.dtype or DTYPES[0],
        mirror=given.mirror,
        contexts=given.context,
    )
    return encoding


def _path(text: str) -> pathlib.Path:
    """A path as people write it; the shell expands ~ in `--out ~/x` only."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path names nothing")
    try:
        return path_of(os.path.expanduser(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
