"""The guided model: a student that imitates guidance in one evaluation instead of two.

Meng et al. (2023), arXiv:2210.03142, first stage. It is the first teacher of students
that take w.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from vdiff_jax import parallel
from vdiff_jax.distillation.role import BASE, GUIDED
from vdiff_jax.files.fingerprints import params_sha256
from vdiff_jax.files.place import path_of
from vdiff_jax.from_config.choices import section_of
from vdiff_jax.from_config.losses import guide_loss
from vdiff_jax.from_config.model import make_model, w_range
from vdiff_jax.from_config.trainer import check_batch, make_tools
from vdiff_jax.generation.sampler import request
from vdiff_jax.model import with_weights_of
from vdiff_jax.stages import Stage
from vdiff_jax.training.loop import fit
from vdiff_jax.training.run import Run, Tools
from vdiff_jax.training.step import Job, Networks
from vdiff_jax.workdir import claim, layout
from vdiff_jax.workdir.layout import Project
from vdiff_jax.workdir.parameters import own_params
from vdiff_jax.workdir.record import changes_of
from vdiff_jax.workdir.teachers import check_can_be_guided, check_same_teacher
from vdiff_jax.workdir.trained import is_finished


def check(project: Project) -> None:
    """Refuses another config than the run's, and a named teacher that is not fit.

    Raises:
      ValueError: If a field differs that may not; or the teacher is not there, cannot
        be guided, or is not the one that the run began with.
    """
    claim.check(project, "guide")
    if not is_finished(project, GUIDED):
        check_batch(project.config, "guide")
    if project.config.guide.teacher and not is_finished(project, GUIDED):
        _teacher(project)


def plan(project: Project) -> list[dict[str, Any]]:
    """The one entry of the stage, for --dry_run."""
    folder = project.folder(GUIDED)
    return [
        {
            "stage": "guide",
            "folder": str(folder),
            "updates": project.config.guide.steps,
            "status": layout.status(folder, project.config.guide.steps),
        }
    ]


def run(project: Project) -> None:
    """Trains, or resumes, or sees that it is done, and sound where it is asked for."""
    folder, steps = project.folder(GUIDED), project.config.guide.steps
    if not is_finished(project, GUIDED):
        _teacher(project)
    claim.claim(project, "guide")
    if not layout.finished_before("guide", folder, steps):
        fit(*under_way(project))
    elif project.config.stage == "guide":
        own_params(project, make_model(project.config, guided=True), folder)


def under_way(project: Project) -> tuple[Tools, Run]:
    """The tools, and the run of the guided model."""
    config, folder = project.config, _teacher(project)
    teacher, student = make_model(config), make_model(config, guided=True)
    loss = guide_loss(config, teacher, student)
    # Both passes of the teacher, one of the student, and its gradient.
    tools = make_tools(
        config, "guide", student, loss, loss, passes=5, profile=project.profile
    )
    mesh = tools.mesh
    shardings = parallel.state_shardings(teacher.abstract_params(), mesh)
    params = own_params(project, teacher, folder, shardings)
    return tools, Run(
        name="guide",
        folder=project.folder(GUIDED),
        job=Job(
            key=jax.random.fold_in(jax.random.key(config.seed), 0),
            num_updates=jnp.int32(config.guide.steps),
            teacher=params,
            codec=tools.codec,
        ),
        num_updates=config.guide.steps,
        start=lambda: Networks(with_weights_of(student, params, config.seed)),
        order_seed=(config.seed, 0, 0),
        samples=request(section_of(config, "guide").sample_steps, w=w_range(config)[1]),
        facts={
            "teacher": str(folder),
            "teacher_step": (layout.result(folder) or {}).get("step"),
            "teacher_sha256": params_sha256(params),
            "w_range": list(w_range(config)),
            "parameters": student.num_parameters(),
            **changes_of(project.workdir, "guide"),
        },
    )


def _teacher(project: Project) -> pathlib.Path:
    named = project.config.guide.teacher
    folder = path_of(named) if named else project.folder(BASE)
    if layout.result(folder) is None:
        raise ValueError(
            f"No finished teacher in {folder}: run the train stage in this workdir"
            " first, or set guide.teacher to a train folder."
        )
    check_can_be_guided(folder)
    check_same_teacher(project.folder(GUIDED), folder)
    return folder


STAGE = Stage(
    name="guide",
    check=check,
    plan=plan,
    run=run,
    claim=lambda project: claim.claim(project, "guide"),
    under_way=under_way,
    is_finished=lambda project: is_finished(project, GUIDED),
)
