"""Finds the trained model that takes a given number of steps."""

import pathlib

from vdiff_jax import checkpoints, parallel
from vdiff_jax.model import Model
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


def load_params(
    model: Model, folder: pathlib.Path, shardings: Params | None = None
) -> Params:
    """The EMA parameters of a finished folder.

    Args:
      model: The network.
      folder: Of the base model or a student.
      shardings: Where they go; by default they are whole on all devices.

    Raises:
      ValueError: If they are of another architecture.
      DamagedError: If they are not what the run that made them left. Its result.json
        and the checkpoint are set aside, so that the run can be finished again.
    """
    abstract_params = model.abstract_params()
    if shardings is None:
        shardings = parallel.state_shardings(abstract_params, parallel.make_mesh())
    path = places.checkpoint_folder(folder)
    try:
        params = checkpoints.restore_ema(path, abstract_params, shardings)
        _check_is_the_result(params, folder)
    except checkpoints.DamagedError as error:
        step = checkpoints.latest_step(path)
        assert step is not None
        checkpoints.set_aside(path, step)
        places.reopen(folder)
        raise checkpoints.DamagedError(
            f"{error} It was moved to {folder}/damaged, and the run in {folder} counts"
            " as unfinished: its train or distill stage goes on from the checkpoint"
            " before it, to the same parameters."
        ) from error
    return params


def _check_is_the_result(params: Params, folder: pathlib.Path) -> None:
    expected = (places.result(folder) or {}).get("params_sha256")
    found = checkpoints.params_sha256(params)
    if expected not in (None, found):
        raise checkpoints.DamagedError(
            f"The newest checkpoint in {folder} has params_sha256 {found}, and"
            f" result.json says {expected}."
        )
