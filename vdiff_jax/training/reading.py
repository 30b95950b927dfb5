"""Reading of one checkpoint: whole, its EMA alone, or just enough to see it is there.

A failure to read is one of two things. `DamagedError`: the files show that what was
written is no longer there: a part is missing or cut off, a value has changed.
`UnreadableError`: this process could not look (permission, a device, a file system).
Then nothing is known of the checkpoint, and nobody may take it for damaged.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from vdiff_jax.files import kvstores
from vdiff_jax.files.fingerprints import (
    DamagedError,
    UnreadableError,
    fingerprint,
    named_leaves,
)
from vdiff_jax.files.place import StorePath
from vdiff_jax.files.plain_path import plain
from vdiff_jax.training.step import TrainState
from vdiff_jax.types import Params

# Codes at the start of TensorStore's errors, which are ValueErrors, that say nothing of
# the files.
PASSING = re.compile(
    "ABORTED|CANCELLED|DEADLINE_EXCEEDED|PERMISSION_DENIED|RESOURCE_EXHAUSTED"
    "|UNAUTHENTICATED|UNAVAILABLE"
)
# Errors of Python and of the clients of stores where nobody answered.
NO_ANSWER = {
    "ClientConnectionError",
    "ConnectionError",
    "HTTPClientError",
    "TimeoutError",
}


def read_state(
    path: pathlib.Path, abstract_state: TrainState, shardings: TrainState
) -> tuple[TrainState, dict[str, Any]]:
    """A whole checkpoint: the state, and the `info` beside it.

    Args:
      path: The folder of the checkpoint.
      abstract_state: The state's shapes.
      shardings: The sharding to give to each array.

    Raises:
      ValueError: If it is of another architecture or another optimizer.
      DamagedError: If it is damaged.
      UnreadableError: If it cannot be looked at.
    """
    items = _read(
        path,
        {
            "ema_params": (abstract_state.ema_params, shardings.ema_params),
            "state": (without_ema(abstract_state), without_ema(shardings)),
        },
    )
    return TrainState(ema_params=items["ema_params"], **items["state"]), items["info"]


def read_ema(path: pathlib.Path, abstract_params: Params, shardings: Params) -> Params:
    """The EMA parameters of a checkpoint; arguments and errors as of `read_state`."""
    return _read(path, {"ema_params": (abstract_params, shardings)})["ema_params"]


def check_readable(path: pathlib.Path, written: Any) -> None:
    """Looks for what was just saved: every array must have values.

    Orbax opens each array by itself to say what is there, and a run waits for that. The
    store that it writes into, TensorStore's OCDBT, has one list of keys: `a.b/.zarray`,
    `a.b/0.0` and so on for the array b of the module a.

    Args:
      path: The folder of the item of a checkpoint.
      written: The tree that was saved, or its shapes.

    Raises:
      OSError: If it does not hold what was saved.
    """
    names = {
        jax.tree_util.keystr(path_in_tree, simple=True, separator=".")
        for path_in_tree, _ in jax.tree_util.tree_flatten_with_path(written)[0]
    }
    try:
        with plain(path) as folder:
            keys = [
                key.decode().rpartition("/")
                for key in kvstores.of_arrays(folder).list().result()
            ]
        with_values = {name for name, _, part in keys if part != ".zarray"}
        if missing := names - with_values:
            raise OSError(f"{min(missing)} is not there")
    except Exception as error:
        raise OSError(
            f"What was saved in {path} cannot be read again, so that it does not count"
            f" as saved: {_reason(error)}."
        ) from error


def check_same_shapes(expected: Params, stored: Any, path: pathlib.Path) -> None:
    """Refuses parameters of another architecture.

    Args:
      expected: The parameters of this config's network, or their shapes.
      stored: The parameters of the model on disk, or their shapes.
      path: Folder of that model, for the message.

    Raises:
      ValueError: If an array differs in shape; the message names the first.
    """
    shapes = {name: tuple(leaf.shape) for name, leaf in named_leaves(expected)}
    on_disk = {name: tuple(leaf.shape) for name, leaf in named_leaves(stored)}
    for name in sorted(shapes.keys() | on_disk.keys()):
        if shapes.get(name) != on_disk.get(name):
            raise ValueError(
                f"The model in {path} is of another architecture: {name} has shape"
                f" {on_disk.get(name, 'none')} there and {shapes.get(name, 'none')} in"
                " this config. Use the `model` section it was trained with."
            )


def without_ema(state: TrainState) -> dict[str, Any]:
    """The item `state` of a checkpoint: all but the EMA, and what is None."""
    fields = state._asdict().items()
    return {
        name: value
        for name, value in fields
        if name != "ema_params" and value is not None
    }


def _read(path: pathlib.Path, parts: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Some items of a checkpoint by (shapes, shardings), and its `info`."""
    handler = ocp.CompositeCheckpointHandler(
        state=ocp.StandardCheckpointHandler(),
        ema_params=ocp.StandardCheckpointHandler(),
        info=ocp.JsonCheckpointHandler(),
    )
    with plain(path) as folder, ocp.Checkpointer(handler) as checkpointer:
        with _reading(path):
            metadata = checkpointer.metadata(folder).item_metadata
            trees = {name: metadata[name].tree for name in parts}
        check_same_shapes(parts["ema_params"][0], trees["ema_params"], path)
        if "state" in parts:
            _check_same_optimizer(parts["state"][0], trees["state"], path)
        arguments = {
            name: ocp.args.StandardRestore(jax.tree.map(_placed, tree, places))
            for name, (tree, places) in parts.items()
        }
        with _reading(path):
            request = ocp.args.Composite(info=ocp.args.JsonRestore(), **arguments)
            items = dict(checkpointer.restore(folder, args=request).items())
            written = items["info"]["fingerprint"]
    read = fingerprint(_as_saved(items))
    changed = [name for name, value in read.items() if value != written[name]]
    if changed:
        raise DamagedError(
            f"The checkpoint {path} is damaged: {changed[0]} is not what was written"
            f" ({len(changed)} of {len(read)} arrays)."
        )
    return items


