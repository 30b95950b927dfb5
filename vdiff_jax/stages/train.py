"""The base model, which is the first teacher."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from vdiff_jax.from_config.choices import Config, section_of
from vdiff_jax.from_config.losses import train_loss
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.trainer import make_tools
from vdiff_jax.training.loop import fit
from vdiff_jax.training.run import Run, Tools
from vdiff_jax.training.step import Job
from vdiff_jax.workdir import layout as places


def plan(config: Config, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """What `run` would do."""
    folder = places.train_folder(workdir)
    return [
        {
            "stage": "train",
            "folder": str(folder),
            "updates": config.train.steps,
            "status": places.status(folder),
        }
    ]


def run(config: Config, workdir: pathlib.Path, profile: int = 0) -> None:
    """Trains, or resumes, or finds that it is done."""
    places.claim(workdir, config, "train")
    if not places.is_finished("train", places.train_folder(workdir)):
        fit(*under_way(config, workdir, profile))


def under_way(
    config: Config, workdir: pathlib.Path, profile: int = 0
) -> tuple[Tools, Run]:
    """The tools, and the run of the base model."""
    model = make_model(config)
    tools = make_tools(
        config,
        "train",
        model,
        train_loss(config, model, train=True),
        train_loss(config, model, train=False),
        profile=profile,
        passes=3,  # forward, and a gradient
    )
    return tools, Run(
        name="train",
        folder=places.train_folder(workdir),
        job=Job(
            key=jax.random.fold_in(jax.random.key(config.seed), 0),
            num_updates=jnp.int32(config.train.steps),
        ),
        num_updates=config.train.steps,
        start=lambda: model.init(jax.random.key(config.seed)),
        order_seed=(config.seed, 0),
        sample_steps=section_of(config, "train").sample_steps,
        facts={"parameters": model.num_parameters()},
    )
