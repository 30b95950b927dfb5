"""Inception features of images, with the weights that FID is defined on.

The weights are not in this package: fetch the file at `WEIGHTS`, whose name ends in the
first digits of its SHA-256. torch-fidelity's file of the same digits has the same
tensors under the same names, and a `.safetensors` file with them will do.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vdiff_jax.evaluation.inception.network import IMAGE_SIZE, Features, InceptionV3
from vdiff_jax.files import weights
from vdiff_jax.types import Params

Uint8Images: TypeAlias = (
    UInt8[Array, " batch height width channels"]
    | UInt8[np.ndarray, " batch height width channels"]
)
KNOWN_SHA256 = "6726825d"  # its first digits
BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
BATCH_NORM_EPSILON = 1e-3
UNUSED = re.compile(r"^fc\.bias$|^AuxLogits\.|\.num_batches_tracked$")
WEIGHTS = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
REMEDY = f"Fetch {WEIGHTS}."


class Inception(NamedTuple):
    """The network's parameters, and the fingerprint of their file.

    Attributes:
      params: Parameters for `apply`, on the default device.
      sha256: SHA-256 of the file of weights.
    """

    params: Params
    sha256: str

    @property
    def known(self) -> bool:
        """True if the file is the one that FID is defined on."""
        return self.sha256.startswith(KNOWN_SHA256)

    def extract(self, images: Uint8Images) -> Features:
        """Features of 8-bit images of any one size, on the devices of `params`."""
        return _apply(self.params, images)


def load(path: pathlib.Path) -> Inception:
    """Reads the weights from a file of torch or safetensors.

    Raises:
      ValueError: If the file cannot be read, or is of another network.
    """
    tensors = weights.read(path)
    try:
        params = from_torch(tensors)
    except ValueError as error:
        raise ValueError(
            f"{path} is not the Inception network of FID: {error}"
        ) from error
    return Inception(jax.tree.map(jnp.asarray, params), weights.sha256(path))


def apply(params: Params, images: Uint8Images) -> Features:
    """Features of 8-bit images: a pure function, to be jitted and sharded.

    Images are resized to 299 x 299 and scaled to (x - 128) / 128, as in the graph of
    2015-12-05. Grey ones are taken for colour ones with three equal channels.

    Args:
      params: The field of an `Inception`.
      images: Images with 1 or 3 channels, all of one size.

    Raises:
      ValueError: If the images have another number of channels.
    """
    channels = images.shape[-1]
    if channels not in (1, 3):
        raise ValueError(
            f"Inception takes images of 1 or 3 channels, got {channels}. Drop alpha."
        )
    x = jnp.repeat(jnp.asarray(images), 3 // channels, axis=-1)
    x = (resize(x, IMAGE_SIZE) - 128.0) / 128.0
    features = InceptionV3().apply({"params": params}, x)
    assert isinstance(features, Features)
    return features


_apply = jax.jit(apply)


def resize(
    images: UInt8[Array, " batch height width channels"], size: int
) -> Float[Array, " batch {size} {size} channels"]:
    """Resizes bilinearly, as TensorFlow 1 does, to size x size pixels, range unchanged.

    Pixel i is read at i * old / size, so that the image moves by a part of a pixel,
    and is not smoothed before it is made smaller: FID is defined with both mistakes.
    """
    return _resize_axis(_resize_axis(images.astype(jnp.float32), 2, size), 1, size)


def _resize_axis(
    x: Float[Array, " batch height width channels"], axis: int, size: int
) -> Array:
    last = x.shape[axis] - 1
    place = np.arange(size, dtype=np.float32) * np.float32(x.shape[axis] / size)
    before = place.astype(np.int32)
    after = np.minimum(before + 1, last)
    weight = np.expand_dims(place - before, [i for i in range(4) if i != axis])
    low, high = x.take(before, axis), x.take(after, axis)
    return low + (high - low) * weight


def from_torch(tensors: Mapping[str, np.ndarray]) -> Params:
    """The network's parameters from a state dict.

    Batch norm, gamma (W x - mean) / sqrt(var + 1e-3) + beta, is folded into one kernel
    and one bias, in float64 and rounded once.

    Args:
      tensors: The state dict. Tensors that the network does not use are passed over:
        the bias of the logits, auxiliary logits, and batch norm's counts.

    Returns:
      Float32 arrays, by layer.

    Raises:
      ValueError: If a tensor is missing, unknown or of another shape.
    """
    tensors = {name: x for name, x in tensors.items() if not UNUSED.search(name)}
    images = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.float32)
    layers = jax.eval_shape(InceptionV3().init, jax.random.key(0), images)["params"]
    _check(tensors, _shapes(layers))
    params = {layer: _folded(tensors, layer) for layer in layers if layer != "fc"}
    return params | {"fc": {"kernel": tensors["fc.weight"].T.astype(np.float32)}}


def _folded(tensors: Mapping[str, np.ndarray], layer: str) -> dict[str, np.ndarray]:
    gamma, beta, mean, variance = (
        tensors[f"{layer}.bn.{part}"].astype(np.float64) for part in BATCH_NORM
    )
    scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
    kernel = tensors[f"{layer}.conv.weight"].transpose(2, 3, 1, 0) * scale
    bias = beta - mean * scale
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}


def _shapes(layers: Params) -> dict[str, tuple[int, ...]]:
    """The shape that each tensor has in a file, where outputs come first."""
    shapes = {}
    for layer, leaves in layers.items():
        *window, inputs, outputs = leaves["kernel"].shape
        if layer == "fc":
            shapes["fc.weight"] = (outputs, inputs)
            continue
        shapes[f"{layer}.conv.weight"] = (outputs, inputs, *window)
        shapes |= {f"{layer}.bn.{part}": (outputs,) for part in BATCH_NORM}
    return shapes


def _check(
    tensors: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> None:
    for what, names in {
        "missing": expected.keys() - tensors.keys(),
        "unknown": tensors.keys() - expected.keys(),
    }.items():
        if names:
            raise ValueError(
                f"{len(names)} tensors are {what}, such as"
                f" {', '.join(sorted(names)[:3])}. {REMEDY}"
            )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise ValueError(
                f"{name} has shape {tensors[name].shape}, not {shape}. {REMEDY}"
            )
