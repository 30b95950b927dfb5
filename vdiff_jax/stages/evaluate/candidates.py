"""What evaluate measures: which models, and how each is sampled."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from vdiff_jax import samplers
from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.losses import Ladder, ladder_of
from vdiff_jax.from_config.model import has_guide
from vdiff_jax.from_config.sampler import PREDICTORS
from vdiff_jax.workdir import layout as places


class Candidate(NamedTuple):
    """What is measured: a model, and how it is sampled.

    Attributes:
      model: "base", "guided" or "distilled".
      sampler: Of `samplers`.
      steps: Of the sampler.
      w: The strength of guidance; None for a model without.
    """

    model: str
    sampler: str
    steps: int
    w: float | None = None

    @property
    def evaluations(self) -> int:
        """Of the network, for one picture: the base needs two for guidance."""
        once = samplers.evaluations(PREDICTORS[self.sampler], self.steps)
        return 2 * once if self.model == "base" and self.w else once

    @property
    def ladder(self) -> Ladder:
        """Whose students it is among, if it is a student."""
        return ladder_of(self.sampler)

    @property
    def asked_w(self) -> float | None:
        """The strength to ask for; the base is not asked twice to no end."""
        return None if self.model == "base" and not self.w else self.w

    def __str__(self) -> str:
        """For people and file names."""
        name = f"{self.model}-{self.sampler}-{self.steps:04d}"
        return name if self.w is None else f"{name}-w{self.w:g}"


def of_row(row: dict[str, Any]) -> Candidate:
    """The candidate that a row of ladder.json is about."""
    return Candidate(row["model"], row["sampler"], row["steps"], row.get("w"))


def finished(config: Config, workdir: pathlib.Path) -> list[Candidate]:
    """Those of `candidates` whose models are there; says which are not."""
    ladders: list[Ladder] = ["deterministic"]
    if places.ladder_folder(workdir, "stochastic").exists():
        ladders.append("stochastic")
    return [one for one in candidates(config, ladders) if _is_there(one, workdir)]


def candidates(
    config: Config, ladders: Sequence[Ladder] = ("deterministic",)
) -> list[Candidate]:
    """The reference, the students, and the base at as many evaluations at most.

    With one step all samplers are the same, so only ddim takes one. Where there is
    guidance, all this for every strength.
    """
    found = [
        candidate
        for w in _strengths(config)
        for candidate in _candidates_at(config, ladders, w)
    ]
    return list(dict.fromkeys(found))


def _candidates_at(
    config: Config, ladders: Sequence[Ladder], w: float | None
) -> list[Candidate]:
    """Those of one strength of guidance."""
    spec = config.evaluate
    found = [Candidate("base", "ddim", spec.reference_steps, w)]
    if has_guide(config):
        found.append(Candidate("guided", "ddim", spec.reference_steps, w))
    for ladder in ladders:
        sampler = "stochastic" if ladder == "stochastic" else "ddim"
        found += [Candidate("distilled", sampler, n, w) for n in sorted(spec.steps)]
    for sampler in spec.samplers:
        for budget in sorted(spec.steps):
            steps = (budget + 1) // 2 if sampler == "heun" else budget
            if steps > 1 or sampler == "ddim":
                found.append(Candidate("base", sampler, steps, w))
    return found


def _strengths(config: Config) -> tuple[float, ...] | tuple[None]:
    """The guidance weights; one None if there is none."""
    return tuple(config.evaluate.w) or (None,)


def _is_there(found: Candidate, workdir: pathlib.Path) -> bool:
    """Whether a candidate's model is finished; says so if it is not."""
    folder = {
        "base": places.train_folder(workdir),
        "guided": places.guide_folder(workdir),
        "distilled": places.student_folder(workdir, found.steps, found.ladder),
    }[found.model]
    if places.result(folder):
        return True
    what = "guided model"
    if found.model == "distilled":
        kind = "stochastic " if found.sampler == "stochastic" else ""
        what = f"{kind}student of {found.steps} steps"
    print(f"evaluate: no finished {what}; it is left out")
    return False
