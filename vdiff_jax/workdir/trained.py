"""Finished models of a workdir or a file: their role, place and parameters."""

import dataclasses
import pathlib
from collections.abc import Sequence, Set

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
from vdiff_jax.from_config.check import check_sample
from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.model import has_guide, make_model
from vdiff_jax.from_config.moved import FORMER_METHODS, current
from vdiff_jax.interop import model_file
from vdiff_jax.model import Model
from vdiff_jax.types import Params
from vdiff_jax.workdir import layout
from vdiff_jax.workdir.imported import with_fields
from vdiff_jax.workdir.layout import Project
from vdiff_jax.workdir.parameters import load_params


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


def in_file(
    config: Config, path: pathlib.Path, asked: Set[str] = frozenset()
) -> tuple[Config, Trained]:
    """The model of a file that export wrote, and the config with the file's fields.

    Args:
      config: The whole config, of which the data's size and channels do not count.
      path: The file.
      asked: Paths of the fields that a command sets itself; `sample.eta` that is not
        among them is the file's, if it names one.

    Raises:
      ValueError: If it is no such file, or of another method than the sampler's.
    """
    about = model_file.read_about(path)
    own = config.copy_and_resolve_references()
    own.data.update({"channels": 0, "image_size": 0})
    own = with_fields(own, current(about.fields))
    if about.num_steps:
        own.sample.steps = about.num_steps
    if "sample.eta" not in asked:
        own.sample.eta = about.facts.get("eta", own.sample.eta)
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
