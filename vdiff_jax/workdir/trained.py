"""Finished models of a workdir or a file: their role, place and parameters."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vdiff_jax import parallel
from vdiff_jax.distillation.methods import METHODS
from vdiff_jax.distillation.role import (
    BASE,
    GUIDED,
    STAGES,
    Role,
    RoleName,
    methods_of,
    student,
)
from vdiff_jax.files import weights
from vdiff_jax.files.fingerprints import DamagedError, params_sha256
from vdiff_jax.from_config.check import check_sample
from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.model import context_shape_in, has_guide, make_model
from vdiff_jax.from_config.moved import FORMER_METHODS, current
from vdiff_jax.interop import model_file
from vdiff_jax.interop.diffusers.conditional_unet import NULL_CONTEXT
from vdiff_jax.model import Model
from vdiff_jax.training import checkpoints
from vdiff_jax.training.reading import check_same_shapes
from vdiff_jax.types import Params
from vdiff_jax.workdir import layout
from vdiff_jax.workdir.imported import with_fields
from vdiff_jax.workdir.layout import Project


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished model.

    Attributes:
      role: The stage and the method that made it, and its number of steps.
      folder: The folder of its run, or its file.
      model: Its network.
    """

    role: Role
    folder: pathlib.Path
    model: Model

    def params(self) -> Params:
        """Its EMA parameters, whole on every device; see `load_params`."""
        return load_params(self.model, self.folder)

    @property
    def sha256(self) -> str | None:
        """The fingerprint of its parameters, as its run left it, or of its file."""
        if self.folder.suffix == ".safetensors":
            return weights.sha256(self.folder)[:16]
        return (layout.result(self.folder) or {}).get("params_sha256")

    @property
    def takes_w(self) -> bool:
        """True if its network takes w; else guidance evaluates the network twice."""
        return self.model.w_range is not None


def is_finished(project: Project, role: Role) -> bool:
    """True if the run of a model has ended."""
    return layout.result(project.folder(role)) is not None


def finished(project: Project) -> list[Role]:
    """The finished models of a project, in the order in which they are made."""
    roles = [role for role in (BASE, GUIDED) if is_finished(project, role)]
    for method in METHODS:
        folder = layout.students_folder(project.workdir, method)
        # A user may keep others beside them, such as 0004.old.
        names = [path.name for path in folder.glob("*") if path.name.isdigit()]
        counts = sorted(map(int, names), reverse=True)
        students = [student(count, method) for count in counts]
        roles += [role for role in students if is_finished(project, role)]
    return roles


def roles_named(config: Config, name: str, num_steps: int) -> tuple[Role, ...]:
    """The roles that `sample.model` and the like name, the most wanted first.

    Of students, these are first of all those of `distill.method`; and none that was
    not taught `sample.sampler`.

    Args:
      config: The whole config.
      name: base, guided, distilled, or auto: any of them.
      num_steps: The sampler's steps.

    Raises:
      ValueError: If only students would do, and none is taught this sampler.
    """
    sampler, wanted = config.sample.sampler, config.distill.method
    methods = sorted(methods_of(sampler), key=lambda method: method != wanted)
    roles: dict[str, tuple[Role, ...]] = {
        "distilled": tuple(student(num_steps, method) for method in methods),
        "guided": (GUIDED,),
        "base": (BASE,),
    }
    if name == "auto":
        return (*roles["distilled"], GUIDED, BASE)
    if not roles[name]:
        raise ValueError(
            f"sample.sampler={sampler!r} is one that no student is taught: set"
            " sample.sampler=auto, or another model than distilled."
        )
    return roles[name]


def find(project: Project, *roles: Role) -> Trained:
    """The first of these models that is finished.

    Args:
      project: The config and its folder.
      roles: The models that would do, the most wanted first.

    Raises:
      ValueError: If none of them is.
    """
    students = [role for role in roles if role.is_student]
    others = [role for role in roles if not role.is_student]
    for role in students:
        if is_finished(project, role):
            return _trained(project, role)
    if students:
        _check_no_other(project, students)
    for role in others:
        if is_finished(project, role):
            return _trained(project, role)
    last = roles[-1]
    raise ValueError(
        f"No finished {last.name} model in {project.folder(last)}: run the"
        f" {STAGES[last.name]} stage first."
    )


def _trained(project: Project, role: Role) -> Trained:
    folder = project.folder(role)
    return Trained(role, folder, network_of(project.config, role, folder))


def _check_no_other(project: Project, students: Sequence[Role]) -> None:
    """Refuses the sampler where only other students of as many steps are finished.

    Raises:
      ValueError: If the first of them was taught another sampler.
    """
    wanted, sampler = students[0], project.config.sample.sampler
    for role in finished(project):
        if role.num_steps == wanted.num_steps and role.is_student and role.draws:
            check_sampler(role, sampler)


