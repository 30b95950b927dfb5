"""Devices and hosts: a mesh of two axes, `data` and `fsdp`.

Batches are split over all devices, along both axes. The arrays of a state are split
along `fsdp` where they are large enough, and copied along `data`; with `fsdp` = 1 every
device has them whole.
"""

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")

# A host that is silent for so long is taken for dead, and the others end.
HEARTBEAT_SECONDS = 60
# Each CPU device holds the whole state, and takes part in every sum over devices.
MOST_CPU_DEVICES = 8
# Splitting less than this over devices costs more than it saves.
MIN_SPLIT_SIZE = 1024


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the hosts of a run; call it before anything else of JAX.

    Args:
      coordinator: host:port of process 0. Without it, all three are taken from the
        cluster (SLURM, Open MPI, Kubernetes, a TPU pod).
      num_processes: Number of processes of the whole run.
      process_id: Number of this process, from 0.

    Raises:
      ValueError: If this is no known cluster, or the other hosts do not come.
    """
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"The hosts could not be joined ({error}). On SLURM, MPI, Kubernetes or a"
            " TPU pod say --distributed; elsewhere give --coordinator=HOST:PORT,"
            " --num_processes and --process_id to each process."
        ) from error


def use_cores(batch_sizes: Sequence[int]) -> None:
    """Makes as many devices of a CPU as it has cores; call it before JAX has devices.

    Most of what XLA does on a CPU, convolutions among it, takes one core: a batch that
    is split over devices keeps all of them busy. Nothing changes where the user has
    set the number of devices, nor for accelerators.

    Args:
      batch_sizes: The number of devices divides every one of them.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    in_flags = "xla_force_host_platform_device_count" in flags
    if in_flags or jax.config.values["jax_num_cpu_devices"] > 0:
        return
    jax.config.update("jax_num_cpu_devices", devices_of_cpu(batch_sizes))


def devices_of_cpu(batch_sizes: Sequence[int]) -> int:
    """Best number of devices to make of a CPU's cores, one that divides all batches."""
    cores = min(_cores(), MOST_CPU_DEVICES)
    return max(n for n in range(1, cores + 1) if not any(b % n for b in batch_sizes))


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_main() -> bool:
    """True in the one process that writes logs, images and results."""
    return jax.process_index() == 0


def make_mesh(fsdp: int = 1) -> Mesh:
    """All devices, in rows of `fsdp`.

    Raises:
      ValueError: If the devices do not divide into such rows.
    """
    devices = jax.device_count()
    if fsdp < 1 or devices % fsdp:
        raise ValueError(
            f"parallel.fsdp={fsdp} does not divide the {devices} devices; use a"
            " divisor of their number."
        )
    return jax.make_mesh(
        (devices // fsdp, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2
    )


def check_batch_size(batch_size: int, mesh: Mesh, grad_accum_steps: int = 1) -> None:
    """Refuses a batch that does not divide over the devices.

    Args:
      batch_size: Examples of the global batch.
      mesh: All devices.
      grad_accum_steps: Parts of the batch that are gone through one after the other.

    Raises:
      ValueError: If `grad_accum_steps` is below 1, or the batch does not divide.
    """
    if grad_accum_steps < 1:
        raise ValueError(
            f"grad_accum_steps must be at least 1, got {grad_accum_steps}."
        )
    parts = mesh.size * grad_accum_steps
    if batch_size % parts:
        accumulated = (
            f" x grad_accum_steps={grad_accum_steps}" if grad_accum_steps > 1 else ""
        )
        raise ValueError(
            f"batch_size={batch_size} does not divide over {mesh.size} devices"
            f"{accumulated}; use a multiple of {parts}."
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Axis number `axis` of an array split over all devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, ("data", "fsdp")))


def state_shardings(abstract_tree: Tree, mesh: Mesh) -> Tree:
    """Shardings for the arrays of a state: split along `fsdp`, or copied if small.

    An array is split along the largest of its axes that `fsdp` divides.
    """
    parts = mesh.shape["fsdp"]

    def place(leaf: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or leaf.size < MIN_SPLIT_SIZE or not axes:
            return replicated(mesh)
        largest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))

    return jax.tree.map(place, abstract_tree)


def whole(tree: Tree, mesh: Mesh) -> Tree:
    """A split state's arrays, whole on every device; for use in a compiled function."""
    if mesh.shape["fsdp"] == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def gather(tree: Tree, mesh: Mesh) -> Tree:
    """A split state's arrays, whole on every device; for use outside of `jit`."""
    if mesh.shape["fsdp"] == 1:
        return tree
    return _placing(replicated(mesh))(tree)


@functools.cache
def _placing(sharding: NamedSharding) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=sharding)


def put(tree: Tree, shardings: Any) -> Tree:
    """Places every array of a tree, which every host has whole; does not wait.

    Args:
      tree: Arrays, the same on every host.
      shardings: One for all arrays, or a tree of them.
    """
    if isinstance(shardings, NamedSharding):
        one = shardings
        shardings = jax.tree.map(lambda _: one, tree)
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    return jax.tree.map(_put_on_hosts, tree, shardings)


def _put_on_hosts(value: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return _placing(sharding)(value)
    return jax.make_array_from_process_local_data(
        sharding, np.asarray(value), np.shape(value)
    )


def fetch(array: jax.Array) -> np.ndarray:
    """A whole array on every host, waiting for it."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """The rows of a split batch that lie on the devices of this host, in order."""
    rows = np.arange(batch_size)
    here = split(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique([rows[index] for index in here.values() if index is not None])


def put_rows(tree: Tree, sharding: NamedSharding, batch_size: int) -> Tree:
    """Places batches of which every host has its `local_rows`; does not wait.

    Args:
      tree: Arrays of this host's rows.
      sharding: A sharding that `split` gave; its axis is the axis of the rows.
      batch_size: Number of rows over all hosts.
    """
    axis = len(sharding.spec) - 1

    def place(value: np.ndarray) -> jax.Array:
        shape = (*value.shape[:axis], batch_size, *value.shape[axis + 1 :])
        return jax.make_array_from_process_local_data(sharding, value, shape)

    return jax.tree.map(place, tree)


def on_all_hosts(condition: bool) -> bool:
    """True if a condition holds on every host; all of them must call, and wait."""
    return not int(highest(int(not condition), make_mesh()))


def highest(number: int, mesh: Mesh) -> Any:
    """The largest of the numbers that the hosts pass.

    With many hosts the result is an array, computed after the work that is under way on
    the devices: the call does not wait for it, reading it does. All hosts must call in
    the same order.
    """
    if jax.process_count() == 1:
        return number
    own = np.full(len(mesh.local_devices), number, np.int32)
    everywhere = put_rows(own, split(mesh), mesh.size)
    return _highest(mesh)(everywhere)


def preempted() -> bool:
    """True if the platform wants the machines back.

    All hosts must call equally often; they get True at the same one of their calls.
    """
    if jax.process_count() == 1:
        return False
    return multihost_utils.reached_preemption_sync_point(next(_calls))


_calls = itertools.count()


@functools.cache
def _highest(mesh: Mesh) -> Callable[[Any], jax.Array]:
    return jax.jit(lambda numbers: numbers.max(), out_shardings=replicated(mesh))
