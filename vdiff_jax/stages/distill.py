"""Students: the phases of a method, one after the other."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from vdiff_jax import parallel
from vdiff_jax.distillation.method import Phase, Source
from vdiff_jax.distillation.methods import FIRST, METHODS
from vdiff_jax.distillation.role import BASE, GUIDED, Role, student
from vdiff_jax.files.atomic import write_json
from vdiff_jax.files.fingerprints import params_sha256
from vdiff_jax.files.place import path_of
from vdiff_jax.from_config.choices import updates_of
from vdiff_jax.from_config.losses import distill_loss, phases_of
from vdiff_jax.from_config.model import (
    has_guide,
    make_student,
    make_teacher,
    w_range,
)
from vdiff_jax.from_config.sampler import eta_of, make_sampler
from vdiff_jax.from_config.trainer import check_batch, make_tools
from vdiff_jax.generation.sampler import request
from vdiff_jax.model import with_weights_of
from vdiff_jax.stages import Stage
from vdiff_jax.training.loop import fit
from vdiff_jax.training.records import OF_THE_LOOP
from vdiff_jax.training.run import Run, Tools
from vdiff_jax.training.step import Job, Networks
from vdiff_jax.types import Params
from vdiff_jax.workdir import claim, layout
from vdiff_jax.workdir.layout import Project
from vdiff_jax.workdir.parameters import own_params
from vdiff_jax.workdir.record import changes_of
from vdiff_jax.workdir.teachers import check_same_teacher
from vdiff_jax.workdir.trained import is_finished


def check(project: Project) -> None:
    """Refuses another config than the students', and a teacher that is not theirs.

    Raises:
      ValueError: If a field differs that may not; or a named teacher is not there, or
        a student was made from another than it would be now.
    """
    _check_asked(project)
    claim.check(project, _folder(project).name)
    if not all(is_finished(project, role) for role in students(project)):
        check_batch(project.config, "distill")
    _check_teachers(project)
    if project.config.distill.teacher and _needs_first_teacher(project):
        _first_teacher(project)
    _check_starts(project)


def plan(project: Project) -> list[dict[str, Any]]:
    """One entry for each student, for --dry_run."""
    return [
        {
            "stage": "distill",
            "method": role.method,
            "num_steps": role.num_steps,
            "folder": str(project.folder(role)),
            "updates": updates_of(project.config.distill.updates, role.num_steps),
            "status": layout.status(project.folder(role)),
        }
        for role in students(project)
    ]


def run(project: Project) -> None:
    """Distills, or resumes with the student that was under way."""
    if _needs_first_teacher(project):
        _first_teacher(project)
    _check_starts(project)
    claim.claim(project, _folder(project).name)
    _check_teachers(project)

    left = _left(project)
    for role in students(project)[: len(students(project)) - len(left)]:
        folder = project.folder(role)
        print(f"distill: finished {role}, see {folder}/result.json")
    _write_ledger(project)
    if not left:
        _check_sound(project)
        return

    tools = _tools(project)  # one step, compiled once, for all students
    models = _Models(project, tools)
    for phase in left:
        student_run = run_of(project, models, phase)
        models.previous = student_run.folder, fit(tools, student_run)
        _write_ledger(project)


def under_way(project: Project) -> tuple[Tools, Run]:
    """The tools, and the run of the first student that is not finished.

    Raises:
      ValueError: If all are finished.
    """
    left = _left(project)
    if not left:
        raise ValueError(f"All students in {_folder(project)} are finished.")
    tools = _tools(project)
    return tools, run_of(project, _Models(project, tools), left[0])


def students(project: Project) -> list[Role]:
    """The students, in the order in which they are made."""
    return [_role(project, phase) for phase in phases_of(project.config)]


def _role(project: Project, phase: Phase) -> Role:
    return student(phase.num_steps, project.config.distill.method)


def _left(project: Project) -> list[Phase]:
    """The phases from the first whose student is not finished."""
    phases = phases_of(project.config)
    done = [is_finished(project, _role(project, phase)) for phase in phases]
    return [] if all(done) else phases[done.index(False) :]


class _Models:
    """The models that phases start from and are taught by; each is read once.

    Attributes:
      previous: Folder and parameters of the student before, or of the first teacher.
      codec: Parameters that encode the data; None for data that need none.
    """

    def __init__(self, project: Project, tools: Tools):
        """Reads nothing yet."""
        self._project, self._mesh = project, tools.mesh
        self.codec = tools.codec
        self._first: tuple[pathlib.Path, Params] | None = None
        self.previous: tuple[pathlib.Path, Params] | None = None

    def of(self, source: Source, num_steps: int) -> tuple[pathlib.Path, Params]:
        """The folder and the parameters of a phase's teacher or start.

        Args:
          source: Which of them.
          num_steps: Steps of the phase's student.
        """
        if source == FIRST:
            return self._read(self._project.folder(student(num_steps)))
        if source == "previous":
            if self.previous is None:
                self.previous = self._read(_before(self._project))
            return self.previous
        if self._first is None:
            folder = _first_teacher(self._project)
            same = self.previous is not None and self.previous[0] == folder
            self._first = self.previous if same else self._read(folder)
        assert self._first is not None
        return self._first

    def _read(self, folder: pathlib.Path) -> tuple[pathlib.Path, Params]:
        of_student = folder.parent == _folder(self._project)
        make = make_student if of_student else make_teacher
        model = make(self._project.config)
        places = parallel.state_shardings(model.abstract_params(), self._mesh)
        return folder, own_params(self._project, model, folder, places)


def _before(project: Project) -> pathlib.Path:
    """The folder of the last finished student, or else of the first teacher."""
    roles = students(project)
    done = len(roles) - len(_left(project))
    return project.folder(roles[done - 1]) if done else _first_teacher(project)


def run_of(project: Project, models: _Models, phase: Phase) -> Run:
    """The run of a student.

    Args:
      project: The config and its folder.
      models: What it may start from and be taught by.
      phase: Its number of steps, its teacher and its start.
    """
    config, num_steps, role = project.config, phase.num_steps, _role(project, phase)
    method = METHODS[config.distill.method]
    num_updates = updates_of(config.distill.updates, num_steps)
    w = w_range(config)[1] if has_guide(config) else None
    began_as, start = models.of(phase.start, num_steps)
    teacher, teacher_params = models.of(phase.teacher, num_steps)
    own = make_student(config)
    auxiliary = teacher_params if method.auxiliary else None
    kind = f"{2 * num_steps} -> {num_steps}" if method.halves else str(role)
    return Run(
        name=f"distill {kind}",
        folder=project.folder(role),
        job=Job(
            key=jax.random.fold_in(jax.random.key(config.seed), num_steps),
            num_updates=jnp.int32(num_updates),
            teacher=teacher_params,
            num_steps=jnp.int32(num_steps),
            codec=models.codec,
        ),
        num_updates=num_updates,
        start=lambda: Networks(with_weights_of(own, start, config.seed), auxiliary),
        order_seed=(config.seed, num_steps),
        samples=request(num_steps, w=w) if role.draws else None,
        facts={
            "num_steps": num_steps,
            "method": role.method,
            "sampler": role.sampler,
            "teacher": str(teacher),
            "teacher_step": (layout.result(teacher) or {}).get("step"),
            "teacher_sha256": params_sha256(teacher_params),
            "start": str(began_as),
            **changes_of(project.workdir, _folder(project).name),
        },
    )


def _tools(project: Project) -> Tools:
    config = project.config
    model, teacher = make_student(config), make_teacher(config)
    method, loss = METHODS[config.distill.method], distill_loss(config, teacher, model)
    tools = make_tools(
        config,
        "distill",
        model,
        loss,
        loss,
        passes=method.passes,
        auxiliary=teacher if method.auxiliary else None,
        profile=project.profile,
    )
    if not method.draws:
        return tools
    eta = eta_of(config, config.distill.method)
    sampler = make_sampler(config, model, method.sampler, eta)
    return dataclasses.replace(tools, sampler=sampler)


def _folder(project: Project) -> pathlib.Path:
    return layout.students_folder(project.workdir, project.config.distill.method)


def _write_ledger(project: Project) -> None:
    """Writes `ladder.json`: the teacher and the cost of every finished student."""
    rows = []
    for role in students(project):
        result = layout.result(project.folder(role))
        if result is not None:
            rows.append(
                {
                    "num_steps": role.num_steps,
                    "teacher": result["teacher"],
                    "teacher_sha256": result["teacher_sha256"],
                    "start": result.get("start", result["teacher"]),
                    "params_sha256": result["params_sha256"],
                    "updates": result["step"],
                    "images": result["step"] * project.config.distill.batch_size,
                    "seconds": result["seconds"],
                    "loss": result.get("loss"),
                    "held_out_loss": result.get("held_out_loss"),
                    **_metrics(result),
                    **({"changes": result["changes"]} if "changes" in result else {}),
                }
            )
    if rows and parallel.is_main():
        write_json(_folder(project) / "ladder.json", rows)


def _metrics(result: dict[str, Any]) -> dict[str, float]:
    """What a method's loss has measured, of all that is in result.json."""
    others = {*OF_THE_LOOP, "seconds"}
    return {
        name: value
        for name, value in result.items()
        if isinstance(value, float) and name not in others
    }


