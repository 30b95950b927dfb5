"""The tensors of our networks under diffusers' names, and in torch's layout.

`UNet2DModel` of diffusers (Apache-2.0) is the same network as our U-Net, and so are
`AutoencoderKL` and `VQModel` and our autoencoder: only the names of blocks and the
order of axes differ. Convolutions are OIHW there and HWIO here; linear maps are
[out, in] there, some of them as 1x1 convolutions, and [in, out] here; heads are flat
there.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from vdiff_jax.types import Params

Tensors = dict[str, np.ndarray]

OUTER = {
    "conv_in": "conv_in",
    "conv_out": "conv_out",
    "norm_out": "conv_norm_out",
    "dense0": "time_embedding.linear_1",
    "dense1": "time_embedding.linear_2",
    "class_emb": "class_embedding",
    "time_table": "time_proj",
    "w_proj": "time_embedding.cond_proj",
    "mid.block_1": "mid_block.resnets.0",
    "mid.attn_1": "mid_block.attentions.0",
    "mid.block_2": "mid_block.resnets.1",
    "quant_conv": "quant_conv",
    "post_quant_conv": "post_quant_conv",
    "quantize": "quantize.embedding",
    "mid.transformer_1": "mid_block.attentions.0",
}
# Of an autoencoder; each has names like those of a U-Net inside.
HALVES = ("encoder", "decoder")
INNER = {
    "norm1": "norm1",
    "conv1": "conv1",
    "temb_proj": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
# Linear maps that are 1x1 convolutions there.
ONE_BY_ONE = ("nin_shortcut", "quant_conv", "post_quant_conv")
# Rows of vectors, in the same layout there.
TABLES = ("class_emb", "time_table", "quantize")
# Inside of a transformer: ours, and theirs.
IN_TRANSFORMER = (
    (r"^layer_(\d+)", r"transformer_blocks.\1"),
    (r"(attn\d)\.([qkv])$", r"\1.to_\2"),
    (r"(attn\d)\.out$", r"\1.to_out.0"),
    (r"ff\.proj$", "ff.net.0.proj"),
    (r"ff\.out$", "ff.net.2"),
)
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


class Place(NamedTuple):
    """One of our parameters, and its counterpart in diffusers.

    Attributes:
      path: Keys to the parameter in our tree.
      shape: Its shape in our tree.
      name: Name of diffusers' tensor.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    name: str


def places(params: Params) -> Iterator[Place]:
    """Yields every parameter of a U-Net or an autoencoder with its name in diffusers.

    Args:
      params: The network's parameters, or their shapes.
    """
    leaves: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(params)
    levels = [re.match(r"up_(\d+)\.", part) for path in leaves for part in path]
    depth = 1 + max((int(level[1]) for level in levels if level), default=0)
    for path, leaf in leaves.items():
        yield Place(path, tuple(leaf.shape), _name(path, depth))


def to_torch(params: Params) -> Tensors:
    """The parameters as diffusers' tensors."""
    leaves = traverse_util.flatten_dict(params)
    return {
        place.name: np.ascontiguousarray(
            _outwards(place, np.asarray(leaves[place.path]))
        )
        for place in places(params)
    }


def from_torch(tensors: Tensors, abstract_params: Params, where: str) -> Params:
    """Diffusers' tensors as our parameters; every tensor has to be used.

    Args:
      tensors: Arrays by diffusers' names.
      abstract_params: The shapes of our parameters.
      where: The file, for messages.

    Raises:
      ValueError: If a tensor is missing, unused or of another shape.
    """
    wanted = {place.name: place for place in places(abstract_params)}
    missing, unused = wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys()
    if missing or unused:
        raise ValueError(
            f"The weights in {where} are not those of this network: {len(missing)}"
            f" tensors are missing{_some(missing)}, and {len(unused)} are not"
            f" used{_some(unused)}."
        )
    leaves = {}
    for name, place in wanted.items():
        expected = _outwards(place, np.zeros(place.shape, np.bool_)).shape
        if tensors[name].shape != expected:
            raise ValueError(
                f"{name} in {where} has shape {tensors[name].shape}, and this network"
                f" needs {expected}."
            )
        leaves[place.path] = np.ascontiguousarray(_inwards(place, tensors[name]))
    return traverse_util.unflatten_dict(leaves)


def with_new_names(tensors: Tensors) -> Tensors:
    """Tensors with the names that attention has had since 2023, in place of older ones.

    diffusers renames them on reading, too.
    """
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    pattern = re.compile(rf"(attentions\.\d+)\.({'|'.join(old)})\.")
    return {
        pattern.sub(lambda match: f"{match[1]}.{old[match[2]]}.", name): tensor
        for name, tensor in tensors.items()
    }


def _name(path: tuple[str, ...], depth: int) -> str:
    if path[0] in HALVES:
        return f"{path[0]}.{_name(path[1:], depth)}"
    outer, *inner, leaf = path
    name = OUTER.get(outer) or _name_of_level(outer, depth, conv=not inner)
    if ".transformer_" in outer:
        parts = [_name_in_transformer(".".join(inner))]
    else:
        parts = [INNER[part] for part in inner]
    return ".".join([name, *parts, LEAVES[leaf]])


def _name_in_transformer(name: str) -> str:
    for ours, theirs in IN_TRANSFORMER:
        name = re.sub(ours, theirs, name)
    return name


def _name_of_level(outer: str, depth: int, *, conv: bool) -> str:
    match = re.fullmatch(
        r"(down|up)_(\d+)\.(block_|attn_|transformer_|downsample|upsample)(\d*)",
        outer,
    )
    if match is None:
        raise ValueError(f"{outer!r} has no counterpart in diffusers.")
    way, level, kind, number = match.groups()
    # There, levels on the way up are counted in the order in which they run.
    block = (
        f"down_blocks.{level}"
        if way == "down"
        else f"up_blocks.{depth - 1 - int(level)}"
    )
    if kind.endswith("_"):
        return f"{block}.{'resnets' if kind == 'block_' else 'attentions'}.{number}"
    return f"{block}.{kind}rs.0" + (".conv" if conv else "")


def _outwards(place: Place, leaf: np.ndarray) -> np.ndarray:
    module, kind = place.path[-2], place.path[-1]
    if module in TABLES:
        return leaf
    if kind != "kernel":
        return leaf.reshape(-1)
    if module in ONE_BY_ONE:
        return leaf.T[:, :, None, None]
    if module in ("q", "k", "v"):
        return leaf.reshape(leaf.shape[0], -1).T
    if module in ("proj_out", "out"):
        return leaf.reshape(-1, leaf.shape[-1]).T
    return leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T


def _inwards(place: Place, tensor: np.ndarray) -> np.ndarray:
    module, kind = place.path[-2], place.path[-1]
    if kind != "kernel" or module == "class_emb":
        return tensor.reshape(place.shape)
    if len(place.shape) == 4:
        return tensor.transpose(2, 3, 1, 0)
    return tensor.reshape(tensor.shape[:2]).T.reshape(place.shape)


def _some(names: Any) -> str:
    first = sorted(names)[:3]
    return f" ({', '.join(first)}{', ...' if len(names) > 3 else ''})" if first else ""
