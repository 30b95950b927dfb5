"""The folder of a project: its parts, its lock, and the config that made them."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from vdiff_jax import parallel
from vdiff_jax.distillation.methods import FIRST, METHODS
from vdiff_jax.distillation.role import BASE, GUIDED, Role, student
from vdiff_jax.files import lease, locks
from vdiff_jax.from_config.choices import Config
from vdiff_jax.training.saved import CHECKPOINTS, RESULT, latest_step
from vdiff_jax.workdir.migration import read_config

CONFIG, LOCK = "config.json", "lock"


@dataclasses.dataclass(frozen=True)
class Project:
    """A config and the folder that its stages write to.

    Attributes:
      config: The whole config.
      workdir: The folder.
      profile: Updates to trace in each stage that trains.
      asked: Paths of the fields that the command set itself.
      out: The folder of what is drawn, measured and exported; None: the workdir.
    """

    config: Config
    workdir: pathlib.Path
    profile: int = 0
    asked: frozenset[str] = frozenset()
    out: pathlib.Path | None = None

    @property
    def output(self) -> pathlib.Path:
        """The folder of what is drawn, measured and exported."""
        return self.workdir if self.out is None else self.out

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
            for method in METHODS
            if path.name.isdigit()
        ),
    ):
        if folder_of(workdir, role) == path and (workdir / CONFIG).exists():
            return workdir, role
    return None


def students_folder(workdir: pathlib.Path, method: str) -> pathlib.Path:
    """The folder of all students of a method."""
    return workdir / section_of_students(method)


def methods_in(project: Project) -> list[str]:
    """The methods that have students in a project, and `distill.method`."""
    return [
        method
        for method in METHODS
        if method == project.config.distill.method
        or students_folder(project.workdir, method).exists()
    ]


def section_of_students(method: str) -> str:
    """The name of a method's folder, and of its section in config.json."""
    return "distill" if method == FIRST else f"distill_{method}"


def recorded_section(config: dict[str, Any], role: Role) -> dict[str, Any]:
    """The section of a recorded config that a model's run was made with."""
    if role.method is None:
        return config[role.stage]
    return config.get(section_of_students(role.method), config["distill"])


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
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def reopen(folder: pathlib.Path) -> None:
    """Makes a finished run count as unfinished; its result is kept under `damaged/`."""
    path = folder / RESULT
    if parallel.is_main() and path.exists():
        path.rename(folder / "damaged" / "result.json")


def status(folder: pathlib.Path, num_updates: int = 0) -> str:
    """The state of a run: new, finished, or the step that it would resume at.

    Args:
      folder: The folder of the run.
      num_updates: Updates that it is to have.
    """
    if not _is_short(result(folder), num_updates):
        return "finished"
    step = latest_step(checkpoint_folder(folder))
    return "new" if step is None else f"resume at step {step}"


def finished_before(stage: str, folder: pathlib.Path, num_updates: int) -> bool:
    """True if nothing is left to do for a stage's run, which is then printed.

    The result of a run that is to become longer is kept under another name.

    Args:
      stage: The stage's name.
      folder: The folder of the run.
      num_updates: Updates that it is to have.
    """
    before = result(folder)
    if not _is_short(before, num_updates):
        print(f"{stage}: finished, see {folder}/{RESULT}")
        return True
    if before is not None and parallel.is_main():
        (folder / RESULT).rename(folder / f"result.{before['step']}.json")
    return False


def _is_short(result: dict[str, Any] | None, num_updates: int) -> bool:
    """True for a run without a result, or with one of fewer updates."""
    if result is None:
        return True
    return "source" not in result and result["step"] < num_updates


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[Callable[[], None]]:
    """Keeps other runs out of a workdir until this process ends, however it ends.

    Yields:
      A function that raises FileNotFoundError once the workdir was removed, so that
      another run may be at work in a new one of its name.

    Raises:
      ValueError: If another run is at work in it, which is named, or if nothing can be
        written.
    """
    if not parallel.is_main():
        yield lambda: None
        return

    def check_still_there() -> None:
        lease.check(workdir)
        if not held.keeps_others_out():
            raise FileNotFoundError(f"{workdir} was removed while in use.")

    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(locks.lock(workdir / LOCK))
        except locks.HeldError as error:
            raise ValueError(
                f"Another run is at work in {workdir} ({error.holder}): wait for it,"
                " stop it, or use another --workdir."
            ) from error
        except OSError as error:
            raise ValueError(
                f"Nothing can be written in {workdir} ({error.strerror}): choose"
                " another --workdir; or --out, to read it and write elsewhere."
            ) from error
        yield check_still_there
