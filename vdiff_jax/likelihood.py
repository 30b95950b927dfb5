"""Bits per dimension of uint8 images: the variational bound, and the flow's density.

Averaged over keys, both are upper bounds of -log2 P(image) / d, where d counts pixels
times channels. They are for undistilled models only: a student's x_hat is where its
teacher's steps end, not the mean of x given z_t, and its few steps are not the flow of
an ODE, so neither number would speak of the student's samples.

The variational bound of Kingma et al. (2021), arXiv:2107.00630, from z_0 at logsnr_max
to z_1 at logsnr_min, has three terms:

(1)  prior           KL(q(z_1 | x) || N(0, I))
(2)  reconstruction  -log p(x | z_0), where each value alone is one of the 256 greys g,
                     with probability proportional to N(z_0; alpha_0 g, sigma_0^2)
(3)  diffusion       1/2 integral E |eps - eps_hat|^2 dlogsnr

(3) is the limit of infinitely many steps, and the same for every schedule. With T
steps, each of them delta in log-SNR, |eps - eps_hat|^2 is taken at the noisier end of
each step, and counts expm1(delta) / delta times. Steps even in the time of the cosine
schedule make a poor bound: the first of them alone holds nearly all of the SNR.

The probability flow of Song et al. (2021), arXiv:2011.13456, obeys dz / dphi = v_hat in
the angle phi = arctan(sigma / alpha), from data to noise. Hence

(4)  log p(z_0) = log N(z_1; 0, I) + integral tr(dv_hat / dz) dphi

By default logsnr_max is 13.3, and not the 20 of training: there the noise already is a
sixth of a grey value, while (3) and (4) magnify an error of x_hat by 1 / sigma. A
denoiser that does not know that pixels are whole greys pays for greys it need not have
told apart: where its density is smooth, the bound lies above it by 0.56 bits at 13.3,
0.14 at 12.5 and 0.03 at 12. Denoisers are unclipped, and evaluated only at log-SNRs
between the two ends: keep these within the range that the network was trained for.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key, UInt8

from vdiff_jax.diffusion import alpha_sigma, diffuse, from_pixels
from vdiff_jax.types import Denoiser, Examples, PerExample

_GREY = 2.0 / 255.0  # from one grey value to the next, in model units


def variational_bits(
    denoise: Denoiser,
    image: UInt8[Array, " batch *event"],
    key: Key[Array, ""],
    *,
    logsnr_min: float = -20.0,
    logsnr_max: float = 13.3,
    num_steps: int | None = None,
    num_times: int = 16,
) -> PerExample:
    """An unbiased estimate of the variational bound, in bits per dimension.

    Args:
      denoise: The model, unclipped.
      image: Pixels.
      key: Average over keys, or raise `num_times`, to come closer to the bound.
      logsnr_min: log-SNR at the noise end, in nats.
      logsnr_max: log-SNR at the data end, where the greys are read off z_0.
      num_steps: Steps of the discrete bound, even in log-SNR. None is the continuous
        bound.
      num_times: Evaluations of the network for each image.

    Raises:
      ValueError: If the image is not uint8, `logsnr_min` is not below `logsnr_max`, or
        a number of steps or times is below 1.
    """
    reading, diffusing = jax.random.split(key)
    diffusion = diffusion_bits(
        denoise,
        from_pixels(image),
        diffusing,
        logsnr_min=logsnr_min,
        logsnr_max=logsnr_max,
        num_steps=num_steps,
        num_times=num_times,
    )
    reconstruction = reconstruction_bits(image, reading, logsnr_max)
    return prior_bits(from_pixels(image), logsnr_min) + reconstruction + diffusion


def prior_bits(x: Examples, logsnr_1: float) -> PerExample:
    """The prior's term (1): information on x left in z_1, in bits per dimension."""
    minus_log_variance = jax.nn.softplus(logsnr_1)
    signal = jax.nn.sigmoid(logsnr_1) * (jnp.square(x) - 1.0)
    return _bits(0.5 * (signal + minus_log_variance))


