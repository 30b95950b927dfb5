"""The tensors of our diffusion transformer under diffusers' names, in torch's layout.

`DiTTransformer2DModel` of diffusers (Apache-2.0) is the same network. Linear maps are
[out, in] there and [in, out] here; heads are flat there; patches are a convolution
there. The embedding of time and class stands there in every block, of which the network
needs one: what was trained as one is the same in all.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from vdiff_jax.types import Params

Tensors = dict[str, np.ndarray]

BLOCKS, EMBEDDING = "transformer_blocks", "norm1.emb"
FIRST = f"{BLOCKS}.0.{EMBEDDING}"
OUTER = {
    "patch_in": "pos_embed.proj",
    "dense0": f"{FIRST}.timestep_embedder.linear_1",
    "dense1": f"{FIRST}.timestep_embedder.linear_2",
    "class_emb": f"{FIRST}.class_embedder.embedding_table",
    "modulation_out": "proj_out_1",
    "out": "proj_out_2",
}
INNER = {
    "modulation": "norm1.linear",
    "q": "attn1.to_q",
    "k": "attn1.to_k",
    "v": "attn1.to_v",
    "proj_out": "attn1.to_out.0",
    "mlp_in": "ff.net.0.proj",
    "mlp_out": "ff.net.2",
}
LEAVES = {"kernel": "weight", "bias": "bias"}


class Place(NamedTuple):
    """One of our parameters, and its counterpart in diffusers.

    Attributes:
      path: Keys to the parameter in our tree.
      shape: Its shape in our tree.
      name: Name of diffusers' tensor; that of the first block, where each has one.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    name: str


def places(params: Params) -> Iterator[Place]:
    """Yields every parameter with its name in diffusers.

    Args:
      params: The network's parameters, or their shapes.
    """
    leaves: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(params)
    for path, leaf in leaves.items():
        outer, *inner, kind = path
        if inner:
            outer = f"{BLOCKS}.{outer.removeprefix('block_')}.{INNER[inner[0]]}"
        else:
            outer = OUTER[outer]
        yield Place(path, tuple(leaf.shape), f"{outer}.{LEAVES[kind]}")


def to_torch(params: Params, patch: int, depth: int) -> Tensors:
    """The parameters as diffusers' tensors.

    Args:
      params: The network's parameters.
      patch: Side of a patch.
      depth: Number of blocks.
    """
    leaves = traverse_util.flatten_dict(params)
    tensors = {
        place.name: np.ascontiguousarray(
            _outwards(place, np.asarray(leaves[place.path]), patch)
        )
        for place in places(params)
    }
    for name in [name for name in tensors if name.startswith(FIRST)]:
        for block in range(1, depth):
            tensors[_in_block(name, block)] = tensors[name]
    return tensors


def from_torch(
    tensors: Tensors, abstract_params: Params, patch: int, depth: int, where: str
) -> Params:
    """Diffusers' tensors as our parameters; every tensor has to be used.

    Args:
      tensors: Arrays by diffusers' names.
      abstract_params: The shapes of our parameters.
      patch: Side of a patch.
      depth: Number of blocks.
      where: The file, for messages.

    Raises:
      ValueError: If a tensor is missing, unused or of another shape, or the blocks do
        not have the same embedding of time and class.
    """
    wanted = {place.name: place for place in places(abstract_params)}
    copies = {
        _in_block(name, block): name
        for name in wanted
        if name.startswith(FIRST)
        for block in range(1, depth)
    }
    known = wanted.keys() | copies.keys()
    missing, unused = known - tensors.keys(), tensors.keys() - known
    if missing or unused:
        raise ValueError(
            f"The weights in {where} are not those of this network: {len(missing)}"
            f" tensors are missing{_some(missing)}, and {len(unused)} are not"
            f" used{_some(unused)}."
        )
    for name, first in copies.items():
        if not np.array_equal(tensors[name], tensors[first]):
            raise ValueError(
                f"{name} in {where} differs from {first}: a network whose blocks have"
                " embeddings of time and class of their own is not supported."
            )
    leaves = {}
    for name, place in wanted.items():
        expected = _outwards(place, np.zeros(place.shape, np.bool_), patch).shape
        if tensors[name].shape != expected:
            raise ValueError(
                f"{name} in {where} has shape {tensors[name].shape}, and this network"
                f" needs {expected}."
            )
        leaves[place.path] = np.ascontiguousarray(_inwards(place, tensors[name]))
    return traverse_util.unflatten_dict(leaves)


def without_variance(tensors: Tensors, patch: int, channels: int) -> Tensors:
    """The tensors of a network that predicts no variance, of one that does.

    Args:
      tensors: Arrays by diffusers' names, with twice as many channels out as in.
      patch: Side of a patch.
      channels: Channels of the image: the first of each pixel of the output.
    """
    outer = {}
    for name, tensor in tensors.items():
        if name.startswith(OUTER["out"]):
            pixels = tensor.reshape(patch**2, 2 * channels, *tensor.shape[1:])
            outer[name] = pixels[:, :channels].reshape(-1, *tensor.shape[1:])
    return {**tensors, **outer}


def _in_block(name: str, block: int) -> str:
    return name.replace(FIRST, f"{BLOCKS}.{block}.{EMBEDDING}")


def _outwards(place: Place, leaf: np.ndarray, patch: int) -> np.ndarray:
    module, kind = place.path[-2], place.path[-1]
    if kind != "kernel":
        return leaf.reshape(-1)
    if module == "class_emb":
        return leaf
    if module == "patch_in":
        square = leaf.reshape(patch, patch, -1, leaf.shape[-1])
        return square.transpose(3, 2, 0, 1)
    if module == "proj_out":
        return leaf.reshape(-1, leaf.shape[-1]).T
    return leaf.reshape(leaf.shape[0], -1).T


def _inwards(place: Place, tensor: np.ndarray) -> np.ndarray:
    module, kind = place.path[-2], place.path[-1]
    if kind != "kernel" or module == "class_emb":
        return tensor.reshape(place.shape)
    if module == "patch_in":
        return tensor.transpose(2, 3, 1, 0).reshape(place.shape)
    return tensor.T.reshape(place.shape)


def _some(names: Any) -> str:
    first = sorted(names)[:3]
    return f" ({', '.join(first)}{', ...' if len(names) > 3 else ''})" if first else ""
