"""The student that imitates guidance: what the teacher says in two evaluations, in one.

Meng et al. (2023), arXiv:2210.03142, first stage. It is the ladder's first teacher.
"""

import pathlib
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from vdiff_jax import parallel
from vdiff_jax.files.fingerprints import params_sha256
from vdiff_jax.from_config.choices import Config, section_of
from vdiff_jax.from_config.losses import guide_loss
from vdiff_jax.from_config.model import make_model, w_range
from vdiff_jax.from_config.trainer import make_tools
from vdiff_jax.interop import model_file
from vdiff_jax.model import Model
from vdiff_jax.training.loop import fit
from vdiff_jax.training.run import Run, Tools
from vdiff_jax.training.step import Job
from vdiff_jax.types import Params
from vdiff_jax.workdir import layout as places
from vdiff_jax.workdir.trained import load_params


def plan(config: Config, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """What `run` would do."""
    folder = places.guide_folder(workdir)
    return [
        {
            "stage": "guide",
            "folder": str(folder),
            "updates": config.guide.steps,
            "status": places.status(folder),
        }
    ]


def run(config: Config, workdir: pathlib.Path, profile: int = 0) -> None:
    """Trains, or resumes, or finds that it is done."""
    teacher = _teacher(config, workdir)
    places.claim(workdir, config, "guide")
    if not places.is_finished("guide", places.guide_folder(workdir)):
        fit(*_under_way(config, workdir, teacher, profile))


def under_way(config: Config, workdir: pathlib.Path) -> tuple[Tools, Run]:
    """The tools, and the run of the guided student."""
    return _under_way(config, workdir, _teacher(config, workdir))


def _under_way(
    config: Config, workdir: pathlib.Path, folder: pathlib.Path, profile: int = 0
) -> tuple[Tools, Run]:
    teacher, student = make_model(config), make_model(config, guided=True)
    loss = guide_loss(config, teacher, student)
    # Both passes of the teacher, one of the student, and its gradient.
    tools = make_tools(config, "guide", student, loss, loss, passes=5, profile=profile)
    mesh = tools.mesh
    shardings = parallel.state_shardings(teacher.abstract_params(), mesh)
    params = load_params(teacher, folder, shardings)
    return tools, Run(
        name="guide",
        folder=places.guide_folder(workdir),
        job=Job(
            key=jax.random.fold_in(jax.random.key(config.seed), 0),
            num_updates=jnp.int32(config.guide.steps),
            loss_args=(params,),
        ),
        num_updates=config.guide.steps,
        start=lambda: with_weights_of(student, params, config.seed),
        order_seed=(config.seed, 0, 0),
        sample_steps=section_of(config, "guide").sample_steps,
        facts={
            "teacher": str(folder),
            "teacher_step": (places.result(folder) or {}).get("step"),
            "teacher_sha256": params_sha256(params),
            "w_range": list(w_range(config)),
            "parameters": student.num_parameters(),
        },
        sample_w=w_range(config)[1],
    )


def with_weights_of(student: Model, teacher_params: Params, seed: int) -> Params:
    """Parameters of a student that begins as its teacher, whatever w is.

    Raises:
      ValueError: If the teacher has other weights than the student has place for.
    """
    flatten = flax.traverse_util.flatten_dict
    own = flatten(student.init(jax.random.key(seed)))
    theirs = flatten(teacher_params)
    if not theirs.keys() <= own.keys():
        names = sorted("/".join(name) for name in theirs.keys() - own.keys())
        raise ValueError(
            f"The student has no place for its teacher's weights {names}: a network of"
            " your own must be the teacher's, and more."
        )
    return flax.traverse_util.unflatten_dict({**own, **theirs})


def _teacher(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    named = config.guide.teacher
    folder = pathlib.Path(named) if named else places.train_folder(workdir)
    if places.result(folder) is None:
        raise ValueError(
            f"No finished teacher in {folder}: run the train stage in this workdir"
            " first, or set guide.teacher to a train folder."
        )
    check_can_be_guided(folder)
    return folder


def check_can_be_guided(folder: pathlib.Path) -> None:
    """Refuses a base model that has never seen an example without its class.

    Raises:
      ValueError: If its classes were never left out in training.
    """
    if folder.suffix == ".safetensors":
        train = model_file.read_about(folder).fields["train"]
    else:
        train = places.made_with(folder)["train"]
    if not train.get("label_dropout", 0.0):
        raise ValueError(
            f"The model in {folder} cannot be guided: its classes were never left out"
            " in training. Train one with train.label_dropout=0.1."
        )
