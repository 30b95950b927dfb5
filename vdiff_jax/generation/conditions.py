"""Contexts to draw images for, by the images' numbers."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Bool, Float

from vdiff_jax import parallel
from vdiff_jax.datasets.device_feed import batch_of
from vdiff_jax.datasets.source import Source, read_many
from vdiff_jax.generation.sampler import Start
from vdiff_jax.types import Condition

# The condition of the images with these numbers, on the host.
ConditionOf: TypeAlias = Callable[[np.ndarray], Condition]


def of_source(source: Source) -> ConditionOf:
    """The conditions of a source's examples, each as often as any other.

    Image number i has that of an example that depends on i only. Many sources are in
    the order of their classes, so that the first examples are not like all.
    """
    order = np.random.default_rng(0).permutation(len(source))

    def condition_of(index: np.ndarray) -> Condition:
        examples = read_many(source, order[index % len(source)].tolist())
        if isinstance(examples, list):
            names = examples[0].keys()
            examples = {n: np.stack([each[n] for each in examples]) for n in names}
        return batch_of(examples).condition

    return condition_of


def of_arrays(
    context: Float[np.ndarray, " contexts tokens width"],
    mask: Bool[np.ndarray, " contexts tokens"] | None,
) -> ConditionOf:
    """Contexts in turn, with or without masks."""

    def condition_of(index: np.ndarray) -> Condition:
        row = index % len(context)
        parts: dict[str, Any] = {"context": context[row]}
        if mask is not None:
            parts["mask"] = mask[row]
        return Condition(**parts)

    return condition_of


def conditioned(
    start: Start,
    condition_of: ConditionOf | None,
    index: np.ndarray,
    place: NamedSharding,
) -> Start:
    """A start with the condition of its images, if there is one beside their class.

    Args:
      start: The start.
      condition_of: The condition of images; None leaves the start as it is.
      index: The numbers of the images.
      place: The devices.
    """
    if condition_of is None:
        return start
    return start._replace(condition=parallel.put(condition_of(index), place))
