"""The files of `sample`: the images of one command, and what made them.

`sample/` has nothing but images and sample.json, so that a tool which measures a folder
can be given it; sheets of images lie beside it. A command replaces what the one before
it left, whole, and touches no file that is not of this stage.
"""

import contextlib
import errno
import fcntl
import importlib.metadata
import itertools
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Num

from vdiff_jax import parallel
from vdiff_jax.datasets.prepare.npz_file import Stream, write_npz
from vdiff_jax.files import locks, weights
from vdiff_jax.files.atomic import replacing, write_json
from vdiff_jax.files.place import is_in_store, path_of
from vdiff_jax.from_config.choices import Config, as_json
from vdiff_jax.generation.grids import save_image
from vdiff_jax.workdir.trained import Trained

FOLDER = "sample"
SHEETS = ("sample_grid.png", "sample_trajectory.png", "sample_interpolation.png")
# Names that this stage gives to files in its folder, or gave to them in version 0.1.
_OURS = re.compile(
    r"(w_[^/]+/)?(\d{6,}\.png|latents\.npz|grid\.png)"
    r"|sample\.json|trajectory\.png|interpolation\.png"
)
# Left there by those who only looked.
_LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")

Images = Num[np.ndarray, " n h w c"]
Part = Num[np.ndarray, " part h w c"]
# The images of each guidance weight, part after part.
Drawn = Mapping[float | None, Iterable[Part]]


@contextlib.contextmanager
def alone(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other commands of this stage out of a workdir; a training may go on in it.

    The lock is on the folder itself: `lock` in it is that of the stages that train.

    Raises:
      ValueError: If another is at work in it, or files that are not of this stage are
        where the images go.
    """
    if not parallel.is_main():
        yield
        return
    if is_in_store(workdir):
        with _leased(workdir):
            _check_replaceable(workdir / FOLDER)
            yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    folder = os.open(workdir, os.O_RDONLY)
    try:
        _lock(folder, workdir)
        _check_replaceable(workdir / FOLDER)
        yield
    finally:
        os.close(folder)


@contextlib.contextmanager
def _leased(workdir: pathlib.Path) -> Iterator[None]:
    try:
        with locks.lock(workdir / "sample.lock"):
            yield
    except locks.HeldError as error:
        raise ValueError(
            f"Another command draws images in {workdir} ({error.holder}): wait for it,"
            " or use another --workdir."
        ) from None


def _lock(folder: int, workdir: pathlib.Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"Another command draws images in {workdir}: wait for it, or use another"
            " --workdir."
        ) from None
    except OSError as error:  # some file systems have no such locks, or not on folders
        if error.errno not in (
            errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP,
        ):  # fmt: skip
            raise


def _check_replaceable(folder: pathlib.Path) -> None:
    files = list(folder.rglob("*"))
    if not is_in_store(folder):  # which has no folders
        files = [path for path in files if not path.is_dir()]
    names = [path.relative_to(folder).as_posix() for path in files]
    others = sorted(
        name
        for name in names
        if not _OURS.fullmatch(name) and name.rpartition("/")[2] not in _LITTER
    )
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise ValueError(
            f"{folder} has files that the sample stage did not write"
            f" ({', '.join(others[:3])}{more}), and its images are replaced: move them"
            " elsewhere."
        )


def about(config: Config, trained: Trained, params_sha256: str) -> dict[str, Any]:
    """The content of sample.json: all that decides on the images.

    Args:
      config: The config, with the fields of the model.
      trained: The model.
      params_sha256: The fingerprint of its parameters.
    """
    section, role = config.sample, trained.role
    inputs = {name: path_of(section[name]) for name in ("noise", "image")}
    return {
        "version": importlib.metadata.version("vdiff_jax"),
        "model": {
            "role": role.name,
            "method": role.method,
            "num_steps": role.num_steps,
            "folder": str(trained.folder),
            "params_sha256": params_sha256,
        },
        "sampler": section.sampler,
        "num_images": section.num,
        "sample": as_json(config)["sample"],
        "sha256_of_files": {
            name: weights.sha256(path)
            for name, path in inputs.items()
            if path.is_file()
        },
    }


def write(
    workdir: pathlib.Path, drawn: Drawn, made_by: dict[str, Any], *, num: int, keep: int
) -> dict[float | None, Images]:
    """Puts the images in the place of those of the command before; removes its sheets.

    Each part is written before the next is drawn, so that they are never held all at
    once.

    Args:
      workdir: The project's folder.
      drawn: The images; those of several guidance weights get a folder each.
      made_by: The content of sample.json.
      num: The number of images of each guidance weight.
      keep: The number of images of each to return.

    Returns:
      The first images of each guidance weight.
    """
    kept = {w: _Kept(parts, keep) for w, parts in drawn.items()}
    if not parallel.is_main():
        for parts in kept.values():
            for _ in parts:  # which all hosts draw together
                pass
    else:
        with replacing(workdir / FOLDER) as half:
            half.mkdir()
            for w, parts in kept.items():
                _write(half if len(drawn) == 1 else half / f"w_{_short(w)}", parts, num)
            write_json(half / "sample.json", made_by)
            # Before the new images are there: a sheet of others would be taken for
            # theirs.
            for name in SHEETS:
                (workdir / name).unlink(missing_ok=True)
    return {w: parts.images for w, parts in kept.items()}


class _Kept:
    """Parts of images, of which the first images are kept."""

    def __init__(self, parts: Iterable[Part], num: int):
        self._parts, self._num = parts, num
        self._kept: list[Part] = []

    def __iter__(self) -> Iterator[Part]:
        missing = self._num
        for images in self._parts:
            if missing > 0:
                # A view would keep all of them.
                self._kept.append(images[:missing].copy())
                missing -= len(images)
            yield images
            del images  # or it would be there until the next is drawn

    @property
    def images(self) -> Images:
        return np.concatenate(self._kept)


def _short(w: float | None) -> str:
    """A guidance weight as text, no two of them the same."""
    assert w is not None
    return f"{w:g}" if float(f"{w:g}") == w else repr(w)


def _write(folder: pathlib.Path, parts: Iterable[Part], num: int) -> None:
    parts = iter(parts)
    begun = [next(parts)]
    shape, dtype = begun[0].shape[1:], begun[0].dtype
    whole = _joined(begun, parts)
    if dtype == np.uint8:
        for i, image in enumerate(itertools.chain.from_iterable(whole)):
            save_image(folder / f"{i:06d}.png", image)
    else:
        blocks = (np.ascontiguousarray(latents).tobytes() for latents in whole)
        latents = Stream((num, *shape), dtype, blocks)
        write_npz(folder / "latents.npz", {"latents": latents})


def _joined(begun: list[Part], more: Iterator[Part]) -> Iterator[Part]:
    """Yields the parts of both, and lets go of them."""
    while begun:
        yield begun.pop(0)
    yield from more
