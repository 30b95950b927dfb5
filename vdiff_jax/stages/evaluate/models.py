"""The models of an evaluation, each loaded, traced and compiled once."""

import functools
import pathlib
from collections.abc import Sequence

from vdiff_jax.distillation.methods import METHODS
from vdiff_jax.distillation.role import BASE, Role
from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.sampler import eta_of, make_sampler
from vdiff_jax.generation.sampler import Sampler
from vdiff_jax.interop import model_file
from vdiff_jax.stages.evaluate.candidates import Candidate, candidates
from vdiff_jax.types import Params
from vdiff_jax.workdir.layout import Project, methods_in
from vdiff_jax.workdir.trained import Trained, find, in_file, is_finished, role_in


class Models:
    """The finished models of a project, or of `evaluate.files`, and their samplers."""

    def __init__(self, project: Project):
        """Reads what files say of their models, and no parameters yet.

        Raises:
          ValueError: If `evaluate.files` are not what they should be.
        """
        self._project = project
        self._files = _files_by_role(project.config.evaluate.files)
        self._samplers: dict[tuple[bool, bool, str, float], Sampler] = {}
        self.trained = functools.cache(self._trained)
        # Of the last model only: large ones would not fit side by side.
        self.params = functools.lru_cache(maxsize=1)(self._params)

    def has(self, role: Role) -> bool:
        """True if there is such a model, and it is finished."""
        if self._files:
            return role in self._files
        return is_finished(self._project, role)

    @property
    def methods(self) -> list[str]:
        """The methods of the students, and `distill.method`."""
        if own := {role.method for role in self._files}:
            return [method for method in METHODS if method in own]
        return methods_in(self._project)

    def sampler(self, role: Role, name: str) -> Sampler:
        """A sampler of a model, the same for all models of one network.

        Args:
          role: The model.
          name: The sampler's name.
        """
        model = self.trained(role).model
        eta = self.eta(role)
        kind = (model.w_range is not None, model.takes_noise, name, eta)
        if kind not in self._samplers:
            self._samplers[kind] = make_sampler(self._project.config, model, name, eta)
        return self._samplers[kind]

    def eta(self, role: Role) -> float:
        """The share of fresh noise in a model's steps of DDIM."""
        eta = eta_of(self._project.config, role.method)
        if role not in self._files or "sample.eta" in self._project.asked:
            return eta
        return model_file.read_about(self._files[role]).facts.get("eta", eta)

    def _trained(self, role: Role) -> Trained:
        if role in self._files:
            return in_file(self._project.config, self._files[role])[1]
        return find(self._project, role)

    def _params(self, role: Role) -> Params:
        return self.trained(role).params()


def of_finished(config: Config, models: Models) -> list[Candidate]:
    """The `candidates` whose models are finished; prints which are not."""
    wanted = candidates(config, models.methods)
    finished = {
        role: models.has(role)
        for role in dict.fromkeys(candidate.role for candidate in wanted)
    }
    for role, is_there in finished.items():
        if not is_there:
            print(f"evaluate: no finished {role}; it is left out")
    return [candidate for candidate in wanted if finished[candidate.role]]


def _files_by_role(paths: Sequence[str]) -> dict[Role, pathlib.Path]:
    """The file of each model; empty if there are none.

    Raises:
      ValueError: If one cannot be read, two are of one role, none is of a base model,
        or they are of several networks.
    """
    files: dict[Role, pathlib.Path] = {}
    networks = {}
    for path in map(pathlib.Path, paths):
        about = model_file.read_about(path)
        role = role_in(about)
        if role in files:
            raise ValueError(
                f"evaluate.files: {files[role]} and {path} are both of the {role}:"
                " name one of them."
            )
        files[role] = path
        networks[path] = [about.fields[name] for name in ("model", "diffusion", "data")]
    first, *others = networks or [None]
    for path in others:
        if networks[path] != networks[first]:
            raise ValueError(
                f"evaluate.files: {first} and {path} are of different networks:"
                " evaluate each with its own base model, into a --workdir of its own."
            )
    if files and BASE not in files:
        raise ValueError(
            f"evaluate.files={tuple(paths)} has no base model, which the students are"
            " compared with: export it too (--config.export.model=base)."
        )
    return files
