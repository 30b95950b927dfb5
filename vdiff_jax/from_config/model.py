"""The network, its output kind and its schedule."""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vdiff_jax import diffusion, schedules
from vdiff_jax.from_config.choices import Config, choice, user_function
from vdiff_jax.interop import conventions
from vdiff_jax.model import Model
from vdiff_jax.nets.layers import ADM, DDPM, SALIMANS_HO, LogsnrInput, Style
from vdiff_jax.nets.serialization import fields_of
from vdiff_jax.nets.unet import Level, UNet
from vdiff_jax.nets.wrappers import Converted, Function
from vdiff_jax.types import Schedule

DType = Literal["float32", "bfloat16"]
ScheduleName = Literal["cosine", schedules.Chain]
StyleName = Literal["salimans_ho", "ddpm", "adm"]
STYLES: dict[str, Style] = {"salimans_ho": SALIMANS_HO, "ddpm": DDPM, "adm": ADM}


def make_model(config: Config, *, guided: bool = False) -> Model:
    """The network, its output kind and its schedule.

    Args:
      config: The whole config.
      guided: Whether it is a student that takes the strength of guidance.
    """
    size, channels = config.data.image_size, config.data.channels
    output = choice("model.output", config.model.output, diffusion.Output)
    said = config.model.computed_from or output
    choice("model.computed_from", said, diffusion.Output)
    if said != output and output == "both":
        raise ValueError(
            f"model.output='both' cannot be computed from {said!r}: choose x, eps or v."
        )
    out_channels = channels * (2 if said == "both" else 1)
    latent_scale = config.data.latent_scale
    if latent_scale < 0:
        raise ValueError(f"data.latent_scale must not be negative, got {latent_scale}.")
    if latent_scale and config.sample.clip:
        raise ValueError(
            f"sample.clip=True keeps x in [-1, 1], but latents (data.latent_scale="
            f"{latent_scale}) have no bounds: set sample.clip=False."
        )
    if guided and not config.model.num_classes:
        raise ValueError(
            "The guide stage needs a model that is told a class: set"
            " model.num_classes, and train with train.label_dropout > 0."
        )
    net = _net(config, out_channels, guided)
    if said != output:
        net = Converted(net, partial(diffusion.denoiser, kind=said), output)
    made = Model(
        net=net,
        output=output,
        schedule=make_schedule(config),
        image_shape=(size, size, channels),
        num_classes=config.model.num_classes,
        latent_scale=latent_scale,
        w_range=w_range(config) if guided else None,
    )
    made.abstract_params()  # refuses sizes that do not fit together
    return made


def has_guide(config: Config) -> bool:
    """Whether there is a guide stage, so that students take the strength w."""
    return config.guide.steps > 0


def make_student(config: Config) -> Model:
    """The network of the ladder's students."""
    return make_model(config, guided=has_guide(config))


def w_range(config: Config) -> tuple[float, float]:
    """The strengths of guidance that the guide stage trains for."""
    low, high = config.guide.w_min, config.guide.w_max
    if not 0.0 <= low <= high:
        raise ValueError(
            f"guide.w_min={low} and guide.w_max={high} must be a range of strengths,"
            " from 0 up."
        )
    return low, high


def _net(config: Config, out_channels: int, guided: bool) -> nn.Module:
    if config.model.net == "unet":
        if config.model.convention:
            raise ValueError(
                f"model.convention={config.model.convention!r} is of a network of your"
                " own (model.net); the U-Net follows ours."
            )
        return _unet(config, out_channels, guided)
    make_net = user_function("model.net", config.model.net)
    options = {"w_features": config.guide.w_features} if guided else {}
    net = make_net(
        out_channels=out_channels, num_classes=config.model.num_classes, **options
    )
    if isinstance(net, tuple):
        function, params = net
        net = Function(function, lambda: params)
    return _of_convention(config, net) if config.model.convention else net


