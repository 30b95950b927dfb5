"""The runs of a config's stages in a workdir, and how far each is."""

from collections.abc import Iterator
from typing import NamedTuple

from vdiff_jax.command.parse import Command
from vdiff_jax.distillation.role import BASE, GUIDED, Role, student
from vdiff_jax.evaluation.measurement import read_rows
from vdiff_jax.files.holders import Holder
from vdiff_jax.files.place import path_of
from vdiff_jax.from_config.check import check_fields
from vdiff_jax.from_config.choices import updates_of
from vdiff_jax.from_config.fields import words_of
from vdiff_jax.from_config.losses import phases_of
from vdiff_jax.from_config.model import has_guide
from vdiff_jax.stages.evaluate.candidates import candidate_of, candidates
from vdiff_jax.workdir import claim, imported, layout, watch
from vdiff_jax.workdir.known import known
from vdiff_jax.workdir.layout import Project
from vdiff_jax.workdir.watch import Seen, State

WATCHED = ("train", "guide", "distill", "evaluate")


class Run(NamedTuple):
    """A run, and how far it is.

    Attributes:
      role: The model that it makes.
      seen: How far it is.
    """

    role: Role
    seen: Seen


class Evaluation(NamedTuple):
    """How far an evaluation is.

    Attributes:
      state: In one word, as of a run.
      measured: The number of candidates that are measured.
      candidates: The number of all; None for models in files of their own.
      parts: Parts of the next candidates that are drawn.
      written_at: The time of its newest file, in seconds since the epoch, or 0.
    """

    state: State
    measured: int
    candidates: int | None
    parts: int
    written_at: float


class Status(NamedTuple):
    """How far a project is.

    Attributes:
      project: The config and its folder.
      holder: The process that is at work there, or was last.
      runs: The runs of its stages, in the order in which they are made.
      evaluation: None if that is not asked for.
    """

    project: Project
    holder: Holder | None
    runs: list[Run]
    evaluation: Evaluation | None


def look(command: Command) -> Status:
    """How far the stages of a command are.

    Raises:
      ValueError: If there is no such workdir, or it has runs of another config.
      DamagedError: If a file of an evaluation cannot be understood.
      OSError: If a file cannot be read.
    """
    stages = _stages(command)
    project = _project(command, stages)
    holder = watch.holder(project.workdir)
    runs = [
        Run(role, watch.seen(project.folder(role), num_updates, holder))
        for role, num_updates in _runs(project, stages)
    ]
    evaluation = _evaluation(project) if "evaluate" in stages else None
    return Status(project, holder, runs, evaluation)


def _stages(command: Command) -> list[str]:
    """The stages that are watched, of those that a command names."""
    words = words_of(command.config.stage)
    if words == ["all"]:
        guided = has_guide(command.config)
        words = [word for word in WATCHED if guided or word != "guide"]
    stages = [word for word in WATCHED if word in words]
    if not stages:
        raise ValueError(
            f"--status is for {', '.join(WATCHED)}, and not for {command.config.stage}."
        )
    return stages


def _project(command: Command, stages: list[str]) -> Project:
    """The project, with what its workdir knows.

    Raises:
      ValueError: If there is no such workdir, or it has runs of another config.
    """
    workdir = command.workdir
    if not any((workdir / name).exists() for name in (layout.CONFIG, layout.LOCK)):
        raise ValueError(f"There is no workdir {workdir}: nothing has begun there.")
    check_fields(command.config)
    config = known(command.config, command.asked, workdir, {*stages})
    project = Project(
        imported.resolved(config, workdir),
        workdir,
        asked=command.asked,
        out=path_of(command.flags.out) if command.flags.out else None,
    )
    for stage in stages:
        if stage == "distill":
            claim.check(project, layout.section_of_students(config.distill.method))
        elif stage != "evaluate":
            claim.check(project, stage)
    return project


def _runs(project: Project, stages: list[str]) -> Iterator[tuple[Role, int]]:
    """The models that are to be made, and the updates of each."""
    config = project.config
    if "train" in stages:
        yield BASE, config.train.steps
    if "guide" in stages and has_guide(config):
        yield GUIDED, config.guide.steps
    if "distill" in stages:
        for phase in phases_of(config):
            role = student(phase.num_steps, config.distill.method)
            yield role, updates_of(config.distill.updates, phase.num_steps)
        yield from _of_other_methods(project)


def _of_other_methods(project: Project) -> Iterator[tuple[Role, int]]:
    """The students of other methods that have begun in a workdir."""
    for method in layout.methods_in(project):
        if method == project.config.distill.method:
            continue
        folders = layout.students_folder(project.workdir, method).glob("*")
        counts = [int(folder.name) for folder in folders if folder.name.isdigit()]
        for count in sorted(counts, reverse=True):
            role = student(count, method)
            config = layout.made_with(project.folder(role))
            updates = layout.recorded_section(config, role)["updates"]
            yield role, updates_of(updates, count)


def _evaluation(project: Project) -> Evaluation:
    folder = project.output / "evaluate"
    parts = folder / "parts"
    ladder = (parts if parts.is_dir() else folder) / "ladder.json"
    rows = read_rows(ladder)
    measured = {candidate_of(row) for row in rows}
    drawn = [*parts.glob("*/*.npz")]
    written_at = watch.last_change(folder, folder / "reference", parts, ladder, *drawn)
    if project.config.evaluate.files:  # which may be anywhere
        wanted = None
    else:
        wanted = candidates(project.config, layout.methods_in(project))
        measured = measured.intersection(wanted)
    ready = {each for each in wanted or () if _is_finished(project, each.role)}
    if measured >= ready and rows and not parts.is_dir():
        state: State = "finished"
    else:
        state = watch.state_of(watch.holder(project.output), written_at)
    total = None if wanted is None else len(wanted)
    return Evaluation(state, len(measured), total, len(drawn), written_at)


def _is_finished(project: Project, role: Role) -> bool:
    return layout.result(project.folder(role)) is not None
