"""The parameters of a finished model, of its folder or file, on the devices."""

import pathlib

import jax
import jax.numpy as jnp

from vdiff_jax import parallel
from vdiff_jax.files.fingerprints import DamagedError, params_sha256
from vdiff_jax.interop import model_file
from vdiff_jax.model import Model
from vdiff_jax.training import checkpoints
from vdiff_jax.training.reading import check_same_shapes
from vdiff_jax.types import Params
from vdiff_jax.workdir import layout
from vdiff_jax.workdir.layout import Project


def load_params(
    model: Model, folder: pathlib.Path, shardings: Params | None = None
) -> Params:
    """The EMA parameters of a finished folder; nothing in it is changed.

    Args:
      model: The network.
      folder: The folder of its run, or a file that export wrote.
      shardings: Their devices; by default they are whole on all.

    Raises:
      ValueError: If they are of another architecture.
      DamagedError: If they are not those that their run left.
      UnreadableError: If they may be, but cannot be looked at.
    """
    try:
        return _params(model, folder, shardings)
    except DamagedError as error:
        raise DamagedError(
            f"{error} To make it again, start its stage in {_workdir(folder)}: it sets"
            " aside what is damaged, and goes on from the checkpoint before it."
        ) from error


def own_params(
    project: Project,
    model: Model,
    folder: pathlib.Path,
    shardings: Params | None = None,
) -> Params:
    """The EMA parameters of a folder, for a run that holds the lock of its workdir.

    Of a run in this workdir, what is damaged is set aside with its result.json, so that
    it can be finished again. In another workdir nothing is changed.

    Args:
      project: The config and its folder.
      model: The network.
      folder: The folder of its run, or a file that export wrote.
      shardings: Their devices; by default they are whole on all.

    Raises:
      Exception: As of `load_params`.
    """
    if not folder.resolve().is_relative_to(project.workdir.resolve()):
        return load_params(model, folder, shardings)
    path = layout.checkpoint_folder(folder)
    # Before another host sets it aside.
    step = None if folder.is_file() else checkpoints.latest_step(path)
    try:
        return _params(model, folder, shardings)
    except DamagedError as error:
        assert step is not None
        checkpoints.set_aside(path, step)
        layout.reopen(folder)
        raise DamagedError(
            f"{error} It was moved to {folder}/damaged, and the run in {folder} counts"
            " as unfinished: its train or distill stage goes on from the checkpoint"
            " before it, to the same parameters."
        ) from error


def _params(model: Model, folder: pathlib.Path, shardings: Params | None) -> Params:
    abstract_params = model.abstract_params()
    if shardings is None:
        shardings = _whole(abstract_params)
    if folder.suffix == ".safetensors":
        return placed(model_file.read(folder), abstract_params, folder, shardings)
    path = layout.checkpoint_folder(folder)
    params = checkpoints.restore_ema(path, abstract_params, shardings)
    _check_is_the_result(params, folder)
    return params


def _workdir(folder: pathlib.Path) -> pathlib.Path:
    place = layout.role_of_folder(folder)
    return folder.parent if place is None else place[0]


def placed(
    params: Params,
    abstract_params: Params,
    path: pathlib.Path,
    shardings: Params | None = None,
) -> Params:
    """Parameters of a file on the devices.

    Args:
      params: Arrays of the host.
      abstract_params: The shapes that the network needs.
      path: The file, for messages.
      shardings: Their devices; by default they are whole on all.

    Raises:
      ValueError: If they are of another architecture.
    """
    check_same_shapes(abstract_params, params, path)
    shardings = _whole(abstract_params) if shardings is None else shardings
    return parallel.put(jax.tree.map(jnp.asarray, params), shardings)


def _whole(abstract_params: Params) -> Params:
    return parallel.state_shardings(abstract_params, parallel.make_mesh())


def _check_is_the_result(params: Params, folder: pathlib.Path) -> None:
    expected = (layout.result(folder) or {}).get("params_sha256")
    sha256 = params_sha256(params)
    if expected not in (None, sha256):
        raise DamagedError(
            f"The newest checkpoint in {folder} has params_sha256 {sha256}, and"
            f" result.json has {expected}."
        )
