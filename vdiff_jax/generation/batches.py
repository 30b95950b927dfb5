"""Many images, drawn batch by batch over all devices."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Num

from vdiff_jax import parallel
from vdiff_jax.generation.conditions import ConditionOf, conditioned
from vdiff_jax.generation.sampler import Request, Sampler, Start
from vdiff_jax.types import Params


class Drawn(NamedTuple):
    """Images, and the time they took.

    Attributes:
      images: uint8, or float32 latents, as the data are.
      seconds: The time of each batch; the first includes compiling.
    """

    images: Num[np.ndarray, " n h w c"]
    seconds: list[float]


def seconds_per_image(seconds: list[float], batch_size: int) -> float:
    """The median over batches, of which the first is left out if there are others."""
    return float(np.median(seconds[1:] or seconds)) / batch_size


def draw(
    sampler: Sampler,
    params: Params,
    numbers: range,
    *,
    request: Request,
    batch_size: int,
    start_of: Callable[[np.ndarray], Start],
    advance: Callable[[int], object] = lambda images: None,
) -> Drawn:
    """Draws the images with these numbers; one batch is fetched while the next runs.

    Args:
      sampler: The sampler, and its model.
      params: Parameters of the model.
      numbers: The numbers of the images.
      request: The steps, the guidance weight and the like.
      batch_size: Images drawn at once; the last batch is filled up with more.
      start_of: The start of the images with the given numbers, over all devices.
      advance: Called with the number of images of each batch that has come in.

    Raises:
      ValueError: If the devices cannot share a batch.
    """
    parallel.check_batch_size(batch_size, parallel.make_mesh())
    images, seconds = [], []
    waiting: list[jax.Array] = []
    began = time.monotonic()

    def fetch() -> None:
        nonlocal began
        data = parallel.fetch(waiting.pop())
        images.append(sampler.model.codec.to_images(data))
        seconds.append(time.monotonic() - began)
        began = time.monotonic()
        advance(min(batch_size, len(numbers) - batch_size * (len(seconds) - 1)))

    for number in range(numbers.start, numbers.stop, batch_size):
        start = start_of(np.arange(number, number + batch_size))
        batch = sampler.draw(params, start, request)
        if waiting:
            fetch()
        waiting.append(batch)
    fetch()
    return Drawn(np.concatenate(images)[: len(numbers)], seconds)


def start_of_seed(
    sampler: Sampler, seed: int, condition_of: ConditionOf | None = None
) -> Callable[[np.ndarray], Start]:
    """The start of image number i of a seed, for any i, split over the devices.

    Args:
      sampler: The sampler, and its model.
      seed: The seed of the noise.
      condition_of: The condition of images; None for one of their class alone.
    """
    split = parallel.split(parallel.make_mesh())

    def start_of(index: np.ndarray) -> Start:
        start = sampler.start(parallel.put(index, split), np.int32(seed))
        return conditioned(start, condition_of, index, split)

    return start_of
