"""The candidates of an evaluation: the models, and the way each is sampled."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from vdiff_jax import samplers
from vdiff_jax.distillation.methods import FIRST
from vdiff_jax.distillation.role import BASE, GUIDED, Role, student
from vdiff_jax.evaluation.measurement import Measurement
from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.model import has_guide
from vdiff_jax.from_config.sampler import PREDICTORS


class Candidate(NamedTuple):
    """A model, and the way it is sampled.

    Attributes:
      role: The model.
      sampler: The name of the sampler.
      steps: The sampler's steps.
      w: The guidance weight; None for a model without.
    """

    role: Role
    sampler: str
    steps: int
    w: float | None = None

    @property
    def evaluations(self) -> int:
        """Evaluations of the network for one image: the base needs two for guidance."""
        once = samplers.evaluations(PREDICTORS[self.sampler], self.steps)
        return 2 * once if self.role == BASE and self.w else once

    @property
    def asked_w(self) -> float | None:
        """The guidance weight to draw with; None for the base where w is 0.

        With None the base is evaluated once in a step, not twice.
        """
        return None if self.role == BASE and not self.w else self.w

    def to_json(self) -> dict[str, Any]:
        """The fields that a `Measurement` of this candidate has in common with it."""
        fields: dict[str, Any] = {"model": self.role.name}
        if self.role.is_student:
            fields["method"] = self.role.method
        fields |= {"sampler": self.sampler, "steps": self.steps}
        return fields if self.w is None else {**fields, "w": self.w}

    def __str__(self) -> str:
        """A name for people and files; a student's method tells its sampler."""
        way = self.sampler if self.role.method in (None, FIRST) else self.role.method
        name = f"{self.role.name}-{way}-{self.steps:04d}"
        return name if self.w is None else f"{name}-w{self.w:g}"


def candidate_of(row: Measurement) -> Candidate:
    """The candidate that a measurement is about."""
    return Candidate(row.role, row.sampler, row.steps, row.w)


def candidates(config: Config, methods: Sequence[str] = (FIRST,)) -> list[Candidate]:
    """The reference, the students, and the base at as many evaluations at most.

    With one step all samplers are the same, so only ddim takes one. Where there is
    guidance, all this for every guidance weight.

    Args:
      config: The whole config.
      methods: The methods whose students are measured.
    """
    ordered = [
        candidate
        for w in _guidance_weights(config)
        for candidate in _candidates_at(config, methods, w)
    ]
    return list(dict.fromkeys(ordered))


def _candidates_at(
    config: Config, methods: Sequence[str], w: float | None
) -> list[Candidate]:
    """The candidates of one guidance weight."""
    section, budgets = config.evaluate, sorted(config.evaluate.steps)
    whole = [BASE, GUIDED] if has_guide(config) else [BASE]
    ordered = [
        Candidate(role, role.sampler, section.reference_steps, w) for role in whole
    ]
    students = [student(n, method) for method in methods for n in budgets]
    ordered += [Candidate(s, s.sampler, s.num_steps, w) for s in students if s.draws]
    for sampler in section.samplers:
        for budget in budgets:
            steps = (budget + 1) // 2 if sampler == "heun" else budget
            if steps > 1 or sampler == "ddim":
                ordered.append(Candidate(BASE, sampler, steps, w))
    return ordered


def _guidance_weights(config: Config) -> tuple[float, ...] | tuple[None]:
    """The guidance weights; one None if there is no guidance."""
    return tuple(config.evaluate.w) or (None,)