def _as_saved(items: dict[str, Any]) -> Any:
    """The arrays of a checkpoint, with the names that they have in a state."""
    nothing = {"step": None, "params": None, "opt_state": None}
    return TrainState(
        ema_params=items["ema_params"], **{**nothing, **items.get("state", {})}
    )


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
    """Turns errors of reading into `DamagedError` or `UnreadableError`."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        obstacle = _obstacle(path) or _passing(error)
        if obstacle:
            raise UnreadableError(
                f"The checkpoint {path} cannot be read: {obstacle}. Nothing says that"
                " it is damaged, and it was left as it is."
            ) from error
        raise DamagedError(
            f"The checkpoint {path} is damaged: {_reason(error)}."
        ) from error


def _obstacle(path: pathlib.Path) -> str:
    """Why a file or folder of a checkpoint cannot be opened; empty if all can be."""
    if not path.is_dir():
        return "there is no such folder any more"
    if isinstance(path, StorePath):
        return _obstacle_in_store(path)
    obstacles: list[OSError] = []
    for folder, _, names in os.walk(path, onerror=obstacles.append):
        for name in names:
            try:
                _touch(os.path.join(folder, name))
            except OSError as error:
                obstacles.append(error)
    if not obstacles:
        return ""
    return f"{obstacles[0].strerror}: {obstacles[0].filename}"


def _obstacle_in_store(path: StorePath) -> str:
    """Why an object of a checkpoint cannot be read; empty if all can be."""
    try:
        for each in path.rglob("*"):
            each.version()
    except OSError as error:
        return f"{error.strerror}: {error.filename}"
    return ""


def _touch(path: str) -> None:
    """Reads a byte of a file, without waiting for one where it is a pipe."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.read(file, 1)
    finally:
        os.close(file)


def _passing(error: BaseException) -> str:
    """The reason where the trouble is not of the files; else empty."""
    first = _first_cause(error)
    classes = {each.__name__ for each in type(first).__mro__}
    passing = classes & NO_ANSWER or PASSING.match(str(first))
    return _reason(error) if passing else ""


def _reason(error: BaseException) -> str:
    """The first cause of an error, in one line, without TensorStore's details."""
    first = _first_cause(error)
    text = " ".join(str(first).split()).partition(" [tensorstore_spec")[0]
    return text.rstrip(".")[:300] or type(first).__name__


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    return sorted(tuple(leaf.shape) for leaf in jax.tree.leaves(tree))


def _check_same_optimizer(expected: Any, stored: Any, path: pathlib.Path) -> None:
    shapes, on_disk = _shapes(expected), _shapes(stored)
    if shapes != on_disk:
        raise ValueError(
            f"The checkpoint {path} is of another optimizer: {len(on_disk)} arrays"
            f" there and {len(shapes)} now. Go on with the version that wrote it."
        )
