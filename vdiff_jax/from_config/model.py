"""The network, its output kind and its schedule."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vdiff_jax import diffusion, schedules
from vdiff_jax.codec import Autoencoder, Codec, Latents, Pixels
from vdiff_jax.files.place import path_of
from vdiff_jax.from_config.choices import Config, user_function
from vdiff_jax.interop import conventions
from vdiff_jax.interop.diffusers.autoencoder import (
    describe_autoencoder,
    read_autoencoder,
)
from vdiff_jax.model import Model
from vdiff_jax.nets.dit import DiT
from vdiff_jax.nets.layers import ADM, DDPM, SALIMANS_HO, Style
from vdiff_jax.nets.serialization import fields_of
from vdiff_jax.nets.unet import Level, UNet
from vdiff_jax.nets.wrappers import Converted, Function, Positional
from vdiff_jax.types import Schedule

NetName = Literal["unet", "dit"]
DType = Literal["float32", "bfloat16"]
ScheduleName = Literal["cosine", schedules.Chain]
StyleName = Literal["salimans_ho", "ddpm", "adm"]
# The fields of a config that make a model.
READ = (
    "model", "diffusion", "data.image_size", "data.channels", "data.latent_scale",
    "data.latent_shift", "data.autoencoder",
    "parallel.remat", "train.dropout", "guide.w_range",
    "guide.w_features", "guide.w_scale",
)  # fmt: skip
_MODELS: dict[str, Model] = {}
STYLES: dict[str, Style] = {"salimans_ho": SALIMANS_HO, "ddpm": DDPM, "adm": ADM}


def make_model(
    config: Config, *, guided: bool = False, takes_noise: bool = False
) -> Model:
    """The network, its output kind and its schedule; see `check` for what must hold.

    The same config gives the same object, so that its shapes are traced once.

    Args:
      config: The whole config.
      guided: True for a student, which takes the guidance weight.
      takes_noise: True for a student that takes noise beside z_t.

    Raises:
      ValueError: If a network of the user's own is to take noise.
    """
    key = repr((guided, takes_noise, *(config[path] for path in READ)))
    if key not in _MODELS:
        _MODELS[key] = _new_model(config, guided, takes_noise)
    return _MODELS[key]


def _new_model(config: Config, guided: bool, takes_noise: bool) -> Model:
    size, channels = config.data.image_size, config.data.channels
    output = config.model.output
    predicted = config.model.computed_from or output
    net = _net(config, channels * (2 if predicted == "both" else 1), guided)
    if takes_noise and not (isinstance(net, UNet) and predicted == output):
        raise ValueError(
            "distill.noise_input=True needs the built-in network, model.net='unet' with"
            " model.computed_from=''."
        )
    if takes_noise:
        net = net.clone(noise_input=True)
    if predicted != output:
        net = Converted(net, partial(diffusion.denoiser, kind=predicted), output)
    return Model(
        net=net,
        output=output,
        schedule=make_schedule(config),
        image_shape=(size, size, channels),
        num_classes=config.model.num_classes,
        codec=make_codec(config),
        w_range=w_range(config) if guided else None,
        takes_noise=takes_noise,
        context_shape=context_shape_of(config),
    )


def make_codec(config: Config) -> Codec:
    """How the data become x, and x becomes data."""
    data = config.data
    if data.autoencoder:
        return _autoencoder(data.autoencoder, data.latent_scale, config.model.dtype)
    if data.latent_scale:
        return Latents(data.channels, data.latent_scale, data.latent_shift)
    return Pixels()


@functools.cache
def _autoencoder(path: str, scale: float, dtype: str) -> Autoencoder:
    """The codec of an autoencoder, whose weights are read once in a process."""
    try:
        net, scale, shift, folder = describe_autoencoder(path_of(path), scale)
    except ValueError as error:
        raise ValueError(
            f"data.autoencoder={path!r} cannot be taken: {error}"
        ) from error
    return Autoencoder(
        Latents(net.latent_channels, scale, shift),
        net.clone(dtype=jnp.dtype(dtype)),
        read=lambda: read_autoencoder(folder, scale).params,
    )


def context_shape_of(config: Config) -> tuple[int, int] | None:
    """[tokens, width] of the context that the network is given; None for none."""
    return context_shape_in(config.model)


def context_shape_in(model: Any) -> tuple[int, int] | None:
    """The same, of the section `model` alone, which may be of an earlier version."""
    if model["net"] != "unet":
        return None
    unet = model["unet"]
    shape = fields_of(unet["layout"]) if unet.get("layout") else unet
    tokens = shape.get("context_tokens", 0)
    return (tokens, shape["context_features"]) if tokens else None


def has_guide(config: Config) -> bool:
    """True if there is a guide stage, so that students take the guidance weight w."""
    return config.guide.steps > 0


def make_teacher(config: Config) -> Model:
    """The network of the first teacher, and of students that take no noise."""
    return make_model(config, guided=has_guide(config))


def make_student(config: Config) -> Model:
    """The network of the students of the section `distill`."""
    return make_model(
        config, guided=has_guide(config), takes_noise=config.distill.noise_input
    )


def w_range(config: Config) -> tuple[float, float]:
    """The guidance weights that the guide stage trains for."""
    low, high = config.guide.w_range
    return low, high


def _net(config: Config, out_channels: int, guided: bool) -> nn.Module:
    if config.model.net == "unet":
        return _unet(config, out_channels, guided)
    if config.model.net == "dit":
        return _dit(config, out_channels, guided)
    make_net = user_function("model.net", config.model.net)
    options = {"out_channels": out_channels, "num_classes": config.model.num_classes}
    if guided:
        options["w_features"] = config.guide.w_features
    field = f"model.net={config.model.net!r}"
    try:
        net = make_net(**options)
    except TypeError as error:
        names = ", ".join(options)
        raise ValueError(f"{field} is called with {names}: {error}.") from error
    if isinstance(net, tuple) and len(net) == 2:
        function, params = net
        net = Function(function, lambda: params)
    if not isinstance(net, nn.Module):
        raise ValueError(
            f"{field} makes a {type(net).__name__}: it must be a flax module, or a pair"
            " of a function and its parameters."
        )
    if config.model.convention:
        return _of_convention(config, Positional(net, label_always=False))
    return Positional(net, label_always=True)


def _of_convention(config: Config, net: nn.Module) -> nn.Module:
    """A network of the user's own that follows another convention than ours."""
    denoiser_of = {
        "edm": conventions.from_edm,
        "v_diffusion": conventions.from_v_diffusion,
        "flow": conventions.from_flow,
        "ddpm": partial(conventions.from_ddpm, table=_timesteps(config)),
    }[config.model.convention]
    return Converted(net, denoiser_of, config.model.output)


