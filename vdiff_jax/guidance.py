"""Classifier-free guidance: two predictions of one network, combined into one.

The guidance weight is w, with w = 0 for none (Ho & Salimans, 2022, arXiv:2207.12598;
Meng et al., 2023, arXiv:2210.03142):

    x_w = (1 + w) x_c - w x_u

where x_c is conditioned, and the condition of x_u is left out. Others write
u + s (c - u) with a guidance scale s = 1 + w, which is 1 for none. As the factors add
up to 1, and x, eps and v are affine in one another at a fixed z_t, guiding one of them
guides all three.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from vdiff_jax.diffusion import expand_like, predict
from vdiff_jax.types import Condition, Denoiser, Examples, PerExample, Prediction

# The label of an example whose class is left out.
NO_CLASS = -1


def null(condition: Condition) -> Condition:
    """The condition with all that it says left out: no class, and no context.

    What stands in its place is the network's to know, which was trained with it. The
    guidance weight stays.
    """
    label, context, mask, w = condition
    if label is not None:
        label = jnp.full_like(jnp.asarray(label), NO_CLASS)
    if context is not None:
        mask = jnp.zeros(context.shape[:2], bool)
    return Condition(label, context, mask, w)


def with_mask(condition: Condition) -> Condition:
    """The condition with a mask, if it has a context and no mask: all vectors count."""
    if condition.context is None or condition.mask is not None:
        return condition
    return condition._replace(mask=jnp.ones(condition.context.shape[:2], bool))


def left_out(condition: Condition, which: Bool[Array, " batch"]) -> Condition:
    """The condition with that of the chosen examples left out."""
    return jax.tree.map(
        lambda nothing, kept: jnp.where(
            which.reshape(-1, *(1,) * (kept.ndim - 1)), nothing, kept
        ),
        null(condition),
        jax.tree.map(jnp.asarray, with_mask(condition)),
    )


def describe(w: float) -> str:
    """The guidance weight in both conventions, for people."""
    return f"w = {w:g}, guidance scale {1.0 + w:g}"


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Options of guidance, beside its weight w.

    Guidance in a limited range of log-SNRs is that of Kynkäänniemi et al. (2024),
    arXiv:2404.07724.

    Attributes:
      rescale: The phi of `rescaled`, in [0, 1]; 0 for none.
      logsnr_min: Lowest log-SNR at which guidance is on, in nats.
      logsnr_max: Highest log-SNR at which guidance is on, in nats.
    """

    rescale: float = 0.0
    logsnr_min: float = -math.inf
    logsnr_max: float = math.inf

    def weight_at(self, w: PerExample, logsnr_t: PerExample) -> PerExample:
        """The guidance weight at a log-SNR: w where guidance is on, 0 elsewhere."""
        on = (logsnr_t >= self.logsnr_min) & (logsnr_t <= self.logsnr_max)
        return jnp.where(on, w, 0.0)


PLAIN = Guidance()


def guided(
    conditional: Prediction, unconditional: Prediction, w: PerExample
) -> Prediction:
    """The guided prediction, not clipped: for w > 0 x_hat may leave [-1, 1].

    Args:
      conditional: The prediction with the condition.
      unconditional: The prediction with the condition left out.
      w: The guidance weight of each example, from 0 up.
    """
    w_ = expand_like(w, conditional.v)
    pairs = zip(conditional, unconditional, strict=True)
    return Prediction(*((1.0 + w_) * c - w_ * u for c, u in pairs))


def rescaled(
    prediction: Prediction,
    conditional: Prediction,
    z_t: Examples,
    logsnr_t: PerExample,
    phi: float,
) -> Prediction:
    """Takes back the contrast that guidance adds, by the share phi.

    v_hat is scaled to the standard deviation that it had without guidance, and mixed
    with itself: Lin et al. (2023), arXiv:2305.08891, Sec. 3.4, who do this to the v of
    their network. On x or eps it would be another operation.

    Args:
      prediction: The guided prediction.
      conditional: The prediction without guidance.
      z_t: Noisy examples.
      logsnr_t: Their log-SNR, in nats.
      phi: The share, from 0 (no change) to 1.
    """
    axes = tuple(range(1, z_t.ndim))
    before = conditional.v.std(axis=axes, keepdims=True)
    # Where nothing varies there is nothing to scale.
    after = jnp.maximum(prediction.v.std(axis=axes, keepdims=True), 1e-12)
    v = (1.0 - phi + phi * before / after) * prediction.v
    return predict(v, z_t, logsnr_t, "v")


def classifier_free(
    denoiser_of: Callable[[Condition], Denoiser],
    condition: Condition,
    w: PerExample,
    guidance: Guidance,
) -> Denoiser:
    """The guided denoiser: both predictions in one call of twice the batch, combined.

    Args:
      denoiser_of: The denoiser for a condition.
      condition: The condition of each example.
      w: The guidance weight of each example.
      guidance: The options beside w.
    """
    # The two of an example are neighbours, so that both are on its device.
    both = denoiser_of(
        jax.tree.map(
            lambda kept, nothing: jnp.stack([kept, nothing], axis=1).reshape(
                -1, *kept.shape[1:]
            ),
            jax.tree.map(jnp.asarray, with_mask(condition)),
            null(condition),
        )
    )

    def half(values: Array, which: int) -> Array:
        return values.reshape(-1, 2, *values.shape[1:])[:, which]

    def denoise(z_t: Examples, logsnr_t: PerExample) -> Prediction:
        pair = both(jnp.repeat(z_t, 2, axis=0), jnp.repeat(logsnr_t, 2))
        conditional = Prediction(*(half(form, 0) for form in pair))
        unconditional = Prediction(*(half(form, 1) for form in pair))
        weight = guidance.weight_at(w, logsnr_t)
        prediction = guided(conditional, unconditional, weight)
        if guidance.rescale == 0.0:
            return prediction
        return rescaled(prediction, conditional, z_t, logsnr_t, guidance.rescale)

    return denoise
