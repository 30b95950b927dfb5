"""A student as a folder that stock diffusers loads and samples exactly."""

import pathlib
from collections.abc import Sequence

from vdiff_jax.interop.diffusers import write_conditional, write_dit, write_unet
from vdiff_jax.interop.diffusers.writable import unconverted
from vdiff_jax.model import Model
from vdiff_jax.nets.dit import DiT
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
    class_names: Sequence[str] = (),
    vae: pathlib.Path | None = None,
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
      class_names: Name of each class, for a pipeline that has a place for them.
      vae: The folder of the autoencoder of a transformer's latents, to be copied.

    Raises:
      ValueError: If diffusers could not give exactly the samples of our sampler.
    """
    check_writable(model, num_steps=num_steps, clip=clip, w=w)
    model = unconverted(model)
    if is_transformer(model):
        write_dit.write_folder(
            folder, model, params, w=w, class_names=class_names, vae=vae
        )
    elif attends_to_context(model):
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
    model = unconverted(model)
    if is_transformer(model):
        write_dit.check_writable(model, num_steps=num_steps, clip=clip, w=w)
    elif attends_to_context(model):
        write_conditional.check_writable(model, num_steps=num_steps, clip=clip, w=w)
    else:
        write_unet.check_writable(model, w)


def is_transformer(model: Model) -> bool:
    """True for a network that is a `DiTTransformer2DModel` there."""
    return isinstance(unconverted(model).net, DiT)


def attends_to_context(model: Model) -> bool:
    """True for a network that is a `UNet2DConditionModel` there."""
    net = unconverted(model).net
    return isinstance(net, UNet) and net.context_features > 0
