"""A teacher's step: the prediction along which it goes from z_t to z_s.

A target of distillation is where steps of the teacher end, so a better step makes a
better target without more of them. Each function here gives a prediction whose DDIM
step is the step meant; the student always takes plain DDIM steps.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Int

from vdiff_jax.diffusion import alpha_sigma, expand_like, sin_cos_between
from vdiff_jax.samplers import Step, ddim_step
from vdiff_jax.types import Denoiser, Examples, Prediction

# (teacher, z_t, the step) -> the prediction to step with.
TeacherStep: TypeAlias = Callable[[Denoiser, Examples, Step], Prediction]
# (clean examples, the student's N) -> the steps of its teacher.
MakeTeacherStep: TypeAlias = Callable[[Examples, "int | Int[Array, '']"], TeacherStep]


def ddim(denoise: Denoiser, z_t: Examples, step: Step) -> Prediction:
    """The prediction at t: first order."""
    return denoise(z_t, step.logsnr_t)


def heun(denoise: Denoiser, z_t: Examples, step: Step) -> Prediction:
    """The mean of v along the step, by x_hat at both of its ends: second order.

    As `samplers.at_both_ends`, for steps that end at a time of their own in each
    example. A step to s = 0 is one of DDIM.
    """
    first = denoise(z_t, step.logsnr_t)
    ends_in_data = jnp.isinf(step.logsnr_s)
    logsnr_s = jnp.where(ends_in_data, step.logsnr_t, step.logsnr_s)
    z_s = ddim_step(first, step._replace(logsnr_s=logsnr_s))
    second = denoise(z_s, logsnr_s)
    share = expand_like(jnp.where(ends_in_data, 0.0, 0.5), z_t)
    difference = share * (second.x - first.x)
    alpha_t, sigma_t = alpha_sigma(expand_like(step.logsnr_t, z_t))
    return Prediction(
        first.x + difference,
        first.eps - alpha_t / sigma_t * difference,
        first.v - difference / sigma_t,
    )


def adjusted(x: Examples, share: float | Array) -> TeacherStep:
    """The steps of adjusted DDIM (aDDIM), which keep their length.

        z_s = alpha_s x_hat + sqrt(sigma_s^2 + k^2 variance d / |eps_hat|^2) eps_hat
        k = sin(phi_t - phi_s) / sigma_t,   variance = share |x - x_hat|^2 / d

    x_hat is a mean, so that steps along it end nearer to the mean of the data than
    samples lie; the noise is made longer by as much. Heek, Hoogeboom & Salimans (2024),
    arXiv:2403.06807, Alg. 3 and Eq. 12, with the variance of their App. A. A step to
    s = 0 is one of DDIM.

    Args:
      x: The clean examples.
      share: Share of the squared error that counts as variance; 0 is DDIM.
    """

    def step_of(denoise: Denoiser, z_t: Examples, step: Step) -> Prediction:
        prediction = denoise(z_t, step.logsnr_t)
        axes = tuple(range(1, x.ndim))
        error = jnp.square(x - prediction.x).mean(axis=axes)
        # Noise that is exactly 0 has no direction to be longer in.
        size = jnp.maximum(jnp.square(prediction.eps).mean(axis=axes), 1e-12)
        variance = expand_like(share * error / size, x)
        logsnr_t, logsnr_s = (
            expand_like(logsnr, x) for logsnr in (step.logsnr_t, step.logsnr_s)
        )
        _, sigma_t = alpha_sigma(logsnr_t)
        _, sigma_s = alpha_sigma(logsnr_s)
        sine, _ = sin_cos_between(logsnr_t, logsnr_s)
        length = jnp.sqrt(jnp.square(sigma_s) + jnp.square(sine / sigma_t) * variance)
        # length - sigma_s, without their difference.
        more = jnp.square(sine / sigma_t) * variance / (length + sigma_s)
        ends_in_data = jnp.isinf(logsnr_s)
        factor = jnp.where(ends_in_data, 0.0, more / jnp.where(sine == 0, 1.0, sine))
        longer = jnp.where(ends_in_data, 0.0, more / jnp.maximum(sigma_s, 1e-30))
        return Prediction(
            prediction.x,
            prediction.eps * (1.0 + longer),
            prediction.v - factor * prediction.eps,
        )

    return step_of
