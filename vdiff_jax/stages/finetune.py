"""Another model's weights, trained on as the base model of this workdir.

For a model whose output does not suit few steps: eps says nothing of x where there is
no signal (Salimans & Ho, 2022, arXiv:2202.00512, Sec. 4), and v does. The stage takes
the place of `train`: later stages find its result where they would find that one's.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from vdiff_jax import parallel
from vdiff_jax.files.atomic import write_json
from vdiff_jax.files.fingerprints import params_sha256
from vdiff_jax.from_config.choices import Config, section_of
from vdiff_jax.from_config.losses import train_loss
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.trainer import make_tools
from vdiff_jax.training.loop import fit
from vdiff_jax.training.run import Run, Tools
from vdiff_jax.training.step import Job
from vdiff_jax.workdir import imported
from vdiff_jax.workdir import layout as places
from vdiff_jax.workdir.trained import load_params


def plan(config: Config, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """What `run` would do."""
    _source(config)
    folder = places.train_folder(workdir)
    return [
        {
            "stage": "finetune",
            "source": config.train.init_from,
            "folder": str(folder),
            "updates": config.train.steps,
            "status": places.status(folder),
        }
    ]


def run(config: Config, workdir: pathlib.Path, profile: int = 0) -> None:
    """Trains, or resumes, or finds that it is done."""
    _source(config)
    places.claim(workdir, config, "train")
    fields = imported.of_source(config)
    if fields is not None and parallel.is_main():
        write_json(workdir / imported.FILE, fields)
    if not places.is_finished("finetune", places.train_folder(workdir)):
        fit(*under_way(config, workdir, profile))


def under_way(
    config: Config, workdir: pathlib.Path, profile: int = 0
) -> tuple[Tools, Run]:
    """The tools, and the run."""
    source, model = _source(config), make_model(config)
    tools = make_tools(
        config,
        "train",
        model,
        train_loss(config, model, train=True),
        train_loss(config, model, train=False),
        profile=profile,
        passes=3,
    )
    # Converted or not, the weights are those of the same network.
    params = load_params(model, source, tools.shardings.params)
    return tools, Run(
        name="finetune",
        folder=places.train_folder(workdir),
        job=Job(
            key=jax.random.fold_in(jax.random.key(config.seed), 0),
            num_updates=jnp.int32(config.train.steps),
        ),
        num_updates=config.train.steps,
        start=lambda: params,
        order_seed=(config.seed, 0),
        sample_steps=section_of(config, "train").sample_steps,
        facts={
            "teacher": str(source),
            "teacher_sha256": params_sha256(params),
            "output": [places.made_with(source)["model"]["output"], model.output],
            "parameters": model.num_parameters(),
        },
    )


def _source(config: Config) -> pathlib.Path:
    """The folder that the weights come from.

    Raises:
      ValueError: If there is no finished model, or its network predicts otherwise.
    """
    folder = pathlib.Path(config.train.init_from)
    if places.result(folder) is None:
        raise ValueError(
            f"No finished model in train.init_from={config.train.init_from!r}: name"
            " the train folder of a workdir."
        )
    theirs = places.made_with(folder)["model"]["output"]
    if config.model.computed_from not in ("", theirs):
        raise ValueError(
            f"model.computed_from={config.model.computed_from!r}, but the network in"
            f" {folder} says {theirs!r}."
        )
    return folder
