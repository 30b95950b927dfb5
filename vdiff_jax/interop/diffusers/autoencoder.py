"""Folders of diffusers: an `AutoencoderKL` or a `VQModel`, as people publish them.

Only json, numpy and safetensors are needed. Any setting in a folder that our network
does not support is refused by its name.
"""

import hashlib
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vdiff_jax.files import weights
from vdiff_jax.interop.diffusers import names
from vdiff_jax.interop.diffusers.folder import (
    WEIGHTS,
    check_class,
    check_is_no_pickle,
    fields_of,
    read_json,
    read_tensors,
    weight_files,
)
from vdiff_jax.nets.autoencoder import Autoencoder, Codebook
from vdiff_jax.types import Params

PARTS = ("vae", "vqvae")
KINDS = {
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
}
# Of the classes in diffusers 0.42; old files lack the newer ones.
OF_BOTH: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3,
    "down_block_types": KINDS["down_block_types"],
    "up_block_types": KINDS["up_block_types"], "block_out_channels": (64,),
    "layers_per_block": 1, "act_fn": "silu", "norm_num_groups": 32,
    "mid_block_add_attention": True,
    # The defaults are right for few models, so a file without it does not tell.
    "scaling_factor": None,
    # Not needed: the network takes images of any size, and its parameters and norms
    # are in float32 whatever it computes in.
    "sample_size": 32, "force_upcast": None,
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {
        **OF_BOTH, "latent_channels": 4, "shift_factor": None, "latents_mean": None,
        "latents_std": None, "use_quant_conv": True, "use_post_quant_conv": True,
    },
    "VQModel": {
        **OF_BOTH, "latent_channels": 3, "num_vq_embeddings": 256, "vq_embed_dim": None,
        "norm_type": "group", "lookup_from_codebook": False,
    },
}  # fmt: skip
# The only values that our network supports; with others it would be another.
ONLY: dict[str, dict[str, tuple[Any, ...]]] = {
    "AutoencoderKL": {
        "act_fn": ("silu", "swish"), "latents_mean": (None,), "latents_std": (None,),
    },
    "VQModel": {
        "act_fn": ("silu", "swish"), "norm_type": ("group",),
        "lookup_from_codebook": (False,),
    },
}  # fmt: skip


class ImportedAutoencoder(NamedTuple):
    """An autoencoder, and how a diffusion model takes its latents.

    x of the diffusion model is scale * (latent - shift), with latents as the net
    encodes them and takes them to decode.

    Attributes:
      net: The network, in float32; `net.clone(dtype=jnp.bfloat16)` is faster.
      params: Its parameters.
      scale: Above 0.
      shift: 0 where the folder names none.
      sha256: Of the file of weights; of several, that of their digests, one after the
        other.
      folder: The folder with the files.
    """

    net: Autoencoder
    params: Params
    scale: float
    shift: float
    sha256: str
    folder: pathlib.Path


def read_autoencoder(folder: pathlib.Path, scale: float = 0.0) -> ImportedAutoencoder:
    """Reads an autoencoder and the scale of its latents.

    Args:
      folder: A pipeline's folder with `vae/` or `vqvae/`, or that folder itself.
      scale: The scale of the latents, for a folder that does not tell; 0 is what the
        folder tells.

    Raises:
      ValueError: If something is missing or not supported, with its name; if the folder
        tells no scale and none is given, or it tells another.
    """
    net, scale, shift, folder = describe_autoencoder(folder, scale)
    files = weight_files(folder)
    params = names.from_torch(
        read_tensors(files), abstract_params(net), str(folder / WEIGHTS)
    )
    return ImportedAutoencoder(net, params, scale, shift, _sha256(files), folder)


class Description(NamedTuple):
    """An autoencoder without its parameters; see `ImportedAutoencoder`."""

    net: Autoencoder
    scale: float
    shift: float
    folder: pathlib.Path


def describe_autoencoder(folder: pathlib.Path, scale: float = 0.0) -> Description:
    """Reads what an autoencoder is, and none of its weights; see `read_autoencoder`."""
    check_is_no_pickle(folder)
    folder = next((folder / x for x in PARTS if (folder / x).is_dir()), folder)
    path = folder / "config.json"
    content = read_json(path)
    kind = check_class(content, path, tuple(DEFAULTS))
    config = fields_of(
        content, path, defaults=DEFAULTS[kind], only=ONLY[kind], kinds=KINDS
    )
    scale = _scale(config["scaling_factor"], scale, path)
    shift = float(config.get("shift_factor") or 0.0)
    return Description(_net(config, path), scale, shift, folder)


def abstract_params(net: Autoencoder) -> Params:
    """The shapes of an autoencoder's parameters."""
    x = jnp.zeros((1, net.factor, net.factor, net.image_channels))
    return jax.eval_shape(net.init, jax.random.key(0), x)["params"]


def _net(config: dict[str, Any], path: pathlib.Path) -> Autoencoder:
    channels, groups = tuple(config["block_out_channels"]), config["norm_num_groups"]
    for name in KINDS:
        if len(config[name]) != len(channels):
            raise ValueError(
                f"{name} in {path} has {len(config[name])} entries, and"
                f" block_out_channels {len(channels)}."
            )
    if other := [width for width in channels if width % groups]:
        raise ValueError(
            f"norm_num_groups={groups} in {path} does not divide {other[0]} of"
            " block_out_channels."
        )
    if config["in_channels"] != config["out_channels"]:
        raise ValueError(
            f"The autoencoder of {path} has in_channels={config['in_channels']} and"
            f" out_channels={config['out_channels']}: only one that decodes what it"
            " encodes can be imported."
        )
    z_channels = config["latent_channels"]
    codebook = None
    if (num := config.get("num_vq_embeddings")) is not None:
        width = config["vq_embed_dim"]
        codebook = Codebook(num, z_channels if width is None else width)
    return Autoencoder(
        channels=channels,
        num_blocks=config["layers_per_block"],
        z_channels=z_channels,
        image_channels=config["in_channels"],
        codebook=codebook,
        mid_attention=config["mid_block_add_attention"],
        use_quant_conv=config.get("use_quant_conv", True),
        use_post_quant_conv=config.get("use_post_quant_conv", True),
        groups=groups,
    )


def _scale(of_file: float | None, given: float, path: pathlib.Path) -> float:
    """The scale that the file tells, or else the given one."""
    if not given >= 0.0:
        raise ValueError(
            f"data.latent_scale={given} must be above 0, or 0 for the scaling_factor of"
            f" {path}."
        )
    if of_file is None:
        if not given:
            raise ValueError(
                f"{path} has no scaling_factor, and the default of diffusers is wrong"
                " for most models: set data.latent_scale to the scale that the"
                " diffusion model was trained with (0.18215 for Stable Diffusion 1 and"
                " 2, 1 for the ImageNet model of latent diffusion)."
            )
        return float(given)
    if not of_file > 0.0:
        raise ValueError(f"scaling_factor={of_file} in {path} must be above 0.")
    if given and not math.isclose(given, of_file, rel_tol=1e-6):
        raise ValueError(
            f"data.latent_scale={given}, but scaling_factor={of_file} in {path}: set it"
            " to 0 to take that of the file."
        )
    return float(of_file)


def _sha256(files: list[pathlib.Path]) -> str:
    digests = [weights.sha256(path) for path in files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()
