"""Samplers: one step from z_t to z_s, and the loop that takes N of them.

A step has two parts. A *predictor* evaluates the network once or twice for x_hat; a
*stepper* moves along it. A method is second-order here by a better x_hat for the same
DDIM step:

    name       predictor         stepper         evaluations in N steps
    ddim       at_start          ddim_step       N
    ancestral  at_start          ancestral_step  N
    dpmpp_2m   extrapolated      ddim_step       N
    heun       at_both_ends      ddim_step       2 N - 1
    stochastic at_start          stochastic_step N

`encode` goes the other way, from data to noise.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from vdiff_jax.diffusion import alpha_sigma, expand_like, predict
from vdiff_jax.schedules import ending_in_data
from vdiff_jax.types import (
    Denoiser,
    Examples,
    Keys,
    PerExample,
    Prediction,
    Scalar,
    Schedule,
)


class Step(NamedTuple):
    """Start and end of a step, and the noise and the memory that it may use.

    Attributes:
      logsnr_t: log-SNR at its start, in nats.
      logsnr_s: log-SNR at its end; `inf` in the last step.
      noise: Standard normal, of the shape of the examples.
      logsnr_u: log-SNR at the start of the step before; `-inf` in the first step.
      x_hat_u: The network's x_hat at that start; not used in the first step.
      logsnr_r: log-SNR at the end of the step after; `inf` if there is none.
      noise_input: Standard normal, for a network that takes noise beside z_t.
    """

    logsnr_t: PerExample
    logsnr_s: PerExample
    noise: Examples | None = None
    logsnr_u: PerExample | None = None
    x_hat_u: Examples | None = None
    logsnr_r: PerExample | None = None
    noise_input: Examples | None = None


Stepper: TypeAlias = Callable[[Prediction, Step], Examples]
# Gives the prediction to step with, and the network's x_hat at t.
Predictor: TypeAlias = Callable[[Denoiser, Examples, Step], tuple[Prediction, Examples]]


class Trajectory(NamedTuple):
    """Every point that a sampler passed through; the leading axis counts the steps.

    Attributes:
      z_s: Examples at the end of each step.
      x_hat: The network's x_hat at the start of each step.
    """

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
      eta: Share of fresh noise, from 0 to 1.
    """
    alpha_s, sigma_s = alpha_sigma(expand_like(step.logsnr_s, prediction.x))
    if eta == 0.0:
        return alpha_s * prediction.x + sigma_s * prediction.eps
    fresh = eta**2 * _fresh_variance(step, prediction.x)
    kept = sigma_s * jnp.sqrt(1.0 - fresh) * prediction.eps
    return alpha_s * prediction.x + kept + sigma_s * jnp.sqrt(fresh) * _noise(step)


