r"""The stalls of training, and its memory.

    python -m benchmarks.stalls                         # the digits; about 5 minutes
    python -m benchmarks.stalls --only student loop     # some of the questions
    python -m benchmarks.stalls --large --json out.json

1. `student`: the first call of the compiled distillation step with another N and
   another teacher, beside a second one. Calls are of one update, and JAX counts what it
   compiles.
2. `saving`: how long `checkpoints.save` keeps the loop; how long until the checkpoint
   is whole, while updates go on behind it; and all that a save costs, with what it
   slows those down. Both costs are also given as a part of the time between saves,
   `checkpoint_every_steps` of the config. Behind the large state, of 60 M parameters,
   run updates of the digits; its own are taken to last `--large_update_seconds`.
3. `loop`: what the loop of `training/loop.py` does during calls of 10 updates, with the
   digits on the device, or read from PNG files by worker processes. Waiting for feeds
   is no stall as long as a call is under way: the ratio of the updates' times shows it.
   Host time is the CPU time of the main thread, `time.thread_time`, in all of the loop:
   feeds, dispatch, reading and logging of metrics. It leaves out what waits, and what
   other threads do, which compute on a CPU unless jax_cpu_enable_async_dispatch is off.
   The clock's time of the dispatch stands beside it: with several CPU devices JAX waits
   there for the call before, instead of where its metrics are read.
4. `memory`: what XLA plans for a device in the train and the distill step, and the most
   that the host and the device had, each in a process of its own.

A CPU is used as `launch.py` uses it, a device for each core. With `--large`, 3 and 4
are also about CIFAR-10's network at a quarter of its width.
"""

import argparse
import contextlib
import dataclasses
import io
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from benchmarks import contest, ours, sizes
from benchmarks.startup import Table
from vdiff_jax import parallel
from vdiff_jax.datasets.device_feed import Feeder
from vdiff_jax.datasets.digits import digits
from vdiff_jax.datasets.source import Arrays
from vdiff_jax.from_config.choices import section_of
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.step import optimizer_of
from vdiff_jax.stages import train
from vdiff_jax.training import checkpoints
from vdiff_jax.training.loop import fit
from vdiff_jax.training.run import Run, Tools
from vdiff_jax.training.step import TrainState, init_state
from vdiff_jax.types import Batch, Feed
from vdiff_jax.workdir.layout import Project

COMPILED = "/jax/core/compile/backend_compile_duration"
# Values by what they are and their unit.
_Row: TypeAlias = dict[tuple[str, str], float]

STEPS_PER_CALL = 10
WORKERS = 2


def main() -> None:
    """Runs, and prints tables."""
    options, machine, rows = _parse(), contest.machine(), []
    print(contest.introduction(machine), flush=True)
    if jax.config.values["jax_num_cpu_devices"] < 1:
        jax.config.update("jax_num_cpu_devices", ours.cpu_devices())
    for name in options.only:
        table = Table()
        with tempfile.TemporaryDirectory() as scratch:
            QUESTIONS[name](options, pathlib.Path(scratch), table)
        print(f"{name}\n{table}\n", flush=True)
        rows += table.rows()
    if options.json:
        contest.write(options.json, machine, rows)


def _student(options: argparse.Namespace, scratch: pathlib.Path, table: Table) -> None:
    del scratch
    updates = ours.distill("digits", steps_per_call=1)
    teachers = [updates.job.teacher, jax.tree.map(jnp.copy, updates.state.params)]

    def call(num_steps: int) -> float:
        began = time.perf_counter()
        updates.job = updates.job._replace(
            teacher=teachers[num_steps.bit_length() % 2],
            num_steps=jnp.int32(num_steps),
        )
        updates(1)
        return 1000 * (time.perf_counter() - began)

    for num_steps in (256, 128):
        call(num_steps)
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event)
    )
    for num_steps in options.rounds * (64, 32, 16, 8, 4, 2, 1):
        first, again = call(num_steps), call(num_steps)
        table.add("first call with another N and teacher", "ms", first)
        table.add("the same again", "ms", again)
        table.add("difference", "ms", first - again)
    table.add("programs compiled meanwhile", "", compiled.count(COMPILED))


