"""The status of a project as text, of at most 80 columns."""

import textwrap
import time
from collections.abc import Iterator

from vdiff_jax.distillation.methods import FIRST
from vdiff_jax.distillation.role import Role
from vdiff_jax.files.holders import Holder
from vdiff_jax.stages.status.look import Evaluation, Run, Status
from vdiff_jax.workdir.watch import Seen, seconds_for

WIDTH = 80
# States of what somebody has begun and not ended.
UNDER_WAY = ("running", "silent", "stopped")


def text(status: Status) -> str:
    """The lines on a project, each ended.

    Args:
      status: How far it is.
    """
    now = time.time()
    lines = [
        f"{status.project.workdir}, {_date(now)}",
        *_at_work(status, now),
        "",
        _row("", "", "updates", "images/s", "loss", "held out"),
    ]
    for at, run in enumerate(status.runs):
        lines.append(_run(run))
        if run.seen.state in UNDER_WAY:
            lines += _indented(_details(run.seen, status.runs[at:], now))
    if status.evaluation is not None:
        lines += _evaluation(status.evaluation, now)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _at_work(status: Status, now: float) -> list[str]:
    """The process that is at work, and where it is if no run shows that."""
    holder = status.holder
    if holder is None or holder.lives is False:
        return ["nobody is at work"]
    since = f"since {_date(holder.since)} ({_interval(now - holder.since)})"
    states = {run.seen.state for run in status.runs}
    states |= {status.evaluation.state} if status.evaluation else set()
    if holder.lives is None and "running" not in states:
        return _silent(holder)
    is_between = "running" not in states and states != {"finished"}
    where = "; it has not yet written to the next of these" if is_between else ""
    return textwrap.wrap(f"at work: {holder}, {since}{where}", WIDTH)


def _silent(holder: Holder) -> list[str]:
    """The lines on a process that cannot be asked, and is not heard of."""
    return textwrap.wrap(
        f"the last at work: {holder}, from {_date(holder.since)}. This machine cannot"
        " ask that one whether it still is, and nothing was written lately.",
        WIDTH,
    )


def _run(run: Run) -> str:
    seen = run.seen
    updates = f"{seen.step:,}"
    if seen.state != "finished":
        updates += f" / {seen.num_updates:,}"
    return _row(
        _name(run.role),
        seen.state,
        updates,
        _number(seen.images_per_second, ",.0f", ",.3g"),
        _number(seen.loss, ".4g"),
        _number(seen.held_out_loss, ".4g"),
    )


def _details(seen: Seen, runs: list[Run], now: float) -> Iterator[str]:
    """The time left, the newest checkpoint, and how long nothing was written.

    Args:
      seen: How far a run is.
      runs: It, and those after it.
      now: The time, in seconds since the epoch.
    """
    if seen.state == "running" and seen.seconds_left is not None:
        yield f"{_interval(seen.seconds_left)} left{_of_all(runs)}"
    if seen.saved is None:
        yield "no checkpoint yet"
    else:
        age = _interval(now - seen.saved.at)
        yield f"checkpoint of step {seen.saved.step:,}, {age} old"
    yield f"last written to {_interval(now - seen.written_at)} ago"


def _of_all(runs: list[Run]) -> str:
    """The time that is left for all students of a method, if others follow.

    One step is compiled for them all, so that each takes as long for an update.
    """
    first, *others = runs
    later = [run for run in others if run.role.method == first.role.method]
    if first.role.method is None or not later:
        return ""
    rest = [each.seen for each in (first, *later) if each.seen.state != "finished"]
    updates = sum(seen.num_updates - seen.step for seen in rest)
    seconds = seconds_for(updates, first.seen.updates_per_second)
    if seconds is None:
        return ""
    return f", {_interval(seconds)} with the students after it"


def _evaluation(evaluation: Evaluation, now: float) -> Iterator[str]:
    total = "" if evaluation.candidates is None else f" / {evaluation.candidates}"
    measured = f"{evaluation.measured}{total} measured"
    yield _row("evaluate", evaluation.state, measured, "", "", "")
    if evaluation.state in UNDER_WAY:
        yield from _indented(_details_of_evaluation(evaluation, now))


def _details_of_evaluation(evaluation: Evaluation, now: float) -> Iterator[str]:
    """What is drawn and not measured, and how long nothing was written."""
    if evaluation.parts:
        parts = "1 part" if evaluation.parts == 1 else f"{evaluation.parts} parts"
        yield f"{parts} of the next drawn"
    yield f"last written to {_interval(now - evaluation.written_at)} ago"


def _row(name: str, state: str, done: str, speed: str, loss: str, held_out: str) -> str:
    return f"{name:20} {state:9} {done:>21} {speed:>8} {loss:>8} {held_out:>8}"


def _indented(parts: Iterator[str]) -> list[str]:
    return textwrap.wrap(
        "; ".join(parts), WIDTH, initial_indent="    ", subsequent_indent="    "
    )


def _name(role: Role) -> str:
    """The stage, or for students of another method than the first that method."""
    if role.method is None:
        return role.stage
    method = role.stage if role.method == FIRST else role.method.replace("_", " ")
    return f"{method} {role.num_steps}"


def _number(value: float | None, form: str, form_below_100: str = "") -> str:
    if value is None:
        return ""
    return format(value, form_below_100 if form_below_100 and value < 100 else form)


def _date(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _interval(seconds: float) -> str:
    """A time in its two largest units."""
    left = max(0, round(seconds))
    for size, unit, smaller, name in (
        (86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"),
    ):  # fmt: skip
        if left >= size:
            rest = left % size // smaller
            return f"{left // size} {unit}" + (f" {rest} {name}" if rest else "")
    return f"{left} s"
