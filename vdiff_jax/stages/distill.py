"""Students: one after the other, each of half its teacher's steps."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from vdiff_jax import parallel
from vdiff_jax.distillation.progressive import ladder
from vdiff_jax.distillation.role import BASE, GUIDED, Role, student
from vdiff_jax.files.atomic import write_json
from vdiff_jax.files.fingerprints import params_sha256
from vdiff_jax.from_config.choices import updates_of
from vdiff_jax.from_config.losses import distill_loss
from vdiff_jax.from_config.model import (
    has_guide,
    make_student,
    w_range,
)
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.from_config.trainer import make_tools
from vdiff_jax.generation.sampler import request
from vdiff_jax.stages import Stage
from vdiff_jax.training.loop import fit
from vdiff_jax.training.run import Run, Tools
from vdiff_jax.training.step import Job, Networks
from vdiff_jax.types import Params
from vdiff_jax.workdir import claim, layout
from vdiff_jax.workdir.layout import Project
from vdiff_jax.workdir.record import changes_of
from vdiff_jax.workdir.trained import check_same_teacher, is_finished, own_params


def check(project: Project) -> None:
    """Refuses another config than the students', and a teacher that is not theirs.

    Raises:
      ValueError: If a field differs that may not; or a named teacher is not there, or
        a student was made from another than it would be now.
    """
    claim.check(project, _folder(project).name)
    _check_teachers(project)
    if project.config.distill.teacher and _begins(project):
        _first_teacher(project)


def plan(project: Project) -> list[dict[str, Any]]:
    """One entry for each student, for --dry_run."""
    return [
        {
            "stage": "distill",
            "num_steps": role.num_steps,
            "folder": str(project.folder(role)),
            "updates": updates_of(project.config.distill.updates, role.num_steps),
            "status": layout.status(project.folder(role)),
        }
        for role in students(project)
    ]


def run(project: Project) -> None:
    """Distills, or resumes with the student that was under way."""
    teacher = _first_teacher(project) if _begins(project) else None
    claim.claim(project, _folder(project).name)
    _check_teachers(project)

    # Of the finished students only the last is read: it is the next one's teacher.
    unfinished: list[Role] = []
    for role in students(project):
        if unfinished or not is_finished(project, role):
            unfinished.append(role)
        else:
            teacher = project.folder(role)
            print(f"distill: finished {role}, see {teacher}/result.json")
    _write_ledger(project)
    assert teacher is not None
    if not unfinished:
        _check_sound(project)
        return

    tools = _tools(project)  # one step, compiled once, for all students
    params = _load(project, teacher, tools)
    for role in unfinished:
        student_run = run_of(project, params, teacher, role)
        params = fit(tools, student_run)
        teacher = student_run.folder
        _write_ledger(project)


def under_way(project: Project) -> tuple[Tools, Run]:
    """The tools, and the run of the first student that is not finished.

    Raises:
      ValueError: If all are finished.
    """
    teacher = _first_teacher(project) if _begins(project) else None
    for role in students(project):
        if not is_finished(project, role):
            assert teacher is not None
            tools = _tools(project)
            params = _load(project, teacher, tools)
            return tools, run_of(project, params, teacher, role)
        teacher = project.folder(role)
    raise ValueError(f"All students in {_folder(project)} are finished.")


def students(project: Project) -> list[Role]:
    """The students, from the most steps to the fewest."""
    section = project.config.distill
    return [
        student(num_steps, section.method)
        for num_steps in ladder(section.start_steps, section.end_steps)
    ]


def run_of(
    project: Project, teacher_params: Params, teacher: pathlib.Path, role: Role
) -> Run:
    """The run of a student, which starts at its teacher.

    Args:
      project: The config and its folder.
      teacher_params: Parameters of its teacher.
      teacher: The teacher's folder.
      role: The student.
    """
    config, num_steps = project.config, role.num_steps
    num_updates = updates_of(config.distill.updates, num_steps)
    w = w_range(config)[1] if has_guide(config) else None
    return Run(
        name=f"distill {2 * num_steps} -> {num_steps}",
        folder=project.folder(role),
        job=Job(
            key=jax.random.fold_in(jax.random.key(config.seed), num_steps),
            num_updates=jnp.int32(num_updates),
            teacher=teacher_params,
            num_steps=jnp.int32(num_steps),
        ),
        num_updates=num_updates,
        start=lambda: Networks(teacher_params),
        order_seed=(config.seed, num_steps),
        samples=request(num_steps, w=w) if role.draws else None,
        facts={
            "num_steps": num_steps,
            "method": role.method,
            "teacher": str(teacher),
            "teacher_step": (layout.result(teacher) or {}).get("step"),
            "teacher_sha256": params_sha256(teacher_params),
            **changes_of(project.workdir, _folder(project).name),
        },
    )


def _tools(project: Project) -> Tools:
    config, model = project.config, make_student(project.config)
    loss = distill_loss(config, model)
    # Two passes of the teacher, one of the student, and its gradient.
    tools = make_tools(
        config, "distill", model, loss, loss, passes=5, profile=project.profile
    )
    sampler = students(project)[0].sampler
    if sampler == "ddim":
        return tools
    return dataclasses.replace(tools, sampler=make_sampler(config, model, sampler))


def _load(project: Project, teacher: pathlib.Path, tools: Tools) -> Params:
    model = make_student(project.config)
    return own_params(project, model, teacher, tools.shardings.params)


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
                    "params_sha256": result["params_sha256"],
                    "updates": result["step"],
                    "images": result["step"] * project.config.distill.batch_size,
                    "seconds": result["seconds"],
                    "loss": result.get("loss"),
                    "held_out_loss": result.get("held_out_loss"),
                    **({"changes": result["changes"]} if "changes" in result else {}),
                }
            )
    if rows and parallel.is_main():
        write_json(_folder(project) / "ladder.json", rows)


def _begins(project: Project) -> bool:
    """True if the first student, whose teacher is of another stage, is not finished."""
    return not is_finished(project, students(project)[0])


def _check_teachers(project: Project) -> None:
    """Refuses students of another teacher than the one that theirs is now."""
    named = project.config.distill.teacher
    role = GUIDED if has_guide(project.config) else BASE
    teacher = pathlib.Path(named) if named else project.folder(role)
    for role in students(project):
        folder = project.folder(role)
        check_same_teacher(folder, teacher)
        teacher = folder


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
    folder = pathlib.Path(named) if named else project.folder(role)
    if layout.result(folder) is None:
        raise ValueError(
            f"No finished teacher in {folder}: run the {role.stage} stage in this"
            f" workdir first, or set distill.teacher to a {role.stage} or distill/NNNN"
            " folder."
        )
    return folder


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