def _saving(options: argparse.Namespace, scratch: pathlib.Path, table: Table) -> None:
    updates = ours.train("digits", steps_per_call=1)
    every = sizes.config("digits").loop.checkpoint_every_steps

    def save(
        name: str,
        state: Callable[[], TrainState],
        between: Callable[[float], float],
    ) -> None:
        with checkpoints.open_folder(scratch / name) as manager:
            for i in range(options.rounds + 1):
                row = _save_once(manager, scratch / name, updates, state, between)
                if i > 0:  # the first compiles
                    _add(table, name, row)

    save("digits", lambda: updates.state, lambda seconds: every * seconds)
    if options.large:
        config = sizes.config("cifar10")
        params = make_model(config).init(jax.random.key(0))
        large = init_state(params, optimizer_of(section_of(config, "train")))
        large = parallel.put(large, parallel.replicated(parallel.make_mesh()))
        seconds = config.loop.checkpoint_every_steps * options.large_update_seconds
        save(
            "60 M",
            lambda: large._replace(step=jnp.copy(updates.state.step)),
            lambda _: seconds,
        )


def _save_once(
    manager: Any,
    folder: pathlib.Path,
    updates: ours.Updates,
    state: Callable[[], TrainState],
    between: Callable[[float], float],
) -> _Row:
    """Saves, and makes updates until the checkpoint is whole, and as many again."""
    updates(1)
    step, count = int(updates.state.step), 0
    began = time.monotonic()
    checkpoints.save(manager, state(), {})
    waited = time.monotonic() - began
    while not count or checkpoints.latest_step(folder) != step:
        updates(1)
        count += 1
    whole = time.monotonic() - began
    updates(count)
    alone = time.monotonic() - began - whole
    percent = 100 / between(alone / count)
    return {
        ("the loop waits for a save", "s"): waited,
        ("of the time between saves", "%"): percent * waited,
        ("until it is whole", "s"): whole,
        ("all of its cost", "s"): whole - alone,
        ("all of its cost, of the time between saves", "%"): percent * (whole - alone),
    }


class _EnoughError(Exception):
    """The loop has been watched for long enough."""


@dataclasses.dataclass
class _Watched:
    """A feeder that notes when the loop comes for feeds, and in the end ends it.

    Attributes:
      feeder: The feeder that it feeds with.
      calls: After so many it ends the loop, before anything is evaluated or saved.
      asked: Seconds of the clock at which the loop asked for each feed.
      given: The same when it had it.
      cpu: CPU seconds of the loop's thread when it asked for each.
    """

    feeder: Feeder
    calls: int
    asked: list[float] = dataclasses.field(default_factory=list)
    given: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)

    @property
    def length(self) -> int:
        return self.feeder.length

    def read(self, data: Any, item: Any) -> Batch:
        return self.feeder.read(data, item)

    def feeds(
        self, calls: Sequence[tuple[int, int]], seed: Sequence[int]
    ) -> Generator[Feed, None, None]:
        with contextlib.closing(self.feeder.feeds(calls, seed)) as feeds:
            for _ in range(self.calls):
                self._mark()
                feed = next(feeds)
                self.given.append(time.monotonic())
                yield feed
        self._mark()
        raise _EnoughError

    def _mark(self) -> None:
        self.asked.append(time.monotonic())
        self.cpu.append(time.thread_time())


def _loop(options: argparse.Namespace, scratch: pathlib.Path, table: Table) -> None:
    streaming = {"on_device": "never", "workers": WORKERS, **_png_files(scratch)}
    contenders = {
        "on the device": _under_way("digits", {}),
        f"PNG, {WORKERS} workers": _under_way("digits", streaming),
    }
    for _ in range(options.rounds):
        base = 0.0
        for name, under_way in contenders.items():
            row = _watch(*under_way, warm_up=4, calls=options.calls)
            base = base or row["update", "ms"]
            row["update, ratio to on the device", ""] = row["update", "ms"] / base
            _add(table, name, row)
    if options.large:
        under_way = _under_way("cifar4m", {"source": "benchmarks.stalls:noise"})
        _add(table, "cifar4m", _watch(*under_way, warm_up=1, calls=2))


