"""What holds for every model that is written, whatever its network in diffusers."""

import dataclasses
import functools
from typing import NoReturn

import jax.numpy as jnp

from vdiff_jax import diffusion
from vdiff_jax.codec import Autoencoder, Codec, Latents
from vdiff_jax.model import Model
from vdiff_jax.nets.unet import UNet
from vdiff_jax.nets.wrappers import Converted


def refuse(why: str) -> NoReturn:
    """Raises a ValueError with the reason."""
    raise ValueError(f"This model cannot be exported to diffusers: {why}.")


def check_unshifted(codec: Codec) -> None:
    """Refuses latents with a shift, which the pipelines there do not add back.

    Raises:
      ValueError: If they have one.
    """
    latents = codec.latents if isinstance(codec, Autoencoder) else codec
    if isinstance(latents, Latents) and latents.shift:
        refuse(
            f"data.latent_shift={latents.shift:g}, and the pipelines there decode"
            " latents / scaling_factor without adding it: set export.formats to"
            " safetensors, or to stablehlo with export.decode"
        )


def unconverted(model: Model) -> Model:
    """The same denoiser as its network predicts it, where that is converted."""
    net = model.net
    if not isinstance(net, Converted):
        return model
    bound = net.denoiser_of
    if isinstance(bound, functools.partial) and bound.func is diffusion.denoiser:
        return dataclasses.replace(model, net=net.net, output=bound.keywords["kind"])
    return model


def unet_of(model: Model, name: str) -> UNet:
    """The U-Net of a model, if it is one whose numbers a network there could have.

    Args:
      model: The model to export.
      name: The network there.

    Raises:
      ValueError: If it is not, with the reason.
    """
    net = model.net
    if not isinstance(net, UNet):
        refuse(f"it is a {type(net).__name__}, not the U-Net of nets/unet.py")
    if model.takes_noise:
        refuse(f"it takes noise beside z_t, and {name} has no such input")
    if net.patch != 1:
        refuse(f"model.unet.patch={net.patch}, and {name} has no patches")
    if net.dtype != jnp.float32:
        refuse(f"model.dtype={net.dtype}; with float32 it can, and is more exact")
    return net
