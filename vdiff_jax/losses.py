"""The denoising loss and its weights.

Every loss is a weight times the mean squared error of v. Since at fixed z_t the errors
are proportional, x - x_hat = -sigma_t (v - v_hat) and eps - eps_hat =
alpha_t (v - v_hat), the losses of Salimans & Ho (2022), arXiv:2202.00512, Sec. 4 are

    name          on the error of x     on the error of v
    constant      1                     sigma^2
    snr           SNR                   alpha^2
    snr_trunc     max(SNR, 1)           max(alpha^2, sigma^2)
    snr_plus_one  SNR + 1               1
    min_snr       min(SNR, gamma)       min(alpha^2, gamma sigma^2)

(min_snr: Hang et al., 2023, arXiv:2303.09556.) The right column is bounded, where
SNR reaches exp(20) at t = 0: hence v.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vdiff_jax.diffusion import diffuse, velocity
from vdiff_jax.types import Denoiser, Examples, PerExample, Schedule

Weight: TypeAlias = Callable[[Float[Array, " batch"]], Float[Array, " batch"]]


def constant(logsnr_t: PerExample) -> PerExample:
    """Weight 1 on the error of x."""
    return jax.nn.sigmoid(-logsnr_t)


def snr(logsnr_t: PerExample) -> PerExample:
    """Weight SNR on the error of x, which is weight 1 on the error of eps."""
    return jax.nn.sigmoid(logsnr_t)


def snr_trunc(logsnr_t: PerExample) -> PerExample:
    """Weight max(SNR, 1) on the error of x: truncated SNR."""
    return jnp.maximum(snr(logsnr_t), constant(logsnr_t))


def snr_plus_one(logsnr_t: PerExample) -> PerExample:
    """Weight SNR + 1 on the error of x, which is weight 1 on the error of v."""
    return jnp.ones_like(logsnr_t)


def min_snr(gamma: float) -> Weight:
    """Weight min(SNR, gamma) on the error of x."""
    return lambda logsnr_t: jnp.minimum(snr(logsnr_t), gamma * constant(logsnr_t))


class Draws(NamedTuple):
    """The random numbers of one training step: values per example, and one key.

    Attributes:
      u: Uniform in [0, 1); gives the time.
      eps: Standard normal noise.
      flip: True for the images that are mirrored.
      u_label: Uniform in [0, 1); decides whose class is left out.
      u_w: Uniform in [0, 1); gives the guidance weight w.
      dropout: The one key; all else has a row for each example.
    """

    u: PerExample
    eps: Examples
    flip: Bool[Array, " batch"]
    u_label: PerExample
    u_w: PerExample
    dropout: Key[Array, ""]

    def map_rows(self, function: Callable[[Array], Any], dropout: Any) -> "Draws":
        """Applies a function to all but the key, which `dropout` replaces."""
        rows: dict[str, Any] = self._asdict()
        rows = {k: function(v) for k, v in rows.items() if k != "dropout"}
        return Draws(**rows, dropout=dropout)


def draw(
    key: Key[Array, ""],
    shape: tuple[int, ...],
    *,
    stratified: bool = False,
    flip: bool = False,
    noise_offset: float = 0.0,
) -> Draws:
    """Random numbers for a global batch, whatever devices it is spread over.

    Args:
      key: The step's key.
      shape: [batch, *event] of the global batch.
      stratified: Spread u evenly, one value in each interval of 1 / batch, as Kingma et
        al. (2021), arXiv:2107.00630, do; each u is still uniform by itself.
      flip: Mirror half of the images.
      noise_offset: Standard deviation of noise that is added to all pixels of a channel
        alike, so that very dark and very bright images are learnt. It makes the noise
        another than the sampler starts from: keep it small.
    """
    time, noise, mirror, dropout, label, weight = jax.random.split(key, 6)
    batch = shape[0]
    eps = jax.random.normal(noise, shape)
    if noise_offset:
        of_channel = (batch, *(1,) * (len(shape) - 2), shape[-1])
        offset = jax.random.normal(jax.random.fold_in(noise, 0), of_channel)
        eps += noise_offset * offset
    if stratified:
        u = (jax.random.uniform(time) + jnp.arange(batch) / batch) % 1.0
    else:
        u = jax.random.uniform(time, (batch,))
    return Draws(
        u=u,
        eps=eps,
        flip=jax.random.bernoulli(mirror, 0.5 if flip else 0.0, (batch,)),
        u_label=jax.random.uniform(label, (batch,)),
        u_w=jax.random.uniform(weight, (batch,)),
        dropout=dropout,
    )


def mirror(x: Examples, flip: Bool[Array, " batch"]) -> Examples:
    """Mirrors the chosen NHWC images left to right."""
    return jnp.where(flip[:, None, None, None], x[:, :, ::-1], x)


def step_index(u: PerExample, num_steps: int | Int[Array, ""]) -> PerExample:
    """Draws i uniformly from 1 .. N, as floats: i / N may be 1 and is never 0."""
    # u * N may round up to N.
    return jnp.minimum(jnp.floor(u * num_steps) + 1.0, num_steps)


def weighted_v_error(
    v_hat: Examples, v: Examples, logsnr_t: PerExample, weight: Weight
) -> PerExample:
    """The loss of each example: weight times the mean squared error of v.

    Args:
      v_hat: The prediction of v.
      v: The target, of the same shape.
      logsnr_t: The log-SNR of each example, in nats.
      weight: One of this module's weights.
    """
    error = jnp.square(v_hat - v).mean(axis=tuple(range(1, v.ndim)))
    return weight(logsnr_t) * error


def denoising_loss(
    denoise: Denoiser,
    x: Examples,
    draws: Draws,
    *,
    schedule: Schedule,
    weight: Weight,
    num_steps: int | None = None,
) -> PerExample:
    """The standard diffusion loss, one value per example; the caller averages.

    Salimans & Ho (2022), arXiv:2202.00512, Algorithm 1 and Eq. 2.

    Args:
      denoise: The network being trained, unclipped.
      x: Clean examples in [-1, 1].
      draws: The random numbers of this step.
      schedule: log-SNR of time.
      weight: One of this module's weights.
      num_steps: Trains at the times i / num_steps only; None means all of [0, 1).
    """
    t = draws.u if num_steps is None else step_index(draws.u, num_steps) / num_steps
    logsnr_t = schedule(t)
    z_t = diffuse(x, draws.eps, logsnr_t)
    v = velocity(x, draws.eps, logsnr_t)
    return weighted_v_error(denoise(z_t, logsnr_t).v, v, logsnr_t, weight)
