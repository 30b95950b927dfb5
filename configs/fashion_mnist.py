r"""Fashion-MNIST, 28x28 padded to 32x32, class-conditional.

    python launch.py --config configs/fashion_mnist.py --workdir runs/fashion_mnist

or stage by stage: --config configs/fashion_mnist.py:train, then :distill, :evaluate,
:sample. The data set (Xiao et al., 2017, arXiv:1708.07747) is read with TensorFlow
Datasets from data/; data/README.md says how to put it there.

Not from the paper (Salimans & Ho, 2022, arXiv:2202.00512), which has not these data: a
small network and few updates, for grey images of ten kinds of clothes.

Result: not yet run at this size.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(stage: str = "all") -> ConfigDict:
    """The run described above."""
    config = defaults.get_config(stage)
    config.update(
        {
            "data": {
                "name": "fashion_mnist",
                "image_size": 32,
                "channels": 1,
                "resize": "pad",
            },
            "model": {
                "output": "v",
                "num_classes": 10,
                "unet": {
                    "channels": 64,
                    "multipliers": (1, 2, 2),
                    "num_blocks": 2,
                    "attention_resolutions": (8,),
                    "head_dim": 64,
                    "emb_channels": 256,
                },
            },
            "diffusion": {"schedule": "cosine"},
            "train": {
                "steps": 100_000,
                "batch_size": 128,
                "learning_rate": 2e-4,
                "dropout": 0.1,
                "ema_decay": 0.9999,
                "weight": "snr_trunc",
            },
            "distill": {
                "start_steps": 512,
                "updates": "10000, 2: 20000, 1: 20000",
                "batch_size": 128,
                "learning_rate": 1e-4,
                "ema_decay": 0.0,
                "weight": "snr_trunc",
            },
            "evaluate": {"reference_steps": 512, "num": 10_000},
        }
    )
    return config
