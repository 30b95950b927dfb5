"""What may happen to a run. Each fault is done to real runs, and says what came of it.

A run has survived if the same command, given again where it ended, ends with the
`params_sha256` of a run that nothing happened to.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

import numpy as np
import PIL.Image

from tests.faults.runs import PLACES, Child, Lab, free_address, results, steps
from vdiff_jax.files.place import (
    COMMITTED,
    StorePath,
    is_in_store,
    path_of,
    remove_tree,
)


@dataclasses.dataclass
class Outcome:
    """What came of one fault.

    Attributes:
      fault: Its name.
      tried: How often it was done.
      survived: How often the run ended as if nothing had happened.
      failures: What went wrong, in words.
    """

    fault: str
    tried: int = 0
    survived: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)

    def count(self, failure: str | None) -> None:
        """Counts one try, and what went wrong if something did."""
        self.tried += 1
        if failure:
            self.failures.append(failure)
        else:
            self.survived += 1


@dataclasses.dataclass(frozen=True)
class Trial:
    """What every fault has at hand.

    Attributes:
      lab: Starts runs.
      expected: The results of a run that nothing happened to.
      untouched: The workdir of that run.
      trained: A finished train stage, to begin with distillation.
      tries: How often to try.
      store: A place in an object store for the workdirs; "" for folders.
    """

    lab: Lab
    expected: dict[str, str]
    untouched: pathlib.Path
    trained: pathlib.Path
    tries: int
    store: str = ""

    def new_workdir(self, name: str, trained: bool = False) -> pathlib.Path:
        """An empty workdir, or one with the base model."""
        place = path_of(self.store) if self.store else self.lab.folder
        workdir = place / f"{name}-{time.monotonic_ns()}"
        if trained and isinstance(workdir, StorePath):
            workdir.upload(self.trained)
        elif trained:
            shutil.copytree(self.trained, workdir)
        return workdir

    def finish(self, workdir: pathlib.Path, *flags: str, stage: str = "train") -> Child:
        """Goes on to the end with the same command."""
        return self.lab.finish(workdir, stage, *flags)

    def difference(self, workdir: pathlib.Path, stage: str = "train") -> str | None:
        """How a finished workdir differs from one that nothing happened to."""
        places = PLACES[:1] if stage == "train" else PLACES
        found = results(workdir)
        for place in places:
            if found.get(place) != self.expected[place]:
                return f"{workdir}: {place} has other parameters"
            logged = steps(workdir, place)
            if sorted(set(logged)) != logged:
                return f"{workdir}: {place} has logged steps twice or out of order"
        return None


def kills(trial: Trial, seed: int = 0) -> Iterator[Outcome]:
    """Kill -9 at random moments of train and distill, until there were enough."""
    rng = np.random.default_rng(seed)
    names = ("at any time", "inside a save", "as a run ends")
    moments = (_any_time, _inside_a_save, _as_a_run_ends)
    outcomes = [Outcome(f"kill -9 {name}") for name in names]
    while sum(outcome.tried for outcome in outcomes) < trial.tries:
        workdir = trial.new_workdir("kill")
        hits = []
        for stage in ("train", "distill"):
            while not _done(workdir, stage):
                with trial.lab.run(workdir, stage) as child:
                    which = int(rng.integers(len(moments)))
                    tried = sum(outcome.tried for outcome in outcomes) + len(hits)
                    if tried < trial.tries and moments[which](child, workdir, rng):
                        child.kill()
                        hits.append(which)
                    status = child.wait()
                if status not in (0, -signal.SIGKILL):
                    raise RuntimeError(f"status {status}: {child.said()[-2000:]}")
        failure = trial.difference(workdir, "distill")
        for which in hits:
            outcomes[which].count(failure)
        remove_tree(workdir)
    yield from outcomes


def _done(workdir: pathlib.Path, stage: str) -> bool:
    last = PLACES[0] if stage == "train" else PLACES[-1]
    return (workdir / last / "result.json").exists()


def _any_time(child: Child, workdir: pathlib.Path, rng: np.random.Generator) -> bool:
    delay = rng.uniform(0.0, 12.0)
    end = time.monotonic() + delay
    return not child.wait_for(lambda: time.monotonic() > end) or child.running()


def _inside_a_save(
    child: Child, workdir: pathlib.Path, rng: np.random.Generator
) -> bool:
    """In one of the first saves that are seen, up to 50 ms after it has begun."""
    seen: set[str] = set()
    number = int(rng.integers(1, 4))

    def saving() -> bool:
        for place in PLACES:
            folder = workdir / place / "checkpoints"
            seen.update(map(str, _unfinished(folder)))
        return len(seen) >= number

    happened = child.wait_for(saving)
    time.sleep(rng.uniform(0.0, 0.05))
    return happened and child.running()


def _unfinished(folder: pathlib.Path) -> list[pathlib.Path]:
    """Checkpoints that have begun and are not whole."""
    if not is_in_store(folder):
        return list(folder.glob("*tmp*"))
    return [path for path in folder.iterdir() if not (path / COMMITTED).is_file()]


def _as_a_run_ends(
    child: Child, workdir: pathlib.Path, rng: np.random.Generator
) -> bool:
    """Up to 300 ms after a result.json appears, or the last checkpoint before it."""
    what = ("result.json", "checkpoints/120", "checkpoints/40")
    paths = [workdir / place / name for place in PLACES for name in what]
    before = {path for path in paths if path.exists()}
    happened = child.wait_for(
        lambda: any(path.exists() for path in paths if path not in before)
    )
    time.sleep(rng.uniform(0.0, 0.3))
    return happened and child.running()


def ended_by(trial: Trial, number: signal.Signals, times: int) -> Iterator[Outcome]:
    """A signal while a run is under way, once or twice."""
    outcome = Outcome(f"{number.name}{' twice' if times == 2 else ''}")
    workdir = trial.new_workdir("signal")
    with trial.lab.run(workdir, "train") as child:
        child.wait_for(lambda: _saved(workdir, "train"))
        for _ in range(times):
            child.kill(number)
            time.sleep(0.01)
        status = child.wait(60.0)
    if status != 128 + number:
        outcome.count(f"exit status {status}: {child.said()[-500:]}")
    else:
        outcome.count(_goes_on(trial, workdir, "train"))
    yield outcome


def _saved(workdir: pathlib.Path, place: str) -> bool:
    """Whether a run has a checkpoint."""
    folder = workdir / place / "checkpoints"
    return any(path.name.isdigit() for path in folder.glob("*"))


def damage(
    trial: Trial, name: str, harm: Callable[[pathlib.Path], object]
) -> Iterator[Outcome]:
    """Something happens to the arrays' files of the newest checkpoint.

    To all of them, because not every file is needed to read an array.
    """
    outcome = Outcome(f"newest checkpoint: {name}")
    workdir = _interrupted(trial)
    folder = workdir / "train" / "checkpoints"
    newest = max((p for p in folder.iterdir() if p.name.isdigit()), key=_number)
    for path in (newest / "state").rglob("d/*"):
        harm(path)
    child = trial.finish(workdir)
    named = f"{newest.name} is damaged" in child.said()
    aside = (workdir / "train" / "damaged" / newest.name).is_dir()
    outcome.count(
        trial.difference(workdir)
        if named and aside
        else f"not named or not set aside: {child.said()[-500:]}"
    )
    yield outcome


def _cut_off(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _flip(file: pathlib.Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def all_damaged(trial: Trial) -> Iterator[Outcome]:
    """No checkpoint can be read: nothing is begun anew over what was there."""
    outcome = Outcome("every checkpoint damaged: stops, begins nothing anew")
    workdir = _interrupted(trial)
    for path in (workdir / "train" / "checkpoints").glob("*/state/_METADATA"):
        path.unlink()
    outcome.count(_stopped(trial, workdir, "train", 1, "No sound checkpoint is left"))
    yield outcome


def _number(path: pathlib.Path) -> int:
    return int(path.name)


def _interrupted(trial: Trial) -> pathlib.Path:
    """A workdir with two checkpoints of an unfinished train stage."""
    original = trial.lab.folder / "interrupted"
    if not original.exists():
        workdir = trial.new_workdir("interrupted")
        _interrupt(trial, workdir)
        with contextlib.suppress(OSError):  # another process was first
            workdir.rename(original)
    return shutil.copytree(original, trial.new_workdir("damage"))


def _interrupt(trial: Trial, workdir: pathlib.Path) -> None:
    folder = workdir / "train" / "checkpoints"
    with trial.lab.run(workdir, "train") as child:
        child.wait_for(
            lambda: len([p for p in folder.glob("*") if p.name.isdigit()]) >= 2
        )
        child.kill(signal.SIGTERM)
        child.wait()


def file_limit(trial: Trial) -> Iterator[Outcome]:
    """Files may not grow: no array can be written."""
    outcome = Outcome("files may not grow beyond 8 kB while saving")
    workdir = trial.new_workdir("limit", trained=True)
    limit = ("prlimit", "--fsize=8192")
    words = "could not be written|File too large"
    outcome.count(
        _stopped(trial, workdir, "distill", 1, words, limit)
        or _goes_on(trial, workdir, "distill")
    )
    yield outcome


def full_disk(trial: Trial) -> Iterator[Outcome]:
    """A disk of 800 kB, then there is space; `file_limit` where none can be mounted."""
    place = trial.new_workdir("full")
    with _small_disk(place, "800k") as mounted:
        if not mounted:
            yield from file_limit(trial)
            return
        outcome = Outcome("disk full while saving or logging")
        words = "could not be written|No space left"
        failure = _stopped(trial, place / "run", "train", 1, words)
        subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
        outcome.count(failure or _goes_on(trial, place / "run", "train"))
        yield outcome


def unwritable(trial: Trial) -> Iterator[Outcome]:
    """A workdir where nothing can be written."""
    outcome = Outcome("workdir that cannot be written: refused")
    workdir = pathlib.Path("/sys/vdiff")
    outcome.count(_stopped(trial, workdir, "train", 2, "Nothing can be written"))
    yield outcome


def removed(trial: Trial) -> Iterator[Outcome]:
    """The workdir is moved away under way, and comes back."""
    outcome = Outcome("workdir removed under way")
    workdir = trial.new_workdir("removed")
    gone = workdir.with_suffix(".gone")
    with trial.lab.run(workdir, "train") as child:
        child.wait_for(lambda: _saved(workdir, "train"))
        workdir.rename(gone)
        status = child.wait(60.0)
    if status != 1:
        outcome.count(f"status {status}: {child.said()[-1500:]}")
    else:
        shutil.rmtree(workdir, ignore_errors=True)
        gone.rename(workdir)
        outcome.count(_goes_on(trial, workdir, "train"))
    yield outcome


def _stopped(
    trial: Trial,
    workdir: pathlib.Path,
    stage: str,
    expected: int,
    words: str,
    wrap: tuple[str, ...] = (),
) -> str | None:
    """Runs until the trouble comes; says if it does not end as it should."""
    with trial.lab.run(workdir, stage, wrap=wrap) as child:
        status = child.wait()
    said = child.said()
    named = any(word in said for word in words.split("|"))
    if status == expected and named:
        return None
    return f"status {status}: {said[-1500:]}"


def _goes_on(trial: Trial, workdir: pathlib.Path, stage: str) -> str | None:
    trial.finish(workdir, stage=stage)
    return trial.difference(workdir, stage)


@contextlib.contextmanager
def _small_disk(folder: pathlib.Path, size: str) -> Iterator[bool]:
    """A disk of its own for a folder, where this process may mount one."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = (
        shutil.which("mount") is not None
        and subprocess.run(command, capture_output=True).returncode == 0
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)


