"""A small autoencoder of random weights in a folder, as diffusers would write it."""

import json

import jax
import numpy as np

from vdiff_jax.files import weights
from vdiff_jax.interop.diffusers import names
from vdiff_jax.interop.diffusers.autoencoder import abstract_params
from vdiff_jax.nets.autoencoder import Autoencoder, Codebook

NET = Autoencoder(
    channels=(8, 8), num_blocks=1, z_channels=2, image_channels=1, groups=4
)
CONFIG = {
    "_class_name": "AutoencoderKL", "in_channels": 1, "out_channels": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2, "block_out_channels": [8, 8],
    "layers_per_block": 1, "latent_channels": 2, "norm_num_groups": 4,
    "scaling_factor": 0.5,
}  # fmt: skip


CODEBOOK = NET.clone(codebook=Codebook(8, 2))
OF_CODEBOOK = {"_class_name": "VQModel", "num_vq_embeddings": 8}


def write(folder, net=NET, **changes):
    """The folder, and the parameters in it."""
    rng = np.random.default_rng(0)
    config = {**CONFIG, **changes}
    own = {"z_channels": config["latent_channels"]}
    net = net.clone(**own, image_channels=config["in_channels"])
    params = jax.tree.map(
        lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32),
        abstract_params(net),
    )
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = names.to_torch(params)
    weights.write(folder / "diffusion_pytorch_model.safetensors", tensors, {})
    return folder, params
