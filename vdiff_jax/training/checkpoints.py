"""Orbax behind a few functions: `<folder>/<step>/` holds one checkpoint.

A checkpoint has three items: `state` (all but the EMA), `ema_params`, so that a
teacher can be read without the rest, and `info`, a small JSON dictionary. Orbax writes
each under a temporary name and renames it when it is whole, in the background.

The files of a checkpoint do not show that a byte of an array has changed since. So
`info` has a fingerprint of every array, taken on the devices before the arrays were
written and compared after they are read. A checkpoint that cannot be read, or has
changed, is moved to `<folder>/../damaged/` and the one before it is taken.
"""

import contextlib
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from vdiff_jax.files.fingerprints import DamagedError, fingerprint, named_leaves
from vdiff_jax.training.step import TrainState
from vdiff_jax.types import Params


@contextlib.contextmanager
def open_folder(
    folder: pathlib.Path, *, keep: int = 2, keep_every: int = 0, keep_best: int = 0
) -> Iterator[ocp.CheckpointManager]:
    """Opens a folder of checkpoints for writing, and removes halves of killed saves.

    At the end it waits until all that was saved is on the disk.

    Args:
      folder: The folder; made if it is not there.
      keep: Number of the newest checkpoints that stay, at least 1.
      keep_every: Checkpoints at multiples of this step stay; 0 for none.
      keep_best: Number of checkpoints of the lowest held-out loss that stay.

    Raises:
      ValueError: If `keep` is below 1.
      OSError: If a checkpoint could not be written.
    """
    if keep < 1:
        raise ValueError(f"keep_checkpoints must be at least 1, got {keep}.")
    kept: list[policies.PreservationPolicy] = [policies.LatestN(n=keep)]
    if keep_every:
        kept.append(policies.EveryNSteps(interval_steps=keep_every))
    if keep_best:
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["held_out_loss"],
            reverse=True,  # the last ones stay
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        )
        kept.append(best)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(kept),
        cleanup_tmp_directories=True,
        create=True,
    )
    with _writing(folder):
        manager = ocp.CheckpointManager(folder.resolve(), options=options)
    try:
        yield manager
    finally:
        with _writing(folder):
            manager.close()


