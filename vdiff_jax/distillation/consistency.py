"""Multistep consistency: the teacher's first step, and the student for the rest.

Heek, Hoogeboom & Salimans (2024), arXiv:2403.06807, Algorithm 1. Time is cut into the
student's N segments and into the K steps of a teacher, K a multiple of N. From
t = j / K the teacher takes one step, and the student itself goes on from there to where
the segment begins; the student at t is to land there at once. So the teacher's steps
chain through the student, and no student of twice the steps is needed. K grows on the
way, for a chain that is short at first and fine at last.

The student that goes on is the EMA of its parameters: with `ema_decay=0` the student as
it is, as in the paper, with 0.5 that of TRACT (Berthelot et al., 2023,
arXiv:2303.04248), which for a fixed K this is. A slow EMA does not work as a reference.
"""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from vdiff_jax.diffusion import diffuse, sin_cos_between
from vdiff_jax.distillation import teacher_step
from vdiff_jax.distillation.method import (
    Course,
    Denoisers,
    Method,
    Phase,
    Setting,
    one_by_one,
)
from vdiff_jax.distillation.progressive import Times, two_step_target
from vdiff_jax.distillation.teacher_step import TeacherStep
from vdiff_jax.losses import Draws, Weight, step_index
from vdiff_jax.samplers import Step
from vdiff_jax.schedules import ending_in_data
from vdiff_jax.types import (
    Denoiser,
    Examples,
    PerExample,
    Prediction,
    Scalar,
    Schedule,
)

# Share of a run in which K grows to its last value.
ANNEALED = 0.5
# The largest factor by which the loss of a short step of the teacher counts more.
MOST = 20.0
# Root mean square of an error of v, below which its loss turns into a square.
HUBER = 0.03


def teacher_steps(
    num_steps: int | Int[Array, ""],
    first: int,
    last: int,
    progress: Scalar | float,
) -> Int[Array, ""]:
    """K: it grows from `first` to `last` evenly on a log scale, in multiples of N.

    Args:
      num_steps: N, which divides both.
      first: K at the beginning of a run.
      last: K from the middle of the run on.
      progress: Share of the run that is done, in [0, 1].
    """
    share = jnp.minimum(jnp.asarray(progress) / ANNEALED, 1.0)
    steps = first * jnp.exp(share * math.log(last / first))
    in_segment = jnp.maximum(jnp.round(steps / num_steps), 1.0)
    return num_steps * in_segment.astype(jnp.int32)


def segments(
    u: PerExample, num_steps: int | Int[Array, ""], num_teacher_steps: Int[Array, ""]
) -> Times:
    """Times t = j / K, one step of the teacher below it, and the start of t's segment.

    A t on the boundary of two segments belongs to the one below. The teacher's step
    just above a boundary ends there, and the student has nowhere to go: `mid` is `s`.

    Args:
      u: Uniform in [0, 1), of each example.
      num_steps: N.
      num_teacher_steps: K, a multiple of N.
    """
    j = step_index(u, num_teacher_steps)
    k = num_teacher_steps
    mid = (j - 1.0) / k
    # In whole numbers, for a compiled 7 / 28 need not be the float of 1 / 4.
    segment, beyond = jnp.divmod((j.astype(jnp.int32) - 1) * num_steps, k)
    return Times(j / k, mid, jnp.where(beyond == 0, mid, segment / num_steps))


def consistency_loss(
    student: Denoiser,
    teacher: Denoiser,
    reference: Denoiser,
    x: Examples,
    draws: Draws,
    *,
    schedule: Schedule,
    weight: Weight,
    num_steps: int | Int[Array, ""],
    num_teacher_steps: Int[Array, ""],
    step_of_teacher: TeacherStep = teacher_step.ddim,
) -> PerExample:
    """The loss of a student of `num_steps` steps, one value per example.

    It is the distance of v, and not its square, but for errors below `HUBER`. A target
    that is a short step away moves the student little, in proportion to the step: such
    losses count more, so that the gradient does not shrink as K grows.

    Args:
      student: The network being trained, unclipped.
      teacher: The denoiser of the data, unclipped: no student of few steps.
      reference: The student that goes on from the teacher's step.
      x: Clean examples in [-1, 1].
      draws: The chance of this update.
      schedule: log-SNR of time, shared by all networks.
      weight: One of the weights in `losses`.
      num_steps: The student's N. May be traced.
      num_teacher_steps: K, a multiple of N. May be traced.
      step_of_teacher: The kind of the teacher's step.
    """
    times = segments(draws.u, num_steps, num_teacher_steps)
    logsnr_t, logsnr_mid = schedule(times.t), schedule(times.mid)
    # Where the student has nowhere to go, the angle it would go is exactly 0.
    logsnr_s = jnp.where(
        times.s == times.mid, logsnr_mid, ending_in_data(schedule)(times.s)
    )
    z_t = diffuse(x, draws.eps(x.shape[1:]), logsnr_t)

    def first_step(denoise: Denoiser, z_t: Examples, step: Step) -> Prediction:
        # The last one goes to the data, though the student is asked at a finite
        # log-SNR there.
        end = ending_in_data(schedule)(times.mid)
        return step_of_teacher(denoise, z_t, step._replace(logsnr_s=end))

    target = lax.stop_gradient(
        two_step_target(
            teacher,
            reference,
            z_t,
            logsnr_t=logsnr_t,
            logsnr_mid=logsnr_mid,
            logsnr_s=logsnr_s,
            step_of_first=first_step,
        )
    )
    error = student(z_t, logsnr_t).v - target.v
    size = jnp.square(error).mean(axis=tuple(range(1, x.ndim)))
    sin_both, _ = sin_cos_between(logsnr_t, logsnr_s)
    sin_first, _ = sin_cos_between(logsnr_t, logsnr_mid)
    far = jnp.minimum(sin_both / sin_first, MOST)
    return weight(logsnr_t) * far * (jnp.sqrt(size + HUBER**2) - HUBER)


def loss(
    nets: Denoisers, x: Examples, draws: Draws, setting: Setting
) -> dict[str, PerExample]:
    """`consistency_loss`, as a method's."""
    num_steps = setting.num_steps
    error = consistency_loss(
        nets.student,
        nets.teacher,
        nets.ema,
        x,
        draws,
        schedule=setting.schedule,
        weight=setting.weight,
        num_steps=num_steps,
        num_teacher_steps=teacher_steps(
            num_steps, *setting.teacher_steps, setting.progress
        ),
        step_of_teacher=setting.teacher_step(x, num_steps),
    )
    return {"loss": error}


def phases(course: Course) -> list[Phase]:
    """A phase for each of `students`, each of which divides the teacher's steps.

    Raises:
      ValueError: If one does not, or the students do not fall.
    """
    first, last = course.teacher_steps
    for num_steps in course.students:
        if last < num_steps or first % num_steps or last % num_steps:
            raise ValueError(
                f"distill.teacher_steps={(first, last)} must be multiples of the steps"
                f" of each student, and {num_steps} does not divide them: set multiples"
                f" of {math.lcm(*course.students)}, the first not above the last."
            )
    return one_by_one(course)


# One pass of the student and its gradient, one of the teacher, one of the reference.
METHOD = Method(loss=loss, phases=phases, passes=5, halves=False)
