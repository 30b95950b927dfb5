"""The gradient of a batch, shared out over the devices of a mesh."""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from vdiff_jax.losses import Draws
from vdiff_jax.training.step import Given, Gradient, Metrics, Networks
from vdiff_jax.types import Batch

Tree = TypeVar("Tree")


def spread(mesh: Mesh) -> Callable[[Gradient], Gradient]:
    """Shares the gradient of a batch out over the devices of a mesh.

    The compiler adds up array by array, which is right for accelerators. On CPUs a sum
    over devices costs 50 microseconds whatever its size: there, each device takes the
    gradient of its own rows, and all arrays are added up as one. Dropout's masks then
    depend on the number of devices.

    Returns:
      A map from a gradient function to one with the same arguments and result.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    if mesh.size == 1 or mesh.shape["fsdp"] > 1 or not on_cpu:
        return lambda gradient: gradient
    return functools.partial(_as_one_array, mesh=mesh)


def _as_one_array(gradient: Gradient, mesh: Mesh) -> Gradient:
    axes = mesh.axis_names
    rows, whole = PartitionSpec(axes), PartitionSpec()

    def of_own_rows(
        networks: Networks, batch: Batch, draws: Draws, given: Given
    ) -> tuple[Metrics, Networks]:
        index = jax.lax.axis_index(axes)
        result = gradient(networks, batch, draws, given)
        joined = jax.lax.pmean(ravel_pytree(result)[0], axes)
        return _cut(joined, result, zero=index // mesh.size)

    return jax.shard_map(
        of_own_rows,
        mesh=mesh,
        in_specs=(whole, rows, rows, whole),
        out_specs=whole,
        check_vma=False,
    )


def _cut(joined: Array, like: Tree, *, zero: Array) -> Tree:
    """The arrays of a tree, cut out of all of them joined.

    Args:
      joined: All arrays as one.
      like: The tree.
      zero: 0, known only when the program runs.
    """
    leaves, structure = jax.tree.flatten(like)
    starts = np.cumsum([0] + [leaf.size for leaf in leaves])[:-1].tolist()
    parts = [
        jax.lax.dynamic_slice(
            joined, (start,), (leaf.size,), allow_negative_indices=False
        ).reshape(leaf.shape)
        for start, leaf in zip(_late(starts, zero), leaves, strict=True)
    ]
    return structure.unflatten(parts)


def _late(numbers: Sequence[int], zero: Array) -> list[Array]:
    """Numbers, from 0 up, that the compiler cannot know: of a loop that makes no turn.

    XLA compiles for a CPU what is done to an array once for all arrays of a shape. With
    a constant place in `joined` it would compile it for each; and, where the place is a
    constant added to `zero`, at least that sum. A sum as the body of the loop would be
    seen through; that the numbers change places is not.
    """
    return jax.lax.while_loop(
        lambda numbers: numbers[0] < zero,
        lambda numbers: [*numbers[1:], numbers[0]],
        [jnp.int32(number) for number in numbers],
    )