def reconstruction_bits(
    image: UInt8[Array, " batch *event"], key: Key[Array, ""], logsnr_0: float
) -> PerExample:
    """The term of reconstruction (2): the image from z_0, in bits per dimension.

    With w = (x - g) exp(logsnr_0 / 2), the odds of a grey g against the true one are
    exp(-w (eps + w / 2)), whose sum over g cannot overflow.

    Args:
      image: Pixels.
      key: Draws the noise of z_0.
      logsnr_0: log-SNR of z_0, in nats.

    Raises:
      ValueError: If the image is not uint8.
    """
    _check_uint8(image)
    eps = jax.random.normal(key, image.shape)
    unit = _GREY * math.exp(0.5 * logsnr_0)

    def add(odds: Array, grey: Array) -> tuple[Array, None]:
        w = unit * (image.astype(jnp.float32) - grey)
        return odds + jnp.exp(-w * (eps + 0.5 * w)), None

    odds, _ = lax.scan(add, jnp.zeros_like(eps), jnp.arange(256.0))
    return _bits(jnp.log(odds))


def diffusion_bits(
    denoise: Denoiser,
    x: Examples,
    key: Key[Array, ""],
    *,
    logsnr_min: float = -20.0,
    logsnr_max: float = 13.3,
    num_steps: int | None = None,
    num_times: int = 16,
) -> PerExample:
    """The term of diffusion (3), from z_1 to z_0: estimated, in bits per dimension.

    Args:
      denoise: The model, unclipped.
      x: Examples in model units.
      key: Average over keys, or raise `num_times`, to come closer to the term.
      logsnr_min: log-SNR at the noise end, in nats.
      logsnr_max: log-SNR at the data end, in nats.
      num_steps: Steps of the discrete bound, even in log-SNR. None is the continuous
        bound.
      num_times: Evaluations of the network for each image.

    Raises:
      ValueError: If `logsnr_min` is not below `logsnr_max`, or a number of steps or
        times is below 1.
    """
    _check_ends(logsnr_min, logsnr_max)
    _check_count("num_times", num_times)
    time, noise = jax.random.split(key)
    times = _draw_times(time, num_times, x.shape[0], logsnr_min, logsnr_max)
    if num_steps is not None:
        _check_count("num_steps", num_steps)
        times = _on_grid(times, num_steps, logsnr_min, logsnr_max)

    def squared_error(inputs: tuple[Array, Array]) -> PerExample:
        key, logsnr_t = inputs
        eps = jax.random.normal(key, x.shape)
        z_t = diffuse(x, eps, logsnr_t)
        return _bits(jnp.square(denoise(z_t, logsnr_t).eps - eps))

    keys = jax.random.split(noise, num_times)
    errors = lax.map(squared_error, (keys, times.logsnr))
    return (0.5 * times.weight * errors).mean(axis=0)


def flow_bits(
    denoise: Denoiser,
    image: UInt8[Array, " batch *event"],
    key: Key[Array, ""],
    *,
    logsnr_min: float = -20.0,
    logsnr_max: float = 13.3,
    num_steps: int = 32,
) -> PerExample:
    """Bits per dimension by the probability flow, at a random point of the grey cell.

    A pixel may lie anywhere within half a grey value (uniform dequantization), and the
    trace is Hutchinson's estimate with one Rademacher probe per image, kept all along
    the flow. Averages over keys bound -log2 P(image) / d from above.

    Args:
      denoise: The model, unclipped.
      image: Pixels.
      key: Draws the point in the cell and the probe.
      logsnr_min: log-SNR at the noise end, in nats.
      logsnr_max: log-SNR at the data end, in nats.
      num_steps: Runge-Kutta steps; each evaluates the network and its derivative four
        times.

    Raises:
      ValueError: If the image is not uint8, `logsnr_min` is not below `logsnr_max`, or
        `num_steps` is below 1.
    """
    point, sign = jax.random.split(key)
    density = density_bits(
        denoise,
        dequantize(image, point),
        jax.random.rademacher(sign, image.shape, jnp.float32),
        logsnr_min=logsnr_min,
        logsnr_max=logsnr_max,
        num_steps=num_steps,
    )
    return density - math.log2(_GREY)


