"""Checks of what the network is, and of the noise that it is trained on.

Each raises a ValueError of one line, as `check` does.
"""

from typing import get_args

from vdiff_jax.from_config.check.terms import check_num_steps
from vdiff_jax.from_config.choices import Config, user_function
from vdiff_jax.from_config.model import NetName, attending

BUILT_IN = get_args(NetName)


def check_model(config: Config) -> None:
    """Refuses an output or a convention that the network cannot have."""
    model = config.model
    if model.net not in BUILT_IN:
        user_function("model.net", model.net)
    if model.computed_from not in ("", model.output) and model.output == "both":
        raise ValueError(
            f"model.output='both' cannot be computed from {model.computed_from!r}:"
            " choose x, eps or v."
        )
    if not model.convention:
        return
    if model.net in BUILT_IN:
        raise ValueError(
            f"model.convention={model.convention!r} is of a network of your own"
            f" (model.net); {model.net} follows ours."
        )
    if model.output == "both":
        raise ValueError(
            f"model.output='both' is nothing that model.convention={model.convention!r}"
            " has: choose x, eps or v."
        )
    if (model.convention == "ddpm") != bool(model.timesteps):
        raise ValueError(
            f"model.convention={model.convention!r} and model.timesteps="
            f"{model.timesteps!r} do not fit: a ddpm, and nothing else, takes the"
            " number of a step of a chain."
        )


def check_unet(config: Config) -> None:
    """Refuses sizes of a U-Net that do not divide."""
    unet, size = config.model.unet, config.data.image_size
    if config.model.net != "unet":
        return
    if not unet.layout:
        _check_levels(unet, size)
        _check_context(config)
    depth = len(unet.multipliers)
    smallest = unet.patch * 2 ** (depth - 1)
    if size % smallest and not unet.layout:
        raise ValueError(
            f"data.image_size={size} does not divide by {smallest}, which the {depth}"
            f" levels of model.unet.multipliers and model.unet.patch={unet.patch} need."
        )


def _check_levels(unet: Config, size: int) -> None:
    """Refuses heads, groups or waves that do not fit into the features of a level."""
    if unet.channels % 2 or unet.channels < 4:
        raise ValueError(
            f"model.unet.channels={unet.channels} must be even and at least 4."
        )
    # The middle has attention, and as many features as the last level.
    attends = [*attending(unet, size)[:-1], True]
    for depth, multiplier in enumerate(unet.multipliers):
        features = unet.channels * multiplier
        if features % unet.groups:
            raise ValueError(
                f"model.unet.groups={unet.groups} does not divide the {features}"
                f" channels of level {depth}."
            )
        if attends[depth] and features % unet.head_dim:
            raise ValueError(
                f"model.unet.head_dim={unet.head_dim} does not divide the {features}"
                f" channels of level {depth}, which has attention."
            )


def _check_context(config: Config) -> None:
    """Refuses a context without a width, or of which nobody says what it is."""
    unet = config.model.unet
    if unet.context_tokens and not unet.context_features:
        raise ValueError(
            f"model.unet.context_tokens={unet.context_tokens} vectors must have a"
            " width: set model.unet.context_features."
        )
    if unet.context_features and not (unet.context_tokens or config.model.num_classes):
        raise ValueError(
            f"model.unet.context_features={unet.context_features}, but there is nothing"
            " to attend to: set model.unet.context_tokens, or model.num_classes for a"
            " vector of the class."
        )


def check_dit(config: Config) -> None:
    """Refuses sizes of a transformer that do not divide."""
    dit, size = config.model.dit, config.data.image_size
    if config.model.net != "dit":
        return
    if size % dit.patch:
        raise ValueError(
            f"data.image_size={size} does not divide by model.dit.patch={dit.patch}."
        )
    if dit.features % 4:
        raise ValueError(
            f"model.dit.features={dit.features} must divide by 4: sines and cosines of"
            " two coordinates mark the place of a token."
        )
    if dit.features % dit.num_heads:
        raise ValueError(
            f"model.dit.num_heads={dit.num_heads} does not divide"
            f" model.dit.features={dit.features}."
        )


def check_diffusion(config: Config) -> None:
    """Refuses a schedule without its parameters, or with too few steps."""
    section = config.diffusion
    if not section.logsnr_min < section.logsnr_max:
        raise ValueError(
            f"diffusion.logsnr_min={section.logsnr_min} must be below"
            f" diffusion.logsnr_max={section.logsnr_max}."
        )
    needs_betas = "betas" in (section.schedule, config.model.timesteps)
    if needs_betas and not (section.betas and section.betas[0] > 0.0):
        raise ValueError(
            f"diffusion.betas={section.betas} must be the betas of a chain, the first"
            " above 0, for diffusion.schedule or model.timesteps 'betas'."
        )
    check_num_steps(config, "train.num_steps", config.train.num_steps)