def steps(folder: pathlib.Path) -> list[int]:
    """The steps of the whole checkpoints in a folder, in order."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def latest_step(folder: pathlib.Path, at_most: int | None = None) -> int | None:
    """The step of the newest whole checkpoint, up to a step, or None."""
    candidates = [step for step in steps(folder) if at_most is None or step <= at_most]
    return max(candidates, default=None)


def save(
    manager: ocp.CheckpointManager,
    state: TrainState,
    info: dict[str, Any],
    held_out_loss: float | None = None,
) -> None:
    """Starts to save; the arrays are copied before it returns, the files are not.

    Args:
      manager: The open folder, as `open_folder` gives it.
      state: The state to save.
      info: A dictionary to store beside it, as JSON.
      held_out_loss: The loss by which the best are kept; None if it was not measured.

    Raises:
      OSError: If this checkpoint, or the one before it, could not be written.
    """
    step = int(state.step)
    if step in manager.all_steps():
        return
    with _writing(manager.directory):
        manager.save(
            step,
            metrics=None if held_out_loss is None else {"held_out_loss": held_out_loss},
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_without_ema(state)),
                ema_params=ocp.args.StandardSave(state.ema_params),
                info=ocp.args.JsonSave({**info, "fingerprint": fingerprint(state)}),
            ),
        )


def restore(
    folder: pathlib.Path,
    abstract_state: TrainState,
    shardings: TrainState,
    *,
    at_most: int | None = None,
) -> tuple[TrainState, dict[str, Any]] | None:
    """Reads the newest sound checkpoint onto the devices at hand.

    Damaged ones are named and set aside.

    Args:
      folder: A folder of checkpoints.
      abstract_state: The state's shapes, as `jax.eval_shape` gives them.
      shardings: The sharding to give to each array, whatever devices wrote it.
      at_most: The last step to read; checkpoints of later steps are left alone.

    Returns:
      The state and its `info`; None if nothing was ever saved whole.

    Raises:
      ValueError: If the checkpoint is of another architecture.
      DamagedError: If there were checkpoints, and none is sound.
    """
    while (step := latest_step(folder, at_most)) is not None:
        try:
            items = _read(folder / str(step), abstract_state, shardings)
            state = TrainState(ema_params=items["ema_params"], **items["state"])
            return state, items["info"]
        except DamagedError as error:
            place = set_aside(folder, step)
            print(f"{error} Set aside as {place}.", file=sys.stderr)
            if jax.process_count() > 1:  # the others may have found it sound
                raise DamagedError(
                    f"{error} Set aside as {place}; the same command goes on from the"
                    " checkpoint before it."
                ) from error
    if (folder.parent / "damaged").is_dir() and at_most is None:
        raise DamagedError(
            f"No sound checkpoint is left in {folder}: see {folder.parent}/damaged."
            f" To begin anew, remove {folder.parent}."
        )
    return None


def restore_ema(
    folder: pathlib.Path, abstract_params: Params, shardings: Params
) -> Params:
    """Reads the EMA parameters of the newest checkpoint.

    Args:
      folder: A folder of checkpoints.
      abstract_params: The parameters' shapes.
      shardings: The sharding to give to each array.

    Raises:
      ValueError: If the folder has no checkpoint, or one of another architecture.
      DamagedError: If the checkpoint is not sound.
    """
    step = latest_step(folder)
    if step is None:
        raise ValueError(f"No checkpoint in {folder}.")
    return _read(folder / str(step), abstract_params, shardings)["ema_params"]


def set_aside(folder: pathlib.Path, step: int) -> pathlib.Path:
    """Moves a checkpoint to `<folder>/../damaged/`, and returns its new path."""
    place = folder.parent / "damaged" / str(step)
    place.parent.mkdir(exist_ok=True)
    count = 1
    while place.exists():
        count += 1
        place = place.with_name(f"{step}.{count}")
    with contextlib.suppress(FileNotFoundError):  # another host was faster
        (folder / str(step)).rename(place)
    return place


def _read(path: pathlib.Path, target: Any, shardings: Any) -> dict[str, Any]:
    """The items of a checkpoint: all for a state as the target, else the EMA's.

    Raises:
      ValueError: If it is of another architecture.
      DamagedError: If it cannot be read or has changed.
    """
    parts = {"ema_params": (target, shardings)}
    if isinstance(target, TrainState):
        parts = {
            "ema_params": (target.ema_params, shardings.ema_params),
            "state": (_without_ema(target), _without_ema(shardings)),
        }
    handler = ocp.CompositeCheckpointHandler(
        state=ocp.StandardCheckpointHandler(),
        ema_params=ocp.StandardCheckpointHandler(),
        info=ocp.JsonCheckpointHandler(),
    )
    path = path.resolve()
    with ocp.Checkpointer(handler) as checkpointer:
        with _reading(path):
            metadata = checkpointer.metadata(path).item_metadata
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
            items = dict(checkpointer.restore(path, args=request).items())
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
    """Turns errors of reading into `DamagedError`, save those that may pass by."""
    try:
        yield
    except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedError(
            f"The checkpoint {path} is damaged: {reason[:300]}."
        ) from error


@contextlib.contextmanager
def _writing(folder: Any) -> Iterator[None]:
    """Turns the many errors of Orbax and TensorStore for a full disk into `OSError`."""
    try:
        yield
    except jax.errors.JaxRuntimeError:  # another host, or a device, is gone
        raise
    except (ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise OSError(
            f"A checkpoint could not be written in {folder}: {reason[:300]}."
        ) from error


def _without_ema(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        "params": state.params,
        "opt_state": state.opt_state,
    }


def _placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


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


def _check_same_optimizer(expected: Any, stored: Any, path: pathlib.Path) -> None:
    shapes = sorted(tuple(leaf.shape) for leaf in jax.tree.leaves(expected))
    on_disk = sorted(tuple(leaf.shape) for leaf in jax.tree.leaves(stored))
    if shapes != on_disk:
        raise ValueError(
            f"The checkpoint {path} is of another optimizer: {len(on_disk)} arrays"
            f" there and {len(shapes)} now. Go on with the version that wrote it."
        )