def ancestral_step(
    prediction: Prediction, step: Step, interpolation: float | Scalar = 1.0
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


def stochastic_step(prediction: Prediction, step: Step) -> Examples:
    """Jumps two steps along the DDIM path, to r, and goes one back by adding noise.

        z_s = (alpha_s / alpha_r) z_r + sqrt(1 - exp(logsnr_s - logsnr_r)) sigma_s noise

    Meng et al. (2023), arXiv:2210.03142: only networks that were distilled for this
    jump can make it in few steps. The last step is one of DDIM.

    Raises:
      ValueError: If `step.logsnr_r` is None.
    """
    if step.logsnr_r is None:
        raise ValueError("`stochastic_step` looks one step ahead: call it by `sample`.")
    alpha_s, sigma_s = alpha_sigma(expand_like(step.logsnr_s, prediction.x))
    alpha_r, sigma_r = alpha_sigma(expand_like(step.logsnr_r, prediction.x))
    z_r = alpha_r * prediction.x + sigma_r * prediction.eps
    # In the last step both log-SNRs are inf, and r is s.
    gap = jnp.where(jnp.isinf(step.logsnr_s), 0.0, step.logsnr_s - step.logsnr_r)
    fresh = -jnp.expm1(expand_like(gap, prediction.x))
    return alpha_s / alpha_r * z_r + jnp.sqrt(fresh) * sigma_s * _noise(step)


def at_start(
    denoise: Denoiser, z_t: Examples, step: Step
) -> tuple[Prediction, Examples]:
    """The prediction at t: one evaluation, first order.

    Args:
      denoise: The denoiser.
      z_t: Noisy examples at the start of the step.
      step: The step to take.

    Returns:
      The prediction to step with, and the network's x_hat at t.
    """
    prediction = denoise(z_t, step.logsnr_t)
    return prediction, prediction.x


def with_noise(denoiser_of: Callable[[Examples], Denoiser]) -> Predictor:
    """The predictor of a network that takes noise beside z_t, fresh in each step.

    Args:
      denoiser_of: Makes the denoiser of some noise; the sampler's own is not asked.
    """

    def predictor(
        denoise: Denoiser, z_t: Examples, step: Step
    ) -> tuple[Prediction, Examples]:
        del denoise
        if step.noise_input is None:
            raise ValueError("`with_noise` needs keys: give them to `sample`.")
        return at_start(denoiser_of(step.noise_input), z_t, step)

    return predictor


def extrapolated(
    denoise: Denoiser, z_t: Examples, step: Step
) -> tuple[Prediction, Examples]:
    """Extrapolates x_hat from the step before: DPM-Solver++(2M), second order.

        D = x_hat_t + (x_hat_t - x_hat_u) / (2 r),   r = (l_t - l_u) / (l_s - l_t)

    with l the log-SNR (Lu et al., 2022, arXiv:2211.01095, Algorithm 2, whose lambda is
    l / 2). The first step has nothing before it. The last, to l_s = inf, returns
    x_hat_t itself, for an extrapolation so far would explode.

    Args:
      denoise: The denoiser.
      z_t: Noisy examples at the start of the step.
      step: The step to take, with the memory of the one before.

    Returns:
      The prediction to step with, and the network's x_hat at t.

    Raises:
      ValueError: If the step has no memory of the one before.
    """
    x = denoise(z_t, step.logsnr_t).x
    if step.logsnr_u is None or step.x_hat_u is None:
        raise ValueError("`extrapolated` needs the step before: call it by `sample`.")
    slope = 0.5 * (step.logsnr_s - step.logsnr_t) / (step.logsnr_t - step.logsnr_u)
    slope = expand_like(jnp.where(jnp.isinf(step.logsnr_s), 0.0, slope), x)
    better = x + slope * (x - step.x_hat_u)
    return predict(better, z_t, step.logsnr_t, "x"), x


def at_both_ends(
    denoise: Denoiser, z_t: Examples, step: Step
) -> tuple[Prediction, Examples]:
    """Averages x_hat at both ends of the step: Heun's method, second order.

    DDIM solves the linear part of the ODE exactly, and Heun's rule is applied to the
    rest: DPM-Solver++(2S) of Lu et al. (2022), arXiv:2211.01095, with its inner point
    at the end of the step (r = 1). Unlike Heun's rule for eps (Karras et al., 2022,
    arXiv:2206.00364) it divides by no small alpha, so it may start at pure noise. The
    last step evaluates the network once.

    Args:
      denoise: The denoiser.
      z_t: Noisy examples at the start of the step.
      step: The step to take.

    Returns:
      The prediction to step with, and the network's x_hat at t.
    """
    first = denoise(z_t, step.logsnr_t)

    def average() -> Examples:
        z_s = ddim_step(first, step)
        return 0.5 * (first.x + denoise(z_s, step.logsnr_s).x)

    # All examples of a batch take their last step together.
    is_last = jnp.isinf(step.logsnr_s[0])
    better = lax.cond(is_last, lambda: first.x, average)
    return predict(better, z_t, step.logsnr_t, "x"), first.x


def evaluations(predictor: Predictor, num_steps: int) -> int:
    """Number of times the network is evaluated for one sample in `num_steps` steps."""
    return 2 * num_steps - 1 if predictor is at_both_ends else num_steps


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
    predictor: Predictor = at_start,
    keys: Keys | None = None,
    first: int | Int[Array, ""] | None = None,
) -> Examples:
    """Takes `num_steps` steps from pure noise at t = 1 to an estimate of x at t = 0.

    The times are i / num_steps, the first of them 1, and the last step returns x_hat.

    Args:
      denoise: The denoiser, clipped if it should be.
      z_1: Standard normal noise; z_t if `first` is given.
      schedule: log-SNR of time.
      num_steps: At least 1. A Python integer makes one `lax.scan`; a traced integer
        makes a loop that is compiled once for every step count.
      stepper: `ddim_step`, `ancestral_step`, or one of them with its option bound.
      predictor: `at_start`, `extrapolated` or `at_both_ends`; see the module.
      keys: One key per example, for steppers that draw noise. An example's noise then
        depends on its own key alone, not on the batch it is in.
      first: Takes only the last so many steps, from t = first / num_steps.

    Returns:
      Samples in model units.
    """
    first = num_steps if first is None else first
    advance = _advance(denoise, schedule, num_steps, first, stepper, predictor, keys)
    start = _State(z_1, jnp.zeros_like(z_1))
    if isinstance(first, int):
        countdown = jnp.arange(first, 0, -1)
        end, _ = lax.scan(lambda state, i: (advance(state, i), None), start, countdown)
        return end.z
    return lax.fori_loop(0, first, lambda k, state: advance(state, first - k), start).z


