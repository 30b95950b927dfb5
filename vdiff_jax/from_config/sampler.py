"""What draws pictures, as `sample` says."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from vdiff_jax import diffusion, samplers
from vdiff_jax.from_config.choices import Config, choice, number
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


def make_sampler(config: Config, model: Model, name: str = "") -> Sampler:
    """What draws pictures, as `sample` in the config says.

    Args:
      config: The whole config.
      model: The network.
      name: A sampler to take instead of the config's, deterministic if it is ddim.
    """
    spec = config.sample
    kind = choice("sample.sampler", name or spec.sampler, SamplerName)
    if not 0.0 <= spec.eta <= 1.0:
        raise ValueError(f"sample.eta must be in [0, 1], got {spec.eta}.")
    if spec.clip_value < 0:
        raise ValueError(
            f"sample.clip_value must not be negative, got {spec.clip_value}."
        )
    eta = 0.0 if name or kind != "ddim" else spec.eta
    return Sampler(
        model,
        predictor=PREDICTORS[kind],
        stepper=_stepper(kind, eta),
        variance=variance_interpolation(spec.variance),
        limits=_limits(spec),
        guidance=make_guidance(config, model.schedule),
    )


def _limits(spec: Config) -> list[diffusion.Limit]:
    """What `sample` says of how far x_hat and eps_hat may go."""
    if not 0.0 <= spec.threshold <= 1.0:
        raise ValueError(f"sample.threshold must be in [0, 1], got {spec.threshold}.")
    if spec.clip_value:
        limit = spec.clip_value
        return [
            partial(diffusion.clip, limit=limit),
            partial(diffusion.clip_eps, limit=limit),
        ]
    if spec.threshold:
        return [partial(diffusion.threshold, share=spec.threshold)]
    return [partial(diffusion.clip, limit=1.0)] if spec.clip else []


def asked_strengths(config: Config, model: Model) -> tuple[float, ...]:
    """The strengths w of guidance that `sample` asks for, however it says so.

    Raises:
      ValueError: If it says so in both ways, if a strength is negative, or if the model
        cannot be guided.
    """
    spec = config.sample
    if spec.w and spec.guidance_scale:
        raise ValueError(
            f"Set one of sample.w={spec.w} and sample.guidance_scale="
            f"{spec.guidance_scale}, which is 1 + w."
        )
    found = tuple(spec.w) or tuple(scale - 1.0 for scale in spec.guidance_scale)
    if found and not model.num_classes:
        raise ValueError(
            "Guidance (sample.w, sample.guidance_scale) needs a model that is told a"
            " class, and this one is not (model.num_classes=0)."
        )
    if any(w < 0.0 for w in found):
        raise ValueError(
            f"sample.w={found} must not be negative: 0 is no guidance, which is"
            " sample.guidance_scale=1."
        )
    return found


def make_guidance(config: Config, schedule: Schedule) -> Guidance:
    """What `sample` says of guidance, its strength apart."""
    spec = config.sample
    first, last = spec.guidance_interval
    if not 0.0 <= first < last <= 1.0:
        raise ValueError(
            f"sample.guidance_interval={(first, last)} must be two times t, rising, in"
            " [0, 1]."
        )
    if not 0.0 <= spec.guidance_rescale <= 1.0:
        raise ValueError(
            f"sample.guidance_rescale must be in [0, 1], got {spec.guidance_rescale}."
        )
    return Guidance(
        rescale=spec.guidance_rescale,
        logsnr_min=-math.inf if last == 1.0 else float(schedule(jnp.float32(last))),
        logsnr_max=math.inf if first == 0.0 else float(schedule(jnp.float32(first))),
    )


def _stepper(kind: str, eta: float) -> Callable[[Float[Array, ""]], samplers.Stepper]:
    """Makes the stepper from the variance, which only ancestral sampling can choose."""
    if kind == "ancestral":
        return lambda variance: partial(samplers.ancestral_step, interpolation=variance)
    if kind == "stochastic":
        return lambda variance: samplers.stochastic_step
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
