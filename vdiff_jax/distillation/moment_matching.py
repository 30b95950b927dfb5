"""Moment matching: a student whose samples the teacher cannot tell from data.

Salimans, Mensink, Heek & Hoogeboom (2024), arXiv:2406.04103, in the form that trains an
auxiliary network beside the student; both are updated together, where the paper
alternates. The student's x~ at z_t is meant as a sample, not as a mean. Noise is put
back, z_s ~ q(z_s | z_t, x~) with s < t, and two denoisers look at the result:

    auxiliary  learns E[x~ | z_s], what the student's samples look like from there
    teacher    knows E[x | z_s], what data look like from there

The student's x~ moves along the difference x_T - x_A, until there is none. No
difference means that the moments of its samples are those of data, and not that it
follows the teacher's path: so it may become better than its teacher's own samples.

In v the difference needs no small sigma: x_A - x_T = -sigma_s (v_A - v_T). The reported
loss is the weighted `gap`, the mean square of v_A - v_T, which falls towards 0 as the
student converges; the terms that train have no value of their own.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from vdiff_jax.diffusion import diffuse, expand_like, velocity
from vdiff_jax.distillation.method import Denoisers, Method, Setting, one_by_one
from vdiff_jax.losses import Draws, Weight, step_index, weighted_v_error
from vdiff_jax.types import Denoiser, Examples, PerExample, Prediction, Schedule


def times(
    draws: Draws, num_steps: int | Int[Array, ""]
) -> tuple[PerExample, PerExample]:
    """The times of an update: t = i / N, and s uniform in [t - 1 / N, t).

    The student is trained only where its sampler will ask it.

    Args:
      draws: The chance of this update.
      num_steps: N.
    """
    i = step_index(draws.u, num_steps)
    return i / num_steps, (i - 1.0 + draws.uniform("s")) / num_steps


def noised_again(
    prediction: Prediction, logsnr_t: PerExample, logsnr_s: PerExample, noise: Examples
) -> tuple[Examples, Examples]:
    """z_s ~ q(z_s | z_t, x~), and the noise in it.

    By `diffusion` (5), z_s = alpha_s x~ + sigma_s eps_s with

        eps_s = sqrt(r) eps + sqrt(1 - r) noise,   r = exp(logsnr_t - logsnr_s)

    Args:
      prediction: The student's at z_t.
      logsnr_t: log-SNR of z_t.
      logsnr_s: log-SNR of z_s, at least that of z_t and finite.
      noise: Fresh standard normal noise.

    Returns:
      z_s and eps_s.
    """
    gap = expand_like(logsnr_t - logsnr_s, noise)
    eps_s = jnp.exp(0.5 * gap) * prediction.eps + jnp.sqrt(-jnp.expm1(gap)) * noise
    return diffuse(prediction.x, eps_s, logsnr_s), eps_s


def moment_matching_loss(
    student: Denoiser,
    auxiliary: Denoiser,
    teacher: Denoiser,
    x: Examples,
    draws: Draws,
    *,
    schedule: Schedule,
    weight: Weight,
    num_steps: int | Int[Array, ""],
) -> dict[str, PerExample]:
    """The loss of a student of `num_steps` steps and of its auxiliary network.

    Args:
      student: The network being trained, unclipped.
      auxiliary: The network that is trained on its samples, unclipped.
      teacher: The denoiser of the data, unclipped: no student of few steps.
      x: Clean examples in [-1, 1].
      draws: The chance of this update.
      schedule: log-SNR of time, shared by all networks.
      weight: One of the weights in `losses`, taken at s; all are bounded.
      num_steps: The student's N. May be traced.

    Returns:
      The `loss`, whose value is the weighted gap; the `gap` itself; and the
      `auxiliary_loss`, the error of v in predicting the student's samples.
    """
    t, s = times(draws, num_steps)
    logsnr_t, logsnr_s = schedule(t), schedule(s)
    z_t = diffuse(x, draws.eps(x.shape[1:]), logsnr_t)
    prediction = student(z_t, logsnr_t)

    fixed = lax.stop_gradient(prediction)
    noise = draws.normal("noise", x.shape[1:])
    z_s, eps_s = noised_again(fixed, logsnr_t, logsnr_s, noise)
    v = velocity(fixed.x, eps_s, logsnr_s)
    v_auxiliary = auxiliary(z_s, logsnr_s).v
    v_teacher = lax.stop_gradient(teacher(z_s, logsnr_s).v)

    axes = tuple(range(1, x.ndim))
    difference = lax.stop_gradient(v_auxiliary) - v_teacher
    along = -(prediction.x * difference).mean(axis=axes)
    error = weighted_v_error(v_auxiliary, v, logsnr_s, weight)
    gap = jnp.square(difference).mean(axis=axes)
    trains = weight(logsnr_s) * along + error
    return {
        "loss": weight(logsnr_s) * gap + trains - lax.stop_gradient(trains),
        "gap": gap,
        "auxiliary_loss": lax.stop_gradient(error),
    }


def loss(
    nets: Denoisers, x: Examples, draws: Draws, setting: Setting
) -> dict[str, PerExample]:
    """`moment_matching_loss`, as a method's."""
    assert nets.auxiliary is not None
    return moment_matching_loss(
        nets.student,
        nets.auxiliary,
        nets.teacher,
        x,
        draws,
        schedule=setting.schedule,
        weight=setting.weight,
        num_steps=setting.num_steps,
    )


# One pass of each network, and the gradients of two.
METHOD = Method(
    loss=loss,
    phases=one_by_one,
    passes=7,
    halves=False,
    auxiliary=True,
    takes_noise=True,
)
