"""A student as a folder that stock diffusers loads and samples exactly."""

import pathlib

from vdiff_jax.interop.diffusers import write_conditional, write_unet
from vdiff_jax.model import Model
from vdiff_jax.nets.unet import UNet
from vdiff_jax.types import Params


def write_folder(
    folder: pathlib.Path,
    model: Model,
    params: Params,
    *,
    num_steps: int,
    clip: bool,
    w: float | None,
) -> None:
    """Writes the folder of a pipeline.

    Args:
      folder: The folder to write; made if it is not there.
      model: The model to export.
      params: Its parameters.
      num_steps: Steps of the sampler.
      clip: Keep x_hat in [-1, 1].
      w: The guidance weight to fold in; None if the network is not conditioned on it,
        or is to stay so.

    Raises:
      ValueError: If diffusers could not give exactly the samples of our sampler.
    """
    check_writable(model, num_steps=num_steps, clip=clip, w=w)
    if attends_to_context(model):
        write_conditional.write_folder(folder, model, params, w=w)
    else:
        write_unet.write_folder(
            folder, model, params, num_steps=num_steps, clip=clip, w=w
        )


def check_writable(
    model: Model, *, num_steps: int, clip: bool, w: float | None
) -> None:
    """Refuses a model that `write_folder` would refuse.

    Raises:
      ValueError: If diffusers has no such network or sampler, with the reason.
    """
    if attends_to_context(model):
        write_conditional.check_writable(model, num_steps=num_steps, clip=clip, w=w)
    else:
        write_unet.check_writable(model, w)


def attends_to_context(model: Model) -> bool:
    """True for a network that is a `UNet2DConditionModel` there."""
    return isinstance(model.net, UNet) and model.net.context_features > 0
