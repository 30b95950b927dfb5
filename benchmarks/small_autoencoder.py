"""A small autoencoder of diffusers, trained on a folder of images by a loop of torch.

It is what a user of diffusers would bring: 32 x 32 x 3 to 8 x 8 x 4, in minutes on 2
cores. Nothing of ours is in it.
"""

import pathlib

import diffusers
import numpy as np
import torch
import torch.nn.functional as F

UPDATES, BATCH_SIZE, LEARNING_RATE, KL_WEIGHT = 8000, 32, 2e-3, 1e-6
SAVE_EVERY, ENCODED_AT_ONCE, OF_SCALE = 200, 256, 2048


def train(images: np.ndarray, folder: pathlib.Path) -> None:
    """Trains, measures the scale of the latents, and saves; goes on where it stopped.

    Args:
      images: uint8, [images, height, width, 3].
      folder: The folder of diffusers that is written.
    """
    torch.manual_seed(0)
    net = make_net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, UPDATES)
    half_way = folder.with_suffix(".pt")
    parts = {"net": net, "optimizer": optimizer, "decay": decay}
    first = _load(half_way, parts)
    for update in range(first, UPDATES):
        rows = np.random.default_rng(update).integers(len(images), size=BATCH_SIZE)
        x = _as_x(images[rows])
        with torch.autocast("cpu", torch.bfloat16):
            latents = net.encode(x).latent_dist
            x_hat = net.decode(latents.sample()).sample.float()
        loss = F.mse_loss(x_hat, x) + 0.1 * F.l1_loss(x_hat, x)
        loss = loss + KL_WEIGHT * latents.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        decay.step()
        if (update + 1) % SAVE_EVERY == 0:
            print(f"autoencoder {update + 1}: {loss.item():.4f}", flush=True)
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save({"update": update + 1, **states}, half_way)
    net.eval()
    scale = 1.0 / float(encoded(net, images[:: len(images) // OF_SCALE]).std())
    net.register_to_config(scaling_factor=round(scale, 4))
    net.save_pretrained(folder)
    half_way.unlink()


def make_net() -> diffusers.AutoencoderKL:
    """The network, of a factor of 4, with fresh weights."""
    return diffusers.AutoencoderKL(
        sample_size=32, latent_channels=4, block_out_channels=(16, 32, 64),
        layers_per_block=1, norm_num_groups=8, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip


@torch.no_grad()
def encoded(net: diffusers.AutoencoderKL, images: np.ndarray) -> np.ndarray:
    """The means of the latents, [images, 4, height / 4, width / 4]."""
    parts = np.array_split(images, -(-len(images) // ENCODED_AT_ONCE))
    means = [net.encode(_as_x(part)).latent_dist.mean.numpy() for part in parts]
    return np.concatenate(means)


def _as_x(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2)).float() / 127.5 - 1.0


def _load(path: pathlib.Path, parts: dict) -> int:
    """Goes on from a file; returns the number of updates that are done."""
    if not path.exists():
        return 0
    saved = torch.load(path)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved["update"]
