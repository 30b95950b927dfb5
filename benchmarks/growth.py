r"""The growth of cost with the batch, the size of the images, N and the devices.

    python -m benchmarks.growth                     # about 3 minutes
    python -m benchmarks.growth --short --json growth.json

Each is given as the exponent of a power law: the slope of a line through the logarithms
of sizes and costs, by least squares, and, since small sizes pay for what does not grow,
that of the largest two alone. Beside them stands the theory.

1. An update in the batch: 1, in time and in the temporary memory that XLA plans.
2. The same in the side of square images: 2. The network is convolutional but for its
   attention in the middle, whose part is small, but grows with the power of 4.
3. Drawing in N, the steps of the sampler, compiled once: 1.
4. An update in the number of devices, the batch being the same: -1, as long as each has
   hardware of its own. Here each is a core of the CPU, and other cores are left alone:
   a single CPU device would use them too.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from benchmarks import contest, ours, sizes
from benchmarks.startup import Table
from configs import digits

# On 2x2 patches, so that attention is little of its work. Few blocks compile soon.
NET = {
    "channels": 64, "num_blocks": 1, "head_dim": 32, "emb_channels": 64, "patch": 2
}  # fmt: skip
SIDES, BATCHES, STEPS = (8, 16, 32), (16, 32, 64, 128), (1, 4, 16, 64, 128)
SIDE, BATCH = SIDES[1], BATCHES[0]
# Of none of the others: a program for all cores would be found in the cache.
DEVICES_BATCH, DRAWN = 48, 8


def main() -> None:
    """Runs, and prints a table."""
    options, machine, table = _parse(), contest.machine(), Table()
    print(contest.introduction(machine), flush=True)
    rounds, every, last = (2, 2, 2) if options.short else (options.rounds, 1, 3)
    with tempfile.TemporaryDirectory() as scratch:
        # All have parameters of the same shapes, and so one program that makes them.
        jax.config.update("jax_compilation_cache_dir", scratch)
        batches = {batch: _update(SIDE, batch) for batch in BATCHES[::every]}
        _grow(table, "update, batch", batches, rounds, theory=1)
        _grow_memory(table, "batch", batches, theory=1)
        sides = {side: _update(side, BATCH) for side in SIDES[:last]}
        _grow(table, "update, side", sides, rounds, theory=2)
        _grow_memory(table, "side", sides, theory=2)
        drawing = ours.sample(_size(SIDE), batch_size=DRAWN)
        draws = {n: dataclasses.replace(drawing, num_steps=n) for n in STEPS[::every]}
        _grow(table, "drawing, N", draws, rounds, theory=1)
        _grow_devices(table, rounds, scratch)
    print(table)
    if options.json:
        contest.write(options.json, machine, table.rows())


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent of a power law, fitted to the logarithms by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(costs), deg=1)[0])


def _size(side: int) -> str:
    """Gives the small network for images of this side a name among the sizes."""
    name, data = f"side {side}", {"image_size": side, "channels": 3}
    sizes.SIZES[name] = (digits, {"data": data, "model": {"unet": NET}})
    return name


@functools.cache
def _update(side: int, batch: int) -> ours.Updates:
    """An update, compiled so that its memory can be read."""
    updates = ours.train(_size(side), batch_size=batch, steps_per_call=1)
    lowered = updates.step.lower(updates.state, updates.feed, updates.job)
    updates.step = lowered.compile()
    return updates


def _grow(
    table: Table,
    what: str,
    runs: Mapping[int, Callable[[int], None]],
    rounds: int,
    theory: float,
) -> None:
    """Adds the times of runs by their sizes, and how they grow."""
    for run in runs.values():
        run(1)
    costs = [[_seconds(run) for run in runs.values()] for _ in range(rounds)]
    _add(table, what, "ms", list(runs), 1000 * np.array(costs), theory)


def _grow_memory(
    table: Table, what: str, runs: Mapping[int, ours.Updates], theory: float
) -> None:
    planned = [run.step.memory_analysis().temp_size_in_bytes for run in runs.values()]
    mib = np.array([planned]) / 2**20
    _add(table, f"temporary memory, {what}", "MiB", list(runs), mib, theory)


def _grow_devices(table: Table, rounds: int, cache: str) -> None:
    """Adds the times of an update by 1, 2, 4, ... devices, each in its own process."""
    devices = [2**i for i in range(ours.cpu_devices().bit_length())]
    contenders = [
        contest.Contender(
            str(count),
            _update_on_cores,
            {"cores": count},
            {
                "JAX_NUM_CPU_DEVICES": str(count),
                "JAX_PLATFORMS": "cpu",
                "JAX_COMPILATION_CACHE_DIR": cache,
            },
        )
        for count in devices
    ]
    results = contest.measure(contenders, rounds=rounds, seconds=1.0)
    if failed := [result.failed for result in results.values() if result.failed]:
        raise RuntimeError(failed[0])
    seconds = np.array([result.seconds for result in results.values()])
    _add(table, "update, devices", "ms", devices, 1000 * seconds.T, theory=-1)


def _update_on_cores(cores: int) -> ours.Updates:
    """An update by a process that has so many cores; called before JAX counts them."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    return _update(SIDE, DEVICES_BATCH)


def _add(
    table: Table,
    what: str,
    unit: str,
    sizes: Sequence[int],
    costs: np.ndarray,
    theory: float,
) -> None:
    """Adds costs, [rounds, sizes], and the slope of each round."""
    for size, values in zip(sizes, costs.T, strict=True):
        table.add(f"{what} {size}", unit, *values)
    for name, last in (
        ("slope", slice(None)),
        ("slope of the largest two", slice(-2, None)),
    ):
        slopes = [slope(sizes[last], row[last]) for row in costs]
        table.add(f"{what}: {name}", "", *slopes, theory=theory)


def _seconds(run: Callable[[int], None], at_least: float = 0.3) -> float:
    """Seconds of one repetition, of as many as take so long together."""
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < at_least:
        run(1)
        count += 1
    return (time.perf_counter() - began) / count


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="fewer sizes and rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
