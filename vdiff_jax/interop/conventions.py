"""Other projects' conventions for a denoiser: ours in theirs, theirs in ours.

Functions of all of them are changes of variables of one. With log-SNR lambda, alpha and
sigma of it, and z_t = alpha x + sigma eps:

    convention     takes                predicts   noise level
    edm            x + s eps            x          s = exp(-lambda / 2)
    v_diffusion    z_t                  v          t, with tan(pi t / 2) = s
    flow           (1 - q) x + q eps    eps - x    q = sigma / (alpha + sigma)
    ddpm           z_t                  eps        the number of a step

edm is that of Karras et al. (2022), arXiv:2206.00364, and of k-diffusion; flow that of
Liu et al. (2022), arXiv:2209.03003, data at q = 0. A Euler step of any of them is one
of our DDIM steps. In float32 their noise goes up to s = 22026 at log-SNR -20, where
x + s eps - x has lost three digits: samplers of others should begin at s = 80 to 160.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from vdiff_jax.diffusion import alpha_sigma, expand_like, predict
from vdiff_jax.nets.conditioning import Table, timestep
from vdiff_jax.schedules import ending_in_data
from vdiff_jax.types import Denoiser, Examples, PerExample, Prediction, Schedule

Convention: TypeAlias = Literal["edm", "v_diffusion", "flow", "ddpm"]
# (examples, noise level of each) -> the quantity that the convention predicts.
Function: TypeAlias = Callable[[Examples, PerExample], Examples]


def as_edm(denoise: Denoiser) -> Function:
    """Our denoiser as a function of (x + s eps, s) that predicts x."""

    def function(noisy: Examples, s: PerExample) -> Examples:
        z_t = noisy / expand_like(jnp.sqrt(1.0 + s**2), noisy)
        return denoise(z_t, -2.0 * jnp.log(s)).x

    return function


def as_v_diffusion(denoise: Denoiser) -> Function:
    """Our denoiser as a function of (z_t, t) that predicts v."""
    return lambda z_t, t: denoise(z_t, -2.0 * jnp.log(jnp.tan(0.5 * jnp.pi * t))).v


def as_flow(denoise: Denoiser) -> Function:
    """Our denoiser as a function of ((1 - q) x + q eps, q) that predicts eps - x."""

    def function(noisy: Examples, q: PerExample) -> Examples:
        scale = expand_like(jnp.sqrt((1.0 - q) ** 2 + q**2), noisy)
        prediction = denoise(noisy / scale, 2.0 * (jnp.log1p(-q) - jnp.log(q)))
        return prediction.eps - prediction.x

    return function


def as_ddpm(denoise: Denoiser, table: Table) -> Function:
    """Our denoiser as a function of (z_t, number of a step) that predicts eps.

    Args:
      denoise: Our denoiser.
      table: The log-SNR of each step; see `schedules.logsnr_of_betas`.
    """
    numbers = jnp.arange(len(table))
    falling = jnp.asarray(table)
    return lambda z_t, k: denoise(z_t, jnp.interp(k, numbers, falling)).eps


def from_edm(function: Function) -> Denoiser:
    """A denoiser of ours from a function of (x + s eps, s) that predicts x."""

    def denoise(z_t: Examples, logsnr_t: PerExample) -> Prediction:
        alpha_t, _ = alpha_sigma(expand_like(logsnr_t, z_t))
        x = function(z_t / alpha_t, jnp.exp(-0.5 * logsnr_t))
        return predict(x, z_t, logsnr_t, "x")

    return denoise


def from_v_diffusion(function: Function) -> Denoiser:
    """A denoiser of ours from a function of (z_t, t) that predicts v."""

    def denoise(z_t: Examples, logsnr_t: PerExample) -> Prediction:
        t = jnp.arctan(jnp.exp(-0.5 * logsnr_t)) / (0.5 * jnp.pi)
        return predict(function(z_t, t), z_t, logsnr_t, "v")

    return denoise


def from_flow(function: Function) -> Denoiser:
    """A denoiser of ours from a function of ((1 - q) x + q eps, q) for eps - x."""

    def denoise(z_t: Examples, logsnr_t: PerExample) -> Prediction:
        alpha_t, sigma_t = alpha_sigma(logsnr_t)
        q, scale = sigma_t / (alpha_t + sigma_t), expand_like(alpha_t + sigma_t, z_t)
        noisy = z_t / scale
        # (1 - q) x + q eps = noisy and eps - x = difference
        difference = function(noisy, q)
        x = noisy - expand_like(q, z_t) * difference
        eps = noisy + expand_like(1.0 - q, z_t) * difference
        alpha_t, sigma_t = expand_like(alpha_t, z_t), expand_like(sigma_t, z_t)
        return Prediction(x, eps, alpha_t * eps - sigma_t * x)

    return denoise


def from_ddpm(function: Function, table: Table) -> Denoiser:
    """A denoiser of ours from a function of (z_t, number of a step) for eps.

    Between two steps it is evaluated at the fraction of a number.

    Args:
      function: The function to adapt.
      table: The log-SNR of each step; see `schedules.logsnr_of_betas`.
    """

    def denoise(z_t: Examples, logsnr_t: PerExample) -> Prediction:
        eps = function(z_t, timestep(logsnr_t, table))
        return predict(eps, z_t, logsnr_t, "eps")

    return denoise


def noise_levels(
    schedule: Schedule, num_steps: int, convention: Convention
) -> Float[Array, " steps"]:
    """Noise levels at which another project's sampler takes our N steps.

    Args:
      schedule: Our schedule.
      num_steps: N.
      convention: The sampler's convention, but not ddpm, which has its own grid.

    Returns:
      [N + 1] noise levels, falling to that of data.

    Raises:
      ValueError: If the convention is ddpm.
    """
    if convention == "ddpm":
        raise ValueError("A DDPM's steps are those of its chain; see `as_ddpm`.")
    times = jnp.arange(num_steps, -1, -1) / num_steps
    s = jnp.exp(-0.5 * ending_in_data(schedule)(times))
    if convention == "edm":
        return s
    return s / (1.0 + s) if convention == "flow" else jnp.arctan(s) / (0.5 * jnp.pi)


def in_nchw(function: Function) -> Callable[[Any, Any], Array]:
    """A function for images [batch, channels, height, width], as torch has them.

    It takes and gives anything that supports DLPack, so that no bytes are copied on the
    way from and to torch: `torch.from_dlpack(in_nchw(f)(images, levels))`.
    """

    def transposed(images: Any, levels: Any) -> Array:
        images, levels = jnp.from_dlpack(images), jnp.from_dlpack(levels)
        return function(images.transpose(0, 2, 3, 1), levels).transpose(0, 3, 1, 2)

    return transposed