def _needs_first_teacher(project: Project) -> bool:
    """True if a student that is not finished comes from the first teacher itself."""
    left = _left(project)
    if not left:
        return False
    begins = len(left) == len(students(project))
    return begins or any("teacher" in (p.teacher, p.start) for p in left)


def _check_starts(project: Project) -> None:
    """Refuses to start from progressive students that are not there.

    Raises:
      ValueError: If one is missing.
    """
    for phase in _left(project):
        folder = project.folder(student(phase.num_steps))
        if phase.start == FIRST and layout.result(folder) is None:
            raise ValueError(
                f"distill.start={FIRST!r}, but no student in {folder} is finished:"
                f" distill it first with distill.method={FIRST!r}, or set"
                " distill.start=previous."
            )


def _check_asked(project: Project) -> None:
    """Refuses a field that the method has no use for, where a command asks for it.

    Raises:
      ValueError: If there is one.
    """
    name = project.config.distill.method
    halves = METHODS[name].halves
    others = ("students", "start") if halves else ("start_steps", "end_steps")
    remedy = (
        "its students are those of halving distill.start_steps down to"
        " distill.end_steps"
        if halves
        else "name its students by distill.students, for example 8,4,2,1"
    )
    for field in others:
        if f"distill.{field}" in project.asked:
            raise ValueError(
                f"distill.{field}={project.config.distill[field]!r} is not for"
                f" distill.method={name!r}: {remedy}."
            )


