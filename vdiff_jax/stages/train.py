"""The base model, which is the first teacher."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from vdiff_jax import build, training
from vdiff_jax.build import Config
from vdiff_jax.stages import workdir as places
from vdiff_jax.stages.fit import Run, fit, make_tools


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


def run(config: Config, workdir: pathlib.Path) -> None:
    """Trains, or resumes, or finds that it is done."""
    places.claim(workdir, config, "train")
    folder = places.train_folder(workdir)
    if places.result(folder) is not None:
        print(f"train: finished, see {folder}/result.json")
        return
    model = build.model(config)
    tools = make_tools(
        config,
        config.train,
        model,
        build.train_loss(config, model, train=True),
        build.train_loss(config, model, train=False),
    )
    root = jax.random.key(config.seed)
    fit(
        tools,
        Run(
            name="train",
            folder=folder,
            job=training.Job(
                key=jax.random.fold_in(root, 0),
                num_updates=jnp.int32(config.train.steps),
            ),
            num_updates=config.train.steps,
            order_seed=(config.seed, 0),
            sample_steps=config.train.sample_steps,
            facts={"parameters": model.num_parameters()},
        ),
        start=lambda: model.init(root),
    )
