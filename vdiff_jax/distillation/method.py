"""A method of distillation: its loss, the networks beside the student, its phases.

A method is one module of this folder, whose `METHOD` stands in the table of `methods`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

from jaxtyping import Array, Int

from vdiff_jax.distillation import teacher_step
from vdiff_jax.distillation.teacher_step import MakeTeacherStep
from vdiff_jax.losses import Draws, Weight
from vdiff_jax.types import Denoiser, Examples, PerExample, Scalar, Schedule

# The model that a phase takes something from: the first teacher; the student of the
# phase before (in the first phase: the first teacher); or the progressive student of as
# many steps, in the same workdir.
Source: TypeAlias = Literal["teacher", "previous", "progressive"]


class Denoisers(NamedTuple):
    """The networks of an update as denoisers, unclipped; see `Given` and `Networks`.

    Attributes:
      student: The network being trained.
      teacher: The network that teaches, without dropout.
      ema: The student with the EMA of its parameters.
      auxiliary: The network that is trained beside the student; None for most methods.
    """

    student: Denoiser
    teacher: Denoiser
    ema: Denoiser
    auxiliary: Denoiser | None = None


class Setting(NamedTuple):
    """Everything else that a method's loss may want to know.

    Attributes:
      schedule: log-SNR of time, shared by all networks.
      weight: One of the weights in `losses`.
      num_steps: The student's N. May be traced: all phases compile once.
      progress: Share of the run's updates that are done, in [0, 1].
      teacher_steps: Steps of the teacher from noise to data, at first and at last.
      teacher_step: Makes the kind of the teacher's steps.
      takes_noise: True if the student takes noise beside z_t.
    """

    schedule: Schedule
    weight: Weight
    num_steps: int | Int[Array, ""]
    progress: Scalar | float = 1.0
    teacher_steps: tuple[int, int] = (1, 1)
    teacher_step: MakeTeacherStep = lambda x, num_steps: teacher_step.ddim
    takes_noise: bool = False


# (networks, clean examples, chance, setting) -> the loss of each example by the name
# "loss", and any metrics.
Loss: TypeAlias = Callable[[Denoisers, Examples, Draws, Setting], dict[str, PerExample]]


class Course(NamedTuple):
    """The students that were asked for.

    Attributes:
      start_steps: Steps of the first teacher, for methods that halve them.
      end_steps: Steps of the last student, for those.
      students: Steps of each student, for methods that go on without halving.
      start: The model that each of these begins as.
      teacher_steps: Steps of the teacher from noise to data, at first and at last.
    """

    start_steps: int
    end_steps: int
    students: Sequence[int] = ()
    start: Source = "previous"
    teacher_steps: tuple[int, int] = (1, 1)


class Phase(NamedTuple):
    """One run of a method, which makes the student of so many steps.

    Attributes:
      num_steps: The student's N.
      teacher: The model that teaches it.
      start: The model whose parameters it begins with.
    """

    num_steps: int
    teacher: Source
    start: Source


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to distill.

    Attributes:
      loss: The loss.
      phases: The runs for a course, or a ValueError that says what is wrong with it.
      passes: Passes of a network in an update, a gradient counting as two.
      halves: True if a student's teacher is the one before, of twice its steps.
      sampler: The name of the sampler that its students are taught.
      draws: True if its students make images; an encoder makes noise of them.
      auxiliary: True if a network that starts as the teacher is trained beside.
      takes_noise: True if its students may take noise beside z_t.
      any_eta: True if its students may be drawn with any share of fresh noise, as
        `samplers.ddim_step` has it; else they are taught one.
      betas: Decays of Adam's moments.
    """

    loss: Loss
    phases: Callable[[Course], list[Phase]]
    passes: int = 5
    halves: bool = True
    sampler: str = "ddim"
    draws: bool = True
    auxiliary: bool = False
    takes_noise: bool = False
    any_eta: bool = False
    betas: tuple[float, float] = (0.9, 0.999)


def halving(course: Course) -> list[Phase]:
    """A phase for each halving of the steps; a student's teacher is the one before.

    Raises:
      ValueError: If halving `start_steps` does not arrive at `end_steps`.
    """
    num_steps = ladder(course.start_steps, course.end_steps)
    return [Phase(n, teacher="previous", start="previous") for n in num_steps]


def ladder(start_steps: int, end_steps: int) -> list[int]:
    """The students' step counts, from half the teacher's down to the last.

    Args:
      start_steps: Steps of the first teacher.
      end_steps: Steps of the last student, inclusive.

    Raises:
      ValueError: If halving `start_steps` does not arrive at `end_steps`.
    """
    stages = []
    num_steps = start_steps
    while num_steps > end_steps and num_steps % 2 == 0:
        num_steps //= 2
        stages.append(num_steps)
    if end_steps < 1 or num_steps != end_steps or not stages:
        raise ValueError(
            f"Halving start_steps={start_steps} does not arrive at"
            f" end_steps={end_steps}: make start_steps a power of two times end_steps,"
            f" for example {max(end_steps, 1) * 64}."
        )
    return stages


def one_by_one(course: Course) -> list[Phase]:
    """A phase for each of `students`, all with the first teacher.

    Raises:
      ValueError: If there are none, or they do not fall.
    """
    counts = list(course.students)
    if not counts or counts != sorted(set(counts), reverse=True):
        raise ValueError(
            f"distill.students={tuple(counts)} must be numbers of steps that fall, at"
            " least one of them: for example 8,4,2,1."
        )
    return [Phase(n, teacher="teacher", start=course.start) for n in counts]
