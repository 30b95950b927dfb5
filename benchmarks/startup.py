r"""The time until a run trains, and from one student of the ladder to the next.

    python -m benchmarks.startup                    # the digits; about 6 minutes
    python -m benchmarks.startup --rounds 1 --json out.json

Runs the command as a user does, `launch.py` with a config and its stages `train` and
`distill`, cut short: few updates, a ladder of four students. All times are read from
outside: from the clock, from what the run prints, and from the event files that it
writes. Four questions:

1. Seconds from the start of the process until it has imported everything, until the run
   is built, until its first call of updates has ended, and until the command ends. In
   turn: without JAX's persistent compilation cache, with an empty one (cold), and with
   the same one again but another workdir (warm). Also the second of these times for a
   training that is killed (kill -9) once it has a checkpoint, and goes on.
2. What of that is compiling: of the step, and of all programs until the first update.
   With a warm cache it is reading them, and what JAX traces and lowers to look them up.
3. Seconds from the end of a student's last update to the end of the next one's first
   call, and the parts of that time, beside a call among others. What comes between the
   first student and the second stands by itself: the loss and the sampler are compiled.
4. Programs that are compiled, or looked for in the cache, after that: the ladder is to
   need none.

A call is `loop.steps_per_call` updates. Peak memory is that of the command's
process by the system's account.
"""

import argparse
import contextlib
import dataclasses
import itertools
import os
import pathlib
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tensorboardX.proto.event_pb2 import Event

from benchmarks import contest
from vdiff_jax.training.lines import METRICS, last_lines
from vdiff_jax.training.saved import latest_step

ROOT = pathlib.Path(__file__).parents[1]
CACHES = ("without a cache", "cold cache", "warm cache")
STAGES = ("train", "distill")
COMPILED = re.compile(r"Finished XLA compilation of (jit\(.*?\)) in (\S+) sec")
STEP_COMPILED = re.compile(r": compiled in (\S+) s")


@dataclasses.dataclass(frozen=True)
class Record:
    """The times of a run, from its files, in seconds of the clock.

    Attributes:
      opened: The time at which its files were opened, all else being built.
      calls: The times at which each call of updates had ended.
      drawn: The time of the samples of its end, after the held-out loss.
      finished: The time of its result, after its checkpoint was whole.
    """

    opened: float
    calls: Sequence[float]
    drawn: float
    finished: float


@dataclasses.dataclass(frozen=True)
class _Command:
    """A command that has ended, with the lines that it printed and when they came."""

    began: float
    ended: float
    lines: Sequence[tuple[float, str]]
    gib: float

    def matches(
        self, pattern: re.Pattern[str]
    ) -> Iterator[tuple[float, tuple[str, ...]]]:
        """The times of the lines that have the pattern, and its groups."""
        for when, text in self.lines:
            if match := pattern.search(text):
                yield when, match.groups()


class Table:
    """Measurements by what was measured, and what they are compared with."""

    def __init__(self):
        self._values: dict[tuple[str, str], list[float]] = {}
        self._more: dict[str, dict[str, Any]] = {}

    def add(self, what: str, unit: str, *values: float, **more: Any) -> None:
        """Adds measurements to those that are there, and labels to the row."""
        self._values.setdefault((what, unit), []).extend(values)
        self._more.setdefault(what, {}).update(more)

    def rows(self) -> list[dict[str, Any]]:
        """The median, the least and the most of each."""
        return [
            {
                "what": what,
                "unit": unit,
                "value": float(np.median(values)),
                "min": float(np.min(values)),
                "max": float(np.max(values)),
                **self._more[what],
            }
            for (what, unit), values in self._values.items()
        ]

    def __str__(self) -> str:
        """A line for each row."""
        return "\n".join(map(_line, self.rows()))


def main() -> None:
    """Runs, and prints a table."""
    options, machine, table = _parse(), contest.machine(), Table()
    print(contest.introduction(machine), flush=True)
    for i in range(options.rounds):
        print(f"round {i + 1} of {options.rounds}", file=sys.stderr, flush=True)
        table.add("import launch", "s", _seconds_to_import())
        with tempfile.TemporaryDirectory() as scratch:
            for cache in CACHES:
                _measure(options, pathlib.Path(scratch), cache, table)
            seconds = _seconds_after_a_kill(options, pathlib.Path(scratch))
            table.add("train, after a kill: until the first update", "s", seconds)
    print(table)
    if options.json:
        contest.write(options.json, machine, table.rows())


def _line(row: dict[str, Any]) -> str:
    value, least, most = (f"{row[name]:.4g}" for name in ("value", "min", "max"))
    spread = "" if least == most else f" ({least} to {most})"
    theory = f", in theory {row['theory']:g}" if "theory" in row else ""
    return f"{row['what']:58s} {value:>9s} {row['unit']}{spread}{theory}"


def read_record(folder: pathlib.Path) -> Record:
    """The times of a finished run, from its folder."""
    events = [
        event
        for path in sorted((folder / "tensorboard").iterdir())
        for event in _events(path.read_bytes())
    ]
    times = [(value.tag, e.wall_time) for e in events for value in e.summary.value]
    return Record(
        opened=events[0].wall_time,
        calls=[time for tag, time in times if tag == "loss"],
        drawn=max(time for tag, time in times if tag == "samples"),
        finished=(folder / "result.json").stat().st_mtime,
    )


