"""How far the runs of a workdir are, by their files: nothing is written or locked."""

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from vdiff_jax.files.holders import Holder, holder_of
from vdiff_jax.files.place import COMMITTED
from vdiff_jax.training.lines import HELD_OUT, METRICS, last_lines
from vdiff_jax.training.saved import latest_step
from vdiff_jax.workdir import layout

State: TypeAlias = Literal["finished", "running", "silent", "stopped", "not begun"]

# Lines of metrics.jsonl that the speed is taken from.
LINES_OF_SPEED = 20
# A process on another host that has written nothing for so long may be dead.
SECONDS_OF_SILENCE = 600.0


class Saved(NamedTuple):
    """The newest checkpoint of a run.

    Attributes:
      step: Its step.
      at: The time at which it was whole, in seconds since the epoch.
    """

    step: int
    at: float


class Seen(NamedTuple):
    """How far a run is.

    Attributes:
      state: In one word. One that is "silent" belongs to a process on another host that
        cannot be asked, and has written nothing for `SECONDS_OF_SILENCE`.
      step: Updates that are done.
      num_updates: Updates that it is to have.
      images_per_second: By the clock where it runs; else of the updates alone.
      updates_per_second: The same; both None where they are not known.
      loss: The last one; None if there is none, or it was not finite.
      held_out_loss: The same on held-out data.
      saved: The newest checkpoint.
      written_at: The time of the newest file, in seconds since the epoch, or 0.
    """

    state: State
    step: int
    num_updates: int
    images_per_second: float | None = None
    updates_per_second: float | None = None
    loss: float | None = None
    held_out_loss: float | None = None
    saved: Saved | None = None
    written_at: float = 0.0

    @property
    def seconds_left(self) -> float | None:
        """The time that its updates still take; None where that is not known."""
        return seconds_for(self.num_updates - self.step, self.updates_per_second)


def seconds_for(updates: int, updates_per_second: float | None) -> float | None:
    """The time that updates take; None where the speed is not known."""
    return updates / updates_per_second if updates_per_second else None


def holder(workdir: pathlib.Path) -> Holder | None:
    """The process that is at work in a workdir, or was last; None if none ever was."""
    return holder_of(workdir / layout.LOCK)


def seen(folder: pathlib.Path, num_updates: int, holder: Holder | None) -> Seen:
    """How far a run is.

    Args:
      folder: Its folder, which need not be there.
      num_updates: Updates that it is to have.
      holder: Whoever holds the lock of its workdir, or held it last.

    Raises:
      OSError: If a file is there and cannot be read.
    """
    result = layout.result(folder)
    if layout.status(folder, num_updates) == "finished":
        assert result is not None
        return _finished(result)
    written_at = last_change(
        folder, folder / METRICS, layout.checkpoint_folder(folder), folder / "samples"
    )
    state = state_of(holder, written_at)
    lines = last_lines(folder / METRICS)
    saved = _saved(folder)
    reached = saved.step if saved is not None else 0
    if state in ("running", "silent") and lines:
        reached = max(reached, lines[-1]["step"])
    since = holder.since if holder is not None and state == "running" else None
    updates, images = _speed(lines, since)
    return Seen(
        state,
        reached,
        num_updates,
        images,
        updates,
        _last(lines, "loss"),
        _last(lines, f"{HELD_OUT}loss"),
        saved,
        written_at,
    )


def state_of(holder: Holder | None, written_at: float) -> State:
    """The state of what is not finished.

    Args:
      holder: Whoever holds the lock of its workdir, or held it last.
      written_at: The time of its newest file, in seconds since the epoch, or 0.
    """
    if not written_at:
        return "not begun"
    if holder is None or holder.lives is False or written_at < holder.since:
        return "stopped"
    silence = time.time() - written_at
    if holder.lives is None and silence > SECONDS_OF_SILENCE:
        return "silent"
    return "running"


def last_change(*paths: pathlib.Path) -> float:
    """The time of the newest of some files and folders, or 0 if none is there."""
    times = [0.0]
    for path in paths:
        try:
            times.append(path.stat().st_mtime)
        except FileNotFoundError:
            continue
    return max(times)


def _finished(result: Mapping[str, Any]) -> Seen:
    step = result["step"]
    return Seen(
        "finished",
        step,
        step,
        result.get("images_per_second"),
        loss=result.get("loss"),
        held_out_loss=result.get(f"{HELD_OUT}loss"),
    )


def _saved(folder: pathlib.Path) -> Saved | None:
    checkpoints = layout.checkpoint_folder(folder)
    step = latest_step(checkpoints)
    if step is None:
        return None
    whole = checkpoints / str(step)
    return Saved(step, last_change(whole, whole / COMMITTED))


def _last(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [line[name] for line in lines if name in line]
    return values[-1] if values else None


def _speed(
    lines: Sequence[Mapping[str, Any]], since: float | None
) -> tuple[float | None, float | None]:
    """Updates and images a second.

    By the clock over the last lines since a time, where they have one; else as the last
    line has them, of the updates alone.
    """
    logged = [line for line in lines if "updates_per_second" in line]
    if not logged:
        return None, None
    updates, images = (logged[-1][f"{x}_per_second"] for x in ("updates", "images"))
    timed = [] if since is None else [x for x in logged if x.get("time", 0.0) > since]
    first, last = (timed[-LINES_OF_SPEED:] or logged)[0], logged[-1]
    seconds = last["time"] - first["time"] if timed else 0.0
    if seconds <= 0.0:
        return updates, images
    by_clock = (last["step"] - first["step"]) / seconds
    return by_clock, by_clock * images / updates
