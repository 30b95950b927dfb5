"""The diffusion process: conventions, and the algebra between its quantities.

One convention holds everywhere. Time t runs from 0 (data) to 1 (noise), and s < t.
Data x lies in [-1, 1]; images are NHWC; log-SNR is in nats; mathematics is float32.

(1)  z_t = alpha_t x + sigma_t eps, with eps ~ N(0, I)
(2)  alpha_t^2 = sigmoid(logsnr_t), sigma_t^2 = sigmoid(-logsnr_t), so their sum is 1
(3)  v = alpha_t eps - sigma_t x
(4)  x = alpha_t z_t - sigma_t v and eps = sigma_t z_t + alpha_t v, from (1) and (3)
(5)  q(z_s | z_t, x) is normal with r = exp(logsnr_t - logsnr_s) and
       mean     = alpha_s x + sigma_s sqrt(r) eps
       variance = (1 - r) sigma_s^2

(1)-(4) are Salimans & Ho (2022), arXiv:2202.00512, Sec. 2 and 4 and App. D. (5) is
their Eq. 3 with z_t eliminated by (1); since 1 - r = -expm1(logsnr_t - logsnr_s), it
keeps its digits however close s and t are.

With phi = arctan(sigma / alpha), (1) and (3) are a rotation, and the angle between two
times follows from their log-SNRs without subtracting nearly equal numbers:

(6)  sin(phi_t - phi_s) = -sigma_t alpha_s expm1((logsnr_t - logsnr_s) / 2)
     cos(phi_t - phi_s) = alpha_t alpha_s + sigma_t sigma_s
"""

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vdiff_jax.types import (
    Denoiser,
    Examples,
    Network,
    PerExample,
    Prediction,
    RawOutput,
)

Output: TypeAlias = Literal["x", "eps", "v", "both"]
# Keeps a prediction within bounds: (prediction, z_t, logsnr_t) -> prediction.
Limit: TypeAlias = Callable[[Prediction, Examples, PerExample], Prediction]


def alpha_sigma(
    logsnr: Float[Array, " *shape"],
) -> tuple[Float[Array, " *shape"], Float[Array, " *shape"]]:
    """Signal and noise scale at a log-SNR, by (2). At `inf` they are 1 and 0."""
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def sin_cos_between(
    logsnr_t: Float[Array, " *shape"], logsnr_s: Float[Array, " *shape"]
) -> tuple[Float[Array, " *shape"], Float[Array, " *shape"]]:
    """Sine and cosine of phi_t - phi_s, by (6); `logsnr_s` may be `inf`."""
    alpha_t, sigma_t = alpha_sigma(logsnr_t)
    alpha_s, sigma_s = alpha_sigma(logsnr_s)
    sine = -sigma_t * alpha_s * jnp.expm1(0.5 * (logsnr_t - logsnr_s))
    return sine, alpha_t * alpha_s + sigma_t * sigma_s


def expand_like(per_example: Array, examples: Array) -> Array:
    """Appends axes of size one, so a value per example broadcasts over `examples`.

    Raises:
      ValueError: If there is not one value per example.
    """
    if per_example.shape != examples.shape[:1]:
        raise ValueError(
            f"Expected one value per example, shape {examples.shape[:1]}, but got"
            f" shape {per_example.shape}."
        )
    return per_example.reshape(per_example.shape + (1,) * (examples.ndim - 1))


def diffuse(x: Examples, eps: Examples, logsnr_t: PerExample) -> Examples:
    """The noisy example z_t at a log-SNR, by (1).

    Args:
      x: Clean examples, in [-1, 1].
      eps: Standard normal noise, of the shape of `x`.
      logsnr_t: The log-SNR of each example, in nats.
    """
    alpha_t, sigma_t = alpha_sigma(expand_like(logsnr_t, x))
    return alpha_t * x + sigma_t * eps


def velocity(x: Examples, eps: Examples, logsnr_t: PerExample) -> Examples:
    """The v of a clean example and its noise, by (3).

    Args:
      x: Clean examples, in [-1, 1].
      eps: Standard normal noise, of the shape of `x`.
      logsnr_t: The log-SNR of each example, in nats.
    """
    alpha_t, sigma_t = alpha_sigma(expand_like(logsnr_t, x))
    return alpha_t * eps - sigma_t * x


