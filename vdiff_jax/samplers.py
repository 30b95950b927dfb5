"""Samplers: one step from z_t to z_s, and the loop that takes N of them."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from vdiff_jax.diffusion import alpha_sigma, expand_like
from vdiff_jax.schedules import ending_in_data
from vdiff_jax.types import (
    Denoiser,
    Examples,
    Keys,
    PerExample,
    Prediction,
    Schedule,
)


class Step(NamedTuple):
    """Where a step starts and ends, and the noise it may use."""

    logsnr_t: PerExample
    logsnr_s: PerExample
    noise: Examples | None = None


Stepper: TypeAlias = Callable[[Prediction, Step], Examples]


class Trajectory(NamedTuple):
    """What a sampler passed through; the leading axis counts the steps."""

    z_s: Float[Array, " steps batch *event"]
    x_hat: Float[Array, " steps batch *event"]


def ddim_step(prediction: Prediction, step: Step, eta: float = 0.0) -> Examples:
    """Moves to an earlier time along the DDIM path.

        z_s = alpha_s x_hat + sqrt(sigma_s^2 - tau^2) eps_hat + tau noise
        tau = eta sqrt(1 - r) sigma_s,   r = exp(logsnr_t - logsnr_s)

    eta = 0 is deterministic: Salimans & Ho (2022), arXiv:2202.00512, Eq. 7. eta = 1 is
    ancestral sampling with the posterior's variance (Song et al., 2021,
    arXiv:2010.02502).

    Args:
      prediction: The denoiser's estimate at t.
      step: log-SNRs of t and s; `logsnr_s = inf` is s = 0, and x_hat is returned.
        Its noise is used when `eta` is not zero.
      eta: From 0 to 1.
    """
    alpha_s, sigma_s = alpha_sigma(expand_like(step.logsnr_s, prediction.x))
    if eta == 0.0:
        return alpha_s * prediction.x + sigma_s * prediction.eps
    fresh = eta**2 * _fresh_variance(step, prediction.x)
    kept = sigma_s * jnp.sqrt(1.0 - fresh) * prediction.eps
    return alpha_s * prediction.x + kept + sigma_s * jnp.sqrt(fresh) * _noise(step)


def ancestral_step(
    prediction: Prediction, step: Step, interpolation: float = 1.0
) -> Examples:
    """Draws z_s given z_t and x_hat.

    The mean is that of q(z_s | z_t, x_hat). The variance interpolates, on a log scale,
    between the posterior's ("small", 0) and that of q(z_t | z_s) ("large", 1):

        variance = (1 - r) sigma_s^(2 - 2f) sigma_t^(2f),   r = exp(logsnr_t - logsnr_s)

    Salimans & Ho (2022), arXiv:2202.00512, Eq. 4-5, where f is called v. To s = 0 the
    step returns x_hat, without noise.

    Args:
      prediction: The denoiser's estimate at t.
      step: log-SNRs of t and s, and standard normal noise.
      interpolation: f, from 0 to 1.
    """
    _, sigma_t = alpha_sigma(expand_like(step.logsnr_t, prediction.x))
    alpha_s, sigma_s = alpha_sigma(expand_like(step.logsnr_s, prediction.x))
    fresh = _fresh_variance(step, prediction.x)
    mean = alpha_s * prediction.x + sigma_s * jnp.sqrt(1.0 - fresh) * prediction.eps
    deviation = jnp.sqrt(fresh) * sigma_s ** (1.0 - interpolation)
    deviation *= sigma_t**interpolation
    return mean + jnp.where(sigma_s > 0.0, deviation, 0.0) * _noise(step)


def _fresh_variance(step: Step, like: Examples) -> Array:
    """1 - r: the share of the variance at s that is not carried over from t."""
    return -jnp.expm1(expand_like(step.logsnr_t - step.logsnr_s, like))


def _noise(step: Step) -> Examples:
    if step.noise is None:
        raise ValueError("This step draws noise: pass `keys` to `sample`.")
    return step.noise


def sample(
    denoise: Denoiser,
    z_1: Examples,
    *,
    schedule: Schedule,
    num_steps: int | Int[Array, ""],
    stepper: Stepper = ddim_step,
    keys: Keys | None = None,
) -> Examples:
    """Takes `num_steps` steps from pure noise at t = 1 to an estimate of x at t = 0.

    The times are i / num_steps, so N steps are N evaluations, the first of them at
    t = 1, and the last step returns x_hat.

    Args:
      denoise: The denoiser, clipped if it should be.
      z_1: Standard normal noise.
      schedule: log-SNR of time.
      num_steps: At least 1. A Python integer makes one `lax.scan`; a traced integer
        makes a loop that is compiled once for every step count.
      stepper: `ddim_step`, `ancestral_step`, or one of them with its option bound.
      keys: One key per example, for steppers that draw noise. An example's noise then
        depends on its own key alone, not on the batch it is in.

    Returns:
      Samples in model units.
    """
    advance = _advance(denoise, ending_in_data(schedule), num_steps, stepper, keys)
    if isinstance(num_steps, int):
        countdown = jnp.arange(num_steps, 0, -1)
        return lax.scan(lambda z_t, i: (advance(z_t, i)[0], None), z_1, countdown)[0]
    return lax.fori_loop(0, num_steps, lambda k, z: advance(z, num_steps - k)[0], z_1)


def sample_trajectory(
    denoise: Denoiser,
    z_1: Examples,
    *,
    schedule: Schedule,
    num_steps: int,
    stepper: Stepper = ddim_step,
    keys: Keys | None = None,
) -> Trajectory:
    """Like `sample`, but returns every z_s and the x_hat it was made from.

    The samples are `trajectory.z_s[-1]`, which equals `trajectory.x_hat[-1]`.
    """
    advance = _advance(denoise, ending_in_data(schedule), num_steps, stepper, keys)

    def body(z_t: Examples, i: Array) -> tuple[Examples, Trajectory]:
        z_s, x_hat = advance(z_t, i)
        return z_s, Trajectory(z_s, x_hat)

    return lax.scan(body, z_1, jnp.arange(num_steps, 0, -1))[1]


def _advance(
    denoise: Denoiser,
    schedule: Schedule,
    num_steps: int | Int[Array, ""],
    stepper: Stepper,
    keys: Keys | None,
) -> Callable[[Examples, Array], tuple[Examples, Examples]]:
    """The step from t = i / N to s = (i - 1) / N, for any i."""

    def advance(z_t: Examples, i: Array) -> tuple[Examples, Examples]:
        batch = z_t.shape[:1]
        logsnr_t = jnp.broadcast_to(schedule(i / num_steps), batch)
        logsnr_s = jnp.broadcast_to(schedule((i - 1) / num_steps), batch)
        noise = None
        if keys is not None:
            noise = jax.vmap(
                lambda key: jax.random.normal(jax.random.fold_in(key, i), z_t.shape[1:])
            )(keys)
        prediction = denoise(z_t, logsnr_t)
        z_s = stepper(prediction, Step(logsnr_t, logsnr_s, noise))
        return z_s, prediction.x

    return advance