def _unet(config: Config, out_channels: int, guided: bool) -> UNet:
    unet = config.model.unet
    if unet.layout:
        shape = fields_of(unet.layout)
    else:
        shape = shape_of(
            unet, config.data.image_size, lambda features: features // unet.head_dim
        )
    return UNet(
        **shape,
        out_channels=out_channels,
        num_classes=config.model.num_classes,
        w_features=config.guide.w_features if guided else 0,
        w_scale=config.guide.w_scale,
        dropout=config.train.dropout,
        patch=unet.patch,
        timesteps=_timesteps(config),
        dtype=jnp.dtype(config.model.dtype),
        remat=config.parallel.remat,
    )


def _dit(config: Config, out_channels: int, guided: bool) -> DiT:
    return DiT(
        **config.model.dit,
        out_channels=out_channels,
        num_classes=config.model.num_classes,
        w_features=config.guide.w_features if guided else 0,
        w_scale=config.guide.w_scale,
        dropout=config.train.dropout,
        timesteps=_timesteps(config),
        dtype=jnp.dtype(config.model.dtype),
        remat=config.parallel.remat,
    )


def shape_of(
    unet: Config, image_size: int, heads_of: Callable[[int], int]
) -> dict[str, Any]:
    """The fields of a `UNet` that a layout has too, from those for people.

    Args:
      unet: The section `model.unet`.
      image_size: Height and width of an image.
      heads_of: The number of heads for a number of features.
    """
    features = [unet["channels"] * multiplier for multiplier in unet["multipliers"]]
    # Configs of earlier versions do not have these two.
    context_features = unet.get("context_features", 0)
    depth = 1 if context_features else 0
    levels = tuple(
        Level(
            features=width,
            num_blocks=unet["num_blocks"],
            num_heads=heads_of(width) if attends else 0,
            resample_in_block=unet["resample_in_block"],
            depth=depth if attends else 0,
        )
        for width, attends in zip(features, attending(unet, image_size), strict=True)
    )
    return {
        "levels": levels,
        "emb_features": unet["emb_channels"],
        "mid_heads": heads_of(features[-1]),
        "mid_depth": depth,
        "context_features": context_features,
        "context_tokens": unet.get("context_tokens", 0),
        "groups": unet["groups"],
        "style": STYLES[unet["style"]],
        "logsnr_input": unet["logsnr_input"],
    }


def attending(unet: Config, image_size: int) -> list[bool]:
    """True for each level of the section `model.unet` that has attention."""
    return [
        image_size // unet["patch"] >> depth in unet["attention_resolutions"]
        for depth in range(len(unet["multipliers"]))
    ]


def make_schedule(config: Config) -> Schedule:
    """The noise schedule."""
    section = config.diffusion
    if section.schedule == "cosine":
        return schedules.cosine(section.logsnr_min, section.logsnr_max)
    return schedules.from_betas(_betas(config, section.schedule))


def chain_length(config: Config) -> int:
    """The number of steps of the chain that the schedule is; 0 if it is none."""
    name = config.diffusion.schedule
    return 0 if name == "cosine" else len(_betas(config, name))


def _betas(config: Config, name: str) -> np.ndarray:
    section = config.diffusion
    return schedules.betas_of(
        name,
        beta_first=section.beta_first,
        beta_last=section.beta_last,
        num_train_steps=section.num_train_steps,
        betas=section.betas,
    )


def _timesteps(config: Config) -> tuple[float, ...]:
    """The log-SNR of each step, for a network that takes the step's number."""
    name = config.model.timesteps
    if not name:
        return ()
    return tuple(schedules.logsnr_of_betas(_betas(config, name)).tolist())
