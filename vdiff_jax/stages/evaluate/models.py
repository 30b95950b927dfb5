"""The finished models of a project, each loaded, traced and compiled once."""

import functools

from vdiff_jax.distillation.role import Role
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.generation.sampler import Sampler
from vdiff_jax.types import Params
from vdiff_jax.workdir.layout import Project
from vdiff_jax.workdir.trained import Trained, find


class Models:
    """The finished models of a project and their samplers."""

    def __init__(self, project: Project):
        """Reads nothing yet."""
        self._project = project
        self._samplers: dict[tuple[bool, str], Sampler] = {}
        self.trained = functools.cache(self._trained)
        # Of the last model only: large ones would not fit side by side.
        self.params = functools.lru_cache(maxsize=1)(self._params)

    def sampler(self, role: Role, name: str) -> Sampler:
        """A sampler of a model, the same for all models of one network.

        Args:
          role: The model.
          name: The sampler's name.
        """
        model = self.trained(role).model
        kind = (model.w_range is not None, name)
        if kind not in self._samplers:
            self._samplers[kind] = make_sampler(self._project.config, model, name)
        return self._samplers[kind]

    def _trained(self, role: Role) -> Trained:
        return find(self._project, role)

    def _params(self, role: Role) -> Params:
        return self.trained(role).params()