def sample_trajectory(
    denoise: Denoiser,
    z_1: Examples,
    *,
    schedule: Schedule,
    num_steps: int,
    stepper: Stepper = ddim_step,
    predictor: Predictor = at_start,
    keys: Keys | None = None,
) -> Trajectory:
    """Like `sample`, but returns every z_s and the network's x_hat at its t.

    The samples are `trajectory.z_s[-1]`, which equals `trajectory.x_hat[-1]`.

    Args:
      denoise: The denoiser, clipped if it should be.
      z_1: Standard normal noise.
      schedule: log-SNR of time.
      num_steps: At least 1.
      stepper: `ddim_step`, `ancestral_step`, or one of them with its option bound.
      predictor: `at_start`, `extrapolated` or `at_both_ends`.
      keys: One key per example, for steppers that draw noise.
    """
    advance = _advance(
        denoise, schedule, num_steps, num_steps, stepper, predictor, keys
    )

    def body(state: _State, i: Array) -> tuple[_State, Trajectory]:
        state = advance(state, i)
        return state, Trajectory(state.z, state.x_hat)

    start = _State(z_1, jnp.zeros_like(z_1))
    return lax.scan(body, start, jnp.arange(num_steps, 0, -1))[1]


def encode(
    denoise: Denoiser,
    x: Examples,
    *,
    schedule: Schedule,
    num_steps: int | Int[Array, ""],
) -> Examples:
    """The noise from which DDIM would sample these examples: its steps, backwards.

    Song et al. (2021), arXiv:2010.02502, Sec. 4.3. With the exact denoiser, sampling
    from it returns x but for an error of order 1 / num_steps.

    Args:
      denoise: The denoiser, unclipped; or one distilled for this way.
      x: Examples in model units.
      schedule: log-SNR of time; finite at t = 0.
      num_steps: At least 1.

    Returns:
      z_1, of the shape of `x`.
    """

    def advance(i: Int[Array, ""], z_t: Examples) -> Examples:
        logsnr_t, logsnr_s = (
            jnp.broadcast_to(schedule(at / num_steps), z_t.shape[:1])
            for at in (i, i + 1)
        )
        return ddim_step(denoise(z_t, logsnr_t), Step(logsnr_t, logsnr_s))

    alpha_0, _ = alpha_sigma(schedule(jnp.zeros(())))
    return lax.fori_loop(0, num_steps, advance, alpha_0 * x)


def _normal(keys: Keys, like: Examples) -> Examples:
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:]))(keys)


class _State(NamedTuple):
    """The point that a sampler is at, and the network's x_hat one step before."""

    z: Examples
    x_hat: Examples


def _advance(
    denoise: Denoiser,
    schedule: Schedule,
    num_steps: int | Int[Array, ""],
    first: int | Int[Array, ""],
    stepper: Stepper,
    predictor: Predictor,
    keys: Keys | None,
) -> Callable[[_State, Array], _State]:
    """The step from t = i / N to s = (i - 1) / N, for any i."""
    schedule = ending_in_data(schedule)

    def advance(state: _State, i: Array) -> _State:
        z_t = state.z
        u = jnp.minimum(i + 1, num_steps) / num_steps
        times = (
            schedule(i / num_steps),
            schedule((i - 1) / num_steps),
            jnp.where(i == first, -jnp.inf, schedule(u)),
            schedule((i - 2) / num_steps),
        )
        logsnr_t, logsnr_s, logsnr_u, logsnr_r = (
            jnp.broadcast_to(logsnr, z_t.shape[:1]) for logsnr in times
        )
        noise = noise_input = None
        if keys is not None:
            of_step = jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
            noise = _normal(of_step, z_t)
            of_input = jax.vmap(lambda key: jax.random.fold_in(key, 1))(of_step)
            noise_input = _normal(of_input, z_t)
        step = Step(
            logsnr_t, logsnr_s, noise, logsnr_u, state.x_hat, logsnr_r, noise_input
        )
        prediction, x_hat = predictor(denoise, z_t, step)
        return _State(stepper(prediction, step), x_hat)

    return advance
