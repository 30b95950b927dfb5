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

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from vdiff_jax.diffusion import alpha_sigma, diffuse, expand_like, velocity
from vdiff_jax.distillation.method import Denoisers, Method, Setting, one_by_one
from vdiff_jax.losses import Draws, Weight, step_index
from vdiff_jax.types import Denoiser, Examples, PerExample, Prediction, Schedule

# The signal-to-noise ratio from which on the weight of the student's error stays.
MOST_SNR = 50.0
# Students of so few steps have the whole gradient, for one pass more.
MOST_STEPS_FULLY = 2


def times(
    draws: Draws, num_steps: int | Int[Array, ""], takes_noise: bool = False
) -> tuple[PerExample, PerExample]:
    """The times of an update: s uniform in [0, 1), and t up to 1 / N above it.

    The paper's. A student of one step is only ever asked at t = 1, and trained there.
    One that takes noise is trained where it is asked, at the i / N, and s is below it:
    it can have the right distribution at each t by itself, where the auxiliary network,
    which does not know t, would be content with the right mixture over many.

    Args:
      draws: The chance of this update.
      num_steps: N.
      takes_noise: True if the student takes noise beside z_t.

    Returns:
      t and s.
    """
    if takes_noise:
        i = step_index(draws.u, num_steps)
        return i / num_steps, (i - 1.0 + draws.uniform("s")) / num_steps
    s = draws.u
    t = jnp.minimum(s + draws.uniform("t") / num_steps, 1.0)
    return jnp.where(num_steps == 1, 1.0, t), s


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
    takes_noise: bool = False,
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
      takes_noise: True if the student takes noise beside z_t.

    Returns:
      The `loss`, whose value is the weighted gap; the `gap` itself; and the
      `auxiliary_loss`, the error of v in predicting the student's samples.
    """
    t, s = times(draws, num_steps, takes_noise)
    logsnr_t, logsnr_s = schedule(t), schedule(s)
    z_t = diffuse(x, draws.eps(x.shape[1:]), logsnr_t)
    prediction = student(z_t, logsnr_t)
    noise = draws.normal("noise", x.shape[1:])

    def matched(form: Callable[..., _Terms]) -> Callable[[Prediction], _Terms]:
        return lambda prediction: form(
            auxiliary, teacher, prediction, noise, logsnr_t, logsnr_s
        )

    is_few = num_steps <= MOST_STEPS_FULLY
    fully, along = matched(_fully), matched(_along_difference)
    if isinstance(is_few, bool):  # else only one of both is run, too
        terms = (fully if is_few else along)(prediction)
    else:
        terms = lax.cond(is_few, fully, along, prediction)
    trains = weight(logsnr_s) * terms.trains
    return {
        "loss": weight(logsnr_s) * terms.gap + trains - lax.stop_gradient(trains),
        "gap": terms.gap,
        "auxiliary_loss": terms.auxiliary_loss,
    }


class _Terms(NamedTuple):
    """Parts of the loss of each example, without its weight.

    Attributes:
      trains: The part that has a gradient, and a value without meaning.
      gap: The mean square of v_A - v_T; without a gradient.
      auxiliary_loss: The error of v_A; without a gradient.
    """

    trains: PerExample
    gap: PerExample
    auxiliary_loss: PerExample


def _along_difference(
    auxiliary: Denoiser,
    teacher: Denoiser,
    prediction: Prediction,
    noise: Examples,
    logsnr_t: PerExample,
    logsnr_s: PerExample,
) -> _Terms:
    """Moves x~ along x_T - x_A, as if z_s did not depend on it.

    Its weight on x_T - x_A is max(1, min(SNR, MOST_SNR)): details weigh more than in
    the error of v, and at no s without bound.
    """
    fixed = lax.stop_gradient(prediction)
    z_s, eps_s = noised_again(fixed, logsnr_t, logsnr_s, noise)
    v_auxiliary = auxiliary(z_s, logsnr_s).v
    v_teacher = teacher(z_s, logsnr_s).v
    difference = lax.stop_gradient(v_auxiliary - v_teacher)
    error = _mean(jnp.square(v_auxiliary - velocity(fixed.x, eps_s, logsnr_s)))
    along = expand_like(_weight_of_x(logsnr_s), noise) * difference
    return _Terms(
        trains=error - _mean(prediction.x * along),
        gap=_mean(jnp.square(difference)),
        auxiliary_loss=lax.stop_gradient(error),
    )


def _weight_of_x(logsnr_s: PerExample) -> PerExample:
    """max(1, min(SNR, MOST_SNR)) on the error of x, as a factor of v_A - v_T."""
    _, sigma_s = alpha_sigma(logsnr_s)
    return sigma_s * jnp.clip(jnp.exp(logsnr_s), 1.0, MOST_SNR)


def _fully(
    auxiliary: Denoiser,
    teacher: Denoiser,
    prediction: Prediction,
    noise: Examples,
    logsnr_t: PerExample,
    logsnr_s: PerExample,
) -> _Terms:
    """The whole gradient of |v_T - v~|^2 - |v_A - v~|^2, where v~ is that of x~.

    The student lowers it and the auxiliary network raises it, to the squared gap. It
    goes through both networks to z_s, for one pass more. (Zhou et al., 2024,
    arXiv:2404.04057, and RealUID, arXiv:2509.22459, for one step.)
    """
    z_s, eps_s = noised_again(prediction, logsnr_t, logsnr_s, noise)
    v = velocity(prediction.x, eps_s, logsnr_s)
    v_teacher = teacher(z_s, logsnr_s).v
    # One pass for both: the gradient turns around on its way to z_s.
    v_auxiliary = auxiliary(2.0 * lax.stop_gradient(z_s) - z_s, logsnr_s).v
    error = _mean(jnp.square(v_auxiliary - lax.stop_gradient(v)))
    fixed = lax.stop_gradient(v_auxiliary)
    return _Terms(
        trains=error + _mean(jnp.square(v_teacher - v)) - _mean(jnp.square(fixed - v)),
        gap=_mean(jnp.square(lax.stop_gradient(v_auxiliary - v_teacher))),
        auxiliary_loss=lax.stop_gradient(error),
    )


def _mean(values: Examples) -> PerExample:
    return values.mean(axis=tuple(range(1, values.ndim)))


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
        takes_noise=setting.takes_noise,
    )


# One pass of each network, and the gradients of two. What the two learn changes with
# each other's updates: Adam's usual memory of gradients is too long for it.
METHOD = Method(
    loss=loss,
    phases=one_by_one,
    passes=7,
    halves=False,
    auxiliary=True,
    takes_noise=True,
    any_eta=True,
    betas=(0.0, 0.99),
)
