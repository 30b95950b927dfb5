"""The path of the digits, shrunk to seconds, for the tests of the stages."""

import flax.linen as nn

from configs import digits

TINY = {
    "model": {
        "num_classes": 0,
        "unet": {
            "channels": 8, "num_blocks": 1, "emb_channels": 16, "groups": 4,
            "head_dim": 8,
        },
    },
    "train": {
        "steps": 6, "batch_size": 8, "warmup_steps": 0, "sample_steps": 2,
        "steps_per_call": 2, "checkpoint_every_steps": 2, "log_every_steps": 2,
        "eval_every_steps": 4, "sample_every_steps": 4,
    },
    "distill": {
        "start_steps": 8, "updates": "4, 1: 6", "batch_size": 8, "steps_per_call": 2,
        "checkpoint_every_steps": 2, "log_every_steps": 2,
        "eval_every_steps": 4, "sample_every_steps": 4,
    },
    "data": {"held_out": 16},
    "sample": {"batch_size": 16, "num": 5, "steps": 2},
    "evaluate": {
        "num": 24, "steps": (1, 2), "reference_steps": 8, "repeats": 2,
        "likelihood_num": 8, "features": (),
    },
}  # fmt: skip


def config(stage, **changes):
    """The digits' config, with changes by section."""
    made = digits.get_config(stage)
    made.update(TINY)
    made.update(changes)
    return made


def small(stage, **changes):
    """The same with two convolutions for a U-Net, which takes long to compile.

    For what holds whatever the network.
    """
    made = config(stage, model={"net": "tiny:make_net"})
    made.update(changes)
    return made


class Net(nn.Module):
    """Two convolutions and the log-SNR; zero at initialisation, as the U-Net is."""

    out_channels: int
    features: int = 8

    @nn.compact
    def __call__(self, z_t, logsnr_t, label=None, *, train=False):
        del label, train
        shift = nn.Dense(self.features)(logsnr_t[:, None] / 20.0)
        h = nn.Conv(self.features, (3, 3))(z_t) + shift[:, None, None]
        zeros = nn.initializers.zeros
        return nn.Conv(self.out_channels, (3, 3), kernel_init=zeros)(nn.swish(h))


def make_net(out_channels, num_classes):
    del num_classes
    return Net(out_channels)


def make_wider_net(out_channels, num_classes):
    del num_classes
    return Net(out_channels, features=16)