def _check_teachers(project: Project) -> None:
    """Refuses students of another teacher than the one that theirs is now."""
    named = project.config.distill.teacher
    role = GUIDED if has_guide(project.config) else BASE
    first = previous = path_of(named) if named else project.folder(role)
    for phase in phases_of(project.config):
        folder = project.folder(_role(project, phase))
        check_same_teacher(folder, first if phase.teacher == "teacher" else previous)
        previous = folder


def _check_sound(project: Project) -> None:
    """Reads all students where this stage was asked for; damage is set aside."""
    if project.config.stage != "distill":
        return
    model = make_student(project.config)
    for role in students(project):
        own_params(project, model, project.folder(role))


def _first_teacher(project: Project) -> pathlib.Path:
    named = project.config.distill.teacher
    role = GUIDED if has_guide(project.config) else BASE
    folder = path_of(named) if named else project.folder(role)
    if layout.result(folder) is None:
        raise ValueError(
            f"No finished teacher in {folder}: run the {role.stage} stage in this"
            f" workdir first, or set distill.teacher to a {role.stage} or distill/NNNN"
            " folder."
        )
    _check_is_no_student(project, folder)
    return folder


def _check_is_no_student(project: Project, folder: pathlib.Path) -> None:
    """Refuses a student of few steps as the teacher of a method that needs a denoiser.

    What it predicts is where its steps end, and not the mean of the data.
    """
    name = project.config.distill.method
    place = layout.role_of_folder(folder)
    role = None if place is None else place[1]
    num_steps = (layout.result(folder) or {}).get("num_steps", 0)
    if METHODS[name].halves or not (num_steps or (role and role.is_student)):
        return
    raise ValueError(
        f"distill.teacher={str(folder)!r} is a student of {num_steps} steps, and"
        f" distill.method={name!r} is taught by a denoiser of all times: name a train"
        " or guide folder. A student can be what another begins as: see distill.start."
    )


STAGE = Stage(
    name="distill",
    check=check,
    plan=plan,
    run=run,
    claim=lambda project: claim.claim(project, _folder(project).name),
    under_way=under_way,
    is_finished=lambda project: all(
        is_finished(project, role) for role in students(project)
    ),
)
