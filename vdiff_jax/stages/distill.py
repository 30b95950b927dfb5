"""The ladder: student after student, each of half its teacher's steps."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from vdiff_jax import build, checkpoints, schedules, training
from vdiff_jax.build import Config
from vdiff_jax.distillation import ladder
from vdiff_jax.stages import workdir as places
from vdiff_jax.stages.fit import Run, Tools, fit, make_tools
from vdiff_jax.stages.models import load_params
from vdiff_jax.types import Params


def plan(config: Config, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """What `run` would do."""
    _check(config)
    return [
        {
            "stage": "distill",
            "num_steps": num_steps,
            "folder": str(places.student_folder(workdir, num_steps)),
            "updates": updates(config.distill.updates, num_steps),
            "status": places.status(places.student_folder(workdir, num_steps)),
        }
        for num_steps in ladder(config.distill.start_steps, config.distill.end_steps)
    ]


def run(config: Config, workdir: pathlib.Path) -> None:
    """Distills, or resumes in the stage that was under way."""
    _check(config)
    model = build.model(config)
    teacher = _first_teacher(config, workdir)
    params = load_params(model, teacher)
    places.claim(workdir, config, "distill")

    tools = None
    for num_steps in ladder(config.distill.start_steps, config.distill.end_steps):
        folder = places.student_folder(workdir, num_steps)
        if places.result(folder) is None:
            if tools is None:  # one step, compiled once, for the whole ladder
                loss = build.distill_loss(config, model)
                tools = make_tools(config, config.distill, model, loss, loss)
            params = _halve(config, tools, params, teacher, folder, num_steps)
        else:
            print(f"distill to {num_steps} steps: finished, see {folder}/result.json")
            params = load_params(model, folder)
        teacher = folder


def _halve(
    config: Config,
    tools: Tools,
    teacher_params: Params,
    teacher: pathlib.Path,
    folder: pathlib.Path,
    num_steps: int,
) -> Params:
    """One stage: the student starts at its teacher, with a fresh optimizer."""
    num_updates = updates(config.distill.updates, num_steps)
    return fit(
        tools,
        Run(
            name=f"distill {2 * num_steps} -> {num_steps}",
            folder=folder,
            job=training.Job(
                key=jax.random.fold_in(jax.random.key(config.seed), num_steps),
                num_updates=jnp.int32(num_updates),
                loss_args=(teacher_params, jnp.int32(num_steps)),
            ),
            num_updates=num_updates,
            order_seed=(config.seed, num_steps),
            sample_steps=num_steps,
            facts={
                "num_steps": num_steps,
                "teacher": str(teacher),
                "teacher_sha256": checkpoints.params_sha256(teacher_params),
            },
        ),
        start=lambda: teacher_params,
    )


def updates(table: str, num_steps: int) -> int:
    """Updates of the student of `num_steps` steps.

    Args:
      table: A number, then exceptions by step count: "50000, 2: 100000, 1: 100000".
      num_steps: The student's N.

    Raises:
      ValueError: If the table cannot be read.
    """
    default, *exceptions = table.split(",")
    try:
        special = dict(
            (int(key), int(value))
            for key, value in (entry.split(":") for entry in exceptions)
        )
        found = special.get(num_steps, int(default))
    except ValueError:
        found = 0
    if found < 1:
        raise ValueError(
            f"distill.updates={table!r} is not a number above 0, or a table like"
            ' "50000, 2: 100000, 1: 100000".'
        )
    return found


def _check(config: Config) -> None:
    spec = config.distill
    for num_steps in ladder(spec.start_steps, spec.end_steps):
        updates(spec.updates, num_steps)
    schedules.check_num_steps(build.schedule(config), spec.start_steps)


def _first_teacher(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    named = config.distill.teacher
    folder = pathlib.Path(named) if named else places.train_folder(workdir)
    if places.result(folder) is None:
        raise ValueError(
            f"No finished teacher in {folder}: run the train stage in this workdir"
            " first, or set distill.teacher to a train or distill/NNNN folder."
        )
    return folder
