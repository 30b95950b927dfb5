"""The gradient of a batch, shared out over the devices of a mesh."""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
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

    `zero` is 0, but known only when the program runs; so each array's place is, too.
    With constant places the work on an array would be compiled for every array, and not
    once for all of a shape: twice the time to compile.
    """
    leaves, structure = jax.tree.flatten(like)
    starts = np.cumsum([0] + [leaf.size for leaf in leaves])[:-1]
    parts = [
        jax.lax.dynamic_slice(joined, (zero + start,), (leaf.size,)).reshape(leaf.shape)
        for start, leaf in zip(starts, leaves, strict=True)
    ]
    return structure.unflatten(parts)
