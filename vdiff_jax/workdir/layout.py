"""The folder of a project: its parts, its lock, and the config that made them."""

import contextlib
import dataclasses
import errno
import fcntl
import importlib.metadata
import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from vdiff_jax import parallel
from vdiff_jax.distillation.role import BASE, GUIDED, Method, Role, student
from vdiff_jax.files.atomic import write_json
from vdiff_jax.from_config.choices import Config, as_json
from vdiff_jax.from_config.fields import TRAINING
from vdiff_jax.training import checkpoints
from vdiff_jax.training.run import CHECKPOINTS, RESULT
from vdiff_jax.workdir.migration import SCHEMA, read_config

# Fields that change what is written or shown, but not the numbers of a run, or only
# the order of its sums.
BOOKKEEPING = frozenset(
    {
        "checkpoint_every_minutes",
        "checkpoint_every_steps",
        "eval_every_steps",
        "grad_accum_steps",
        "held_out",
        "keep_best",
        "keep_checkpoints",
        "keep_every_steps",
        "log_every_steps",
        "on_device",
        "on_nonfinite",
        "path",
        "sample_every_steps",
        "sample_steps",
        "steps_per_call",
        "worker_timeout",
        "workers",
    }
)
CONFIG = "config.json"
MODEL_SECTIONS = ("seed", "model", "diffusion", "data")


@dataclasses.dataclass(frozen=True)
class Project:
    """A config and the folder that its stages write to.

    Attributes:
      config: The whole config.
      workdir: The folder.
      profile: Updates to trace in each stage that trains.
    """

    config: Config
    workdir: pathlib.Path
    profile: int = 0

    def folder(self, role: Role) -> pathlib.Path:
        """The folder of a model's run."""
        return folder_of(self.workdir, role)


def folder_of(workdir: pathlib.Path, role: Role) -> pathlib.Path:
    """The folder of a model's run."""
    if role.method is None:
        return workdir / role.stage
    return students_folder(workdir, role.method) / f"{role.num_steps:04d}"


def role_of_folder(path: pathlib.Path) -> tuple[pathlib.Path, Role] | None:
    """The workdir and the role of a run's folder; None for any other folder."""
    for role, workdir in (
        (BASE, path.parent),
        (GUIDED, path.parent),
        *(
            (student(int(path.name), method), path.parent.parent)
            for method in get_args(Method)
            if path.name.isdigit()
        ),
    ):
        if folder_of(workdir, role) == path and (workdir / CONFIG).exists():
            return workdir, role
    return None


def students_folder(workdir: pathlib.Path, method: Method) -> pathlib.Path:
    """The folder of all students of a method."""
    return workdir / ("distill" if method == "progressive" else f"distill_{method}")


def recorded_section(config: dict[str, Any], role: Role) -> dict[str, Any]:
    """The section of a recorded config that a model's run was made with."""
    if role.method is None:
        return config[role.stage]
    name = "distill" if role.method == "progressive" else f"distill_{role.method}"
    return config.get(name, config["distill"])


def made_with(folder: pathlib.Path) -> dict[str, Any]:
    """The config that a train, guide or student folder was made with.

    Raises:
      ValueError: If there is none.
    """
    for place in (folder.parent, folder.parent.parent):
        path = place / CONFIG
        if path.exists():
            return read_config(path)
    raise ValueError(f"{folder} is no folder of a workdir: there is no config.json.")


def checkpoint_folder(folder: pathlib.Path) -> pathlib.Path:
    """The checkpoints of a run's folder."""
    return folder / CHECKPOINTS


def result(folder: pathlib.Path) -> dict[str, Any] | None:
    """The content of a finished run's result.json; None if it is not finished."""
    path = folder / RESULT
    return json.loads(path.read_text()) if path.exists() else None


def reopen(folder: pathlib.Path) -> None:
    """Makes a finished run count as unfinished; its result is kept under `damaged/`."""
    path = folder / RESULT
    if parallel.is_main() and path.exists():
        path.rename(folder / "damaged" / "result.json")


