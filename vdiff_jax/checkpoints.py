"""Orbax behind a few functions: `<folder>/<step>/` holds one checkpoint.

A checkpoint has three items: `state` (all but the EMA), `ema_params`, so that a
teacher can be read without the rest, and `info`, a small JSON dictionary. Orbax writes
each under a temporary name and renames it when it is whole.
"""

import hashlib
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding

from vdiff_jax.training import TrainState
from vdiff_jax.types import Params


def open_folder(folder: pathlib.Path, *, keep: int = 2) -> ocp.CheckpointManager:
    """Opens a folder of checkpoints for writing, of which the newest `keep` stay."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    return ocp.CheckpointManager(folder.resolve(), options=options)


def latest_step(folder: pathlib.Path) -> int | None:
    """The step of the newest whole checkpoint, or None."""
    if not folder.is_dir():
        return None
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    return max(steps, default=None)


def save(
    manager: ocp.CheckpointManager, state: TrainState, info: dict[str, Any]
) -> None:
    """Starts to save; the arrays are copied before it returns, the files are not."""
    step = int(state.step)
    if step in manager.all_steps():
        return
    manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(_without_ema(state)),
            ema_params=ocp.args.StandardSave(state.ema_params),
            info=ocp.args.JsonSave(info),
        ),
    )


def restore(
    manager: ocp.CheckpointManager, abstract_state: TrainState, sharding: NamedSharding
) -> tuple[TrainState, dict[str, Any]]:
    """Reads the newest checkpoint onto the devices of `sharding`.

    Args:
      manager: An opened folder with at least one checkpoint.
      abstract_state: The state's shapes, as `jax.eval_shape` gives them.
      sharding: Where every array goes, whatever devices wrote it.
    """
    item = ocp.args.Composite(
        state=ocp.args.StandardRestore(_placed(_without_ema(abstract_state), sharding)),
        ema_params=ocp.args.StandardRestore(
            _placed(abstract_state.ema_params, sharding)
        ),
        info=ocp.args.JsonRestore(),
    )
    restored = manager.restore(manager.latest_step(), args=item)
    state = TrainState(ema_params=restored["ema_params"], **restored["state"])
    return state, restored["info"]


def restore_ema(
    folder: pathlib.Path, abstract_params: Params, sharding: NamedSharding
) -> Params:
    """Reads the EMA parameters of the newest checkpoint.

    Raises:
      ValueError: If the folder has no checkpoint, or one of another architecture.
    """
    step = latest_step(folder)
    if step is None:
        raise ValueError(f"No checkpoint in {folder}.")
    path = folder.resolve() / str(step)
    handler = ocp.CompositeCheckpointHandler(
        state=ocp.StandardCheckpointHandler(),
        ema_params=ocp.StandardCheckpointHandler(),
        info=ocp.JsonCheckpointHandler(),
    )
    with ocp.Checkpointer(handler) as checkpointer:
        metadata = checkpointer.metadata(path).item_metadata
        _check_same_shapes(abstract_params, metadata["ema_params"].tree, folder)
        item = ocp.args.StandardRestore(_placed(abstract_params, sharding))
        args = ocp.args.Composite(ema_params=item)
        return checkpointer.restore(path, args=args)["ema_params"]


def params_sha256(params: Params) -> str:
    """Fingerprint of the leaves as float32 bytes, in the order of their names."""
    digest = hashlib.sha256()
    for _, leaf in sorted(_named_leaves(params)):
        digest.update(np.asarray(leaf, np.float32).tobytes())
    return digest.hexdigest()


def _without_ema(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        "params": state.params,
        "opt_state": state.opt_state,
    }


def _placed(tree: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
    )


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def _check_same_shapes(expected: Params, found: Any, folder: pathlib.Path) -> None:
    ours = {name: tuple(leaf.shape) for name, leaf in _named_leaves(expected)}
    theirs = {name: tuple(leaf.shape) for name, leaf in _named_leaves(found)}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"The model in {folder} is of another architecture: {name} has shape"
                f" {theirs.get(name, 'none')} there and {ours.get(name, 'none')} in"
                " this config. Use the `model` section it was trained with."
            )
