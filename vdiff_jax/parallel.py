"""Devices: one mesh axis, `data`, over which batches are split."""

from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")


def data_mesh() -> Mesh:
    """All devices in a row."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Refuses a batch that does not divide over the devices.

    Raises:
      ValueError: Naming both numbers.
    """
    if batch_size % mesh.size:
        raise ValueError(
            f"batch_size={batch_size} does not divide over {mesh.size} devices; use a"
            f" multiple of {mesh.size}."
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Axis number `axis` of an array split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def put(tree: Tree, sharding: NamedSharding) -> Tree:
    """Places every array of a tree, which every host has whole; does not wait."""
    return jax.tree.map(
        lambda value: (
            jax.make_array_from_process_local_data(
                sharding, np.asarray(value), np.shape(value)
            )
            if jax.process_count() > 1
            else jax.device_put(value, sharding)
        ),
        tree,
    )


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """The rows of a split batch that lie on the devices of this host, in order."""
    rows = np.arange(batch_size)
    here = split(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique([rows[index] for index in here.values() if index is not None])


def put_rows(tree: Tree, sharding: NamedSharding, batch_size: int) -> Tree:
    """Places batches of which every host has its `local_rows`; does not wait.

    Args:
      tree: Arrays of this host's rows.
      sharding: From `split`; its axis is the axis of the rows.
      batch_size: Number of rows over all hosts.
    """
    axis = len(sharding.spec) - 1

    def place(value: np.ndarray) -> jax.Array:
        shape = (*value.shape[:axis], batch_size, *value.shape[axis + 1 :])
        return jax.make_array_from_process_local_data(sharding, value, shape)

    return jax.tree.map(place, tree)