def network_of(config: Config, role: Role, folder: pathlib.Path) -> Model:
    """The network of a model: all but the base take w where there is a guide stage.

    Args:
      config: The whole config.
      role: The model.
      folder: The folder of its run, whose config says if it takes noise.
    """
    takes_noise = False
    if role.is_student:
        section = layout.recorded_section(layout.made_with(folder), role)
        takes_noise = section.get("noise_input", False)
    guided = has_guide(config) and role != BASE
    return make_model(config, guided=guided, takes_noise=takes_noise)


def check_sampler(role: Role, sampler: str) -> None:
    """Refuses to draw from a student with another sampler than it was taught.

    Args:
      role: The model.
      sampler: The sampler's name; `auto` is the one that it was taught.

    Raises:
      ValueError: If it is another.
    """
    if role.is_student and sampler not in ("auto", role.sampler):
        raise ValueError(
            f"sample.sampler={sampler!r} is not what the {role} was taught: set"
            f" sample.sampler={role.sampler}, or leave it at auto."
        )


def sampler_of(role: Role, sampler: str) -> str:
    """The sampler to draw with: `auto` is the one that the model was taught."""
    return role.sampler if sampler == "auto" else sampler


def in_file(config: Config, path: pathlib.Path) -> tuple[Config, Trained]:
    """The model of a file that export wrote, and the config with the file's fields.

    Args:
      config: The whole config, of which the data's size and channels do not count.
      path: The file.

    Raises:
      ValueError: If it is no such file, or of another method than the sampler's.
    """
    about = model_file.read_about(path)
    own = config.copy_and_resolve_references()
    own.data.update({"channels": 0, "image_size": 0})
    own = with_fields(own, current(about.fields))
    if about.num_steps:
        own.sample.steps = about.num_steps
    check_sample(own)
    role = role_in(about)
    check_sampler(role, own.sample.sampler)
    own.sample.sampler = sampler_of(role, own.sample.sampler)
    takes_noise = about.fields.get("distill", {}).get("noise_input", False)
    model = make_model(own, guided=has_guide(own), takes_noise=takes_noise)
    return own, Trained(role, path, model)


def role_in(about: model_file.About) -> Role:
    """The role of the model in a file."""
    name: RoleName = about.kind
    if name != "distilled":
        return BASE if name == "base" else GUIDED
    if "method" in about.facts:
        return student(about.num_steps, about.facts["method"])
    # Of version 0.1, whose facts have a ladder.
    return student(about.num_steps, FORMER_METHODS[about.facts["ladder"]])


def check_can_be_guided(folder: pathlib.Path) -> None:
    """Refuses a base model that has never seen an example without its class.

    Args:
      folder: The folder of its run, or a file that export wrote.

    Raises:
      ValueError: If its classes were never left out in training.
    """
    if folder.suffix == ".safetensors":
        refuse_guidance(folder, model_file.read_about(folder).fields)
    else:
        refuse_guidance(folder, layout.made_with(folder))


def refuse_guidance(folder: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Refuses guidance of a base model with this config, as `check_can_be_guided`.

    Args:
      folder: The folder of its run or of diffusers, or its file, for messages.
      config: The sections `train` and `model` that it was made with.

    Raises:
      ValueError: If its condition was never left out in training.
    """
    if config["train"].get("label_dropout", 0.0):
        return
    cannot = f"The model in {folder} cannot be guided: "
    if (shape := context_shape_in(config["model"])) is None:
        raise ValueError(
            f"{cannot}its classes were never left out in training. Train one with"
            " train.label_dropout=0.1."
        )
    raise ValueError(
        f"{cannot}its contexts were never left out in training, or it was imported"
        f" without what then takes their place. Put {NULL_CONTEXT}, with the embedding"
        f" of an empty text as the tensor context, {list(shape)}, into the folder that"
        " it is imported from, and import it into another --workdir; or train one with"
        " train.label_dropout=0.1."
    )


def check_same_teacher(folder: pathlib.Path, teacher: pathlib.Path) -> None:
    """Refuses another teacher than the one that a run began with, wherever it lies.

    Args:
      folder: The folder of the run, finished or under way; a new one passes.
      teacher: The folder that its teacher is in now.

    Raises:
      ValueError: If the parameters of that folder have another fingerprint.
    """
    began_with = (layout.result(folder) or {}).get("teacher_sha256")
    now = (layout.result(teacher) or {}).get("params_sha256")
    if None not in (began_with, now) and began_with != now:
        raise ValueError(
            f"The run in {folder} began with another teacher than {teacher} is now:"
            f" params_sha256 {began_with} there, {now} now. Name the one it had, or use"
            " another --workdir."
        )


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
    try:
        return _params(model, folder, shardings)
    except DamagedError as error:
        path = layout.checkpoint_folder(folder)
        step = checkpoints.latest_step(path)
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
