"""A `DiTTransformer2DModel` of diffusers, and of the `DiTPipeline` that has one."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from vdiff_jax.interop.diffusers import dit_names
from vdiff_jax.interop.imported_model import Imported
from vdiff_jax.nets.dit import DiT
from vdiff_jax.types import Condition, Params

# Older versions called it by the name of all their transformers.
CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")
# Of `DiTTransformer2DModel` in diffusers 0.42; the released folders lack norm_eps.
DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4,
    "out_channels": None, "num_layers": 28, "dropout": 0.0, "norm_num_groups": 32,
    "attention_bias": True, "sample_size": 32, "patch_size": 2,
    "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000,
    "upcast_attention": False, "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False, "norm_eps": 1e-5,
}  # fmt: skip
# The only values that our network supports; with others it would be another.
ONLY: dict[str, Any] = {
    "attention_bias": True, "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero", "norm_elementwise_affine": False,
}  # fmt: skip
# Fields of a `Transformer2DModel`, and the values with which it is a DiT.
OF_OTHERS: dict[str, Any] = {
    "cross_attention_dim": None, "num_vector_embeds": None,
    "only_cross_attention": False, "use_linear_projection": False,
    "double_self_attention": False, "attention_type": "default",
    "caption_channels": None, "interpolation_scale": None,
    "use_additional_conditions": None,
}  # fmt: skip


def folder_of(folder: pathlib.Path) -> pathlib.Path | None:
    """The folder with the files of the transformer; None if there is no transformer.

    Args:
      folder: The folder of a pipeline, or of the transformer in it.
    """
    if (folder / "transformer").is_dir():
        return folder / "transformer"
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_one = isinstance(content, dict) and content.get("_class_name") in CLASSES
    return folder if is_one else None


def imported(
    content: dict[str, Any],
    tensors: dit_names.Tensors,
    chain: dict[str, Any],
    output: str,
    where: pathlib.Path,
) -> Imported:
    """The model of a folder; a variance that it learned is left out.

    Args:
      content: The config of the transformer.
      tensors: Its weights, by diffusers' names.
      chain: The section `diffusion` for the scheduler.
      output: The quantity that the network predicts.
      where: The folder, for messages.

    Raises:
      ValueError: If something is not supported, with its name.
    """
    config = _config(content, where)
    channels, size = config["in_channels"], config["sample_size"]
    num_heads = config["num_attention_heads"]
    shape = {
        "patch": config["patch_size"],
        "depth": config["num_layers"],
        "features": num_heads * config["attention_head_dim"],
        "num_heads": num_heads,
        "epsilon": config["norm_eps"],
    }
    num_classes = config["num_embeds_ada_norm"]
    net = DiT(**shape, out_channels=channels, num_classes=num_classes)
    if config["out_channels"] == 2 * channels:
        tensors = dit_names.without_variance(tensors, net.patch, channels)
        print(
            f"import: the last {channels} of {2 * channels} channels that the network"
            f" in {where} predicts are of a variance; they are left out."
        )
    params = dit_names.from_torch(
        tensors, abstract_params(net, channels), net.patch, net.depth, str(where)
    )
    model = {
        "net": "dit",
        "dit": shape,
        "timesteps": chain["schedule"],
        "output": output,
        "num_classes": num_classes,
    }
    data = {"channels": channels, "image_size": size}
    fields = {"model": model, "diffusion": chain, "data": data}
    return Imported(fields, params, can_be_guided=True)


def abstract_params(net: DiT, channels: int) -> Params:
    """The shapes of a transformer's parameters."""
    z_t, logsnr_t = jnp.zeros((1, net.patch, net.patch, channels)), jnp.zeros(1)
    condition = Condition(jnp.zeros(1, jnp.int32) if net.num_classes else None)
    inputs = (z_t, logsnr_t, condition)
    return jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]


def _config(content: dict[str, Any], where: pathlib.Path) -> dict[str, Any]:
    """Every field of the transformer; checked.

    Raises:
      ValueError: If one has a value that is not supported.
    """
    if content.get("_class_name", CLASSES[0]) not in CLASSES:
        raise ValueError(
            f"{where} has a {content['_class_name']}; of transformers only"
            f" {CLASSES[0]} can be imported."
        )
    fields = {name: x for name, x in content.items() if not name.startswith("_")}
    if unknown := sorted(fields.keys() - DEFAULTS.keys() - OF_OTHERS.keys()):
        raise ValueError(f"{where} has fields that are not supported: {unknown}.")
    config = {**DEFAULTS, **OF_OTHERS, **fields}
    for name, value in (ONLY | OF_OTHERS).items():
        if config[name] != value:
            raise ValueError(
                f"{name}={config[name]!r} in {where} is not supported; only {value!r}"
                " can be imported."
            )
    for name in ("sample_size", "num_embeds_ada_norm", "patch_size"):
        if not isinstance(config[name], int) or config[name] < 1:
            raise ValueError(
                f"{name}={config[name]!r} in {where} must be a whole number of at least"
                " 1."
            )
    if config["sample_size"] % config["patch_size"]:
        raise ValueError(
            f"patch_size={config['patch_size']} in {where} does not divide"
            f" sample_size={config['sample_size']}."
        )
    channels = config["in_channels"]
    config["out_channels"] = config["out_channels"] or channels
    if config["out_channels"] not in (channels, 2 * channels):
        raise ValueError(
            f"out_channels={config['out_channels']} in {where} is not supported; only"
            f" {channels}, and {2 * channels} with a variance, can be imported."
        )
    return config
