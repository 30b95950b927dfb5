"""Folders of diffusers: a `UNet2DModel` or a DiT, with a DDPM or DDIM scheduler.

Only json, numpy and safetensors are needed. Any setting in a folder that our network or
our samplers do not support is refused by its name.
"""

import json
import pathlib
from typing import Any

import numpy as np

from vdiff_jax import schedules
from vdiff_jax.files import weights
from vdiff_jax.interop.diffusers import dit, names
from vdiff_jax.interop.imported_model import Imported, abstract_params
from vdiff_jax.nets.layers import Style
from vdiff_jax.nets.serialization import describe
from vdiff_jax.nets.unet import Level, UNet

WEIGHTS = "diffusion_pytorch_model.safetensors"
# The same network as people publish it, the most exact first.
VARIANTS = ("", ".fp16", ".bf16")
OUTPUTS = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}
CHAINS = {
    "linear": "linear_beta",
    "scaled_linear": "scaled_linear_beta",
    "squaredcos_cap_v2": "squared_cosine_beta",
}
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler")
DOWN = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
# Of `UNet2DModel` in diffusers 0.42; old files lack the newer ones.
DEFAULTS: dict[str, Any] = {
    "sample_size": None, "in_channels": 3, "out_channels": 3,
    "center_input_sample": False, "time_embedding_type": "positional",
    "time_embedding_dim": None, "freq_shift": 0, "flip_sin_to_cos": True,
    "down_block_types": (DOWN[0], DOWN[1], DOWN[1], DOWN[1]),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": (UP[1], UP[1], UP[1], UP[0]),
    "block_out_channels": (224, 448, 672, 896), "layers_per_block": 2,
    "mid_block_scale_factor": 1, "downsample_padding": 1, "downsample_type": "conv",
    "upsample_type": "conv", "dropout": 0.0, "act_fn": "silu",
    "attention_head_dim": 8, "norm_num_groups": 32, "attn_norm_num_groups": None,
    "norm_eps": 1e-5, "resnet_time_scale_shift": "default", "add_attention": True,
    "class_embed_type": None, "num_class_embeds": None, "num_train_timesteps": None,
}  # fmt: skip
# The only values that our network supports; with others it would be another.
ONLY: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional", "learned"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None,),
}


def read_folder(folder: pathlib.Path) -> Imported:
    """Reads a pipeline's folder, or one with the files of its network and scheduler.

    Args:
      folder: A folder with `unet/` or `transformer/`, and `scheduler/`; the former by
        itself; or, as old ones, a folder with all files.

    Raises:
      ValueError: If something is missing or not supported, with its name.
    """
    if (where := dit.folder_of(folder)) is not None:
        content = _json(where / "config.json")
        return dit.imported(
            content, _tensors(where), *_chain(_scheduler(folder)), where
        )
    unet_folder = folder / "unet" if (folder / "unet").is_dir() else folder
    config = _unet_config(unet_folder / "config.json")
    chain, output = _chain(_scheduler(folder))
    net = _net(config, unet_folder)
    tensors = names.with_new_names(_tensors(unet_folder))
    if net.time_table:
        steps = config["num_train_timesteps"] or 0
        net = net.clone(timesteps=tuple(map(float, range(steps, 0, -1))))
        if chain["num_train_steps"] != steps:
            raise ValueError(
                f"The U-Net in {unet_folder} has a table of {steps} times, and the"
                f" scheduler {chain['num_train_steps']} of them."
            )
    channels = config["in_channels"]
    params = names.from_torch(
        tensors, abstract_params(net, channels), str(unet_folder / WEIGHTS)
    )
    model = {
        "unet": {"layout": describe(net), "patch": 1},
        "timesteps": chain["schedule"],
        "output": output,
        "num_classes": net.num_classes,
        "net": "unet",
    }
    data = {"channels": channels, "image_size": config["sample_size"] or 0}
    return Imported({"model": model, "diffusion": chain, "data": data}, params)


def _scheduler(folder: pathlib.Path) -> pathlib.Path:
    name = "scheduler_config.json"
    places = (folder / "scheduler", folder, folder.parent / "scheduler")
    return next((x / name for x in places if (x / name).exists()), folder / name)


def _unet_config(path: pathlib.Path) -> dict[str, Any]:
    content = _json(path)
    if content.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise ValueError(
            f"{path} is of a {content['_class_name']}; only UNet2DModel can be"
            " imported."
        )
    fields = {name: x for name, x in content.items() if not name.startswith("_")}
    if unknown := sorted(fields.keys() - DEFAULTS.keys()):
        raise ValueError(f"{path} has fields that are not supported: {unknown}.")
    config = {**DEFAULTS, **fields}
    for name, choices in ONLY.items():
        if config[name] not in choices:
            raise ValueError(
                f"{name}={config[name]!r} in {path} is not supported; only"
                f" {', '.join(map(repr, choices))} can be imported."
            )
    for name, choices in (("down_block_types", DOWN), ("up_block_types", UP)):
        if other := [kind for kind in config[name] if kind not in choices]:
            raise ValueError(
                f"{name} in {path} has {other[0]!r}, which is not supported; only"
                f" {', '.join(choices)} can be imported."
            )
    if config["in_channels"] != config["out_channels"]:
        raise ValueError(
            f"The network of {path} takes {config['in_channels']} channels and predicts"
            f" {config['out_channels']}: one that learns a variance is not supported."
        )
    if isinstance(config["sample_size"], (list, tuple)):
        height, width = config["sample_size"]
        if height != width:
            raise ValueError(
                f"sample_size={config['sample_size']} in {path}: only square images"
                " can be imported."
            )
        config["sample_size"] = height
    return config


