"""The checkpoints that came with the paper: flax's msgpack of a training state.

Only what a sampler needs is kept: the averaged parameters and the number of steps that
they were distilled for. The optimizer's part, three quarters of a file, is skipped
while reading. Nothing in a file is executed, and nothing but plain numbers is accepted.
"""

import pathlib
from typing import Any

import msgpack
import numpy as np
from flax import traverse_util

from vdiff_jax.interop.imported_model import Imported
from vdiff_jax.nets.serialization import describe
from vdiff_jax.nets.unet import Level, UNet
from vdiff_jax.types import Params

# Of flax.serialization: arrays, and scalars of numpy.
ARRAY, SCALAR = 1, 3
DTYPES = ("float32", "float16", "int32", "int64", "uint32", "uint64", "bool")
DEEPEST = 20
CHUNKED = "__msgpack_chunked_array__"


def read(path: pathlib.Path, output: str, image_size: int) -> Imported:
    """Reads a checkpoint; the network's shape is that of its parameters.

    Args:
      path: The checkpoint's file.
      output: The quantity that the network predicts, if it has as many channels at the
        output as at the input; with twice as many it predicts both.
      image_size: Height and width of the images, which the parameters do not determine.

    Raises:
      ValueError: If the file is damaged, or holds anything but such a checkpoint.
    """
    kept = _kept(path)
    params = _parameters(kept.get("ema_params"), path)
    net = network(params, path)
    channels = params["conv_in"]["kernel"].shape[2]
    both = params["conv_out"]["kernel"].shape[3] == 2 * channels
    model = {
        "net": "unet",
        "unet": {"layout": describe(net), "patch": 1},
        "timesteps": "",
        "output": "both" if both else output,
        "num_classes": net.num_classes,
    }
    cosine = {"schedule": "cosine", "logsnr_min": -20.0, "logsnr_max": 20.0}
    data = {"channels": channels, "image_size": image_size}
    return Imported(
        {"model": model, "diffusion": cosine, "data": data},
        params,
        _count(kept.get("num_sample_steps"), path),
    )


def _kept(path: pathlib.Path) -> dict[str, Any]:
    """The entries of the file's dictionary, but the optimizer."""
    if not path.is_file():
        raise ValueError(f"There is no file {path}. Fetch it, or give its place.")
    kept = {}
    try:
        with path.open("rb") as file:
            unpacker = msgpack.Unpacker(
                file,
                ext_hook=_from_extension,
                max_buffer_size=max(path.stat().st_size, 1),
                strict_map_key=True,
            )
            for _ in range(unpacker.read_map_header()):
                name = unpacker.unpack()
                if name in ("ema_params", "num_sample_steps"):
                    kept[name] = unpacker.unpack()
                else:
                    unpacker.skip()
            if unpacker.tell() != path.stat().st_size:
                raise ValueError("there is more in it than one dictionary")
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # of msgpack, whose words mislead
        raise ValueError(
            f"{path} is damaged, or no checkpoint of flax ({error}): fetch it again."
        ) from error
    return kept


def _from_extension(code: int, data: bytes) -> Any:
    if code not in (ARRAY, SCALAR):
        raise ValueError(f"it holds something of the unknown type {code}")
    shape, dtype, buffer = msgpack.unpackb(data, max_array_len=8)
    dtype = dtype.decode() if isinstance(dtype, bytes) else dtype
    if dtype not in DTYPES:
        raise ValueError(f"it holds an array of {dtype!r}")
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"it holds an array of shape {shape}")
    array = np.frombuffer(buffer, dtype).reshape(shape)
    return array[()] if code == SCALAR else array


def _parameters(tree: Any, path: pathlib.Path) -> Params:
    """The tree as float32, or a refusal by name."""
    if not isinstance(tree, dict):
        raise ValueError(f"{path} has no 'ema_params': it is no such checkpoint.")
    leaves = {}

    def visit(node: Any, place: tuple[str, ...]) -> None:
        if isinstance(node, dict) and CHUNKED in node:
            node = _joined(node, path)
        if isinstance(node, dict) and len(place) < DEEPEST:
            for name, below in node.items():
                visit(below, (*place, str(name)))
            return
        if not isinstance(node, np.ndarray) or node.dtype != np.float32:
            raise ValueError(
                f"{'/'.join(place)} in {path} is no array of float32, but a"
                f" {getattr(node, 'dtype', type(node).__name__)}."
            )
        # Norms once had the shape [1, 1, 1, channels].
        of_norm = place[-1] in ("scale", "bias") and node.shape[:-1] == (1, 1, 1)
        leaves[place] = np.array(node.reshape(-1) if of_norm else node)

    visit(tree, ())
    return traverse_util.unflatten_dict(leaves)


def _joined(node: dict[str, Any], path: pathlib.Path) -> np.ndarray:
    """An array of over 2^30 bytes, which flax cuts into several."""
    try:
        chunks = [node["chunks"][str(i)] for i in range(len(node["chunks"]))]
        shape = [int(node["shape"][str(i)]) for i in range(len(node["shape"]))]
        return np.concatenate(chunks).reshape(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"An array in {path} is cut up wrongly ({error}).") from error


def network(params: Params, path: pathlib.Path) -> UNet:
    """The U-Net that has such parameters.

    Args:
      params: The parameters, or their shapes.
      path: Their file, for messages.

    Raises:
      ValueError: If no such U-Net has these parameters.
    """
    try:
        depth = 1 + max(int(name[5]) for name in params if name.startswith("down_"))
        return UNet(
            levels=tuple(_level(params, l) for l in range(depth)),
            out_channels=params["conv_out"]["kernel"].shape[3],
            emb_features=params["dense0"]["kernel"].shape[1],
            mid_heads=_heads(params["mid.attn_1"]),
            num_classes=_num_classes(params),
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The parameters in {path} are not those of a U-Net of the paper: {error}"
            " is missing or of another shape."
        ) from error


def _level(params: Params, l: int) -> Level:
    blocks = [name for name in params if name.startswith(f"down_{l}.block_")]
    attention = params.get(f"down_{l}.attn_0")
    down, up = params.get(f"down_{l}.downsample"), params.get(f"up_{l}.upsample")
    return Level(
        features=params[f"down_{l}.block_0"]["conv1"]["kernel"].shape[3],
        num_blocks=len(blocks),
        num_heads=_heads(attention) if attention else 0,
        resample_in_block="kernel" not in (down or up or {}),
    )


def _num_classes(params: Params) -> int:
    return params["class_emb"]["kernel"].shape[0] if "class_emb" in params else 0


def _heads(attention: Params) -> int:
    return attention["q"]["kernel"].shape[1]


def _count(value: Any, path: pathlib.Path) -> int:
    if value is None:
        return 0
    number = np.asarray(value)
    if number.shape != () or not np.issubdtype(number.dtype, np.integer) or number < 0:
        raise ValueError(f"num_sample_steps in {path} is {value!r}, not a number.")
    return int(number)
