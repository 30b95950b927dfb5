"""The config that a command names: a file, or a workdir that records one; its stages.

`configs/digits.py`, `configs/digits` and `digits` are one file; behind a colon stand
the stages, as in `digits:train` or `runs/x:sample,evaluate`.
"""

import difflib
import importlib.util
import pathlib
from typing import NamedTuple

from vdiff_jax.files.place import is_in_store, path_of
from vdiff_jax.from_config.fields import PIPELINE, STAGES
from vdiff_jax.from_config.ranges import shown
from vdiff_jax.workdir.layout import CONFIG

# The stage of former versions that is `train` today, with other defaults.
FINETUNE = "finetune"


class Source(NamedTuple):
    """The place of a config, and the stages to run.

    Attributes:
      place: A config file, or a workdir.
      stage: One of the stages, several of them as in "train,distill", or "" for those
        that the config chooses.
    """

    place: pathlib.Path
    stage: str

    @property
    def is_workdir(self) -> bool:
        """True for a workdir, which records its config."""
        return self.place.is_dir()

    @property
    def workdir(self) -> pathlib.Path:
        """The project's folder, where the command names no other."""
        if self.is_workdir:
            return self.place
        return pathlib.Path("runs") / self.place.stem


# Config files that a message names, at most.
MOST_NAMED = 10


def find(text: str | None) -> Source:
    """The config that a command names.

    Args:
      text: The value of --config, if there is one. The place itself may have colons.

    Raises:
      ValueError: If there is no such file and no such stage; it names the nearest.
    """
    if not text:
        raise ValueError("No config is named: write --config configs/digits.py")
    if (place := _place(text)) is not None:
        return Source(place, "")
    name, colon, stage = text.rpartition(":")
    if colon and (place := _place(name)) is not None:
        return Source(place, _in_order(stage))
    first, more, other = name.rpartition(":")
    if more and _place(first) is not None:
        raise ValueError(
            f"--config {text}: stages are separated by commas: write"
            f" {first}:{other},{stage}"
        )
    raise ValueError(_missing(name if colon and name else text))


def _place(text: str) -> pathlib.Path | None:
    """The file or the workdir of a name; None if there is none."""
    try:
        path = path_of(text).expanduser()
    except ValueError:  # a URL with a stage behind it
        return None
    if (path / CONFIG).is_file():
        return path
    for folder in (pathlib.Path(), *_folders()):
        for name in (path, path.with_name(f"{path.name}.py")):
            if not is_in_store(path) and (folder / name).is_file():
                return folder / name
    return None


def _folders() -> list[pathlib.Path]:
    """The folders of config files: that of the place, and that beside launch.py."""
    folders = [pathlib.Path("configs")]
    spec = importlib.util.find_spec("configs")
    if spec is not None:
        folders += map(pathlib.Path, spec.submodule_search_locations or [])
    return folders


def _missing(name: str) -> str:
    path = path_of(name).expanduser()
    if path.is_dir():
        return (
            f"{name} is a folder without {CONFIG}, so it is no workdir: name a workdir"
            " or a config file, as in --config configs/digits.py."
        )
    stems = sorted(
        {
            file.stem
            for folder in _folders()
            for file in folder.glob("*.py")
            if file.stem not in ("__init__", "defaults", "paper")
        }
    )
    near = difflib.get_close_matches(path.stem, stems, 3, 0.5)
    rest = len(stems) - MOST_NAMED
    more = f" and {rest} more" if rest > 0 else ""
    hint = (
        f"near it: {', '.join(near)}"
        if near
        else f"there are {', '.join(stems[:MOST_NAMED])}{more}"
    )
    return f"There is no config file or workdir {name}; {hint}."


def _in_order(text: str) -> str:
    """The stages behind the colon, as the field `stage` has them.

    Raises:
      ValueError: If one is unknown, or they are not in the order of the pipeline.
    """
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in (*STAGES, FINETUNE):
            near = difflib.get_close_matches(word, STAGES, 1, 0.6)
            nearest = f"; the nearest is {near[0]}" if near else ""
            raise ValueError(
                f"There is no stage {shown(word)}{nearest}. The stages:"
                f" {', '.join(STAGES)}."
            )
    if len(words) == 1:
        return words[0]
    if alone := [word for word in words if word not in PIPELINE]:
        raise ValueError(
            f"The stage {alone[0]} runs by itself, and not in {text!r}: give it a"
            " command of its own."
        )
    ordered = [word for word in PIPELINE if word in words]
    if words != ordered:
        raise ValueError(
            f"The stages {text!r} are not in the order of the pipeline: write"
            f" :{','.join(ordered)}."
        )
    return ",".join(ordered)
