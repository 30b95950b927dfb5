"""The compiled steps that train on a loss, and measure it."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from vdiff_jax import parallel
from vdiff_jax.datasets.device_feed import Feeder
from vdiff_jax.distillation.methods import FIRST, METHODS
from vdiff_jax.from_config.choices import Config
from vdiff_jax.losses import Draws
from vdiff_jax.training.gradient import spread
from vdiff_jax.training.step import (
    Given,
    LearningRate,
    Loss,
    Metrics,
    Networks,
    TrainState,
    Values,
    make_eval_step,
    make_learning_rate,
    make_optimizer,
    make_train_step,
    many_updates,
)
from vdiff_jax.types import Batch


def optimizer_of(section: Config) -> Any:
    """The optimizer of a stage, up to the learning rate; see `section_of`.

    That of students has the moments' decays of their method.
    """
    b1, b2 = METHODS[section.get("method", FIRST)].betas
    return make_optimizer(
        grad_clip=section.grad_clip, weight_decay=section.weight_decay, b1=b1, b2=b2
    )


def learning_rate_of(section: Config) -> LearningRate:
    """The learning rate of a stage; see `section_of`."""
    return make_learning_rate(
        section.learning_rate, warmup_steps=section.warmup_steps, decay=section.decay
    )


def compiled_train_step(
    config: Config,
    section: Config,
    loss: Loss,
    feeder: Feeder,
    mesh: Mesh,
    shardings: TrainState,
    *,
    plain: bool = False,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The compiled step of a stage that trains: many updates in a call.

    Args:
      config: The whole config.
      section: The fields of the stage; see `section_of`.
      loss: The loss of the stage.
      feeder: Its `read` becomes part of the step.
      mesh: The devices.
      shardings: The devices of each array of the state, before and after.
      plain: True for the gradient of the whole batch at once, as `replay` needs, and
        not shared out by `gradient.spread`.
    """

    def loss_of_whole(
        networks: Networks, batch: Batch, draws: Draws, given: Given
    ) -> Values:
        networks, given = parallel.whole((networks, given), mesh)
        return loss(networks, batch, draws, given)

    step = make_train_step(
        loss_of_whole,
        optimizer_of(section),
        learning_rate_of(section),
        ema_decay=section.ema_decay,
        # It follows the student, and so is at its full rate before it.
        auxiliary_learning_rate=make_learning_rate(
            section.learning_rate, warmup_steps=0, decay=section.decay
        ),
        stratified=section.stratified_times,
        flip=config.data.flip,
        noise_offset=section.noise_offset,
        grad_accum_steps=section.grad_accum_steps,
        spread=(lambda gradient: gradient) if plain else spread(mesh),
    )
    return jax.jit(
        many_updates(step, feeder.read),
        donate_argnums=0,
        out_shardings=(shardings, parallel.replicated(mesh)),
    )


def compiled_eval_step(loss: Loss, mesh: Mesh) -> Callable[..., Any]:
    """The compiled values of each example of a held-out batch, whole on every host."""
    step = make_eval_step(
        lambda networks, batch, draws, given: loss(
            networks, batch, draws, parallel.whole(given, mesh)
        )
    )
    return jax.jit(step, out_shardings=parallel.replicated(mesh))
