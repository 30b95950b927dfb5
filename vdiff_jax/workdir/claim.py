"""The hold of a stage on a workdir: its config is that of the runs there, or refused.

A few fields may change on the way of a run; every change is recorded.
"""

import pathlib
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from vdiff_jax import parallel
from vdiff_jax.distillation.methods import METHODS
from vdiff_jax.distillation.role import BASE, GUIDED, student
from vdiff_jax.files.place import path_of
from vdiff_jax.from_config.choices import as_json, updates_of
from vdiff_jax.from_config.fields import TRAINING
from vdiff_jax.from_config.losses import phases_of
from vdiff_jax.from_config.moved import flat
from vdiff_jax.training.saved import latest_step
from vdiff_jax.workdir.layout import (
    Project,
    checkpoint_folder,
    folder_of,
    result,
    students_folder,
)
from vdiff_jax.workdir.record import (
    BOOKKEEPING,
    MODEL_SECTIONS,
    PATHS,
    has_runs,
    is_kept,
    record_of,
    write_record,
)


class Difference(NamedTuple):
    """A field that the runs of a section have otherwise than the config.

    Attributes:
      section: The section, as config.json calls it.
      name: The field in it.
      before: Its value for the runs.
      after: Its value in the config.
    """

    section: str
    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        """The field and both values, for a message."""
        field = f"{self.section}.{self.name}".strip(".")
        return f"{field}: {self.before!r} there, {self.after!r} now"


def check(project: Project, section: str) -> list[Difference]:
    """The fields that change on the way of the runs of a section.

    Args:
      project: The config and its folder.
      section: The section of a stage that makes models: "train", "source", "guide" or
        the folder of a method's students.

    Raises:
      ValueError: If a field differs from that of the runs in it, and may not change;
        every one is named.
    """
    record = record_of(project.workdir)
    if record is None:
        return []
    config = _as_recorded(project, section)
    differences = [
        difference
        for name in (*MODEL_SECTIONS, section)
        if has_runs(project.workdir, name)
        for difference in _differences(
            name, "", record["config"].get(name, {}), config[name]
        )
    ]
    changes = [each for each in differences if _may_change(project, each)]
    refuse(project.workdir, [each for each in differences if each not in changes])
    return changes


def claim(project: Project, section: str) -> None:
    """Records the config, and the changes in it; arguments and errors as of `check`."""
    changes = check(project, section)
    if not parallel.is_main():
        return
    config, workdir = _as_recorded(project, section), project.workdir
    # What was recorded by a command that came to nothing holds for nobody.
    record = record_of(workdir) if has_runs(workdir, "model") else None
    record = record or {"config": config}
    own = {name: config[name] for name in (*MODEL_SECTIONS, section)}
    now = dict(flat(config))
    asked = {path: now[path] for path in sorted(project.asked & now.keys())}
    reached = _reached(workdir, section)
    write_record(
        workdir,
        {**record["config"], **own},
        {
            **record.get("asked", {}),
            **{path: asked[path] for path in asked if is_kept(path)},
        },
        [
            *record.get("changes", []),
            *({**change._asdict(), "updates_before": reached} for change in changes),
        ],
    )


def _as_recorded(project: Project, section: str) -> dict[str, Any]:
    """The config of a project as config.json has it."""
    config = as_json(project.config)
    for stage in TRAINING:  # with all of `loop`, as it runs
        config[stage] = {**config["loop"], **config[stage]}
    for path in PATHS:
        name, _, field = path.partition(".")
        if config[name][field]:
            config[name][field] = str(path_of(config[name][field]).absolute())
    if section.startswith("distill_"):  # a workdir may have several methods
        config[section] = config["distill"]
    return config


def _differences(
    section: str, name: str, before: Any, after: Any
) -> Iterator[Difference]:
    if not isinstance(before, dict) or not isinstance(after, dict):
        if before != after:
            yield Difference(section, name, before, after)
        return
    for key in sorted((before.keys() | after.keys()) - BOOKKEEPING):
        yield from _differences(
            section,
            f"{name}.{key}".lstrip("."),
            before.get(key, "nothing"),
            after.get(key, "nothing"),
        )


def _may_change(project: Project, change: Difference) -> bool:
    """True for what keeps the meaning of a run that goes on.

    These are the length and the learning rate of a run that nothing was made from, the
    learning rate of students that are not finished, the last student, and the updates
    of students not yet begun.
    """
    section, name, before, after = change
    workdir, config = project.workdir, project.config
    if section.startswith("distill"):
        begun = _begun(workdir, section)
        if name == "updates":
            return all(updates_of(before, n) == updates_of(after, n) for n in begun)
        return name in ("end_steps", "students") or (
            name == "learning_rate" and _has_students_to_make(project)
        )
    if section not in ("train", "guide") or _is_a_teacher(workdir, section):
        return False
    role = BASE if section == "train" else GUIDED
    steps = _reached(workdir, section)[section]
    is_finished = result(folder_of(workdir, role)) is not None
    if name == "steps":
        return after > before if is_finished else after > steps
    return name == "learning_rate" and (
        not is_finished or config[section].steps > steps
    )


def _has_students_to_make(project: Project) -> bool:
    section = project.config.distill
    return any(
        result(project.folder(student(phase.num_steps, section.method))) is None
        for phase in phases_of(project.config)
    )


def _is_a_teacher(workdir: pathlib.Path, section: str) -> bool:
    """True if a student of this workdir, or its guided model, may come from a run."""
    methods = [students_folder(workdir, method).name for method in METHODS]
    later = ["guide", *methods] if section == "train" else methods
    return any(has_runs(workdir, name) for name in later)


def _begun(workdir: pathlib.Path, section: str) -> list[int]:
    """Numbers of steps of the students of a method that have a checkpoint."""
    folders = [path for path in (workdir / section).glob("*") if path.name.isdigit()]
    return [
        int(folder.name)
        for folder in folders
        if latest_step(checkpoint_folder(folder)) is not None
    ]


def _reached(workdir: pathlib.Path, section: str) -> dict[str, int]:
    """Updates that the runs of a section have behind them, by their folders."""
    folders = [workdir / section]
    if section.startswith("distill"):
        folders = [workdir / section / f"{n:04d}" for n in _begun(workdir, section)]
    return {
        folder.relative_to(workdir).as_posix(): step
        for folder in sorted(folders)
        if (step := latest_step(checkpoint_folder(folder))) is not None
    }


def refuse(workdir: pathlib.Path, differences: Sequence[Difference]) -> None:
    """Raises a ValueError that names the differences and the way that there is."""
    if not differences:
        return
    raise ValueError(
        f"{workdir} holds runs of another config"
        f" ({'; '.join(map(str, differences))}). Use its values or another --workdir"
        f"{_way(workdir, differences[-1].section)}."
    )


def _way(workdir: pathlib.Path, section: str) -> str:
    """How to have the other values all the same, with what was trained already."""
    train = shlex.quote(str(workdir / "train"))
    if section == "train":
        why = ""
        if _is_a_teacher(workdir, section):
            why = "; a base model that others were made from stays as it is"
        return f", with train.init_from={train} to go on from its weights{why}"
    if section == "guide":
        return f", with guide.teacher={train}"
    if section.startswith("distill"):
        begun = ", ".join(map(str, sorted(_begun(workdir, section), reverse=True)))
        return (
            f", with distill.teacher={train} or a student there; of the students begun"
            f" ({begun}) the fields stay as they are"
        )
    return ""
