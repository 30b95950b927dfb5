r"""The time to trace and to compile the step of each size, and how large it is.

    python -m benchmarks.compiling                           # digits and cifar4m
    python -m benchmarks.compiling --sizes cifar10 imagenet64 --jobs train --only_trace

Each is compiled once in a process of its own, without a cache of compiled programs. The
program is StableHLO, as it comes from JAX; its text is not written in the time of
lowering. CPU seconds are of all threads: on a machine with other work they say more
than those of the clock.
"""

import argparse
import pathlib
import time
from collections.abc import Callable
from typing import TypeVar

from benchmarks import contest, ours, sizes
from benchmarks.startup import Table

T = TypeVar("T")
JOBS = {"train": ours.train, "distill": ours.distill}


def main() -> None:
    """Compiles, and prints a table."""
    options, machine, table = _parse(), contest.machine(), Table()
    print(contest.introduction(machine), flush=True)
    env = {"JAX_NUM_CPU_DEVICES": str(ours.cpu_devices())}
    for _ in range(options.rounds):
        for size in options.sizes:
            for job in options.jobs:
                lines, parts = contest.alone(
                    _compile, job, size, options.only_trace, **env
                )
                for what, (seconds, cpu_seconds) in parts.items():
                    name = f"{size}, {job}: {what}"
                    table.add(name, "s", seconds)
                    table.add(f"{name}, CPU", "s", cpu_seconds)
                table.add(f"{size}, {job}: program", "lines", lines)
    print(table)
    if options.json:
        contest.write(options.json, machine, table.rows())


def _compile(
    job: str, size: str, only_trace: bool
) -> tuple[int, dict[str, tuple[float, float]]]:
    """Lines of the program; seconds, by the clock and of all threads, of each part."""
    update, timed = JOBS[job](size), {}
    arguments = update.state, update.feed, update.job
    traced = _timed(timed, "tracing", lambda: update.step.trace(*arguments))
    lowered = _timed(timed, "lowering", traced.lower)
    if not only_trace:
        _timed(timed, "compiling", lowered.compile)
    return len(lowered.as_text().splitlines()), timed


def _timed(
    timed: dict[str, tuple[float, float]], what: str, function: Callable[[], T]
) -> T:
    began, cpu_began = time.perf_counter(), time.process_time()
    value = function()
    timed[what] = time.perf_counter() - began, time.process_time() - cpu_began
    return value


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = ["digits", "cifar4m"]
    parser.add_argument("--sizes", nargs="+", choices=sizes.SIZES, default=default)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=[*JOBS])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only_trace", action="store_true", help="nothing by XLA")
    parser.add_argument("--json", type=pathlib.Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
