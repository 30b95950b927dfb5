"""Noise schedules: time t in [0, 1] to log-SNR in nats, strictly decreasing.

t = 0 is data and t = 1 is noise. log-SNR is log(alpha_t^2 / sigma_t^2).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdiff_jax.types import Schedule


def cosine(logsnr_min: float = -20.0, logsnr_max: float = 20.0) -> Schedule:
    """The cosine schedule, its angle rescaled so that the log-SNR stays finite.

        logsnr(t) = -2 log tan(a t + b),   b     = arctan(exp(-logsnr_max / 2))
                                           a + b = arctan(exp(-logsnr_min / 2))

    so the angle arctan(sigma_t / alpha_t) is linear in t. Salimans & Ho (2022),
    arXiv:2202.00512, use alpha_t = cos(pi t / 2); the clipped form is that of their
    published code.

    Args:
      logsnr_min: log-SNR at t = 1, in nats.
      logsnr_max: log-SNR at t = 0, in nats.

    Raises:
      ValueError: If `logsnr_min` is not below `logsnr_max`.
    """
    if not logsnr_min < logsnr_max:
        raise ValueError(
            f"logsnr_min must be below logsnr_max, got {logsnr_min} and {logsnr_max}."
        )
    first = np.arctan(np.exp(-0.5 * logsnr_max))
    last = np.arctan(np.exp(0.5 * logsnr_min))  # distance of the last angle to pi/2
    span = 0.5 * np.pi - first - last

    def logsnr(t: Float[Array, " ..."]) -> Float[Array, " ..."]:
        # cos(angle) is the sine of the angle left to pi/2: tan near pi/2 would lose
        # three digits in float32.
        alpha = jnp.sin(span * (1.0 - t) + last)
        sigma = jnp.sin(span * t + first)
        return 2.0 * (jnp.log(alpha) - jnp.log(sigma))

    return logsnr


def linear_beta(
    beta_first: float = 1e-4, beta_last: float = 0.02, num_train_steps: int = 1000
) -> Schedule:
    """The schedule of Ho et al. (2020), arXiv:2006.11239: betas linear in the step."""
    return from_betas(np.linspace(beta_first, beta_last, num_train_steps))


def scaled_linear_beta(
    beta_first: float = 0.00085, beta_last: float = 0.012, num_train_steps: int = 1000
) -> Schedule:
    """Betas whose square roots are linear in the step, as latent diffusion has them."""
    roots = np.linspace(beta_first**0.5, beta_last**0.5, num_train_steps)
    return from_betas(roots**2)


def from_betas(betas: np.ndarray) -> Schedule:
    """The log-SNR of a discrete chain, linearly interpolated between its steps.

    Step k = 0 .. T-1 of the chain lies at t = (k + 1) / T; below t = 1 / T the log-SNR
    stays at that of step 0, so a sampler can take at most T steps.

    Args:
      betas: Shape [T], each in (0, 1): the variance added by each step.

    Raises:
      ValueError: If a beta is outside (0, 1).
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not np.all((betas > 0) & (betas < 1)):
        raise ValueError(f"Betas must be a vector with entries in (0, 1), got {betas}.")
    log_alpha_squared = np.cumsum(np.log1p(-betas))
    table = log_alpha_squared - np.log(-np.expm1(log_alpha_squared))
    steps = np.arange(1, len(betas) + 1) / len(betas)

    def logsnr(t: Float[Array, " ..."]) -> Float[Array, " ..."]:
        return jnp.interp(
            t, jnp.asarray(steps, jnp.float32), jnp.asarray(table, jnp.float32)
        )

    return logsnr


def ending_in_data(schedule: Schedule) -> Schedule:
    """The same schedule with an infinite log-SNR at t = 0.

    There alpha = 1 and sigma = 0, so a step to t = 0 returns the prediction x_hat
    itself. Samplers and distillation targets share this end point, which is what makes
    the last step of the ladder exact without a special case.
    """
    return lambda t: jnp.where(t <= 0.0, jnp.inf, schedule(t))


def check_num_steps(schedule: Schedule, num_steps: int) -> None:
    """Refuses step counts whose grid the schedule cannot tell apart.

    Raises:
      ValueError: If `num_steps` is below 1, or two neighbouring times i / num_steps
        have the same log-SNR.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
    logsnr = np.asarray(schedule(jnp.arange(1, num_steps + 1) / num_steps))
    if np.any(np.diff(logsnr) >= 0):
        at = int(np.argmax(np.diff(logsnr) >= 0)) + 1
        raise ValueError(
            f"num_steps={num_steps} is more than this schedule allows: its log-SNR does"
            f" not fall between t={at}/{num_steps} and t={at + 1}/{num_steps}."
            " Use fewer steps."
        )
