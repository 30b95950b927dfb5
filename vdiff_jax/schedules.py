"""Noise schedules: time t in [0, 1] to log-SNR in nats, strictly decreasing.

t = 0 is data and t = 1 is noise. log-SNR is log(alpha_t^2 / sigma_t^2).
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdiff_jax.types import Schedule

Chain: TypeAlias = Literal[
    "linear_beta", "scaled_linear_beta", "squared_cosine_beta", "betas"
]


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


def linear_betas(
    beta_first: float = 1e-4, beta_last: float = 0.02, num_train_steps: int = 1000
) -> np.ndarray:
    """The chain of Ho et al. (2020), arXiv:2006.11239: betas linear in the step.

    Args:
      beta_first: Variance that the first step adds, in (0, 1).
      beta_last: Variance that the last step adds, in (0, 1).
      num_train_steps: T, the number of steps.

    Returns:
      Shape [T], float64.
    """
    return np.linspace(beta_first, beta_last, num_train_steps)


def scaled_linear_betas(
    beta_first: float = 0.00085, beta_last: float = 0.012, num_train_steps: int = 1000
) -> np.ndarray:
    """Betas whose square roots are linear in the step, as in latent diffusion.

    Args:
      beta_first: Variance that the first step adds, in (0, 1).
      beta_last: Variance that the last step adds, in (0, 1).
      num_train_steps: T, the number of steps.

    Returns:
      Shape [T], float64.
    """
    return np.linspace(beta_first**0.5, beta_last**0.5, num_train_steps) ** 2


def squared_cosine_betas(num_train_steps: int = 1000) -> np.ndarray:
    """The chain of Nichol & Dhariwal (2021), arXiv:2102.09672, Eq. 17, up to 0.999."""
    t = np.arange(num_train_steps + 1) / num_train_steps
    alpha_squared = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1.0 - alpha_squared[1:] / alpha_squared[:-1], 0.999)


def betas_of(
    schedule: str,
    *,
    beta_first: float,
    beta_last: float,
    num_train_steps: int,
    betas: Sequence[float] = (),
) -> np.ndarray:
    """The betas of a discrete chain, by its name.

    Args:
      schedule: linear_beta, scaled_linear_beta, squared_cosine_beta, or betas.
      beta_first: Variance of the first step, for the two linear chains.
      beta_last: Variance of the last step, for the two linear chains.
      num_train_steps: T, the number of steps; `betas` has its own.
      betas: Variance of every step, for the chain `betas`.

    Returns:
      Shape [T], float64.

    Raises:
      ValueError: If there is no chain of that name.
    """
    if schedule == "linear_beta":
        return linear_betas(beta_first, beta_last, num_train_steps)
    if schedule == "scaled_linear_beta":
        return scaled_linear_betas(beta_first, beta_last, num_train_steps)
    if schedule == "squared_cosine_beta":
        return squared_cosine_betas(num_train_steps)
    if schedule == "betas":
        return np.asarray(betas, np.float64)
    raise ValueError(
        f"{schedule!r} is no discrete chain; choose from {get_args(Chain)}."
    )


def logsnr_of_betas(betas: np.ndarray) -> np.ndarray:
    """The log-SNR after each step of a discrete chain, in float64.

    Args:
      betas: Shape [T], each in [0, 1): the variance that the step adds.

    Returns:
      Shape [T], falling, in nats.

    Raises:
      ValueError: If a beta is outside [0, 1), or the first is 0.
    """
    betas = np.asarray(betas, np.float64)
    inside = np.all((betas >= 0) & (betas < 1))
    if betas.ndim != 1 or len(betas) == 0 or not inside or betas[0] == 0:
        raise ValueError(
            "Betas must be a vector with entries in [0, 1), the first above 0, got"
            f" {betas}."
        )
    log_alpha_squared = np.cumsum(np.log1p(-betas))
    return log_alpha_squared - np.log(-np.expm1(log_alpha_squared))


def linear_beta(
    beta_first: float = 1e-4, beta_last: float = 0.02, num_train_steps: int = 1000
) -> Schedule:
    """The schedule of `linear_betas`, whose arguments it takes.

    Args:
      beta_first: Variance that the first step adds, in (0, 1).
      beta_last: Variance that the last step adds, in (0, 1).
      num_train_steps: T, the number of steps.
    """
    return from_betas(linear_betas(beta_first, beta_last, num_train_steps))


def scaled_linear_beta(
    beta_first: float = 0.00085, beta_last: float = 0.012, num_train_steps: int = 1000
) -> Schedule:
    """The schedule of `scaled_linear_betas`, whose arguments it takes.

    Args:
      beta_first: Variance that the first step adds, in (0, 1).
      beta_last: Variance that the last step adds, in (0, 1).
      num_train_steps: T, the number of steps.
    """
    return from_betas(scaled_linear_betas(beta_first, beta_last, num_train_steps))


def from_betas(betas: np.ndarray) -> Schedule:
    """The log-SNR of a discrete chain, linearly interpolated between its steps.

    Step k = 0 .. T-1 of the chain lies at t = (k + 1) / T; below t = 1 / T the log-SNR
    stays at that of step 0, so a sampler can take at most T steps.

    Args:
      betas: Shape [T], each in [0, 1): the variance that the step adds.

    Raises:
      ValueError: If a beta is outside [0, 1), or the first is 0.
    """
    table = logsnr_of_betas(betas)
    steps = np.arange(1, len(table) + 1) / len(table)

    def logsnr(t: Float[Array, " ..."]) -> Float[Array, " ..."]:
        return jnp.interp(
            t, jnp.asarray(steps, jnp.float32), jnp.asarray(table, jnp.float32)
        )

    return logsnr


def ending_in_noise(betas: np.ndarray, logsnr_min: float = -20.0) -> np.ndarray:
    """The chain whose last step leaves no signal, all others moved in proportion.

    Lin et al. (2023), arXiv:2305.08891, Algorithm 1: alpha is shifted and scaled so
    that it falls to 0 and begins as before. Here it ends at a finite log-SNR.

    Args:
      betas: Shape [T], each in [0, 1): the variance that the step adds.
      logsnr_min: log-SNR after the last step, in nats.

    Returns:
      The new betas, shape [T], float64.
    """
    alpha = np.sqrt(np.cumprod(1.0 - np.asarray(betas, np.float64)))
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    alpha_squared = np.maximum(alpha**2, 1.0 / (1.0 + np.exp(-logsnr_min)))
    return 1.0 - alpha_squared / np.concatenate([[1.0], alpha_squared[:-1]])


def ending_in_data(schedule: Schedule) -> Schedule:
    """The same schedule with an infinite log-SNR at t = 0.

    There alpha = 1 and sigma = 0, so a step to t = 0 returns the prediction x_hat
    itself. Samplers and distillation targets share this end point, which is what makes
    the last step of the ladder exact without a special case.
    """
    return lambda t: jnp.where(t <= 0.0, jnp.inf, schedule(t))


def check_num_steps(schedule: Schedule, num_steps: int) -> None:
    """Refuses a number of steps for which two neighbouring times share a log-SNR.

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
