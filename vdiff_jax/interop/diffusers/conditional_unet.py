"""`UNet2DConditionModel` of diffusers as a network of ours.

It attends to a context, such as the embedding of a text; or, in latent diffusion on
ImageNet, to one vector of the class, from a table beside the network. Any setting that
our network does not support is refused by its name.
"""

import pathlib
from typing import Any

import numpy as np

from vdiff_jax.files import weights
from vdiff_jax.interop.diffusers import names
from vdiff_jax.interop.diffusers.folder import (
    WEIGHTS,
    fields_of,
    read_json,
    read_tensors,
    weight_files,
)
from vdiff_jax.interop.diffusers.unet import check_shape
from vdiff_jax.interop.imported_model import abstract_params
from vdiff_jax.nets.layers import Style
from vdiff_jax.nets.unet import Level, UNet
from vdiff_jax.types import Params

DOWN = ("DownBlock2D", "CrossAttnDownBlock2D")
UP = ("UpBlock2D", "CrossAttnUpBlock2D")
MID = "UNetMidBlock2DCrossAttn"
# Of `UNet2DConditionModel` in diffusers 0.42; old files lack the newer ones.
DEFAULTS: dict[str, Any] = {
    "sample_size": None, "in_channels": 4, "out_channels": 4,
    "center_input_sample": False, "flip_sin_to_cos": True, "freq_shift": 0,
    "down_block_types": (DOWN[1], DOWN[1], DOWN[1], DOWN[0]), "mid_block_type": MID,
    "up_block_types": (UP[0], UP[1], UP[1], UP[1]), "only_cross_attention": False,
    "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
    "downsample_padding": 1, "mid_block_scale_factor": 1, "dropout": 0.0,
    "act_fn": "silu", "norm_num_groups": 32, "norm_eps": 1e-5,
    "cross_attention_dim": 1280, "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None, "encoder_hid_dim": None,
    "encoder_hid_dim_type": None, "attention_head_dim": 8, "num_attention_heads": None,
    "dual_cross_attention": False, "use_linear_projection": False,
    "class_embed_type": None, "addition_embed_type": None,
    "addition_time_embed_dim": None, "num_class_embeds": None,
    "upcast_attention": False, "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False, "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional", "time_embedding_dim": None,
    "time_embedding_act_fn": None, "timestep_post_act": None,
    "time_cond_proj_dim": None, "conv_in_kernel": 3, "conv_out_kernel": 3,
    "projection_class_embeddings_input_dim": None, "attention_type": "default",
    "class_embeddings_concat": False, "mid_block_only_cross_attention": None,
    "cross_attention_norm": None, "addition_embed_type_num_heads": 64,
}  # fmt: skip
# The only values that our network supports; with others it would be another. Left out
# is `upcast_attention`, about the precision of the softmax: ours always is float32.
ONLY: dict[str, tuple[Any, ...]] = {
    "mid_block_type": (MID, None),
    "only_cross_attention": (False,),
    "downsample_padding": (0, 1),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "mid_block_only_cross_attention": (None, False),
    **{
        name: (DEFAULTS[name],)
        for name in (
            "reverse_transformer_layers_per_block", "encoder_hid_dim",
            "encoder_hid_dim_type", "dual_cross_attention", "class_embed_type",
            "addition_embed_type", "addition_time_embed_dim", "resnet_skip_time_act",
            "resnet_out_scale_factor", "time_embedding_type", "time_embedding_act_fn",
            "timestep_post_act", "conv_in_kernel", "conv_out_kernel",
            "projection_class_embeddings_input_dim", "attention_type",
            "class_embeddings_concat", "cross_attention_norm",
        )
    },
}  # fmt: skip
KINDS = {"down_block_types": DOWN, "up_block_types": UP}
# Beside `unet/`: the vectors of the classes, and the context of no text.
CLASS_TABLE = "class_embedder.safetensors"
NULL_CONTEXT = "null_context.safetensors"
# Parameters that diffusers' network does not have.
OURS = ("class_context", "null_context", "null_mask")
# As what the null context begins.
START = {"null_context": 0.0, "null_mask": 1.0}
# Of the text encoder of Stable Diffusion.
TOKENS = 77


def net_of(content: dict[str, Any], path: pathlib.Path, root: pathlib.Path) -> UNet:
    """The network of a config, without the times of its chain.

    Args:
      content: The config.
      path: Its file, for messages.
      root: The folder of the pipeline.

    Raises:
      ValueError: If a setting is not supported.
    """
    config = fields_of(content, path, defaults=DEFAULTS, only=ONLY, kinds=KINDS)
    check_shape(config, path)
    _check_widths(config, path)
    net = UNet(**_shape(config, path))
    classes = config["num_class_embeds"] or 0
    if not (root / CLASS_TABLE).exists():
        return net.clone(context_tokens=_tokens(root), num_classes=classes)
    if classes:
        raise ValueError(
            f"num_class_embeds={classes} in {path}, and there is a"
            f" {root / CLASS_TABLE}: the class can have one place only."
        )
    return net.clone(num_classes=len(_class_table(root / CLASS_TABLE)) - 1)


def read_params(
    net: UNet, folder: pathlib.Path, root: pathlib.Path
) -> tuple[Params, bool]:
    """The parameters, and whether a condition that is left out was among them.

    Args:
      net: The network.
      folder: The folder of its weights.
      root: The folder of the pipeline.

    Raises:
      ValueError: If a tensor is missing, unused or of another shape.
    """
    abstract = dict(abstract_params(net, net.out_channels))
    ours = {name: abstract.pop(name) for name in OURS if name in abstract}
    tensors = _as_matrices(read_tensors(weight_files(folder)))
    params = names.from_torch(tensors, abstract, str(folder / WEIGHTS))
    if net.class_is_context:
        table = {"class_context": _class_table(root / CLASS_TABLE)}
        return {**params, **_shaped(table, ours, root / CLASS_TABLE)}, True
    path = root / NULL_CONTEXT
    null = {name: np.full(ours[name].shape, x, np.float32) for name, x in START.items()}
    if not path.exists():
        return {**params, **null}, False
    null |= _null_context(path)
    return {**params, **_shaped(null, ours, path)}, True


