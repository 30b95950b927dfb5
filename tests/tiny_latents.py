"""Small models of latents: their data in a folder, and their configs."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax

import tiny
import tiny_autoencoder
from vdiff_jax.from_config import model
from vdiff_jax.nets.context import with_null

NUM, TOKENS, WIDTH = 48, 3, 6
# Images that a step encodes, their moments, and moments with contexts.
KINDS = ("images", "moments", "texts")
U_NET = {
    "channels": 8, "num_blocks": 1, "emb_channels": 16, "groups": 4, "head_dim": 4,
    "patch": 1, "multipliers": (1,),
    "context_tokens": TOKENS, "context_features": WIDTH,
}  # fmt: skip
GUIDE = {
    "steps": 4, "batch_size": 8, "steps_per_call": 2, "checkpoint_every_steps": 2,
    "log_every_steps": 2, "eval_every_steps": 4, "sample_every_steps": 4,
    "sample_steps": 2, "warmup_steps": 0, "w_features": 8,
}  # fmt: skip
STUDENTS = {
    "start_steps": 4, "updates": 4, "students": (2, 1), "warmup_steps": 0,
    "weight_decay": 0.1,
}  # fmt: skip


class Net(nn.Module):
    """The least that takes contexts and w: convolutions, and the mean of the vectors.

    The U-Net takes long to compile.
    """

    out_channels: int

    @nn.compact
    def __call__(self, z_t, logsnr_t, condition, *, train=False):
        del train
        init = nn.initializers
        null = self.param("null_context", init.zeros, (TOKENS, WIDTH))
        null_mask = self.param("null_mask", init.ones, (TOKENS,))
        fixed = map(lax.stop_gradient, (null, null_mask))
        vectors, mask = with_null(condition.context, condition.mask, *fixed)
        share = mask / mask.sum(axis=1, keepdims=True)
        mean = (vectors * share[..., None]).sum(axis=1)
        w = jnp.zeros_like(logsnr_t) if condition.w is None else condition.w
        given = jnp.concatenate([mean, logsnr_t[:, None] / 20.0, w[:, None]], axis=1)
        h = nn.Conv(16, (3, 3))(z_t) + nn.Dense(16)(given)[:, None, None]
        h = nn.Conv(16, (3, 3))(nn.swish(h))
        return nn.Conv(self.out_channels, (3, 3))(nn.swish(h))


def use_small_net(monkeypatch):
    """Puts `Net` in the place of the U-Net, for what holds whatever the network."""
    monkeypatch.setattr(model, "_MODELS", {})

    def net(config, out_channels, guided):
        del config, guided
        return Net(out_channels)

    monkeypatch.setattr(model, "_unet", net)


def write(folder):
    """An autoencoder, and data of each kind."""
    tiny_autoencoder.write(folder / "vae")
    rng = np.random.default_rng(0)
    moments = rng.normal(size=(NUM, 4, 4, 4)).astype(np.float32)
    masks = rng.integers(0, 2, (7, TOKENS)).astype(bool)
    masks[0] = False  # there, the null context takes its place
    masks[1:, 1] = True
    examples = {
        "images": {"images": rng.integers(0, 256, (NUM, 8, 8, 1), np.uint8)},
        "moments": {"latents": moments},
        "texts": {"latents": moments, "context": np.arange(NUM) % 7},
    }
    for kind, arrays in examples.items():
        (folder / kind).mkdir()
        for split in ("train", "test"):
            np.savez(folder / kind / f"{split}.npz", **arrays)
    np.savez(
        folder / "texts" / "contexts.npz",
        contexts=rng.normal(size=(7, TOKENS, WIDTH)).astype(np.float32),
        masks=masks,
        null_context=rng.normal(size=(TOKENS, WIDTH)).astype(np.float32),
        null_mask=np.array([True, False, True]),
    )


def config(stage, kind, folder, **changes):
    """The config of a kind, with changes by section."""
    made = tiny.small(stage) if kind != "texts" else tiny.config(stage)
    made.data.update(
        {
            "source": "npz", "path": str(folder / kind), "flip": True,
            "autoencoder": str(folder / "vae"), "image_size": 4, "channels": 2,
        }
    )  # fmt: skip
    made.train.update({"weight_decay": 0.1, "label_dropout": 0.3})
    made.distill.update(STUDENTS)
    if kind == "texts":
        made.model.unet.update(U_NET)
        made.guide.update(GUIDE)
    made.update(changes)
    return made
