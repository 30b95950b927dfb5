"""Random networks of diffusers, of every kind that can be imported."""

import diffusers
import torch

SMALL = {
    "sample_size": 16, "block_out_channels": (16, 32), "layers_per_block": 1,
    "norm_num_groups": 8, "attention_head_dim": None,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
FILM = {"resnet_time_scale_shift": "scale_shift"}
KINDS = {
    "of DDPM": {
        "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1,
        "norm_eps": 1e-6,
    },
    "by default": {"attention_head_dim": 8},
    "of ADM": {
        **FILM, "attention_head_dim": 8, "num_class_embeds": 10,
        "attn_norm_num_groups": 8,
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "downsample_type": "resnet", "upsample_type": "resnet",
    },
    "without the middle's norm": FILM,
    "centred and scaled": {"center_input_sample": True, "mid_block_scale_factor": 1.4},
    "without a middle": {"mid_block_type": None},
    "attending on the way down": {
        "add_attention": False, "up_block_types": ("UpBlock2D", "UpBlock2D")
    },
    "with a table of times": {
        "time_embedding_type": "learned", "num_train_timesteps": 1000
    },
    "of three levels": {
        "block_out_channels": (8, 16, 24), "layers_per_block": 2, "norm_num_groups": 4,
        "attention_head_dim": 4, "time_embedding_dim": 48,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
    },
}  # fmt: skip


AUTOENCODER = {
    "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
AUTOENCODERS = {
    "of Gaussians": (diffusers.AutoencoderKL, {}),
    "shifted, without outer maps": (
        diffusers.AutoencoderKL,
        {
            "shift_factor": 0.06, "scaling_factor": 1.5, "latent_channels": 16,
            "use_quant_conv": False, "use_post_quant_conv": False,
        },
    ),
    "of one level, without attention": (
        diffusers.AutoencoderKL,
        {
            "block_out_channels": (16,), "mid_block_add_attention": False,
            "down_block_types": ("DownEncoderBlock2D",),
            "up_block_types": ("UpDecoderBlock2D",), "in_channels": 1,
            "out_channels": 1,
        },
    ),
    "of codes": (diffusers.VQModel, {"num_vq_embeddings": 32}),
    "of three levels and wider codes": (
        diffusers.VQModel,
        {
            "num_vq_embeddings": 16, "vq_embed_dim": 5, "layers_per_block": 2,
            "block_out_channels": (8, 16, 24), "norm_num_groups": 4,
            "down_block_types": ("DownEncoderBlock2D",) * 3,
            "up_block_types": ("UpDecoderBlock2D",) * 3,
        },
    ),
    "of codes, without attention": (
        diffusers.VQModel, {"mid_block_add_attention": False}
    ),
}  # fmt: skip


def random_net(**options) -> diffusers.UNet2DModel:
    """A network in which nothing is zero or one."""
    torch.manual_seed(0)
    return _perturbed(diffusers.UNet2DModel(**{**SMALL, **options}))


def random_autoencoder(kind, **options):
    """An autoencoder in which nothing is zero or one."""
    torch.manual_seed(0)
    make, own = AUTOENCODERS[kind]
    return _perturbed(make(**{**AUTOENCODER, **own, **options}))


def _perturbed(net):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def save(net, folder, scheduler=None):
    """A folder as people publish it."""
    scheduler = scheduler or diffusers.DDIMScheduler()
    diffusers.DDPMPipeline(net, scheduler).save_pretrained(folder)
    return folder