def dequantize(image: UInt8[Array, " batch *event"], key: Key[Array, ""]) -> Examples:
    """Model units from pixels, uniform within half a grey value to either side.

    Raises:
      ValueError: If the image is not uint8.
    """
    _check_uint8(image)
    return from_pixels(image) + _GREY * (jax.random.uniform(key, image.shape) - 0.5)


def density_bits(
    denoise: Denoiser,
    x: Examples,
    probe: Examples,
    *,
    logsnr_min: float = -20.0,
    logsnr_max: float = 13.3,
    num_steps: int = 32,
) -> PerExample:
    """-log2 p(x) / d by (4), where z_0 = alpha_0 x.

    Runge-Kutta's method of order 4 takes steps even in artanh(alpha), in which
    dz / dartanh(alpha) = -sigma v_hat. The steps shrink with sigma towards the data,
    where the flow turns as fast as 1 / sigma, and are even in alpha towards the noise.

    Args:
      denoise: The model, unclipped.
      x: Real values in model units.
      probe: e in the estimate e^T (dv_hat / dz) e of the trace; its components have
        variance 1 and no correlation.
      logsnr_min: log-SNR at the noise end, in nats.
      logsnr_max: log-SNR at the data end, in nats.
      num_steps: Runge-Kutta steps, at least 1.

    Raises:
      ValueError: If `logsnr_min` is not below `logsnr_max`, or `num_steps` is below 1.
    """
    _check_ends(logsnr_min, logsnr_max)
    _check_count("num_steps", num_steps)

    def velocity(state: _Flow, logsnr: Array) -> _Flow:
        logsnr_t = jnp.broadcast_to(logsnr, x.shape[:1])
        _, sigma_t = alpha_sigma(logsnr)
        # The probe goes in from the left: custom gradients seldom have a forward mode.
        v_hat, pull_back = jax.vjp(lambda z_t: denoise(z_t, logsnr_t).v, state.z)
        (turned,) = pull_back(probe)
        return _Flow(sigma_t * v_hat, sigma_t * _bits(probe * turned))

    alpha_0, _ = alpha_sigma(jnp.float32(logsnr_max))
    start = _Flow(alpha_0 * x, jnp.zeros(x.shape[:1]))
    end = _runge_kutta(velocity, start, *_stages(logsnr_min, logsnr_max, num_steps))
    noise = _bits(0.5 * jnp.square(end.z) + 0.5 * math.log(2.0 * math.pi))
    return noise - end.growth - jnp.log2(alpha_0)


class _Times(NamedTuple):
    """Log-SNRs, and one over the density with which each was drawn."""

    logsnr: Float[Array, " times batch"]
    weight: Float[Array, " times batch"]


def _draw_times(
    key: Key[Array, ""],
    num_times: int,
    batch: int,
    logsnr_min: float,
    logsnr_max: float,
) -> _Times:
    """Draws log-SNRs with a density proportional to sigmoid(logsnr / 2 - 1).

    The error of eps falls from 1, where the noise is below the finest detail, to 0:
    this density does so about as fast, and has a cumulative with an inverse. An image
    draws once from each of `num_times` parts of equal probability, and within a part
    the images of a batch share out as many smaller ones: VDM's low-discrepancy times,
    for each image as well as for the batch.
    """
    shuffle, jitter = jax.random.split(key)
    place = jnp.argsort(jax.random.uniform(shuffle, (num_times, batch)), axis=1)
    part = jnp.arange(num_times, dtype=jnp.float32)[:, None]
    u = (place.astype(jnp.float32) + jax.random.uniform(jitter, place.shape)) / batch
    u = (part + u) / num_times

    first, last = (jax.nn.softplus(0.5 * end - 1.0) for end in (logsnr_min, logsnr_max))
    logsnr = 2.0 + 2.0 * jnp.log(jnp.expm1(first + u * (last - first)))
    weight = 2.0 * (last - first) / jax.nn.sigmoid(0.5 * logsnr - 1.0)
    return _Times(logsnr, weight)


