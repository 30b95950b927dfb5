"""Folders of diffusers: a network, and the noise schedule of its scheduler.

Only json, numpy and safetensors are needed. Any setting in a folder that our network or
our samplers do not support is refused by its name.
"""

import pathlib
from typing import Any

from vdiff_jax.interop.diffusers import conditional_unet, dit, names, unet
from vdiff_jax.interop.diffusers.autoencoder import PARTS
from vdiff_jax.interop.diffusers.folder import (
    WEIGHTS,
    check_class,
    check_is_no_pickle,
    read_json,
    read_tensors,
    weight_files,
)
from vdiff_jax.interop.diffusers.scheduler import read_scheduler
from vdiff_jax.interop.imported_model import Imported, abstract_params
from vdiff_jax.nets.serialization import describe
from vdiff_jax.nets.unet import UNet

CLASSES = ("UNet2DModel", "UNet2DConditionModel")


def read_folder(folder: pathlib.Path) -> Imported:
    """Reads a pipeline's folder, or one with the files of its network and scheduler.

    Args:
      folder: A folder with `unet/` or `transformer/` and `scheduler/`, that `unet/` or
        `transformer/` itself, or, as old ones, a folder with all files.

    Raises:
      ValueError: If something is missing or not supported, with its name.
    """
    if folder.is_file():
        check_is_no_pickle(folder)
    if (transformer := dit.folder_of(folder)) is not None:
        return dit.imported(
            read_json(transformer / "config.json"),
            read_tensors(weight_files(transformer)),
            *read_scheduler(_scheduler(folder)),
            transformer,
        )
    where = folder / "unet" if (folder / "unet").is_dir() else folder
    path = where / "config.json"
    content = read_json(path)
    if check_class(content, path, CLASSES, default=CLASSES[0]) == CLASSES[0]:
        return _unconditional(folder, content, path)
    return _conditional(folder, content, path)


def of_latents(source: Imported, folder: pathlib.Path, scale: float = 0.0) -> Imported:
    """The model with the autoencoder that lies in its pipeline's folder, if one does.

    Args:
      source: The model.
      folder: The folder of its pipeline.
      scale: The scale of the latents, if the autoencoder does not tell it; or 0.
    """
    if not any((folder / part).is_dir() for part in PARTS):
        return source
    latents = {"autoencoder": str(folder), "latent_scale": scale}
    data = {**source.fields["data"], **latents}
    return source._replace(fields={**source.fields, "data": data})


def _unconditional(
    folder: pathlib.Path, content: dict[str, Any], path: pathlib.Path
) -> Imported:
    """A `UNet2DModel`, which has a class at most."""
    net = unet.net_of(content, path)
    chain, output = read_scheduler(_scheduler(folder))
    if net.time_table:
        steps = content.get("num_train_timesteps") or 0
        net = net.clone(timesteps=tuple(map(float, range(steps, 0, -1))))
        if chain["num_train_steps"] != steps:
            raise ValueError(
                f"The U-Net in {path.parent} has a table of {steps} times, and the"
                f" scheduler {chain['num_train_steps']} of them."
            )
    channels = net.out_channels
    tensors = read_tensors(weight_files(path.parent))
    params = names.from_torch(
        tensors, abstract_params(net, channels), str(path.parent / WEIGHTS)
    )
    return Imported(_fields(net, chain, output, content), params)


def _conditional(
    folder: pathlib.Path, content: dict[str, Any], path: pathlib.Path
) -> Imported:
    """A `UNet2DConditionModel`, which attends to a context or to its class."""
    root = path.parent.parent if path.parent.name == "unet" else folder
    net = conditional_unet.net_of(content, path, root)
    chain, output = read_scheduler(_scheduler(folder))
    params, can_be_guided = conditional_unet.read_params(net, path.parent, root)
    fields = _fields(net, chain, output, content)
    if net.w_features:
        fields["guide"] = {
            "steps": 1, "w_features": net.w_features, "w_scale": net.w_scale
        }  # fmt: skip
    return Imported(fields, params, can_be_guided=can_be_guided)


def _scheduler(folder: pathlib.Path) -> pathlib.Path:
    name = "scheduler_config.json"
    places = (folder / "scheduler", folder, folder.parent / "scheduler")
    return next((x / name for x in places if (x / name).exists()), folder / name)


def _fields(
    net: UNet, chain: dict[str, Any], output: str, content: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """The fields of a config that describe the network and its noise schedule."""
    model = {
        "unet": {"layout": describe(net), "patch": 1},
        "timesteps": chain["schedule"],
        "output": output,
        "num_classes": net.num_classes,
        "net": "unet",
    }
    size = content.get("sample_size") or 0
    data = {
        "channels": net.out_channels,
        "image_size": size[0] if isinstance(size, (list, tuple)) else size,
    }
    return {"model": model, "diffusion": chain, "data": data}
