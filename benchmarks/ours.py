"""This project's side of each job: its own functions, put together as its stages do.

Every job is a function whose result is called with a number of repetitions. Data are
random images that are on the device already; `benchmarks.data` measures how they get
there.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import sizes
from vdiff_jax import parallel
from vdiff_jax.datasets import device_feed
from vdiff_jax.datasets.source import Arrays
from vdiff_jax.distillation.methods import FIRST, METHODS
from vdiff_jax.from_config.choices import section_of
from vdiff_jax.from_config.losses import distill_loss, train_loss
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.from_config.step import compiled_train_step, optimizer_of
from vdiff_jax.generation import batches
from vdiff_jax.generation.sampler import Sampler, request
from vdiff_jax.model import Model
from vdiff_jax.training.step import Job, Loss, TrainState, init_state
from vdiff_jax.training.throughput import memory_in_gib
from vdiff_jax.types import Feed, Params

# Long enough that the learning rate stays what it is.
NUM_UPDATES = 10**6


def cpu_devices() -> int:
    """The number of devices on a CPU; all batches here are powers of two."""
    return parallel.devices_of_cpu([64])


@dataclasses.dataclass
class Updates:
    """Updates of a `train` or `distill` section, many to a call.

    Attributes:
      step: The compiled step.
      state: The state after the last call.
      feed: The feed of every call.
      job: The job of every call.
      per_call: Updates in a call.
    """

    step: Any
    state: TrainState
    feed: Feed
    job: Job
    per_call: int

    def __call__(self, repetitions: int) -> None:
        """Makes so many updates, in whole calls, and waits for the last."""
        for _ in range(-(-repetitions // self.per_call)):
            self.state, _ = self.step(self.state, self.feed, self.job)
        jax.block_until_ready(self.state)

    def peak_memory(self) -> float | None:
        """Most MiB that were in use on the device, or None if that is not known."""
        return peak_memory()


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Draws batch after batch of images, and fetches them.

    Attributes:
      sampler: The compiled sampler.
      params: Parameters of the model.
      num_steps: The sampler's steps.
      batch_size: Images of a batch.
    """

    sampler: Sampler
    params: Params
    num_steps: int
    batch_size: int

    def __call__(self, repetitions: int) -> None:
        """Draws so many batches as the `sample` stage does."""
        batches.draw(
            self.sampler,
            self.params,
            range(repetitions * self.batch_size),
            request=request(self.num_steps),
            batch_size=self.batch_size,
            start_of=batches.start_of_seed(self.sampler, 0),
        )

    def peak_memory(self) -> float | None:
        """Most MiB that were in use on the device, or None if that is not known."""
        return peak_memory()


def train(
    size: str,
    dtype: str = "float32",
    batch_size: int | None = None,
    steps_per_call: int | None = None,
) -> Updates:
    """Updates of the base model.

    Args:
      size: A name of `sizes`.
      dtype: The type that the network computes in.
      batch_size: Images of an update; None for the config's.
      steps_per_call: Updates of a call; None for the config's.
    """
    config = sizes.config(size, dtype)
    model = make_model(config)
    loss = train_loss(config, model, train=True)
    section = _section(section_of(config, "train"), batch_size, steps_per_call)
    return _updates(config, section, model, loss)


def distill(
    size: str,
    dtype: str = "float32",
    batch_size: int | None = None,
    steps_per_call: int | None = None,
    num_steps: int = 4,
    method: str = FIRST,
) -> Updates:
    """Updates of a student of `num_steps` steps.

    Args:
      size: A name of `sizes`.
      dtype: The type that the network computes in.
      batch_size: Images of an update; None for the config's.
      steps_per_call: Updates of a call; None for the config's.
      num_steps: N.
      method: A name of `METHODS`; with its usual options.
    """
    config = sizes.config(size, dtype)
    config.distill.method = method
    model = make_model(config)
    loss = distill_loss(config, model, model)
    section = _section(section_of(config, "distill"), batch_size, steps_per_call)
    mesh = parallel.make_mesh()
    teacher = parallel.put(model.init(jax.random.key(1)), parallel.replicated(mesh))
    auxiliary = model.init(jax.random.key(1)) if METHODS[method].auxiliary else None
    return _updates(config, section, model, loss, teacher, num_steps, auxiliary)


def sample(
    size: str,
    dtype: str = "float32",
    batch_size: int | None = None,
    num_steps: int = 4,
) -> Drawing:
    """Batches of images by DDIM.

    Args:
      size: A name of `sizes`.
      dtype: The type that the network computes in.
      batch_size: Images of a batch; None for those of an update.
      num_steps: N.
    """
    config = sizes.config(size, dtype)
    model, mesh = make_model(config), parallel.make_mesh()
    params = parallel.put(model.init(jax.random.key(0)), parallel.replicated(mesh))
    batch_size = int(batch_size or config.train.batch_size)
    return Drawing(make_sampler(config, model), params, num_steps, batch_size)


def _section(section: Any, batch_size: int | None, steps_per_call: int | None) -> Any:
    """The section with what is given changed."""
    section.batch_size = batch_size or section.batch_size
    section.steps_per_call = steps_per_call or section.steps_per_call
    return section


def _updates(
    config: Any,
    section: Any,
    model: Model,
    loss: Loss,
    teacher: Params = None,
    num_steps: int | None = None,
    auxiliary: Params = None,
) -> Updates:
    mesh, optimizer = parallel.make_mesh(), optimizer_of(section)
    feeder = device_feed.Streamed(
        Arrays(*images(model.image_shape, section.batch_size, model.num_classes)),
        section.batch_size,
        mesh,
        0,
    )
    (feed,) = feeder.feeds([(0, section.steps_per_call)], seed=(0,))
    state = init_state(model.init(jax.random.key(0)), optimizer, auxiliary)
    shardings = parallel.state_shardings(state, mesh)
    return Updates(
        step=compiled_train_step(config, section, loss, feeder, mesh, shardings),
        state=parallel.put(state, shardings),
        feed=feed,
        job=Job(
            jax.random.key(0),
            jnp.int32(NUM_UPDATES),
            teacher,
            None if num_steps is None else jnp.int32(num_steps),
        ),
        per_call=section.steps_per_call,
    )


def images(
    image_shape: tuple[int, int, int], count: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Random uint8 images and their classes, 0 where there are none.

    Args:
      image_shape: [height, width, channels].
      count: The number of images.
      num_classes: The number of classes, or 0.
    """
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, *image_shape), np.uint8)
    return pixels, rng.integers(0, num_classes or 1, count).astype(np.int32)


def peak_memory() -> float | None:
    """Most MiB that were in use on the device, or None if that is not known."""
    gib = memory_in_gib(jax.local_devices()[0])
    return None if gib is None else 1024 * gib