def two_runs(trial: Trial) -> Iterator[Outcome]:
    """A second run in the workdir is refused; a dead run does not keep others out."""
    outcome = Outcome("two runs in one workdir: the second is refused")
    workdir = trial.new_workdir("lock")
    with trial.lab.run(workdir, "train") as first:
        first.wait_for(lambda: _saved(workdir, "train"))
        first.kill(signal.SIGSTOP)  # or it would be done before the second begins
        failure = _stopped(
            trial, workdir, "train", 2, f"Another run is at work in {workdir}"
        )
        first.kill(signal.SIGCONT)
        first.wait()
    outcome.count(failure or trial.difference(workdir))
    yield outcome


def lost_worker(trial: Trial, name: str, number: signal.Signals) -> Iterator[Outcome]:
    """A worker process of the loader dies, or hangs."""
    folder = trial.new_workdir("pictures")
    flags = _streamed(folder)
    untouched = trial.new_workdir("streamed")
    trial.finish(untouched, *flags)
    outcome = Outcome(f"a loader's worker {name}")
    workdir = trial.new_workdir("worker")
    with trial.lab.run(workdir, "train", *flags) as child:
        child.wait_for(lambda: _saved(workdir, "train"))
        child.kill(signal.SIGSTOP)  # or it would end before its worker is found
        pids = _workers_of(child.process.pid)
        for pid in pids[:1]:
            os.kill(pid, number)
        child.kill(signal.SIGCONT)
        status = child.wait()
    if status or not pids or "started new workers" not in child.said():
        outcome.count(f"status {status}, workers {pids}: {child.said()[-1500:]}")
    else:
        same = results(workdir) == results(untouched)
        outcome.count(None if same else f"{workdir} has other parameters")
    yield outcome


