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

# Of images that are not to be held all at once; a part has a batch at least.
BATCHES_IN_A_PART = 16
MOST_BYTES_IN_A_PART = 2**28


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


def in_parts(
    num: int,
    batch_size: int,
    bytes_of_image: int,
    *,
    most_batches: int = BATCHES_IN_A_PART,
    most_bytes: int = MOST_BYTES_IN_A_PART,
) -> list[range]:
    """The numbers of images, in parts of whole batches.

    Args:
      num: The number of images.
      batch_size: Images drawn at once.
      bytes_of_image: Bytes of one, as it is drawn.
      most_batches: The most batches of a part.
      most_bytes: The most bytes of a part, save that it has a batch at least.
    """
    batches = min(most_batches, most_bytes // (batch_size * bytes_of_image))
    size = batch_size * max(1, batches)
    return [range(first, min(first + size, num)) for first in range(0, num, size)]


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
