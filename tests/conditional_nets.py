"""Random conditional networks of diffusers, of every kind that can be imported."""

import diffusers
import numpy as np
import safetensors.numpy
import torch

WIDTH = 12
SMALL = {
    "sample_size": 16, "in_channels": 3, "out_channels": 3,
    "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
    "attention_head_dim": 2, "cross_attention_dim": WIDTH,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
KINDS = {
    # As latent diffusion on ImageNet: the class is the one token.
    "of a class": {"attention_head_dim": 1},
    # As Stable Diffusion 1.x, and 2.x.
    "of a text": {},
    "with matrices": {"attention_head_dim": (2, 4), "use_linear_projection": True},
    "conditioned on w": {"time_cond_proj_dim": 8, "attention_head_dim": 4},
    "of levels that differ": {
        "block_out_channels": (8, 16, 16), "layers_per_block": (1, 2, 1),
        "attention_head_dim": (1, 4, 2), "transformer_layers_per_block": (1, 2, 1),
        "down_block_types": (
            "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"
        ),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
        "time_embedding_dim": 48, "norm_eps": 1e-6, "downsample_padding": 0,
        "flip_sin_to_cos": False, "freq_shift": 1, "center_input_sample": True,
        "mid_block_scale_factor": 1.4, "upcast_attention": True,
    },
    "with FiLM and classes in time": {
        "resnet_time_scale_shift": "scale_shift", "num_class_embeds": 10,
        "mid_block_type": None,
    },
}  # fmt: skip
CLASSES = 10
TOKENS = 5


def random_net(**options) -> diffusers.UNet2DConditionModel:
    """A network in which nothing is zero or one."""
    torch.manual_seed(0)
    net = diffusers.UNet2DConditionModel(**{**SMALL, **options})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def scheduler(**options) -> diffusers.DDIMScheduler:
    """That of Stable Diffusion, with the grid that ends in noise."""
    return diffusers.DDIMScheduler(
        **{
            "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
            "clip_sample": False, "timestep_spacing": "trailing", "steps_offset": 1,
            **options,
        }
    )  # fmt: skip


def random(*shape) -> np.ndarray:
    """Normal numbers, the same for the same shape."""
    return np.random.default_rng(shape).normal(size=shape)


def save(net, folder, *, table=None, null=None, mask=None, tokens=TOKENS):
    """A folder as people publish it, and beside its parts what guidance needs."""
    net.save_pretrained(folder / "unet")
    scheduler().save_pretrained(folder / "scheduler")
    encoder = folder / "text_encoder"
    if table is None:
        encoder.mkdir()
        text = f'{{"max_position_embeddings": {tokens}}}'
        (encoder / "config.json").write_text(text)
    else:
        path = folder / "class_embedder.safetensors"
        safetensors.numpy.save_file({"embedding.weight": table}, path)
    if null is not None:
        tensors = {"context": null} | ({} if mask is None else {"mask": mask})
        path = folder / "null_context.safetensors"
        safetensors.numpy.save_file(tensors, path)
    return folder