def _streamed(folder: pathlib.Path) -> tuple[str, ...]:
    """Flags that train on files, read by workers, that this writes first."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 400), ("test", 16)):
        (folder / split).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (8, 8), np.uint8)
            PIL.Image.fromarray(pixels).save(folder / split / f"{i:03d}.png")
    return (
        "--config.data.source=folder",
        f"--config.data.path={folder}",
        "--config.data.on_device=never",
        "--config.data.workers=2",
        "--config.data.worker_timeout=4",
        # So many that the workers are still at work when the fault comes.
        "--config.train.steps=400",
        "--config.train.checkpoint_every_steps=100",
    )


def _workers_of(pid: int) -> list[int]:
    """The processes that read for a run: children of its fork server."""
    servers = [
        child
        for child in _children_of(pid)
        if b"forkserver" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    return [worker for server in servers for worker in _children_of(server)]


def _children_of(pid: int) -> list[int]:
    children = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            # After the name in brackets come the state and the parent.
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                children.append(int(path.parent.name))
    return children


def lost_host(
    trial: Trial, name: str, number: signal.Signals, status: int | None
) -> Iterator[Outcome]:
    """One of two hosts dies, or is told to end; the other ends too, and all go on."""
    outcome = Outcome(f"one of two hosts {name}")
    workdir = trial.new_workdir("hosts")
    lab = dataclasses.replace(trial.lab, devices=1)
    with contextlib.ExitStack() as stack:
        one, other = (
            stack.enter_context(lab.run(workdir, "train", *flags))
            for flags in _two_hosts()
        )
        one.wait_for(lambda: _saved(workdir, "train"))
        other.kill(number)
        began = time.monotonic()
        found = one.wait(120.0)
        waited = time.monotonic() - began
        also = other.wait(60.0)
    if status is not None and (found, also) != (status, status):
        outcome.count(f"statuses {found} and {also}: {one.said()[-1500:]}")
    elif found == 0:
        outcome.count("the other host did not notice")
    else:
        print(f"{outcome.fault}: the other ended after {waited:.0f} s, status {found}")
        outcome.count(_goes_on(trial, workdir, "train"))
    yield outcome


def _two_hosts() -> list[tuple[str, ...]]:
    address = free_address()
    return [
        (f"--coordinator={address}", "--num_processes=2", f"--process_id={host}")
        for host in (0, 1)
    ]


Fault: TypeAlias = Callable[[Trial], Iterator[Outcome]]

FAULTS: dict[str, Fault] = {
    "kills": kills,
    "sigterm": partial(ended_by, number=signal.SIGTERM, times=1),
    "sigterm_twice": partial(ended_by, number=signal.SIGTERM, times=2),
    "sigint": partial(ended_by, number=signal.SIGINT, times=1),
    "sigint_twice": partial(ended_by, number=signal.SIGINT, times=2),
    "truncated": partial(damage, name="truncated files", harm=_cut_off),
    "missing": partial(damage, name="missing files", harm=pathlib.Path.unlink),
    "flipped": partial(damage, name="flipped bits", harm=_flip),
    "all_damaged": all_damaged,
    "file_limit": file_limit,
    "full_disk": full_disk,
    "unwritable": unwritable,
    "removed": removed,
    "two_runs": two_runs,
    "worker_dies": partial(lost_worker, name="dies", number=signal.SIGKILL),
    "worker_hangs": partial(lost_worker, name="hangs", number=signal.SIGSTOP),
    "host_dies": partial(lost_host, name="dies", number=signal.SIGKILL, status=None),
    "host_ends": partial(
        lost_host, name="gets SIGTERM", number=signal.SIGTERM, status=143
    ),
}
# Those that do not look into files of a disk.
IN_STORE = ("kills", "sigterm", "sigterm_twice", "sigint", "sigint_twice")
# One of each kind, for the tests. Lost workers are in test_loader.py too.
SHORT = (
    "kills",
    "sigterm",
    "sigint_twice",
    "flipped",
    "all_damaged",
    "full_disk",
    "unwritable",
    "removed",
    "host_ends",
)


def prepare(lab: Lab, tries: int) -> Trial:
    """Makes the run that nothing happens to."""
    workdir = lab.folder / "untouched"
    lab.finish(workdir, "train")
    shutil.copytree(workdir, lab.folder / "trained")
    lab.finish(workdir, "distill")
    return prepared(lab, lab.folder, tries)


def prepared(lab: Lab, folder: pathlib.Path, tries: int) -> Trial:
    """A trial in a lab against the run that another made in a folder."""
    untouched, trained = folder / "untouched", folder / "trained"
    return Trial(lab, results(untouched), untouched, trained, tries)


def table(outcomes: list[Outcome]) -> str:
    """What came of all faults, in Markdown."""
    lines = ["| fault | tried | survived |", "| --- | --- | --- |"]
    lines += [f"| {o.fault} | {o.tried} | {o.survived} |" for o in outcomes]
    tried = sum(outcome.tried for outcome in outcomes)
    survived = sum(outcome.survived for outcome in outcomes)
    lines.append(f"| **all** | **{tried}** | **{survived}** |")
    return "\n".join(lines)