def predict(
    output: RawOutput, z_t: Examples, logsnr_t: PerExample, kind: Output
) -> Prediction:
    """Reads a network's output as an estimate of x, eps and v.

    For `both` the network has twice the channels, x~ first and eps~ second, merged as
    x_hat = sigma_t^2 x~ + alpha_t (z_t - sigma_t eps~) (Salimans & Ho, Sec. 4), which
    by (4) is v_hat = alpha_t eps~ - sigma_t x~.

    Args:
      output: The network's output; the shape of `z_t`, or twice its last axis.
      z_t: The noisy examples the network saw.
      logsnr_t: Their log-SNR; finite.
      kind: The quantity that the network predicts.

    Raises:
      ValueError: If `kind` is unknown.
    """
    alpha_t, sigma_t = alpha_sigma(expand_like(logsnr_t, z_t))
    if kind == "x":
        eps = (z_t - alpha_t * output) / sigma_t
        return Prediction(output, eps, (alpha_t * z_t - output) / sigma_t)
    if kind == "eps":
        x = (z_t - sigma_t * output) / alpha_t
        return Prediction(x, output, (output - sigma_t * z_t) / alpha_t)
    if kind == "both":
        x_tilde, eps_tilde = jnp.split(output, 2, axis=-1)
        output = alpha_t * eps_tilde - sigma_t * x_tilde
    elif kind != "v":
        raise ValueError(f"Unknown output {kind!r}; choose from {get_args(Output)}.")
    x = alpha_t * z_t - sigma_t * output
    return Prediction(x, sigma_t * z_t + alpha_t * output, output)


def clip(
    prediction: Prediction, z_t: Examples, logsnr_t: PerExample, limit: float
) -> Prediction:
    """Clips x_hat to [-limit, limit] and makes eps_hat and v_hat agree with it.

    The noisy example itself is never clipped.

    Args:
      prediction: The network's prediction.
      z_t: Noisy examples.
      logsnr_t: Their log-SNR; finite.
      limit: Largest magnitude of x_hat, above 0.
    """
    x = jnp.clip(prediction.x, -limit, limit)
    return predict(x, z_t, logsnr_t, "x")


def threshold(
    prediction: Prediction, z_t: Examples, logsnr_t: PerExample, share: float
) -> Prediction:
    """Brings x_hat into [-1, 1] by scaling, where `share` of it would not need to be.

    Dynamic thresholding (Saharia et al., 2022, arXiv:2205.11487, Sec. 2.3): clips to
    [-s, s] and divides by s, where s is the quantile of |x_hat| over each example, and
    at least 1. Guidance with a large w saturates less by it than by clipping.

    Args:
      prediction: The network's prediction.
      z_t: Noisy examples.
      logsnr_t: Their log-SNR; finite.
      share: The quantile, above 0 and at most 1.
    """
    axes = tuple(range(1, z_t.ndim))
    s = jnp.quantile(jnp.abs(prediction.x), share, axis=axes, keepdims=True)
    s = jnp.maximum(s, 1.0)
    return predict(jnp.clip(prediction.x, -s, s) / s, z_t, logsnr_t, "x")


def clip_eps(
    prediction: Prediction, z_t: Examples, logsnr_t: PerExample, limit: float
) -> Prediction:
    """Clips eps_hat to [-limit, limit] and leaves x_hat, which then disagree with z_t.

    After `clip` with the same limit this makes DDIM the "clipped sampler" of some
    implementations of progressive distillation.

    Args:
      prediction: The network's prediction, clipped or not.
      z_t: Not used; here so that all limits take the same arguments.
      logsnr_t: The log-SNR of each example, in nats.
      limit: Largest magnitude of eps_hat, above 0.
    """
    del z_t
    eps = jnp.clip(prediction.eps, -limit, limit)
    return Prediction(prediction.x, eps, velocity(prediction.x, eps, logsnr_t))


def denoiser(net: Network, kind: Output) -> Denoiser:
    """Adapts a network to a denoiser: the one place that knows its output kind.

    Args:
      net: Maps (z_t, logsnr_t) to the network's raw output.
      kind: The quantity that the network predicts.
    """
    return lambda z_t, logsnr_t: predict(net(z_t, logsnr_t), z_t, logsnr_t, kind)


def limited(denoise: Denoiser, limits: Sequence[Limit]) -> Denoiser:
    """The denoiser with limits on its predictions, applied one after the other.

    In training, teachers and students have none.
    """

    def denoise_limited(z_t: Examples, logsnr_t: PerExample) -> Prediction:
        prediction = denoise(z_t, logsnr_t)
        for limit in limits:
            prediction = limit(prediction, z_t, logsnr_t)
        return prediction

    return denoise_limited


def from_pixels(image: UInt8[Array, " *shape"]) -> Float[Array, " *shape"]:
    """Model units from pixels: 0..255 to [-1, 1]."""
    return image.astype(jnp.float32) / 127.5 - 1.0


def to_pixels(x: Float[Array, " *shape"]) -> UInt8[Array, " *shape"]:
    """Rounds model units to uint8 pixels; truncating would darken by half a level."""
    return jnp.round(jnp.clip((x + 1.0) * 127.5, 0.0, 255.0)).astype(jnp.uint8)
