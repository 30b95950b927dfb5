r"""Stanford Cars, 64x64, unconditional: 16,185 photographs in a folder.

    python -m vdiff_jax.datasets.prepare cars/ --out data/cars64 --size 64
    python launch.py --config configs/cars64.py --workdir runs/cars64

or stage by stage: --config configs/cars64.py:train, then :distill, :sample. The data
set (Krause et al., 2013) is no longer at its first address; any copy will do, as a
folder, a zip or a tar with a folder for each model of car. Whoever has it in TensorFlow
Datasets takes --config.data.source=tfds --config.data.name=cars196
--config.data.path=data --config.data.train_split=train
--config.data.held_out_fraction=0. For a model that is conditioned on which of the
196 cars to draw add --config.model.num_classes=196.

Not from the paper (Salimans & Ho, 2022, arXiv:2202.00512), which has not these data: a
network of a size that 16,000 images can teach, and the optimisation of its CIFAR-10.
All of both splits is trained on, but for one image in fifty.

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
                "source": "lmdb",
                "path": "data/cars64",
                "train_split": "",
                "held_out_fraction": 0.02,
                "image_size": 64,
                "held_out": 256,
            },
            "model": {
                "output": "v",
                "unet": {
                    "channels": 128,
                    "multipliers": (1, 2, 2, 2),
                    "num_blocks": 2,
                    "attention_resolutions": (8, 16),
                    "head_dim": 64,
                    "emb_channels": 512,
                },
            },
            "diffusion": {"schedule": "cosine"},
            "train": {
                "steps": 300_000,
                "batch_size": 128,
                "learning_rate": 2e-4,
                "dropout": 0.1,
                "ema_decay": 0.9999,
                "weight": "snr_trunc",
            },
            "distill": {
                "start_steps": 1024,
                "updates": "50000, 2: 100000, 1: 100000",
                "batch_size": 128,
                "learning_rate": 1e-4,
                "ema_decay": 0.0,
                "weight": "snr_trunc",
            },
        }
    )
    return config