def _png_files(folder: pathlib.Path) -> dict[str, Any]:
    """The digits as files, and how to open them."""
    for i, image in enumerate(digits("train").images):
        PIL.Image.fromarray(image[..., 0]).save(folder / f"{i:04d}.png")
    return {"source": "folder", "path": str(folder), "train_split": ""}


def noise(split: str) -> Arrays:
    """A data set of random images like CIFAR-10's."""
    del split
    return Arrays(*ours.images((32, 32, 3), 1024, num_classes=0))


def _under_way(size: str, data: dict[str, Any]) -> tuple[Tools, Run]:
    config = sizes.config(size)
    config.update(
        {
            "data": {**data, "held_out": 0},
            "loop": {"steps_per_call": STEPS_PER_CALL},
            "train": {"steps": ours.NUM_UPDATES},
        }
    )
    return train.under_way(Project(config, pathlib.Path()))


def _watch(tools: Tools, run: Run, *, warm_up: int, calls: int) -> _Row:
    """The times of the loop in some calls, after some others.

    Args:
      tools: Everything that the stage's runs share.
      run: The run.
      warm_up: Calls that are left out.
      calls: Calls that are measured.
    """
    watched = _Watched(tools.feeder, warm_up + calls)
    dispatched: list[float] = []

    def step(*arguments: Any) -> Any:
        began = time.monotonic()
        result = tools.train_step(*arguments)
        dispatched.append(time.monotonic() - began)
        return result

    with tempfile.TemporaryDirectory() as folder, _silence():
        run = dataclasses.replace(run, folder=pathlib.Path(folder))
        with contextlib.suppress(_EnoughError):
            fit(dataclasses.replace(tools, feeder=watched, train_step=step), run)
    times = np.diff(watched.asked)[warm_up:].sum()
    waited = np.subtract(watched.given, watched.asked[:-1])
    host, dispatch = np.diff(watched.cpu)[warm_up:].sum(), np.sum(dispatched[warm_up:])
    updates = calls * STEPS_PER_CALL
    return {
        ("until the first feed", "s"): waited[0],
        ("update", "ms"): 1000 * times / updates,
        ("waiting for feeds, of the time", "%"): 100 * waited[warm_up:].sum() / times,
        ("host time of an update", "ms"): 1000 * host / updates,
        ("host time, of the time", "%"): 100 * host / times,
        ("dispatch by the clock, of the time", "%"): 100 * dispatch / times,
    }


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without progress bars."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield


def _memory(options: argparse.Namespace, scratch: pathlib.Path, table: Table) -> None:
    del scratch
    for size in ("digits", "cifar4m") if options.large else ("digits",):
        for job in ("train", "distill"):
            devices = str(jax.local_device_count("cpu"))
            peaks = contest.alone(_peaks, job, size, JAX_NUM_CPU_DEVICES=devices)
            _add(table, f"{size}, {job}", peaks)


def _peaks(job: str, size: str) -> _Row:
    """Planned and most memory, in a process that has done nothing else."""
    updates = getattr(ours, job)(size)
    lowered = updates.step.lower(updates.state, updates.feed, updates.job)
    updates.step = lowered.compile()
    plan = updates.step.memory_analysis()
    updates(1)
    device = updates.peak_memory()
    status = pathlib.Path("/proc/self/status").read_text()
    mib: dict[str, float] = {
        "arguments": plan.argument_size_in_bytes / 2**20,
        "results in place of arguments": plan.alias_size_in_bytes / 2**20,
        "all results": plan.output_size_in_bytes / 2**20,
        "temporary": plan.temp_size_in_bytes / 2**20,
    }
    if peak := re.search(r"VmHWM:\s+(\d+)", status):
        mib["most on the host"] = int(peak[1]) / 1024
    if device is not None:
        mib["most on the device"] = device
    return {(what, "MiB"): value for what, value in mib.items()}


def _add(table: Table, name: str, row: _Row) -> None:
    for (what, unit), value in row.items():
        table.add(f"{name}: {what}", unit, value)


QUESTIONS = {
    "student": _student,
    "saving": _saving,
    "loop": _loop,
    "memory": _memory,
}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = tuple(QUESTIONS)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--large", action="store_true", help="also larger models")
    parser.add_argument("--large_update_seconds", type=float, default=0.1)
    parser.add_argument("--calls", type=int, default=10, help="of a round of loop")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
