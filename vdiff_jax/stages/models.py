"""Finds the trained model that takes a given number of steps."""

import pathlib

from vdiff_jax import build, checkpoints, parallel
from vdiff_jax.stages import workdir as places
from vdiff_jax.types import Params


def folder_of(workdir: pathlib.Path, kind: str, num_steps: int) -> pathlib.Path:
    """The folder of the base model, or of the student of `num_steps` steps.

    Args:
      workdir: The project's folder.
      kind: "base", "distilled", or "auto": the student if there is one.
      num_steps: Of the sampler.

    Raises:
      ValueError: If there is no such model.
    """
    base, student = (
        places.train_folder(workdir),
        places.student_folder(workdir, num_steps),
    )
    if kind == "auto":
        kind = "base" if places.result(student) is None else "distilled"
    if kind not in ("base", "distilled"):
        raise ValueError(
            f"sample.model={kind!r} is unknown; choose auto, base or distilled."
        )
    folder = base if kind == "base" else student
    if places.result(folder) is None:
        stage = "train" if kind == "base" else "distill"
        raise ValueError(
            f"No finished {kind} model in {folder}: run the {stage} stage first."
        )
    return folder


def load_params(model: build.Model, folder: pathlib.Path) -> Params:
    """The EMA parameters of a folder, on all devices."""
    return checkpoints.restore_ema(
        places.checkpoint_folder(folder),
        model.abstract_params(),
        parallel.replicated(parallel.data_mesh()),
    )