def parts(before: Record, after: Record) -> dict[str, float]:
    """The parts of the time between two students, and all of it."""
    return {
        "all": after.calls[0] - before.calls[-1],
        "held-out loss and samples": before.drawn - before.calls[-1],
        "checkpoint, until it is whole": before.finished - before.drawn,
        "beginning the next": after.opened - before.finished,
        "its first call": after.calls[0] - after.opened,
    }


def _events(content: bytes) -> Iterator[Event]:
    """The events of a file: each has its length and a checksum before it, one after."""
    at = 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        yield Event.FromString(content[at + 12 : at + 12 + length])
        at += 12 + length + 4


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--updates", type=int, default=40, help="of each run")
    parser.add_argument("--start_steps", type=int, default=16, help="of the ladder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path)
    return parser.parse_args()


def _seconds_to_import() -> float:
    began = time.time()
    subprocess.run([sys.executable, "-c", "import launch"], cwd=ROOT, check=True)
    return time.time() - began


def _measure(
    options: argparse.Namespace, scratch: pathlib.Path, cache: str, table: Table
) -> None:
    """Runs both stages, and adds their times."""
    # The warm cache is the one that the cold one has become.
    folder = None if cache == "without a cache" else scratch / "compiled"
    workdir = scratch / cache
    for stage in STAGES:
        command = _run(options, stage, workdir, folder)
        # Students have more steps the earlier they come.
        results = sorted((workdir / stage).rglob("result.json"), reverse=True)
        records = [read_record(path.parent) for path in results]
        _add_start(command, records[0], f"{stage}, {cache}", table)
        if len(records) > 1:
            _add_ladder(command, records, table)


def _add_start(command: _Command, first: Record, name: str, table: Table) -> None:
    steps = [float(seconds) for _, (seconds,) in command.matches(STEP_COMPILED)]
    seconds = [
        float(seconds)
        for when, (_, seconds) in command.matches(COMPILED)
        if when < first.calls[0]
    ]
    table.add(f"{name}: until it is built", "s", first.opened - command.began)
    table.add(f"{name}: until the first update", "s", first.calls[0] - command.began)
    table.add(f"{name}: of that, compiling the step", "s", sum(steps))
    table.add(f"{name}: of that, XLA for all programs", "s", sum(seconds))
    table.add(f"{name}: programs until then", "", len(seconds))
    table.add(f"{name}: whole command", "s", command.ended - command.began)
    table.add(f"{name}: peak memory", "GiB", command.gib)


def _add_ladder(command: _Command, records: Sequence[Record], table: Table) -> None:
    for i, (before, after) in enumerate(itertools.pairwise(records)):
        between = "student to student" if i else "first student to second"
        for part, seconds in parts(before, after).items():
            table.add(f"{between}: {part}", "s", seconds)
        table.add("a call among others", "s", *np.diff(after.calls))
    late = [when for when, _ in command.matches(COMPILED) if when > records[1].opened]
    table.add("programs compiled after the first student", "", len(late))


def _seconds_after_a_kill(options: argparse.Namespace, scratch: pathlib.Path) -> float:
    """Seconds until a killed training has made its next update; the cache is warm."""
    folder = scratch / "killed" / "train"
    words = (
        "--config.train.steps=1000000",
        f"--config.loop.checkpoint_every_steps={options.updates}",
    )

    def start() -> subprocess.Popen[str]:
        return _start(options, "train", folder.parent, scratch / "compiled", *words)

    with _killed(start()) as process:
        while latest_step(folder / "checkpoints") is None:
            _check_alive(process)
    began = time.time()
    with _killed(start()) as process:
        while (last := last_lines(folder / METRICS)[-1]["time"]) < began:
            _check_alive(process)
    return last - began


@contextlib.contextmanager
def _killed(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Kills a process in the end; reads what it prints, which would else block it."""
    assert process.stdout is not None
    threading.Thread(target=process.stdout.read, daemon=True).start()
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _check_alive(process: subprocess.Popen[str]) -> None:
    time.sleep(0.05)
    if process.poll() is not None:
        raise RuntimeError(f"The command ended with status {process.returncode}.")


def _start(
    options: argparse.Namespace,
    stage: str,
    workdir: pathlib.Path,
    cache: pathlib.Path | None,
    *words: str,
) -> subprocess.Popen[str]:
    command = [
        *(sys.executable, "launch.py", "--config", f"{options.config}:{stage}"),
        *("--workdir", str(workdir)),
        f"--config.train.steps={options.updates}",
        f"--config.distill.updates={options.updates}",
        f"--config.distill.start_steps={options.start_steps}",
        # Every call is logged.
        "--config.loop.log_every_steps=1",
        *words,
    ]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=_environment(cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _run(
    options: argparse.Namespace,
    stage: str,
    workdir: pathlib.Path,
    cache: pathlib.Path | None,
) -> _Command:
    began = time.time()
    process = _start(options, stage, workdir, cache)
    assert process.stdout is not None
    lines = [(time.time(), text) for text in process.stdout]
    # Of `subprocess` only the peak of all children so far could be known.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError("".join(text for _, text in lines[-20:]))
    return _Command(began, time.time(), lines, usage.ru_maxrss / 2**20)


def _environment(cache: pathlib.Path | None) -> dict[str, str]:
    chosen = {
        "PYTHONUNBUFFERED": "1",
        "JAX_LOG_COMPILES": "1",
        "JAX_ENABLE_COMPILATION_CACHE": str(cache is not None).lower(),
        "JAX_COMPILATION_CACHE_DIR": str(cache or ""),
        # All programs are kept, however small.
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return {**os.environ, **chosen}


if __name__ == "__main__":
    main()
