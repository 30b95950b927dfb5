"""`UNet2DModel` of diffusers as a network of ours.

Any setting that our network does not support is refused by its name.
"""

import pathlib
from typing import Any

from vdiff_jax.interop.diffusers.folder import fields_of
from vdiff_jax.nets.layers import Style
from vdiff_jax.nets.unet import Level, UNet

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
KINDS = {"down_block_types": DOWN, "up_block_types": UP}


def net_of(content: dict[str, Any], path: pathlib.Path) -> UNet:
    """The network of a config, without the times of a table of times.

    Args:
      content: The config.
      path: Its file, for messages.

    Raises:
      ValueError: If a setting is not supported.
    """
    config = fields_of(content, path, defaults=DEFAULTS, only=ONLY, kinds=KINDS)
    check_shape(config, path)
    return _net(config, path.parent)


def check_shape(config: dict[str, Any], path: pathlib.Path) -> None:
    """Refuses a network that predicts other channels than it takes, or is not square.

    Args:
      config: All fields of a config.
      path: Its file, for messages.

    Raises:
      ValueError: If it is one.
    """
    if config["in_channels"] != config["out_channels"]:
        raise ValueError(
            f"The network of {path} takes {config['in_channels']} channels and predicts"
            f" {config['out_channels']}: one that learns a variance is not supported."
        )
    size = config["sample_size"]
    if isinstance(size, (list, tuple)) and size[0] != size[1]:
        raise ValueError(
            f"sample_size={size} in {path}: only square images can be imported."
        )


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