def as_convolutions(tensors: names.Tensors) -> names.Tensors:
    """Tensors of which the outer maps of transformers are 1x1 convolutions."""
    return {
        name: x[:, :, None, None] if _is_projection(name) else x
        for name, x in tensors.items()
    }


def _as_matrices(tensors: names.Tensors) -> names.Tensors:
    """The inverse, also of tensors that are matrices already."""
    return {
        name: x.reshape(x.shape[:2]) if _is_projection(name) else x
        for name, x in tensors.items()
    }


def _is_projection(name: str) -> bool:
    return name.endswith((".proj_in.weight", ".proj_out.weight"))


def _shaped(tensors: names.Tensors, ours: Any, path: pathlib.Path) -> names.Tensors:
    for name, x in tensors.items():
        if x.shape != ours[name].shape:
            raise ValueError(
                f"{name} of {path} has shape {x.shape}, and this network needs"
                f" {ours[name].shape}."
            )
    return tensors


def _class_table(path: pathlib.Path) -> np.ndarray:
    """A row for each class, and a last one for none."""
    tensors = weights.read(path)
    name = next((x for x in ("weight", "embedding.weight") if x in tensors), None)
    if name is None or tensors[name].ndim != 2:
        raise ValueError(
            f"{path} has the tensors {sorted(tensors)}: it must have the table of the"
            " classes, as weight or embedding.weight."
        )
    return tensors[name].astype(np.float32)


def _tokens(root: pathlib.Path) -> int:
    """The number of vectors that the text encoder makes, if something tells it."""
    path = root / "text_encoder" / "config.json"
    if path.exists():
        return read_json(path).get("max_position_embeddings", TOKENS)
    if (root / NULL_CONTEXT).exists():
        return len(_null_context(root / NULL_CONTEXT)["null_context"])
    return TOKENS


def _null_context(path: pathlib.Path) -> names.Tensors:
    """The null context, and its mask if there is one, by our names."""
    tensors = weights.read(path)
    if "context" not in tensors or not tensors.keys() <= {"context", "mask"}:
        raise ValueError(
            f"{path} has the tensors {sorted(tensors)}: it must have a context, and may"
            " have a mask."
        )
    if not (tensors.get("mask", np.ones(1)) == 1).any():
        raise ValueError(f"The mask in {path} must have a 1: a vector that counts.")
    return {f"null_{name}": x.astype(np.float32) for name, x in tensors.items()}


def _check_widths(config: dict[str, Any], path: pathlib.Path) -> None:
    width = config["cross_attention_dim"]
    if not isinstance(width, int):
        raise ValueError(
            f"cross_attention_dim={width!r} in {path} is not supported; only one width"
            " for all levels can be imported."
        )
    if not isinstance(config["norm_num_groups"], int):
        raise ValueError(
            f"norm_num_groups={config['norm_num_groups']!r} in {path} is not supported;"
            " only a number can be imported."
        )


def _shape(config: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """The fields of a `UNet` but those about its context and its classes."""
    features = config["block_out_channels"]

    def of_levels(name: str) -> list[int]:
        """A field of one number for all levels, or of one for each."""
        value = config[name]
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        values = values * len(features) if len(values) == 1 else values
        if len(values) != len(features) or not all(isinstance(x, int) for x in values):
            raise ValueError(
                f"{name}={value!r} in {path} is not supported; only a number, or one"
                f" for each of {len(features)} levels, can be imported."
            )
        return values

    # Misnamed there: attention_head_dim is the number of heads, unless that is given.
    which = "num_attention_heads" if config["num_attention_heads"] else None
    which = which or "attention_head_dim"
    heads, depths = of_levels(which), of_levels("transformer_layers_per_block")
    for channels, count in zip(features, heads, strict=True):
        if channels % count:
            raise ValueError(
                f"{which}={config[which]} in {path}, the number of heads, does not"
                f" divide {channels} channels."
            )
    kinds = zip(config["down_block_types"], config["up_block_types"][::-1], strict=True)
    levels = tuple(
        Level(
            features=channels,
            num_blocks=num_blocks,
            num_heads=count if down == DOWN[1] else 0,
            num_heads_up=count if up == UP[1] else 0,
            resample_in_block=False,
            depth=depth if DOWN[1] == down or UP[1] == up else 0,
        )
        for channels, num_blocks, count, depth, (down, up) in zip(
            features, of_levels("layers_per_block"), heads, depths, kinds, strict=True
        )
    )
    return {
        "levels": levels,
        "out_channels": config["out_channels"],
        "emb_features": config["time_embedding_dim"] or 4 * features[0],
        "mid_heads": heads[-1],
        "mid_depth": depths[-1],
        "context_features": config["cross_attention_dim"],
        "w_features": config["time_cond_proj_dim"] or 0,
        "groups": config["norm_num_groups"],
        "style": Style(
            film=config["resnet_time_scale_shift"] == "scale_shift",
            epsilon=config["norm_eps"],
            pad_both_sides=config["downsample_padding"] == 1,
            cosine_first=config["flip_sin_to_cos"],
            frequency_shift=config["freq_shift"],
            class_bias=False,
            mid=config["mid_block_type"] is not None,
            mid_scale=float(config["mid_block_scale_factor"]),
            center_input=config["center_input_sample"],
            linear_projection=config["use_linear_projection"],
        ),
    }