def _of_convention(config: Config, net: nn.Module) -> nn.Module:
    """A network of the user's own that follows another convention than ours."""
    spec, table = config.model, _timesteps(config)
    convention = choice("model.convention", spec.convention, conventions.Convention)
    says = choice("model.output", spec.output, Literal["x", "eps", "v"])
    if (convention == "ddpm") != bool(table):
        raise ValueError(
            f"model.convention={convention!r} and model.timesteps={spec.timesteps!r} do"
            " not fit: a ddpm, and nothing else, is told steps of a chain."
        )
    denoiser_of = {
        "edm": conventions.from_edm,
        "v_diffusion": conventions.from_v_diffusion,
        "flow": conventions.from_flow,
        "ddpm": partial(conventions.from_ddpm, table=table),
    }[convention]
    return Converted(net, denoiser_of, says)


def _unet(config: Config, out_channels: int, guided: bool) -> UNet:
    spec = config.model
    shape = fields_of(spec.unet) if spec.unet else _shape(config)
    return UNet(
        **shape,
        out_channels=out_channels,
        num_classes=spec.num_classes,
        w_features=config.guide.w_features if guided else 0,
        w_scale=config.guide.w_scale,
        dropout=config.train.dropout,
        patch=spec.patch,
        timesteps=_timesteps(config),
        dtype=jnp.dtype(choice("model.dtype", spec.dtype, DType)),
        remat=config.parallel.remat,
    )


def _shape(config: Config) -> dict[str, Any]:
    """The fields of a `UNet` that `model.unet` could tell, from those for people."""
    spec = config.model
    if (spec.num_heads > 0) == (spec.head_dim > 0):
        raise ValueError(
            f"Set one of model.num_heads={spec.num_heads} and"
            f" model.head_dim={spec.head_dim}, and the other to 0."
        )

    def heads(features: int) -> int:
        num_heads = spec.num_heads or features // spec.head_dim
        if num_heads == 0 or features % (spec.head_dim or num_heads):
            raise ValueError(
                f"{features} channels do not divide into model.num_heads="
                f"{spec.num_heads} heads of model.head_dim={spec.head_dim}."
            )
        return num_heads

    levels = []
    for depth, multiplier in enumerate(spec.multipliers):
        features = spec.channels * multiplier
        if features % spec.groups:
            raise ValueError(
                f"model.groups={spec.groups} does not divide the {features} channels"
                f" of level {depth}."
            )
        resolution = config.data.image_size // spec.patch >> depth
        attends = resolution in spec.attention_resolutions
        levels.append(
            Level(
                features=features,
                num_blocks=spec.num_blocks,
                num_heads=heads(features) if attends else 0,
                resample_in_block=spec.resample_in_block,
            )
        )
    return {
        "levels": tuple(levels),
        "emb_features": spec.emb_channels,
        "mid_heads": heads(levels[-1].features),
        "groups": spec.groups,
        "style": STYLES[choice("model.style", spec.style, StyleName)],
        "logsnr_input": choice("model.logsnr_input", spec.logsnr_input, LogsnrInput),
    }


def make_schedule(config: Config) -> Schedule:
    """The noise schedule."""
    spec = config.diffusion
    choice("diffusion.schedule", spec.schedule, ScheduleName)
    if spec.schedule == "cosine":
        return schedules.cosine(spec.logsnr_min, spec.logsnr_max)
    return schedules.from_betas(_betas(config, spec.schedule))


def _betas(config: Config, name: str) -> np.ndarray:
    spec = config.diffusion
    return schedules.betas_of(
        name,
        beta_first=spec.beta_first,
        beta_last=spec.beta_last,
        num_train_steps=spec.num_train_steps,
        betas=spec.betas,
    )


def _timesteps(config: Config) -> tuple[float, ...]:
    """The log-SNR of each step that the network is told the number of, if it is."""
    name = config.model.timesteps
    if not name:
        return ()
    return tuple(schedules.logsnr_of_betas(_betas(config, name)).tolist())
