"""The sampler of the section `sample`."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from vdiff_jax import diffusion, samplers
from vdiff_jax.distillation.methods import METHODS
from vdiff_jax.from_config.choices import Config, number
from vdiff_jax.from_config.model import make_codec
from vdiff_jax.generation.sampler import Sampler
from vdiff_jax.guidance import Guidance
from vdiff_jax.model import Model
from vdiff_jax.types import Schedule

SamplerName = Literal["ddim", "ancestral", "dpmpp_2m", "heun", "stochastic"]
PREDICTORS: dict[str, samplers.Predictor] = {
    "ddim": samplers.at_start,
    "ancestral": samplers.at_start,
    "dpmpp_2m": samplers.extrapolated,
    "heun": samplers.at_both_ends,
    "stochastic": samplers.at_start,
}
# Nats by which guidance goes beyond its ends: a step at an end is guided, and compiled
# programs round its log-SNR otherwise than is done here.
MARGIN = 1e-4


def make_sampler(
    config: Config, model: Model, name: str = "", eta: float = 0.0
) -> Sampler:
    """The sampler of the section `sample`.

    Args:
      config: The whole config.
      model: The network.
      name: A sampler to take instead of the config's, of which auto is ddim.
      eta: The share of fresh noise of the sampler with that name, if it is ddim; of
        the config's it is `sample.eta`.
    """
    section = config.sample
    kind = name or ("ddim" if section.sampler == "auto" else section.sampler)
    eta = eta if name else section.eta
    return Sampler(
        model,
        predictor=PREDICTORS[kind],
        stepper=_stepper(kind, eta),
        variance=variance_interpolation(section.variance),
        limits=limits_of(clip_of(config)),
        guidance=make_guidance(config, model.schedule),
    )


def eta_of(config: Config, method: str | None) -> float:
    """`sample.eta` for students of a method that leaves the share open; else 0."""
    return config.sample.eta if method and METHODS[method].any_eta else 0.0


def clip_of(config: Config) -> str:
    """`sample.clip`, where auto is x if x is bounded, and none if it is not."""
    clip = config.sample.clip
    if clip != "auto":
        return clip
    return "x" if make_codec(config).bounded else "none"


def limits_of(text: str) -> list[diffusion.Limit]:
    """Limits on x_hat and eps_hat.

    Args:
      text: `x` keeps x_hat in [-1, 1], `none` keeps nothing, `both:F` keeps x_hat and
        eps_hat in [-F, F], `dynamic:Q` is `diffusion.threshold` with the quantile Q.

    Raises:
      ValueError: If it is none of these.
    """
    if text == "none":
        return []
    if text == "x":
        return [partial(diffusion.clip, limit=1.0)]
    kind, _, size = text.partition(":")
    if kind == "both" and (limit := number("sample.clip", size)) > 0.0:
        return [
            partial(diffusion.clip, limit=limit),
            partial(diffusion.clip_eps, limit=limit),
        ]
    if kind == "dynamic" and 0.0 < (share := number("sample.clip", size)) <= 1.0:
        return [partial(diffusion.threshold, share=share)]
    raise ValueError(
        f"sample.clip={text!r} must be auto, x, none, both:F with F above 0, or"
        " dynamic:Q with Q above 0 and up to 1."
    )


def make_guidance(config: Config, schedule: Schedule) -> Guidance:
    """The options of guidance in the section `sample`, beside its weight w."""
    section = config.sample
    first, last = section.guidance_interval

    def logsnr(t: float) -> float:
        return float(schedule(jnp.float32(t)))

    return Guidance(
        rescale=section.guidance_rescale,
        logsnr_min=-math.inf if last == 1.0 else logsnr(last) - MARGIN,
        logsnr_max=math.inf if first == 0.0 else logsnr(first) + MARGIN,
    )


def _stepper(kind: str, eta: float) -> Callable[[Float[Array, ""]], samplers.Stepper]:
    """Makes the stepper from the variance, which only ancestral sampling can choose."""
    if kind == "ancestral":
        return lambda variance: partial(samplers.ancestral_step, interpolation=variance)
    if kind == "stochastic":
        return lambda variance: samplers.stochastic_step
    eta = eta if kind == "ddim" else 0.0  # the others take DDIM's step without noise
    return lambda variance: partial(samplers.ddim_step, eta=eta)


def variance_interpolation(name: str) -> float:
    """`small` is 0, `large` is 1, `medium:F` is F in [0, 1]."""
    kind, _, between = name.partition(":")
    if kind == "medium" and between:
        value = number("sample.variance", between)
        if 0.0 <= value <= 1.0:
            return value
    if name in ("small", "large"):
        return float(name == "large")
    raise ValueError(
        f"Unknown sample.variance {name!r}; choose small, large or medium:F with F in"
        " [0, 1]."
    )
