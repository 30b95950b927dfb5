"""Orbax behind a few functions: `<folder>/<step>/` holds one checkpoint.

A checkpoint has three items: `state` (all but the EMA), `ema_params`, so that a
teacher can be read without the rest, and `info`, a small JSON dictionary. Orbax writes
each under a temporary name and renames it when it is whole, in the background.

It counts as saved when it has been opened again. The files of a checkpoint do not show
that a byte of an array has changed since. So `info` has a fingerprint of every array,
taken on the devices before the arrays were written and compared after they are read.

Only the run that owns a folder, and holds the lock of its workdir, may restore from it:
a checkpoint that is damaged is then moved to `<folder>/../damaged/`, and the one before
it is taken. Everybody else reads (`restore_ema`), and changes nothing.
"""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from vdiff_jax.files import lease
from vdiff_jax.files.fingerprints import DamagedError, fingerprint
from vdiff_jax.files.place import is_in_store
from vdiff_jax.files.plain_path import plain
from vdiff_jax.training.reading import (
    check_readable,
    read_ema,
    read_state,
    without_ema,
)
from vdiff_jax.training.saved import latest_step, steps
from vdiff_jax.training.step import TrainState
from vdiff_jax.types import Params


@dataclasses.dataclass
class Open:
    """A folder of checkpoints that is open for writing.

    Attributes:
      folder: The folder.
      manager: Orbax's view of it.
      unseen: Shapes of what was saved and not yet opened again, by step.
    """

    folder: pathlib.Path
    manager: ocp.CheckpointManager
    unseen: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def open_folder(
    folder: pathlib.Path, *, keep: int = 2, keep_every: int = 0, keep_best: int = 0
) -> Iterator[Open]:
    """Opens a folder of checkpoints for writing, and removes halves of killed saves.

    At the end it waits until all that was saved is on the disk, and can be read.

    Args:
      folder: The folder; made if it is not there.
      keep: Number of the newest checkpoints that stay, at least 1.
      keep_every: Checkpoints at multiples of this step stay; 0 for none.
      keep_best: Number of checkpoints of the lowest held-out loss that stay.

    Raises:
      ValueError: If `keep` is below 1.
      OSError: If a checkpoint could not be written, or cannot be read again.
    """
    if keep < 1:
        raise ValueError(f"keep_checkpoints must be at least 1, got {keep}.")
    options = ocp.CheckpointManagerOptions(
        atomicity_options=_atomicity(folder),
        preservation_policy=_kept(keep, keep_every, keep_best),
        cleanup_tmp_directories=True,
        create=True,
    )
    with contextlib.ExitStack() as stack:
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            path = stack.enter_context(plain(folder))
            manager = ocp.CheckpointManager(path, options=options)
        opened = Open(folder, manager)
        try:
            yield opened
        finally:
            with _writing(folder):
                manager.close()
        _see(opened)


def _atomicity(folder: pathlib.Path) -> ocp.options.AtomicityOptions:
    """How a checkpoint becomes whole: renamed; in a store, by what is written last."""
    modes = ocp.options.AtomicityMode
    mode = modes.COMMIT_FILE if is_in_store(folder) else modes.AUTO
    return ocp.options.AtomicityOptions(mode=mode)


def _kept(keep: int, keep_every: int, keep_best: int) -> policies.AnyPreservationPolicy:
    """Which checkpoints stay when another is saved; see `open_folder`."""
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
    return policies.AnyPreservationPolicy(kept)


def save(
    opened: Open,
    state: TrainState,
    info: dict[str, Any],
    held_out_loss: float | None = None,
) -> None:
    """Starts to save; the arrays are copied before it returns, the files are not.

    Args:
      opened: The folder, as `open_folder` gives it.
      state: The state to save.
      info: A dictionary to store beside it, as JSON.
      held_out_loss: The loss by which the best are kept; None if it was not measured.

    Raises:
      OSError: If this checkpoint, or the one before it, could not be written, or the
        one before it cannot be read again.
    """
    step, manager = int(state.step), opened.manager
    lease.check(opened.folder)
    if step in manager.all_steps():
        return
    with _writing(opened.folder):
        manager.wait_until_finished()
    _see(opened)
    items = {"state": without_ema(state), "ema_params": state.ema_params}
    with _writing(opened.folder):
        manager.save(
            step,
            metrics=None if held_out_loss is None else {"held_out_loss": held_out_loss},
            args=ocp.args.Composite(
                **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
                info=ocp.args.JsonSave({**info, "fingerprint": fingerprint(state)}),
            ),
        )
    opened.unseen[step] = jax.tree.map(_shape, items)


def _see(opened: Open) -> None:
    """Opens again what is on the disk now and was not looked at since it was saved."""
    on_disk = steps(opened.folder)
    for step, items in opened.unseen.items():
        if step in on_disk:  # not one that later ones have replaced already
            for name, tree in items.items():
                check_readable(opened.folder / str(step) / name, tree)
    opened.unseen.clear()


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def restore(
    folder: pathlib.Path,
    abstract_state: TrainState,
    shardings: TrainState,
    *,
    at_most: int | None = None,
) -> tuple[TrainState, dict[str, Any]] | None:
    """Reads the newest sound checkpoint onto the devices at hand.

    Damaged ones are named and set aside; so this is for the run that owns the folder.

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
      UnreadableError: If one may be sound, but cannot be looked at.
    """
    while (step := latest_step(folder, at_most)) is not None:
        try:
            return read_state(folder / str(step), abstract_state, shardings)
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
    """Reads the EMA parameters of the newest checkpoint, and changes nothing.

    Args:
      folder: A folder of checkpoints.
      abstract_params: The parameters' shapes.
      shardings: The sharding to give to each array.

    Raises:
      ValueError: If the folder has no checkpoint, or one of another architecture.
      DamagedError: If the checkpoint is not sound.
      UnreadableError: If it may be sound, but cannot be looked at.
    """
    step = latest_step(folder)
    if step is None:
        raise ValueError(f"No checkpoint in {folder}.")
    return read_ema(folder / str(step), abstract_params, shardings)


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
