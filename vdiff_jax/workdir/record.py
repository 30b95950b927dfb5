"""What `config.json` of a workdir records: its config, what was asked for, changes.

Its entries:

    schema      of this file
    config      every field, as the runs have it
    asked       the fields that commands set themselves, with the value they have now
    changes     fields that changed on the way of a run, with the updates it had then
    versions    of the packages that wrote it
    commit      of vdiff_jax, where it is from its repository
"""

import importlib.metadata
import pathlib
import subprocess
from collections.abc import Sequence
from typing import Any

from vdiff_jax.distillation.methods import METHODS
from vdiff_jax.distillation.role import BASE
from vdiff_jax.files.atomic import write_json
from vdiff_jax.training.saved import latest_step
from vdiff_jax.workdir.layout import CONFIG, folder_of, result, students_folder
from vdiff_jax.workdir.migration import SCHEMA, read_record

# Fields that change what is written or shown, but not the numbers of a run, or only
# the order of its sums; and paths, since what lies there is known by its content.
BOOKKEEPING = frozenset(
    {
        "autoencoder",
        "checkpoint_every_minutes",
        "checkpoint_every_steps",
        "eval_every_steps",
        "grad_accum_steps",
        "held_out",
        "init_from",
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
        "teacher",
        "worker_timeout",
        "workers",
    }
)
PATHS = (
    "data.path", "data.autoencoder", "distill.teacher", "guide.teacher",
    "train.init_from",
)  # fmt: skip
MODEL_SECTIONS = ("seed", "model", "diffusion", "data")
# Of the data, what the network is made for.
SHAPE = (
    "data.image_size", "data.channels", "data.latent_scale", "data.latent_shift"
)  # fmt: skip
# Sections that every command begins with anew.
PASSING = ("stage", "parallel", "source", "sample", "evaluate", "export")


def record_of(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The record of a workdir; None if it has none yet.

    Raises:
      ValueError: If a later version wrote it, or it is damaged or cannot be read.
    """
    path = workdir / CONFIG
    return read_record(path) if path.exists() else None


def write_record(
    workdir: pathlib.Path,
    config: dict[str, Any],
    asked: dict[str, Any],
    changes: Sequence[dict[str, Any]],
) -> None:
    """Writes the record of a workdir; see the head of this file."""
    write_json(
        workdir / CONFIG,
        {
            "schema": SCHEMA,
            "config": config,
            "asked": asked,
            "changes": list(changes),
            "versions": _versions(),
            "commit": _commit(),
        },
    )


def changes_of(workdir: pathlib.Path, section: str) -> dict[str, Any]:
    """The changes on the way of the runs of a section, for the facts of a run."""
    changes = (record_of(workdir) or {}).get("changes", [])
    own = [change for change in changes if change["section"] == section]
    return {"changes": own} if own else {}


def is_kept(path: str) -> bool:
    """True for a field that later commands go on with once one asked for it."""
    return path.partition(".")[0] not in PASSING


def has_runs(workdir: pathlib.Path, section: str) -> bool:
    """True if a run that a section is about has a whole checkpoint.

    Args:
      workdir: The folder.
      section: As config.json calls it: of the model, or of a stage that makes models.
    """
    if section == "data":
        return has_seen_data(workdir)
    if section in MODEL_SECTIONS:
        patterns = ["*/checkpoints", "distill*/*/checkpoints"]
    elif section == "source":
        patterns = ["train/checkpoints"]
    elif section == "train" and _is_imported(workdir):
        return False
    elif section in ("train", "guide"):
        patterns = [f"{section}/checkpoints"]
    else:
        patterns = [f"{section}/*/checkpoints"]
    return any(
        latest_step(folder) is not None
        for pattern in patterns
        for folder in workdir.glob(pattern)
    )


def has_seen_data(workdir: pathlib.Path) -> bool:
    """True if a run read data; an imported model did not."""
    students = [students_folder(workdir, method).name for method in METHODS]
    return any(has_runs(workdir, name) for name in ("train", "guide", *students))


def _is_imported(workdir: pathlib.Path) -> bool:
    return "source" in (result(folder_of(workdir, BASE)) or {})


def _versions() -> dict[str, str]:
    packages = ("vdiff_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    return {name: importlib.metadata.version(name) for name in packages}


def _commit() -> str | None:
    """The commit of this package; None if it is not from a repository of its own.

    An installed wheel may lie in a folder of somebody else's repository.
    """
    here = pathlib.Path(__file__)
    try:
        _git(here, "ls-files", "--error-unmatch", here.name)
        return _git(here, "rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(file: pathlib.Path, *words: str) -> str:
    done = subprocess.run(
        ["git", *words], cwd=file.parent, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
