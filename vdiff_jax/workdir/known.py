"""The config of a command with what its workdir knows.

A workdir knows what its model is, and what it was asked for. A later command says only
what it wants differently.
"""

import pathlib
import sys
from collections.abc import Set
from typing import Any

from vdiff_jax import parallel
from vdiff_jax.from_config.choices import Config, as_json
from vdiff_jax.from_config.fields import FIELDS, TRAINING, is_override, words_of
from vdiff_jax.from_config.moved import flat, nested
from vdiff_jax.workdir.claim import Difference, refuse
from vdiff_jax.workdir.layout import section_of_students
from vdiff_jax.workdir.record import (
    BOOKKEEPING,
    SHAPE,
    has_runs,
    has_seen_data,
    record_of,
)
from vdiff_jax.workdir.recorded import as_tuples

# What a network that takes w makes of it.
INPUT_OF_W = frozenset({"guide.w_range", "guide.w_features", "guide.w_scale"})
# Fields that a line on stderr names, at most.
MOST_TOLD = 8


def known(
    config: Config, asked: Set[str], workdir: pathlib.Path, stages: Set[str]
) -> Config:
    """The config with what a workdir knows, where the command asks for nothing else.

    What the model is comes from the workdir, as does the section of a stage that has
    run and is not to run now, and all that earlier commands asked for. Of students it
    is the section of their method: what was asked for others is not asked of them.

    Args:
      config: The config of the command.
      asked: Paths of the fields that the command sets itself.
      workdir: The folder.
      stages: The stages that are to run.

    Raises:
      ValueError: If the command asks for another model than the workdir has; every
        field is named.
    """
    record = record_of(workdir)
    if record is None or not has_runs(workdir, "model"):
        return config
    before, now = dict(flat(record["config"])), dict(flat(as_json(config)))
    of_model = {path for path in before if _is_of_model(workdir, path, before, now)}
    refuse(
        workdir,
        [
            Difference("", path, before[path], now[path])
            for path in sorted(
                (asked & (of_model | _of_guide(workdir, before))) - {"data.path"}
            )
            if before[path] != now[path]
        ],
    )
    known_by_all = {
        path: before[path]
        for path in before
        if path in of_model or _is_of_another_run(workdir, path, stages)
    }
    asked_before = record.get("asked", {})
    method = config.distill.method
    if "distill.method" not in asked:
        method = asked_before.get("distill.method", method)
    of_students = _of_students(workdir, record["config"], method)
    if "distill" not in stages:
        known_by_all |= of_students
    asked_before |= {
        path: of_students[path] for path in asked_before.keys() & of_students.keys()
    }
    taken = {
        path: value
        for path, value in {**known_by_all, **asked_before}.items()
        if path not in asked and (path in FIELDS or is_override(path))
    }
    config = config.copy_and_resolve_references()
    config.update(nested({path: as_tuples(value) for path, value in taken.items()}))
    return config


def tell(config: Config, known: Config, workdir: pathlib.Path) -> None:
    """Prints, in a line on stderr, what a workdir knows otherwise than a command.

    Sections of stages that are not to run are left out.
    """
    now, stages = dict(flat(as_json(config))), words_of(config.stage)
    other = [
        f"{path}={value!r} (not {now[path]!r})"
        for path, value in flat(as_json(known))
        if path in now
        and value != now[path]
        and (path.partition(".")[0] not in TRAINING or _runs(path, stages))
    ]
    if other and parallel.is_main():
        more = f" and {len(other) - MOST_TOLD} more" if len(other) > MOST_TOLD else ""
        print(
            f"config: as in {workdir}: {', '.join(other[:MOST_TOLD])}{more}",
            file=sys.stderr,
        )


def _is_of_model(
    workdir: pathlib.Path, path: str, before: dict[str, Any], now: dict[str, Any]
) -> bool:
    """True for a field that is the same for all that a workdir does."""
    section, _, name = path.rpartition(".")
    if path == "seed" or path in SHAPE:
        return True
    if section.partition(".")[0] in ("model", "diffusion"):
        return True
    if section != "data" or not has_seen_data(workdir):
        return False
    if name == "path":  # of other data than those that the config file names
        return before["data.source"] != now["data.source"]
    return name not in BOOKKEEPING


def _of_guide(workdir: pathlib.Path, before: dict[str, Any]) -> Set[str]:
    """The fields of a guide stage that has run, and of all that was made from it."""
    return INPUT_OF_W & before.keys() if has_runs(workdir, "guide") else frozenset()


def _runs(path: str, stages: list[str]) -> bool:
    return stages == ["all"] or path.partition(".")[0] in stages


def _is_of_another_run(workdir: pathlib.Path, path: str, stages: Set[str]) -> bool:
    """True for a field of a stage, but that of students, that is not to run now."""
    section = path.partition(".")[0]
    if section not in TRAINING or section == "distill":
        return False
    return section not in stages and has_runs(workdir, section)


def _of_students(
    workdir: pathlib.Path, before: dict[str, Any], method: str
) -> dict[str, Any]:
    """The fields that the students of a method were made with, if there are any."""
    name = section_of_students(method)
    if not has_runs(workdir, name):
        return {}
    section = before.get(name, before["distill"])
    return {**dict(flat({"distill": section})), "distill.method": method}
