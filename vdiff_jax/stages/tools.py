"""What the runs of a stage are made of, built and checked once for all of them."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from vdiff_jax import build, parallel
from vdiff_jax.build import Config
from vdiff_jax.datasets.feeds import Feeder
from vdiff_jax.datasets.loader import load
from vdiff_jax.model import Model, Sampler
from vdiff_jax.training.step import Job, Loss, Metrics, TrainState, init_state
from vdiff_jax.training.throughput import Profile, peak_flops
from vdiff_jax.types import Batch, Params


@dataclasses.dataclass(frozen=True)
class Tools:
    """What is built, and compiled, once for all the runs of a stage.

    Attributes:
      config: The whole config.
      section: Its `train`, `guide` or `distill`.
      train_step: The compiled step, (state, feed, job) -> (state, metrics).
      plain_step: The same, of operations that `replay` can run one by one.
      eval_step: The compiled held-out loss.
      sampler: See `build.sampler`.
      optimizer: Up to the learning rate.
      abstract_state: Shapes of the state, to restore into.
      shardings: Where each array of the state lies.
      feeder: Feeds the step with the training split.
      held_out: Some batches of the held-out split.
      mesh: The devices.
      flops_per_image: Of an update; 0 if the devices' peak is not known.
      profile: Traces some updates of the first run.
      compiled: Numbers of updates in a call that the step is compiled for.
    """

    config: Config
    section: Config
    train_step: Callable[..., tuple[TrainState, Metrics]]
    plain_step: Callable[..., tuple[TrainState, Metrics]]
    eval_step: Callable[..., Any]
    sampler: Sampler
    optimizer: optax.GradientTransformation
    abstract_state: TrainState
    shardings: TrainState
    feeder: Feeder
    held_out: list[Batch]
    mesh: Mesh
    flops_per_image: float
    profile: Profile
    compiled: set[int]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the loop.

    Attributes:
      name: Shown in the progress bar.
      folder: Where everything is written.
      job: Key, length and loss arguments.
      num_updates: The length, as the host knows it.
      start: Makes the parameters of step 0; called only for a new run.
      order_seed: Decides the order of the data.
      sample_steps: Of the sampler of the grids; 0 for a network that draws none.
      facts: Goes into result.json and every checkpoint: where the run came from.
      sample_w: Strength of guidance in the grids; None is none.
    """

    name: str
    folder: pathlib.Path
    job: Job
    num_updates: int
    start: Callable[[], Params]
    order_seed: tuple[int, ...]
    sample_steps: int
    facts: dict[str, Any]
    sample_w: float | None = None


def make_tools(
    config: Config,
    section: Config,
    model: Model,
    loss: Loss,
    eval_loss: Loss,
    *,
    passes: int,
) -> Tools:
    """Builds and checks everything that a stage's runs share.

    Args:
      config: The whole config.
      section: Its `train`, `guide` or `distill`.
      model: The network.
      loss: What is trained on.
      eval_loss: What is measured on held-out data.
      passes: Passes of the network in an update, a gradient counting as two.
    """
    mesh = parallel.make_mesh(config.parallel.fsdp)
    parallel.check_batch_size(section.batch_size, mesh, section.grad_accum_steps)
    if section.on_nonfinite not in ("stop", "skip"):
        raise ValueError(
            f"on_nonfinite={section.on_nonfinite!r} is unknown; choose stop or skip."
        )
    optimizer = build.optimizer(section)
    abstract_state = jax.eval_shape(
        lambda: init_state(model.init(jax.random.key(0)), optimizer)
    )
    shardings = parallel.state_shardings(abstract_state, mesh)
    feeder = build.feeder(config, section, mesh)
    known = peak_flops(jax.local_devices()[0]) is not None
    parts = (config, section, loss, feeder, mesh, shardings)
    return Tools(
        config=config,
        section=section,
        train_step=build.train_step(*parts),
        plain_step=build.train_step(*parts, plain=True),
        eval_step=build.eval_step(eval_loss, mesh),
        sampler=build.sampler(config, model),
        optimizer=optimizer,
        abstract_state=abstract_state,
        shardings=shardings,
        feeder=feeder,
        held_out=_held_out(config, section.batch_size, mesh),
        mesh=mesh,
        flops_per_image=passes * model.forward_flops() if known else 0.0,
        profile=Profile(config.profile),
        compiled=set(),
    )


def _held_out(config: Config, batch_size: int, mesh: Mesh) -> list[Batch]:
    """The first pictures of the held-out split, in whole batches of wrapped order."""
    if not config.data.held_out:
        return []
    pictures = build.source(config, "test")
    calls = -(-min(config.data.held_out, len(pictures)) // batch_size)
    stacks = load(
        pictures,
        batch_size=batch_size,
        seed=(0,),
        calls=[(call, 1) for call in range(calls)],
        num_workers=config.data.workers,
        rows=parallel.local_rows(batch_size, mesh),
        timeout=config.data.worker_timeout,
    )
    return [
        parallel.put_rows(
            Batch(stack["image"][0], stack["label"][0]),
            parallel.split(mesh),
            batch_size,
        )
        for stack in stacks
    ]
