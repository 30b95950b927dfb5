"""The arguments of the loop: the tools that runs share, and one run."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import optax
from jax.sharding import Mesh

from vdiff_jax.datasets.device_feed import Feeder
from vdiff_jax.generation.conditions import ConditionOf
from vdiff_jax.generation.sampler import Request, Sampler
from vdiff_jax.training.saved import CHECKPOINTS, RESULT
from vdiff_jax.training.step import Job, Metrics, Networks, TrainState
from vdiff_jax.training.throughput import Profile
from vdiff_jax.types import Batch, Params


@dataclasses.dataclass(frozen=True)
class LoopOptions:
    """The intervals of the loop, in updates, and what it keeps. 0 is never.

    Attributes:
      steps_per_call: Updates of one compiled call.
      log_every_steps: Updates between two lines of metrics.
      eval_every_steps: Updates between two held-out losses.
      sample_every_steps: Updates between two grids of samples.
      checkpoint_every_steps: Updates between two checkpoints.
      checkpoint_every_minutes: Minutes between two checkpoints.
      keep_checkpoints: The number of newest ones that stay, at least 1.
      keep_every_steps: Checkpoints of multiples of this stay.
      keep_best: The number of those of lowest held-out loss that stay.
      on_nonfinite: A loss that is not finite stops the run, or its update is skipped.
    """

    steps_per_call: int
    log_every_steps: int
    eval_every_steps: int
    sample_every_steps: int
    checkpoint_every_steps: int
    checkpoint_every_minutes: float
    keep_checkpoints: int
    keep_every_steps: int
    keep_best: int
    on_nonfinite: Literal["stop", "skip"]


@dataclasses.dataclass(frozen=True)
class Tools:
    """Everything that is built, and compiled, once for all the runs of a stage.

    Attributes:
      loop: The intervals of the loop.
      batch_size: Images of an update, over all devices.
      config: The whole config as plain values, for the record of a checkpoint.
      wandb_project: The project of Weights & Biases to log to as well, or "".
      train_step: The compiled step, (state, feed, job) -> (state, metrics).
      plain_step: The same, of operations that `replay` can run one by one.
      eval_step: The compiled values of held-out examples.
      sampler: The sampler of the grids.
      optimizer: The optimizer, up to the learning rate.
      abstract_state: Shapes of the state, to restore into.
      shardings: The devices of each array of the state.
      feeder: Feeds the step with the training split.
      data_sha256: The hash of some of its examples.
      held_out: Some batches of the held-out split.
      codec: Parameters that encode the data; None for data that need none.
      condition_of: The condition of the images of the grids; None for one of their
        class alone.
      mesh: The devices.
      flops_per_image: Operations of an update for one image; 0 if the devices' peak is
        not known.
      profile: Traces some updates of the first run.
      compiled: Numbers of updates in a call that the step is compiled for.
    """

    loop: LoopOptions
    batch_size: int
    config: dict[str, Any]
    wandb_project: str
    train_step: Callable[..., tuple[TrainState, Metrics]]
    plain_step: Callable[..., tuple[TrainState, Metrics]]
    eval_step: Callable[..., Any]
    sampler: Sampler
    optimizer: optax.GradientTransformation
    abstract_state: TrainState
    shardings: TrainState
    feeder: Feeder
    data_sha256: str
    held_out: list[Batch]
    codec: Params
    condition_of: ConditionOf | None
    mesh: Mesh
    flops_per_image: float
    profile: Profile
    compiled: set[int]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the loop.

    Attributes:
      name: Shown in the progress bar.
      folder: The folder that everything is written to.
      job: Key, length, teacher and number of steps.
      num_updates: The length, as the host knows it.
      start: Makes the networks of step 0; called only for a new run.
      order_seed: The seed of the order of the data.
      samples: The request to the sampler of the grids; None for a network that draws no
        images.
      facts: The run's origin, for result.json and every checkpoint.
    """

    name: str
    folder: pathlib.Path
    job: Job
    num_updates: int
    start: Callable[[], Networks]
    order_seed: tuple[int, ...]
    samples: Request | None
    facts: dict[str, Any]

    @property
    def checkpoints(self) -> pathlib.Path:
        """The folder of its checkpoints."""
        return self.folder / CHECKPOINTS

    @property
    def result(self) -> pathlib.Path:
        """The file that a finished run leaves."""
        return self.folder / RESULT
