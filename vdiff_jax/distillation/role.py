"""A model's role in a project: the base, the guided model, or a student."""

from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeAlias

from vdiff_jax.distillation.methods import FIRST, METHODS

StageName: TypeAlias = Literal["train", "guide", "distill"]
RoleName: TypeAlias = Literal["base", "guided", "distilled"]

STAGES: dict[RoleName, StageName] = {
    "base": "train",
    "guided": "guide",
    "distilled": "distill",
}
NAMES: dict[StageName, RoleName] = {stage: name for name, stage in STAGES.items()}


class Role(NamedTuple):
    """A model's role: which stage makes it, and what for.

    Attributes:
      stage: The stage that makes it.
      method: The name of the method of a student; None for any other model.
      num_steps: The student's N; 0 for any other model.
    """

    stage: StageName
    method: str | None = None
    num_steps: int = 0

    @property
    def name(self) -> RoleName:
        """The role's name in configs and files."""
        return NAMES[self.stage]

    @property
    def is_student(self) -> bool:
        """True if it is distilled for a number of steps."""
        return self.stage == "distill"

    @property
    def sampler(self) -> str:
        """The sampler that it was taught, or the plainest where it was taught none."""
        return "ddim" if self.method is None else METHODS[self.method].sampler

    @property
    def draws(self) -> bool:
        """True if it makes images; an encoding student makes noise of them."""
        return self.method is None or METHODS[self.method].draws

    @property
    def kind(self) -> str:
        """The method's name for people; empty for any other model."""
        return (self.method or "").replace("_", "-")

    def __str__(self) -> str:
        """A name for people."""
        if not self.is_student:
            return f"{self.name} model"
        kind = "" if self.method == FIRST else f"{self.kind} "
        return f"{kind}student of {count(self.num_steps)}"


BASE, GUIDED = Role("train"), Role("guide")


def student(num_steps: int, method: str = FIRST) -> Role:
    """The role of a student."""
    return Role("distill", method, num_steps)


def methods_of(sampler: str) -> list[str]:
    """The methods whose students are taught a sampler; `auto` is any.

    An encoder, which draws no images, is not among them.
    """
    return [
        name
        for name, method in METHODS.items()
        if method.draws and sampler in ("auto", method.sampler)
    ]


def name_among(role: Role, roles: Iterable[Role]) -> str:
    """A model's name for people, beside others and without its number of steps.

    A student's is its method's, unless there are students of the first method alone.

    Args:
      role: The model.
      roles: All that have names there, this one among them.
    """
    if role.method is None or all(each.method in (None, FIRST) for each in roles):
        return role.name
    return role.method.replace("_", " ")


def count(num_steps: int) -> str:
    """A number of steps in words."""
    return "1 step" if num_steps == 1 else f"{num_steps} steps"
