"""The ladder: student after student, each of half its teacher's steps."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from vdiff_jax import parallel
from vdiff_jax.distillation.progressive import ladder
from vdiff_jax.files.atomic import write_json
from vdiff_jax.files.fingerprints import params_sha256
from vdiff_jax.from_config.choices import Config, updates_of
from vdiff_jax.from_config.losses import distill_loss, ladder_name
from vdiff_jax.from_config.model import has_guide, make_student, w_range
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.from_config.trainer import make_tools
from vdiff_jax.model import Model
from vdiff_jax.training.loop import fit
from vdiff_jax.training.run import Run, Tools
from vdiff_jax.training.step import Job
from vdiff_jax.types import Params
from vdiff_jax.workdir import layout as places
from vdiff_jax.workdir.trained import load_params


def plan(config: Config, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """What `run` would do."""
    return [
        {
            "stage": "distill",
            "num_steps": num_steps,
            "folder": str(_folder(config, workdir, num_steps)),
            "updates": updates_of(config.distill.updates, num_steps),
            "status": places.status(_folder(config, workdir, num_steps)),
        }
        for num_steps in _ladder(config)
    ]


def run(config: Config, workdir: pathlib.Path, profile: int = 0) -> None:
    """Distills, or resumes in the stage that was under way."""
    teacher = _first_teacher(config, workdir)
    model = make_student(config)
    places.claim(workdir, config, _ladder_folder(config, workdir).name)

    # Of the finished students only the last is read: it is the next one's teacher.
    unfinished = []
    for num_steps in _ladder(config):
        folder = _folder(config, workdir, num_steps)
        if places.result(folder) is None or unfinished:
            unfinished.append(num_steps)
        else:
            print(f"distill to {num_steps} steps: finished, see {folder}/result.json")
            teacher = folder
    _write_ledger(config, workdir)
    if not unfinished:
        return

    tools = _tools(
        config, model, profile
    )  # one step, compiled once, for the whole ladder
    params = load_params(model, teacher, tools.shardings.params)
    for num_steps in unfinished:
        student = student_run(config, workdir, params, teacher, num_steps)
        params = fit(tools, student)
        teacher = student.folder
        _write_ledger(config, workdir)


def under_way(config: Config, workdir: pathlib.Path) -> tuple[Tools, Run]:
    """The tools, and the run of the first student that is not finished.

    Raises:
      ValueError: If all are finished.
    """
    teacher = _first_teacher(config, workdir)
    model = make_student(config)
    places.claim(workdir, config, _ladder_folder(config, workdir).name)
    for num_steps in _ladder(config):
        folder = _folder(config, workdir, num_steps)
        if places.result(folder) is None:
            tools = _tools(config, model)
            params = load_params(model, teacher, tools.shardings.params)
            return tools, student_run(config, workdir, params, teacher, num_steps)
        teacher = folder
    raise ValueError(f"All students in {_ladder_folder(config, workdir)} are finished.")


def _tools(config: Config, model: Model, profile: int = 0) -> Tools:
    loss = distill_loss(config, model)
    # Two passes of the teacher, one of the student, and its gradient.
    tools = make_tools(config, "distill", model, loss, loss, passes=5, profile=profile)
    if ladder_name(config) != "stochastic":
        return tools
    sampler = make_sampler(config, model, "stochastic")
    return dataclasses.replace(tools, sampler=sampler)


def student_run(
    config: Config,
    workdir: pathlib.Path,
    teacher_params: Params,
    teacher: pathlib.Path,
    num_steps: int,
) -> Run:
    """The run of the student of `num_steps` steps, which starts at its teacher."""
    num_updates = updates_of(config.distill.updates, num_steps)
    return Run(
        name=f"distill {2 * num_steps} -> {num_steps}",
        folder=_folder(config, workdir, num_steps),
        job=Job(
            key=jax.random.fold_in(jax.random.key(config.seed), num_steps),
            num_updates=jnp.int32(num_updates),
            loss_args=(teacher_params, jnp.int32(num_steps)),
        ),
        num_updates=num_updates,
        start=lambda: teacher_params,
        order_seed=(config.seed, num_steps),
        # An encoder makes noise of pictures, and no pictures.
        sample_steps=0 if ladder_name(config) == "encode" else num_steps,
        facts={
            "num_steps": num_steps,
            "ladder": ladder_name(config),
            "teacher": str(teacher),
            "teacher_step": (places.result(teacher) or {}).get("step"),
            "teacher_sha256": params_sha256(teacher_params),
        },
        sample_w=w_range(config)[1] if has_guide(config) else None,
    )


def _ladder_folder(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    return places.ladder_folder(workdir, ladder_name(config))


def _folder(config: Config, workdir: pathlib.Path, num_steps: int) -> pathlib.Path:
    return places.student_folder(workdir, num_steps, ladder_name(config))


def _ladder(config: Config) -> list[int]:
    return ladder(config.distill.start_steps, config.distill.end_steps)


def _write_ledger(config: Config, workdir: pathlib.Path) -> None:
    """Says in `ladder.json` what every finished student came from and cost."""
    rows = []
    for num_steps in _ladder(config):
        result = places.result(_folder(config, workdir, num_steps))
        if result is not None:
            rows.append(
                {
                    "num_steps": num_steps,
                    "teacher": result["teacher"],
                    "teacher_sha256": result["teacher_sha256"],
                    "params_sha256": result["params_sha256"],
                    "updates": result["step"],
                    "images": result["step"] * config.distill.batch_size,
                    "seconds": result["seconds"],
                    "loss": result.get("loss"),
                    "held_out_loss": result.get("held_out_loss"),
                }
            )
    if rows and parallel.is_main():
        write_json(_ladder_folder(config, workdir) / "ladder.json", rows)


def _first_teacher(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    named = config.distill.teacher
    stage, ours = "train", places.train_folder(workdir)
    if has_guide(config):
        stage, ours = "guide", places.guide_folder(workdir)
    folder = pathlib.Path(named) if named else ours
    if places.result(folder) is None:
        raise ValueError(
            f"No finished teacher in {folder}: run the {stage} stage in this workdir"
            f" first, or set distill.teacher to a {stage} or distill/NNNN folder."
        )
    return folder
