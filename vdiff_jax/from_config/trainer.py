"""The tools that the runs of a stage share, built and checked once for all of them."""

import dataclasses

import jax
from jax.sharding import Mesh

from vdiff_jax import parallel
from vdiff_jax.datasets.device_feed import batch_of
from vdiff_jax.datasets.identity import sha256_of_sample
from vdiff_jax.datasets.loader import load
from vdiff_jax.from_config.choices import Config, as_json, section_of
from vdiff_jax.from_config.data import has_images, make_feeder, make_source
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.from_config.step import (
    compiled_eval_step,
    compiled_train_step,
    optimizer_of,
)
from vdiff_jax.generation.conditions import of_source
from vdiff_jax.model import Model
from vdiff_jax.training.run import LoopOptions, Tools
from vdiff_jax.training.step import Loss, init_state
from vdiff_jax.training.throughput import Profile, peak_flops
from vdiff_jax.types import Batch


def check_batch(config: Config, stage: str) -> Mesh:
    """The mesh that a stage trains on.

    Raises:
      ValueError: If its batch, or a part of it, does not divide over the devices.
    """
    section = section_of(config, stage)
    mesh = parallel.make_mesh(config.parallel.fsdp)
    try:
        parallel.check_batch_size(section.batch_size, mesh, section.grad_accum_steps)
    except ValueError as error:
        raise ValueError(f"{stage}: {error}") from error
    return mesh


def make_tools(
    config: Config,
    stage: str,
    model: Model,
    loss: Loss,
    eval_loss: Loss,
    *,
    passes: int,
    auxiliary: Model | None = None,
    profile: int = 0,
) -> Tools:
    """Builds and checks everything that a stage's runs share.

    Args:
      config: The whole config.
      stage: The stage that trains: train, guide or distill.
      model: The network.
      loss: The loss to train on.
      eval_loss: The loss to measure on held-out data.
      passes: Passes of the network in an update, a gradient counting as two.
      auxiliary: The network that is trained beside it; None for none.
      profile: Updates of the first run to trace.
    """
    section = section_of(config, stage)
    mesh = check_batch(config, stage)
    optimizer = optimizer_of(section)
    abstract_state = jax.eval_shape(
        lambda params, beside: init_state(params, optimizer, beside),
        model.abstract_params(),
        None if auxiliary is None else auxiliary.abstract_params(),
    )
    shardings = parallel.state_shardings(abstract_state, mesh)
    source = make_source(config, "train")
    feeder = make_feeder(config, source, section, mesh)
    known = peak_flops(jax.local_devices()[0]) is not None
    parts = (config, section, loss, feeder, mesh, shardings)
    return Tools(
        loop=loop_options(config, stage),
        batch_size=section.batch_size,
        config=as_json(config),
        wandb_project=config.wandb_project,
        train_step=compiled_train_step(*parts),
        plain_step=compiled_train_step(*parts, plain=True),
        eval_step=compiled_eval_step(eval_loss, mesh),
        sampler=make_sampler(config, model),
        optimizer=optimizer,
        abstract_state=abstract_state,
        shardings=shardings,
        feeder=feeder,
        data_sha256=sha256_of_sample(source),
        held_out=_held_out(config, section.batch_size, mesh),
        codec=model.codec.params() if has_images(source) else None,
        condition_of=of_source(source) if model.context_shape else None,
        mesh=mesh,
        flops_per_image=passes * model.forward_flops() if known else 0.0,
        profile=Profile(profile),
        compiled=set(),
    )


def loop_options(config: Config, stage: str) -> LoopOptions:
    """The intervals of the loop in a stage."""
    section = section_of(config, stage)
    names = [field.name for field in dataclasses.fields(LoopOptions)]
    return LoopOptions(**{name: section[name] for name in names})


def _held_out(config: Config, batch_size: int, mesh: Mesh) -> list[Batch]:
    """The first images of the held-out split, in whole batches of wrapped order."""
    if not config.data.held_out:
        return []
    source = make_source(config, "test")
    calls = -(-min(config.data.held_out, len(source)) // batch_size)
    stacks = load(
        source,
        batch_size=batch_size,
        seed=(0,),
        calls=[(call, 1) for call in range(calls)],
        num_workers=config.data.workers,
        rows=parallel.local_rows(batch_size, mesh),
        timeout=config.data.worker_timeout,
    )
    return [
        parallel.put_rows(
            batch_of({name: rows[0] for name, rows in stack.items()}),
            parallel.split(mesh),
            batch_size,
        )
        for stack in stacks
    ]
