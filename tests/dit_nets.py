"""Random transformers of diffusers, small, and the folders that hold them."""

import diffusers
import torch

SMALL = {
    "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4,
    "num_layers": 2, "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10,
}  # fmt: skip


def random_net(**options) -> diffusers.DiTTransformer2DModel:
    """A network in which nothing is zero or one, with one embedding for all blocks."""
    torch.manual_seed(0)
    net = diffusers.DiTTransformer2DModel(**{**SMALL, **options})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    first, *others = net.transformer_blocks
    for block in others:
        block.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    return net.eval()


def save(net, folder, scheduler=None):
    """A folder as people publish it, but for the autoencoder."""
    scheduler = scheduler or diffusers.DDIMScheduler(clip_sample=False)
    net.save_pretrained(folder / "transformer")
    scheduler.save_pretrained(folder / "scheduler")
    return folder