def status(folder: pathlib.Path) -> str:
    """The state of a run: new, finished, or the step that it would resume at."""
    if result(folder) is not None:
        return "finished"
    step = checkpoints.latest_step(checkpoint_folder(folder))
    return "new" if step is None else f"resume at step {step}"


def finished_before(stage: str, folder: pathlib.Path) -> bool:
    """True if nothing is left to do for a stage's run, which is then printed."""
    if result(folder) is None:
        return False
    print(f"{stage}: finished, see {folder}/result.json")
    return True


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other runs out of a workdir until this process ends, however it ends.

    The system holds the lock (flock), not the file `lock`, which only names its holder.

    Raises:
      ValueError: If another run is at work in it, which is named, or if nothing can be
        written.
    """
    if not parallel.is_main():
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / "lock").open("a+")
    except OSError as error:
        raise ValueError(
            f"Nothing can be written in {workdir} ({error.strerror}): choose another"
            " --workdir."
        ) from error
    with file:
        _take(file, workdir)
        yield


def _take(file: Any, workdir: pathlib.Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise ValueError(
            f"Another run is at work in {workdir} ({file.read().strip()}): wait for it,"
            " stop it, or use another --workdir."
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        print(
            f"{workdir} is on a file system without locks: nothing keeps a second run"
            " out of it.",
            file=sys.stderr,
        )
    file.truncate(0)
    file.write(f"host {socket.gethostname()}, pid {os.getpid()}\n")
    file.flush()


def claim(project: Project, section: str | None) -> None:
    """Records the config, and refuses a workdir whose runs have another.

    Args:
      project: The config and its folder.
      section: The section of a stage that makes models: "train", "source", "guide" or
        the folder of a method's students; else None.

    Raises:
      ValueError: If a field differs from that of the runs in it; every one is named.
    """
    workdir = project.workdir
    path, config = workdir / CONFIG, _with_loop(as_json(project.config))
    if section is not None and section.startswith("distill_"):
        config[section] = config["distill"]  # a workdir may have several methods
    sections = (*MODEL_SECTIONS, *([section] if section else []))
    recorded = config
    if path.exists():
        recorded = read_config(path)
        binding = [name for name in sections if _has_runs(workdir, name)]
        differences = [
            f"{field}: {before!r} there, {after!r} now"
            for name in binding
            for field, before, after in _differences(
                name, recorded.get(name, {}), config[name]
            )
        ]
        if differences:
            raise ValueError(
                f"{workdir} holds runs of another config ({'; '.join(differences)})."
                " Use its values or another --workdir."
            )
        recorded = {**recorded, **{name: config[name] for name in sections}}
    made_by = {"versions": _versions(), "commit": _commit()}
    if parallel.is_main():
        write_json(path, {"schema": SCHEMA, "config": recorded, **made_by})


def _with_loop(config: dict[str, Any]) -> dict[str, Any]:
    """The config with all of `loop` in each stage that trains, as it runs."""
    stages = {name: {**config["loop"], **config[name]} for name in TRAINING}
    return {**config, **stages}


def _has_runs(workdir: pathlib.Path, section: str) -> bool:
    if section in MODEL_SECTIONS:
        patterns = ["*/checkpoints/*", "distill*/*/checkpoints/*"]
    elif section in ("train", "source"):
        patterns = ["train/checkpoints/*"]
    elif section == "guide":
        patterns = ["guide/checkpoints/*"]
    else:
        patterns = [f"{section}/*/checkpoints/*"]
    return any(any(workdir.glob(pattern)) for pattern in patterns)


def _differences(name: str, before: Any, after: Any) -> Sequence[tuple[str, Any, Any]]:
    """(field, value before, value after) of every field that differs."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return [] if before == after else [(name, before, after)]
    return [
        difference
        for key in sorted((before.keys() | after.keys()) - BOOKKEEPING)
        for difference in _differences(
            f"{name}.{key}", before.get(key, "nothing"), after.get(key, "nothing")
        )
    ]


def _versions() -> dict[str, str]:
    packages = ("vdiff_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    return {name: importlib.metadata.version(name) for name in packages}


def _commit() -> str | None:
    here = pathlib.Path(__file__).parent
    try:
        return subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
