"""Progressive distillation: one student step learns two teacher steps.

Salimans & Ho (2022), arXiv:2202.00512, Algorithm 2. A *plan* gives the three times of a
step. For a student of N steps that starts at t = i / N, the middle is t - 0.5 / N and
s = t - 1 / N. The teacher makes two DDIM steps, z_t -> z_mid -> z_s; the target is the
x for which one DDIM step from z_t lands on that z_s. In the rotated frame of
`diffusion` (6) a DDIM step by the angle delta is

    z_s = cos(delta) z_t - sin(delta) v_hat

With delta_1 = phi_t - phi_mid, delta_2 = phi_mid - phi_s and delta their sum, two steps
with v_1, v_2 equal one step with

    v = (sin delta_1 cos delta_2 v_1 + sin delta_2 v_2
         - sin delta_1 sin delta_2 z_t) / sin delta

This solves the paper's equation for x without its difference z_s - (sigma_s / sigma_t)
z_t, which at N = 4096 leaves three digits in float32. It holds for every schedule, in
both directions of time, and at s = 0 (log-SNR inf) it is the teacher's x_hat at the
middle. Where the middle is the start, delta_1 = 0 and v = v_2: a single jump.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from jaxtyping import Array, Int

from vdiff_jax.diffusion import (
    diffuse,
    expand_like,
    predict,
    sin_cos_between,
)
from vdiff_jax.distillation import teacher_step
from vdiff_jax.distillation.method import (
    Denoisers,
    Loss,
    Method,
    Setting,
    halving,
)
from vdiff_jax.distillation.teacher_step import TeacherStep
from vdiff_jax.losses import Draws, Weight, step_index, weighted_v_error
from vdiff_jax.samplers import Step, ddim_step
from vdiff_jax.schedules import ending_in_data
from vdiff_jax.types import Denoiser, Examples, PerExample, Prediction, Schedule


class Times(NamedTuple):
    """The three times of a student's step, in [0, 1].

    Attributes:
      t: Start of the student's step and of the teacher's first.
      mid: End of the teacher's first step and start of its second.
      s: End of the student's step and of the teacher's second.
    """

    t: PerExample
    mid: PerExample
    s: PerExample


# (u uniform in [0, 1), the student's N) -> the times of each example.
Plan: TypeAlias = Callable[[PerExample, "int | Int[Array, '']"], Times]


def decoding(u: PerExample, num_steps: int | Int[Array, ""]) -> Times:
    """Steps of 1 / N towards the data, of which the teacher makes two halves."""
    i = step_index(u, num_steps)
    return Times(i / num_steps, (i - 0.5) / num_steps, (i - 1.0) / num_steps)


def two_step_target(
    first: Denoiser,
    second: Denoiser,
    z_t: Examples,
    *,
    logsnr_t: PerExample,
    logsnr_mid: PerExample,
    logsnr_s: PerExample,
    step_of_first: TeacherStep = teacher_step.ddim,
    step_of_second: TeacherStep = teacher_step.ddim,
) -> Prediction:
    """The prediction at z_t with which one step lands where two steps land.

    Both steps of a teacher give progressive distillation; the first of a teacher, the
    second of the student gives consistency.

    Args:
      first: The denoiser that steps from t, unclipped and without dropout.
      second: The denoiser that goes on from there.
      z_t: Noisy examples.
      logsnr_t: log-SNR where both begin; finite.
      logsnr_mid: log-SNR between the two steps; finite. If it is that of t, only the
        second is made; if it is that of s, only the first.
      logsnr_s: log-SNR where both end; `inf` for s = 0.
      step_of_first: The kind of the first step.
      step_of_second: The kind of the second step.

    Returns:
      The target as x, eps and v, for students of any output kind.
    """
    step = Step(logsnr_t, logsnr_mid)
    along_first = step_of_first(first, z_t, step)
    z_mid = ddim_step(along_first, step)
    along_second = step_of_second(second, z_mid, Step(logsnr_mid, logsnr_s))

    logsnr_t_, logsnr_mid_, logsnr_s_ = (
        expand_like(logsnr, z_t) for logsnr in (logsnr_t, logsnr_mid, logsnr_s)
    )
    sin_1, _ = sin_cos_between(logsnr_t_, logsnr_mid_)
    sin_2, cos_2 = sin_cos_between(logsnr_mid_, logsnr_s_)
    sin_both, _ = sin_cos_between(logsnr_t_, logsnr_s_)
    both = sin_1 * (cos_2 * along_first.v - sin_2 * z_t) + sin_2 * along_second.v
    v = both / sin_both
    return predict(v, z_t, logsnr_t, "v")


def distillation_loss(
    student: Denoiser,
    teacher: Denoiser,
    x: Examples,
    draws: Draws,
    *,
    schedule: Schedule,
    weight: Weight,
    num_steps: int | Int[Array, ""],
    plan: Plan = decoding,
    step_of_teacher: TeacherStep = teacher_step.ddim,
) -> PerExample:
    """The loss of a student of `num_steps` steps, one value per example.

    Args:
      student: The network being trained, unclipped.
      teacher: The sampler of 2 * num_steps steps to halve, unclipped.
      x: Clean examples in [-1, 1].
      draws: The chance of this update.
      schedule: log-SNR of time, shared by student and teacher.
      weight: One of the weights in `losses`.
      num_steps: The student's N. May be traced: the whole ladder compiles once.
      plan: The times of the student's steps.
      step_of_teacher: The kind of the teacher's steps.
    """
    times = plan(draws.u, num_steps)
    logsnr_t, logsnr_mid = schedule(times.t), schedule(times.mid)
    logsnr_s = ending_in_data(schedule)(times.s)
    z_t = diffuse(x, draws.eps(x.shape[1:]), logsnr_t)
    target = two_step_target(
        teacher,
        teacher,
        z_t,
        logsnr_t=logsnr_t,
        logsnr_mid=logsnr_mid,
        logsnr_s=logsnr_s,
        step_of_first=step_of_teacher,
        step_of_second=step_of_teacher,
    )
    return weighted_v_error(student(z_t, logsnr_t).v, target.v, logsnr_t, weight)


def halving_loss(plan: Plan) -> Loss:
    """The loss of a student whose steps have the times of a plan.

    Args:
      plan: The times of the student's steps.
    """

    def loss(
        nets: Denoisers, x: Examples, draws: Draws, setting: Setting
    ) -> dict[str, PerExample]:
        error = distillation_loss(
            nets.student,
            nets.teacher,
            x,
            draws,
            schedule=setting.schedule,
            weight=setting.weight,
            num_steps=setting.num_steps,
            plan=plan,
            step_of_teacher=setting.teacher_step(x, setting.num_steps),
        )
        return {"loss": error}

    return loss


# Two passes of the teacher, one of the student, and its gradient.
METHOD = Method(loss=halving_loss(decoding), phases=halving, passes=5)
