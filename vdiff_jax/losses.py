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

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num

from vdiff_jax.diffusion import diffuse, velocity
from vdiff_jax.types import Denoiser, Examples, Keys, PerExample, Schedule

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


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("u", "key"),
    meta_fields=("noise_offset",),
)
@dataclasses.dataclass(frozen=True)
class Draws:
    """The chance in one update: a loss draws what it needs, from a key per example.

    What it draws goes by a name, so that a draw more changes none of the others, and
    none depends on how many devices the batch is spread over.

    Attributes:
      u: Uniform in [0, 1); gives the time.
      key: A key for each example, which everything else comes from.
      noise_offset: Standard deviation of noise that `noise` adds to all pixels of a
        channel alike, so that very dark and very bright images are learnt. It makes the
        noise another than the sampler starts from: keep it small.
    """

    u: PerExample
    key: Keys
    noise_offset: float = 0.0

    def uniform(self, name: str) -> PerExample:
        """Uniform in [0, 1), a value for each example."""
        return jax.vmap(jax.random.uniform)(self._keys(name))

    def normal(self, name: str, shape: tuple[int, ...]) -> Examples:
        """Standard normal, of a shape for each example."""
        return jax.vmap(lambda key: jax.random.normal(key, shape))(self._keys(name))

    def eps(self, shape: tuple[int, ...]) -> Examples:
        """The noise in z_t, of the shape of an example."""
        eps = self.normal("eps", shape)
        if self.noise_offset:
            of_channel = (*(1,) * (len(shape) - 1), shape[-1])
            eps += self.noise_offset * self.normal("offset", of_channel)
        return eps

    @property
    def dropout(self) -> Key[Array, ""]:
        """The key of dropout, whose masks are of a device's part of the batch."""
        return self._keys("dropout")[0]

    def _keys(self, name: str) -> Keys:
        number = zlib.crc32(name.encode())
        return jax.vmap(lambda key: jax.random.fold_in(key, number))(self.key)


def draw(
    key: Key[Array, ""],
    batch_size: int,
    *,
    stratified: bool = False,
    noise_offset: float = 0.0,
    first: int | Int[Array, ""] = 0,
    of: int | None = None,
) -> Draws:
    """The chance of a batch, or of some rows of one that is spread over devices.

    Args:
      key: The step's key.
      batch_size: Examples.
      stratified: Spread u evenly, one value in each interval of 1 / batch, as Kingma et
        al. (2021), arXiv:2107.00630, do; each u is still uniform by itself.
      noise_offset: As of `Draws`.
      first: The row of the whole batch that these rows begin at.
      of: Examples of the whole batch; None if these are all.
    """
    key, common = jax.random.split(key)
    row = first + jnp.arange(batch_size)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(row)
    draws = Draws(jnp.zeros(batch_size), keys, noise_offset)
    if stratified:
        u = (jax.random.uniform(common) + row / (of or batch_size)) % 1.0
    else:
        u = draws.uniform("u")
    return dataclasses.replace(draws, u=u)


def mirror(
    image: Num[Array, " batch height width channels"], flip: Bool[Array, " batch"]
) -> Num[Array, " batch height width channels"]:
    """Mirrors the chosen NHWC images left to right."""
    return jnp.where(flip[:, None, None, None], image[:, :, ::-1], image)


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
      draws: The chance of this update.
      schedule: log-SNR of time.
      weight: One of this module's weights.
      num_steps: Trains at the times i / num_steps only; None means all of [0, 1).
    """
    t = draws.u if num_steps is None else step_index(draws.u, num_steps) / num_steps
    logsnr_t = schedule(t)
    eps = draws.eps(x.shape[1:])
    z_t = diffuse(x, eps, logsnr_t)
    v = velocity(x, eps, logsnr_t)
    return weighted_v_error(denoise(z_t, logsnr_t).v, v, logsnr_t, weight)
