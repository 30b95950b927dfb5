"""A model's role in a project: the base, the guided model, or a student."""

from typing import Literal, NamedTuple, TypeAlias

StageName: TypeAlias = Literal["train", "guide", "distill"]
Method: TypeAlias = Literal["progressive", "stochastic", "encode"]
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
      method: How a student is distilled; None for any other model.
      num_steps: The student's N; 0 for any other model.
    """

    stage: StageName
    method: Method | None = None
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
        return "stochastic" if self.method == "stochastic" else "ddim"

    @property
    def draws(self) -> bool:
        """True if it makes images; an encoding student makes noise of them."""
        return self.method != "encode"

    def __str__(self) -> str:
        """A name for people."""
        if not self.is_student:
            return f"{self.name} model"
        kind = "" if self.method == "progressive" else f"{self.method} "
        return f"{kind}student of {count(self.num_steps)}"


BASE, GUIDED = Role("train"), Role("guide")


def student(num_steps: int, method: Method = "progressive") -> Role:
    """The role of a student."""
    return Role("distill", method, num_steps)


def role_of(name: str, sampler: str, num_steps: int) -> Role:
    """The role of a model that was measured, from what a row says of it.

    Args:
      name: The role's name.
      sampler: The sampler that drew the images.
      num_steps: Its number of steps.
    """
    if name != "distilled":
        return BASE if name == "base" else GUIDED
    return student(num_steps, method_of(sampler))


def method_of(sampler: str) -> Method:
    """The method whose students a sampler can draw with."""
    return "stochastic" if sampler == "stochastic" else "progressive"


def count(num_steps: int) -> str:
    """A number of steps in words."""
    return "1 step" if num_steps == 1 else f"{num_steps} steps"
