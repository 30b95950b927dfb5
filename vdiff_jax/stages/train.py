"""The base model, which is the first teacher: from nothing, or from other weights.

With `train.init_from` training goes on from another model's weights: for a model whose
output does not suit few steps. Where there is no signal, eps does not determine x, and
v does (Salimans & Ho, 2022, arXiv:2202.00512, Sec. 4).
"""

import pathlib
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from vdiff_jax import parallel
from vdiff_jax.distillation.role import BASE
from vdiff_jax.files.atomic import write_json
from vdiff_jax.files.fingerprints import params_sha256
from vdiff_jax.files.place import path_of
from vdiff_jax.from_config.choices import Config, section_of
from vdiff_jax.from_config.data import class_names, null_context
from vdiff_jax.from_config.losses import train_loss
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.trainer import check_batch, make_tools
from vdiff_jax.generation.sampler import request
from vdiff_jax.model import Model, with_null_context
from vdiff_jax.stages import Stage
from vdiff_jax.training.loop import fit
from vdiff_jax.training.run import Run, Tools
from vdiff_jax.training.step import Job, Networks
from vdiff_jax.types import Params
from vdiff_jax.workdir import claim, imported, layout
from vdiff_jax.workdir.layout import Project
from vdiff_jax.workdir.parameters import load_params, own_params
from vdiff_jax.workdir.record import changes_of
from vdiff_jax.workdir.teachers import check_same_teacher
from vdiff_jax.workdir.trained import is_finished

# A null context, and its mask.
Null: TypeAlias = tuple[np.ndarray, np.ndarray]


def check(project: Project) -> None:
    """Refuses another config than the run's, and weights that are none to go on from.

    Raises:
      ValueError: If a field differs that may not; or the weights are not there, or of
        another output, or not those that the run began with.
    """
    claim.check(project, "train")
    if not is_finished(project, BASE):
        check_batch(project.config, "train")
    config = project.config
    folder = _init_from(project)
    if folder is None:
        return
    before = layout.result(project.folder(BASE)) or {}
    if layout.result(folder) is None:
        if before:  # it is not needed any more
            return
        raise ValueError(
            f"No finished model in train.init_from={str(folder)!r}: name the train"
            " folder of a workdir."
        )
    output = layout.made_with(folder)["model"]["output"]
    if config.model.computed_from not in ("", output):
        raise ValueError(
            f"model.computed_from={config.model.computed_from!r}, but the network in"
            f" {folder} predicts {output!r}: set model.computed_from={output!r}."
        )
    check_same_teacher(project.folder(BASE), folder)


def plan(project: Project) -> list[dict[str, Any]]:
    """The one entry of the stage, for --dry_run."""
    folder, init_from = project.folder(BASE), project.config.train.init_from
    return [
        {
            "stage": "train",
            **({"init_from": init_from} if init_from else {}),
            "folder": str(folder),
            "updates": project.config.train.steps,
            "status": layout.status(folder, project.config.train.steps),
        }
    ]


def run(project: Project) -> None:
    """Trains, or resumes, or sees that it is done, and sound where it is asked for."""
    claim.claim(project, "train")
    fields = imported.of_source(project.config)
    if fields is not None and parallel.is_main():
        write_json(project.workdir / imported.FILE, fields)
    folder, steps = project.folder(BASE), project.config.train.steps
    if not layout.finished_before("train", folder, steps):
        fit(*under_way(project))
    elif project.config.stage == "train":
        own_params(project, make_model(project.config), folder)


def under_way(project: Project) -> tuple[Tools, Run]:
    """The tools, and the run of the base model."""
    config = project.config
    model = make_model(config)
    tools = make_tools(
        config,
        "train",
        model,
        train_loss(config, model, train=True),
        train_loss(config, model, train=False),
        passes=3,  # forward, and a gradient
        profile=project.profile,
    )
    facts: dict[str, Any] = {
        "parameters": model.num_parameters(),
        **_classes(config),
        **changes_of(project.workdir, "train"),
    }
    null = _null_context(config, model)
    key = jax.random.key(config.seed)
    params = None
    folder = _init_from(project)
    if folder is not None:
        # Converted or not, the weights are those of the same network.
        params = load_params(model, folder, tools.shardings.params)
        output = layout.made_with(folder)["model"]["output"]
        facts |= {
            "teacher": str(folder),
            "teacher_sha256": params_sha256(params),
            "output": [output, model.output],
        }
        if null is not None:
            params = with_null_context(params, *null)
    return tools, Run(
        name="train",
        folder=project.folder(BASE),
        job=Job(
            key=jax.random.fold_in(key, 0),
            num_updates=jnp.int32(config.train.steps),
            codec=tools.codec,
        ),
        num_updates=config.train.steps,
        start=lambda: Networks(_fresh(model, key, null) if params is None else params),
        order_seed=(config.seed, 0),
        samples=request(section_of(config, "train").sample_steps),
        facts=facts,
    )


def _fresh(model: Model, key: Key[Array, ""], null: Null | None) -> Params:
    """Parameters by chance, and the null context of the data."""
    params = model.init(key)
    return params if null is None else with_null_context(params, *null)


def _null_context(config: Config, model: Model) -> Null | None:
    """The null context of the data, for a network that has none from another model.

    Raises:
      ValueError: If contexts are to be left out, and nobody says what stands in their
        place.
    """
    if model.context_shape is None or _brings_null_context(config):
        return None
    null = null_context(config)
    if config.train.label_dropout and null is None:
        raise ValueError(
            f"train.label_dropout={config.train.label_dropout} leaves contexts out, and"
            f" {_nobody(config)} no null context to take their place: add null_context"
            " (the embedding of an empty text) to the contexts, or set it to 0 for a"
            " model that is not guided."
        )
    return null


def _brings_null_context(config: Config) -> bool:
    """True if the model of `train.init_from` went without its context at times."""
    folder = config.train.init_from
    if not folder:
        return False
    return layout.made_with(path_of(folder))["train"].get("label_dropout", 0) > 0


def _nobody(config: Config) -> str:
    """Who might have had a null context."""
    if config.train.init_from:
        return f"neither the model in {config.train.init_from} nor the data have"
    return "the data have"


def _classes(config: Config) -> dict[str, Any]:
    """The names of the classes, by which images can be asked for."""
    names = class_names(config)
    return {"classes": list(names)} if names else {}


def _init_from(project: Project) -> pathlib.Path | None:
    """The folder that the first weights come from, if not from chance."""
    folder = project.config.train.init_from
    return path_of(folder) if folder else None


STAGE = Stage(
    name="train",
    check=check,
    plan=plan,
    run=run,
    claim=lambda project: claim.claim(project, "train"),
    under_way=under_way,
    is_finished=lambda project: is_finished(project, BASE),
)