def _on_grid(
    times: _Times, num_steps: int, logsnr_min: float, logsnr_max: float
) -> _Times:
    """Moves times to the noisier end of their step: an integral becomes its sum."""
    delta = (logsnr_max - logsnr_min) / num_steps
    index = jnp.floor((times.logsnr - logsnr_min) / delta)
    index = jnp.clip(index, 0.0, num_steps - 1.0)  # the ends may round outwards
    weight = times.weight * (math.expm1(delta) / delta)
    return _Times(logsnr_min + index * delta, weight)


class _Flow(NamedTuple):
    """A point of the flow, or its velocity there.

    Attributes:
      z: Noisy examples.
      growth: log2 of the volume they have grown by since the data, per dimension.
    """

    z: Examples
    growth: PerExample


def _stages(
    logsnr_min: float, logsnr_max: float, num_steps: int
) -> tuple[Float[Array, " steps stages"], float]:
    """The log-SNRs of the four stages of every step, and the length of a step."""
    # alpha = tanh(a) and sigma = 1 / cosh(a), so a = arcsinh(exp(logsnr / 2)).
    first, last = np.arcsinh(np.exp([0.5 * logsnr_max, 0.5 * logsnr_min]))
    length = float(first - last) / num_steps
    steps = np.arange(num_steps)[:, None] + np.array([[0.0, 0.5, 0.5, 1.0]])
    logsnr = 2.0 * np.log(np.sinh(first - length * steps))
    return jnp.asarray(logsnr, jnp.float32), length


def _runge_kutta(
    velocity: Callable[[_Flow, Array], _Flow],
    start: _Flow,
    logsnrs: Float[Array, " steps stages"],
    length: float,
) -> _Flow:
    """The classical method of order 4; the network is compiled once."""
    reaches = length * jnp.array([0.0, 0.5, 0.5, 1.0])
    shares = length * jnp.array([1.0, 2.0, 2.0, 1.0]) / 6.0

    def step(state: _Flow, logsnrs: Array) -> tuple[_Flow, None]:
        def stage(carry: tuple[_Flow, _Flow], inputs: tuple[Array, Array, Array]):
            before, end = carry
            logsnr, reach, share = inputs
            here = velocity(_along(state, reach, before), logsnr)
            return (here, _along(end, share, here)), None

        still = jax.tree.map(jnp.zeros_like, state)
        (_, end), _ = lax.scan(stage, (still, state), (logsnrs, reaches, shares))
        return end, None

    return lax.scan(step, start, logsnrs)[0]


def _along(state: _Flow, length: Array, velocity: _Flow) -> _Flow:
    return _Flow(state.z + length * velocity.z, state.growth + length * velocity.growth)


def _bits(nats: Examples) -> PerExample:
    """Bits per dimension, from nats in every dimension."""
    return nats.mean(axis=tuple(range(1, nats.ndim))) / math.log(2.0)


def _check_uint8(image: Array) -> None:
    if image.dtype != jnp.uint8:
        raise ValueError(
            f"Expected pixels, uint8 from 0 to 255, got {image.dtype}: a likelihood in"
            " bits is that of the 256 grey values. `diffusion.to_pixels` makes them."
        )


def _check_ends(logsnr_min: float, logsnr_max: float) -> None:
    if not logsnr_min < logsnr_max:
        raise ValueError(
            f"logsnr_min must be below logsnr_max, got {logsnr_min} and {logsnr_max}."
        )


def _check_count(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}.")