def _net(config: dict[str, Any], where: pathlib.Path) -> UNet:
    features = config["block_out_channels"]
    film = config["resnet_time_scale_shift"] == "scale_shift"

    def heads(channels: int) -> int:
        size = config["attention_head_dim"] or channels
        if channels % size:
            raise ValueError(
                f"attention_head_dim={size} in {where} does not divide {channels}"
                " channels."
            )
        return channels // size

    def in_block(kind: str, how: str) -> bool:
        if kind.startswith("Attn"):
            return config[how] == "resnet"
        return kind.startswith("Resnet")

    kinds = zip(config["down_block_types"], config["up_block_types"][::-1], strict=True)
    levels = tuple(
        Level(
            features=channels,
            num_blocks=config["layers_per_block"],
            num_heads=heads(channels) if down.startswith("Attn") else 0,
            num_heads_up=heads(channels) if up.startswith("Attn") else 0,
            resample_in_block=in_block(down, "downsample_type"),
            resample_in_block_up=in_block(up, "upsample_type"),
        )
        for channels, (down, up) in zip(features, kinds, strict=True)
    )
    groups, mid_groups = config["norm_num_groups"], config["attn_norm_num_groups"]
    if mid_groups not in (None, groups):
        raise ValueError(
            f"attn_norm_num_groups={mid_groups} in {where} is not supported where"
            f" norm_num_groups={groups}: all norms must have as many groups."
        )
    return UNet(
        levels=levels,
        out_channels=config["out_channels"],
        emb_features=config["time_embedding_dim"] or 4 * features[0],
        mid_heads=heads(features[-1]) if config["add_attention"] else 0,
        num_classes=config["num_class_embeds"] or 0,
        groups=groups,
        style=Style(
            film=film,
            epsilon=config["norm_eps"],
            pad_both_sides=config["downsample_padding"] == 1,
            cosine_first=config["flip_sin_to_cos"],
            frequency_shift=config["freq_shift"],
            class_bias=False,
            mid=config["mid_block_type"] is not None,
            mid_norm=mid_groups is not None or not film,
            mid_scale=float(config["mid_block_scale_factor"]),
            center_input=config["center_input_sample"],
        ),
        time_table=config["time_embedding_type"] == "learned",
    )


def _chain(path: pathlib.Path) -> tuple[dict[str, Any], str]:
    """The `diffusion` section for a scheduler, and the output of its network."""
    scheduler = _json(path)
    if scheduler.get("_class_name") not in SCHEDULERS:
        raise ValueError(
            f"{path} is of a {scheduler.get('_class_name')!r}; only the noise schedules"
            f" of {', '.join(SCHEDULERS)} can be imported."
        )
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in OUTPUTS:
        raise ValueError(f"prediction_type={prediction!r} in {path} is not supported.")
    chain: dict[str, Any] = {
        "num_train_steps": scheduler.get("num_train_timesteps", 1000),
        "beta_first": scheduler.get("beta_start", 1e-4),
        "beta_last": scheduler.get("beta_end", 0.02),
        "betas": (),
    }
    kind = scheduler.get("beta_schedule", "linear")
    betas = scheduler.get("trained_betas")
    if betas is not None:
        chain |= {"schedule": "betas", "betas": tuple(map(float, betas))}
        chain["num_train_steps"] = len(betas)
    elif kind in CHAINS:
        chain["schedule"] = CHAINS[kind]
    else:
        raise ValueError(
            f"beta_schedule={kind!r} in {path} is not supported; only"
            f" {', '.join(CHAINS)} can be imported."
        )
    if scheduler.get("rescale_betas_zero_snr", False):
        ended = schedules.ending_in_noise(schedules.betas_of(**chain))
        chain |= {"schedule": "betas", "betas": tuple(map(float, ended))}
    return chain, OUTPUTS[prediction]


def _tensors(folder: pathlib.Path) -> names.Tensors:
    tensors: names.Tensors = {}
    for name in _files(folder):
        tensors |= weights.read(folder / name)
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def _files(folder: pathlib.Path) -> list[str]:
    """The names of the files with the weights: one, or the parts that an index names.

    Raises:
      ValueError: If there are none, or none that are read.
    """
    stem, suffix = WEIGHTS.split(".")
    for variant in VARIANTS:
        if (folder / f"{stem}{variant}.{suffix}").is_file():
            return [f"{stem}{variant}.{suffix}"]
        index = folder / f"{stem}.{suffix}.index{variant}.json"
        if index.is_file():
            return _parts(index)
    others = sorted(path.name for path in folder.glob(f"{stem}*"))
    if any(name.endswith(".bin") for name in others):
        raise ValueError(
            f"There is no {WEIGHTS} in {folder}. Files of pickles (.bin) are not read:"
            " load the model with diffusers, and save_pretrained() it."
        )
    beside = f", but {', '.join(others)}" if others else ""
    raise ValueError(
        f"There is no {WEIGHTS} in {folder}{beside}: fetch it, or save the model with"
        " save_pretrained() of diffusers."
    )


def _parts(index: pathlib.Path) -> list[str]:
    listed = _json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ValueError(f"{index} has no weight_map, the file of each tensor.")
    for name in (files := sorted(set(listed.values()))):
        if pathlib.PurePath(name).name != name:
            raise ValueError(f"{index} names {name!r}, which is not beside it.")
    return files


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"There is no {path}: name the folder of a pipeline of diffusers, or of its"
            " U-Net and scheduler."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a dictionary.")
    return content
