"""Finds the trained model that takes a given number of steps."""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdiff_jax import parallel
from vdiff_jax.files.fingerprints import DamagedError, params_sha256
from vdiff_jax.from_config.check import check_sample
from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.losses import Ladder, ladder_of
from vdiff_jax.from_config.model import has_guide, make_model
from vdiff_jax.from_config.moved import current
from vdiff_jax.interop import model_file
from vdiff_jax.model import Model
from vdiff_jax.training import checkpoints
from vdiff_jax.types import Params
from vdiff_jax.workdir import layout as places
from vdiff_jax.workdir.imported import with_fields


class Found(NamedTuple):
    """A finished run, and the network that it trained."""

    folder: pathlib.Path
    model: Model


def find(
    config: Config,
    workdir: pathlib.Path,
    kind: str,
    num_steps: int,
    ladder: Ladder = "deterministic",
) -> Found:
    """The base model, the guided student, or the student of `num_steps` steps.

    Args:
      config: The whole config.
      workdir: The project's folder.
      kind: "base", "guided", "distilled", or "auto": the last of them that is there.
      num_steps: Of the sampler.
      ladder: Which students.

    Raises:
      ValueError: If there is no such model.
    """
    folders = {
        "distilled": places.student_folder(workdir, num_steps, ladder),
        "guided": places.guide_folder(workdir),
        "base": places.train_folder(workdir),
    }
    _check_jump(workdir, num_steps, ladder, kind)
    if kind == "auto":
        there = [name for name, folder in folders.items() if places.result(folder)]
        kind = there[0] if there else "base"
    if kind not in folders:
        raise ValueError(
            f"sample.model={kind!r} is unknown; choose auto, base, guided or distilled."
        )
    if places.result(folders[kind]) is None:
        stage = {"base": "train", "guided": "guide", "distilled": "distill"}[kind]
        raise ValueError(
            f"No finished {kind} model in {folders[kind]}: run the {stage} stage first."
        )
    takes_w = has_guide(config) and kind != "base"
    return Found(folders[kind], make_model(config, guided=takes_w))


def _check_jump(
    workdir: pathlib.Path, num_steps: int, ladder: Ladder, kind: str
) -> None:
    """Refuses a student whose ladder did not teach it this sampler's jumps."""
    if ladder != "stochastic" or kind not in ("auto", "distilled"):
        return
    other = places.student_folder(workdir, num_steps)
    student = places.student_folder(workdir, num_steps, ladder)
    if places.result(student) is None and places.result(other) is not None:
        raise ValueError(
            f"The student in {other} knows steps of 1/{num_steps} only, and the"
            " stochastic sampler makes jumps of twice that: distill another with"
            " distill.method=stochastic, or set sample.sampler=ddim."
        )


def kind_of(workdir: pathlib.Path, folder: pathlib.Path) -> str:
    """Base, guided or distilled."""
    if folder == places.train_folder(workdir):
        return "base"
    return "guided" if folder == places.guide_folder(workdir) else "distilled"


def in_file(config: Config, path: pathlib.Path) -> tuple[Config, Found]:
    """The model of a file that export wrote, and the config with what it is.

    Raises:
      ValueError: If it is no such file, or of another ladder than the sampler's.
    """
    about = model_file.read_about(path)
    made = config.copy_and_resolve_references()
    made.data.update({"channels": 0, "image_size": 0})
    made = with_fields(made, current(about.fields))
    if about.num_steps:
        made.sample.steps = about.num_steps
    check_sample(made)
    sampler, ladder = made.sample.sampler, about.facts["ladder"]
    if about.kind == "distilled" and ladder != ladder_of(sampler):
        raise ValueError(
            f"The student in {path} is of the {ladder} ladder, which"
            f" sample.sampler={sampler} does not sample."
        )
    return made, Found(path, make_model(made, guided=has_guide(made)))


def load_params(
    model: Model, folder: pathlib.Path, shardings: Params | None = None
) -> Params:
    """The EMA parameters of a finished folder.

    Args:
      model: The network.
      folder: Of the base model or a student; or a file that export wrote.
      shardings: Where they go; by default they are whole on all devices.

    Raises:
      ValueError: If they are of another architecture.
      DamagedError: If they are not what the run that made them left. Its result.json
        and the checkpoint are set aside, so that the run can be finished again.
    """
    abstract_params = model.abstract_params()
    if shardings is None:
        shardings = _whole(abstract_params)
    if folder.suffix == ".safetensors":
        return placed(model_file.read(folder), abstract_params, folder, shardings)
    path = places.checkpoint_folder(folder)
    try:
        params = checkpoints.restore_ema(path, abstract_params, shardings)
        _check_is_the_result(params, folder)
    except DamagedError as error:
        step = checkpoints.latest_step(path)
        assert step is not None
        checkpoints.set_aside(path, step)
        places.reopen(folder)
        raise DamagedError(
            f"{error} It was moved to {folder}/damaged, and the run in {folder} counts"
            " as unfinished: its train or distill stage goes on from the checkpoint"
            " before it, to the same parameters."
        ) from error
    return params


def placed(
    params: Params,
    abstract_params: Params,
    path: pathlib.Path,
    shardings: Params | None = None,
) -> Params:
    """Parameters of a file on the devices.

    Args:
      params: Arrays of the host.
      abstract_params: What the network needs.
      path: The file, for messages.
      shardings: Where they go; by default they are whole on all devices.

    Raises:
      ValueError: If they are of another architecture.
    """
    checkpoints.check_same_shapes(abstract_params, params, path)
    shardings = _whole(abstract_params) if shardings is None else shardings
    return parallel.put(jax.tree.map(jnp.asarray, params), shardings)


def _whole(abstract_params: Params) -> Params:
    return parallel.state_shardings(abstract_params, parallel.make_mesh())


def _check_is_the_result(params: Params, folder: pathlib.Path) -> None:
    expected = (places.result(folder) or {}).get("params_sha256")
    found = params_sha256(params)
    if expected not in (None, found):
        raise DamagedError(
            f"The newest checkpoint in {folder} has params_sha256 {found}, and"
            f" result.json says {expected}."
        )
