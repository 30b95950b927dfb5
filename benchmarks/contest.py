"""Contenders take turns: each in a process of its own, only one at work at a time.

Nobody's threads, flags or caches disturb another's, and each has its own peak of
memory. The process that calls `measure` only waits. Machines drift, so a ratio is taken
between what two contenders did in the same round.
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, TypeVar
from unittest import mock

T = TypeVar("T")

WARM_UP = 2
LIMIT_SECONDS = 3600.0
BUSY = 0.5
LIBRARIES = ("jax", "jaxlib", "flax", "torch", "diffusers", "numpy")


@dataclasses.dataclass(frozen=True)
class Contender:
    """One side of a comparison.

    Attributes:
      name: Unique in a contest.
      make: A function of a module, called in the contender's process. It returns
        run(n), which does the work n times and comes back when it is done. If run has a
        `per_call`, n is a multiple of it; if it has a `peak_memory`, that gives the
        most MiB used on its device, or None.
      kwargs: Arguments of `make`.
      env: Set before the process starts, and so before it imports anything.
    """

    name: str
    make: Callable[..., Callable[[int], None]]
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Result:
    """The measurements of a contender.

    Attributes:
      first_seconds: Time to make it and to warm it up: with compiling, without imports.
      repetitions: Repetitions in a round.
      seconds: Time of one repetition, in each round.
      cpu_seconds: The same, of all its threads together.
      peak_mib: Most memory it had.
      device_peak_mib: Most memory it had on its device, if that is known.
      failed: The reason why it did not finish; empty if it did.
    """

    first_seconds: float = 0.0
    repetitions: int = 0
    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)
    peak_mib: float | None = None
    device_peak_mib: float | None = None
    failed: str = ""

    @property
    def median(self) -> float:
        """Seconds of one repetition."""
        return statistics.median(self.seconds)


class FailedError(RuntimeError):
    """A contender failed."""


def measure(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    seconds: float,
    limit: float = LIMIT_SECONDS,
) -> dict[str, Result]:
    """Lets the contenders work in turn, A B C A B C.

    Before the first round each is built, warmed up and asked how often it can do its
    work in a round. One that fails is out, and the others go on.

    Args:
      contenders: The contenders, in the order of their turns.
      rounds: The number of turns of each.
      seconds: The length of a turn, about.
      limit: Seconds for all together; one without an answer by then has failed.

    Returns:
      Results by the contenders' names.
    """
    results = {contender.name: Result() for contender in contenders}
    deadline = time.monotonic() + limit
    with contextlib.ExitStack() as stack:
        children: dict[str, _Child] = {}
        for contender in contenders:
            result = results[contender.name]
            with _failing(result):
                child = stack.enter_context(_Child(contender, deadline))
                result.first_seconds, result.repetitions = child.ask(seconds)
                children[contender.name] = child
            _report(contender.name, result)
        for _, name in itertools.product(range(rounds), children):
            result = results[name]
            if not result.failed:
                with _failing(result):
                    _add(result, children[name].ask(result.repetitions))
    return results


def _report(name: str, result: Result) -> None:
    """Prints that a contender is ready, for this can take minutes."""
    status = result.failed or f"ready in {result.first_seconds:.1f} s"
    print(f"{name}: {status}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _failing(result: Result) -> Iterator[None]:
    try:
        yield
    except FailedError as error:
        result.failed = str(error)


def _add(result: Result, turn: "_Turn") -> None:
    result.seconds.append(turn.seconds)
    result.cpu_seconds.append(turn.cpu_seconds)
    result.peak_mib, result.device_peak_mib = turn.peak_mib, turn.device_peak_mib


@dataclasses.dataclass(frozen=True)
class _Turn:
    """One round of one contender."""

    seconds: float
    cpu_seconds: float
    peak_mib: float | None
    device_peak_mib: float | None


class _Child:
    """A contender's process, seen from outside."""

    def __init__(self, contender: Contender, deadline: float):
        self._deadline = deadline
        context = multiprocessing.get_context("spawn")
        self._pipe, other_end = context.Pipe()
        self._process = context.Process(
            target=_work, args=(other_end, contender.make, dict(contender.kwargs))
        )
        with mock.patch.dict(os.environ, contender.env):
            self._process.start()
        other_end.close()

    def __enter__(self) -> "_Child":
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the contender by closing the pipe."""
        self._pipe.close()
        self._process.join(timeout=10.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    def ask(self, question: float) -> Any:
        """Waits for the answer.

        Raises:
          FailedError: If there is none, or it is the reason why the contender failed.
        """
        try:
            self._pipe.send(question)
            if not self._pipe.poll(max(0.0, self._deadline - time.monotonic())):
                self._process.kill()
                raise FailedError("there was no time left")
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(timeout=10.0)
            code = self._process.exitcode
            raise FailedError(f"its process ended with exit code {code}") from None
        if isinstance(answer, str):
            raise FailedError(answer)
        return answer


def _work(pipe: Connection, make: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    """The life of a contender: it is built, calibrated, and then takes its turns."""
    try:
        with contextlib.suppress(EOFError):
            seconds = pipe.recv()
            began = time.perf_counter()
            run = make(**kwargs)
            per_call = getattr(run, "per_call", 1)
            run(_whole_calls(WARM_UP, per_call))
            first = time.perf_counter() - began
            pipe.send((first, _calibrate(run, per_call, seconds)))
            while True:
                pipe.send(_turn(run, pipe.recv()))
    except BrokenPipeError:
        pass
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        pipe.send("".join(traceback.format_exception_only(error)).strip())


def _calibrate(run: Callable[[int], None], per_call: int, seconds: float) -> int:
    """The number of repetitions that take about so many seconds."""
    count = per_call
    while (taken := _turn(run, count).seconds * count) < seconds / 8:
        count *= 4
    return _whole_calls(math.ceil(seconds * count / taken), per_call)


def _whole_calls(repetitions: int, per_call: int) -> int:
    return per_call * math.ceil(repetitions / per_call)


def _turn(run: Callable[[int], None], repetitions: int) -> _Turn:
    began, cpu_began = time.perf_counter(), time.process_time()
    run(repetitions)
    cpu_seconds = (time.process_time() - cpu_began) / repetitions
    seconds = (time.perf_counter() - began) / repetitions
    device_peak = getattr(run, "peak_memory", lambda: None)()
    return _Turn(seconds, cpu_seconds, peak_mib(), device_peak)


def peak_mib() -> float | None:
    """Most memory that this process had; None where the system is not Linux.

    `getrusage` would not do: it begins with what the parent had at the start of this.
    """
    status = pathlib.Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    kib = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return kib[0] / 1024 if kib else None


def alone(function: Callable[..., T], *arguments: Any, **env: str) -> T:
    """Calls a function of a module in a process of its own, with this environment."""
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(max_workers=1, mp_context=context) as pool,
        mock.patch.dict(os.environ, env),
    ):
        return pool.submit(function, *arguments).result()


def rows(
    results: Mapping[str, Result], ours: str, **labels: Any
) -> list[dict[str, Any]]:
    """A row for each contender, with its time as a ratio to ours.

    Args:
      results: The results of `measure`.
      ours: The name of the one that the others are compared with.
      labels: Columns that every row has.
    """
    table_rows = []
    for name, result in results.items():
        row = {**labels, "what": name}
        if result.failed:
            table_rows.append({**row, "failed": result.failed})
            continue
        row |= {"ms": 1000 * result.median}
        if not results[ours].failed:
            row |= ratio(result, results[ours])
        row |= {
            "cpu_ms": 1000 * statistics.median(result.cpu_seconds),
            "first_seconds": result.first_seconds,
            "peak_mib": result.peak_mib,
            "device_peak_mib": result.device_peak_mib,
            "repetitions": result.repetitions,
            "rounds_ms": [1000 * seconds for seconds in result.seconds],
        }
        table_rows.append(row)
    return table_rows


def ratio(result: Result, ours: Result) -> dict[str, float]:
    """The time of one over that of another in the same round: median and range."""
    ratios = [a / b for a, b in zip(result.seconds, ours.seconds, strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


COLUMNS = {
    "size": "",
    "job": "",
    "batch": "",
    "what": "",
    "ms": ",.2f",
    "ratio": ".2f",
    "ratio_min": ".2f",
    "ratio_max": ".2f",
    "images_per_second": ",.0f",
    "gflops": ",.1f",
    "of_ceiling": ".1%",
    "of_peak": ".1%",
    "first_seconds": ".1f",
    "peak_mib": ",.0f",
    "device_peak_mib": ",.0f",
}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as text, with those of the `COLUMNS` of which there is something."""
    names = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    columns = [[name, *(_cell(row, name) for row in rows)] for name in names]
    for name, column in zip(names, columns, strict=True):
        width = max(map(len, column))
        align = str.rjust if COLUMNS[name] else str.ljust
        column[:] = [align(cell, width) for cell in column]
    ends = ["", *(f"failed: {r['failed']}" if "failed" in r else "" for r in rows)]
    ends = [end[:160].partition("\n")[0] for end in ends]
    lines = ["  ".join(line).rstrip() for line in zip(*columns, ends, strict=True)]
    return "\n".join(lines)


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return "" if value is None else format(value, COLUMNS[name])


def machine() -> dict[str, Any]:
    """The date, the machine and the versions of a measurement."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "gpu": _gpu(),
        "python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
    }


def introduction(machine: Mapping[str, Any]) -> str:
    """The machine in a line, and another if it is busy."""
    line = ", ".join(f"{name} {value}" for name, value in machine.items())
    # Threads of OpenMP wait for each other by spinning: 30 times slower if disturbed.
    busy = "\nOthers are at work here: times mean little, PyTorch's least of all."
    return line + (busy if machine["load"] > BUSY else "")


def _cpu() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1] for line in lines if line.startswith("model name")]
    return names[0].strip() if names else platform.processor()


def _gpu() -> str | None:
    """Asks the driver: asking JAX would take the device's memory."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def write(
    path: pathlib.Path, machine: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Writes the file of `--json`.

    Args:
      path: The file.
      machine: The facts of `machine`.
      rows: The measurements.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))
