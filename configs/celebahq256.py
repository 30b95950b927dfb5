r"""CelebA-HQ, 256x256, unconditional: 30,000 faces.

    python -m vdiff_jax.datasets.prepare celeba_hq/ --out data/celebahq256 --size 256
    python launch.py --config configs/celebahq256.py --workdir runs/celebahq256

or stage by stage: --config configs/celebahq256.py:train, then :distill, :sample. An
LMDB that another project prepared, with the keys `length` and `256-00000` and on, is
read as it is: --config.data.path=its/folder. From TensorFlow Datasets take
--config.data.source=tfds --config.data.name=celeb_a_hq/256 --config.data.path=data
--config.data.train_split=train.

Not from the paper (Salimans & Ho, 2022, arXiv:2202.00512), which has not these data:
network and optimisation are those of Ho et al. (2020), arXiv:2006.11239, App. B, for
CelebA-HQ, with the schedule, the loss and the blocks of the paper. One image in
thirty is held out.

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
                "path": "data/celebahq256",
                "train_split": "",
                "held_out_fraction": 0.033,
                "image_size": 256,
                "held_out": 256,
                "workers": 8,
            },
            "model": {
                "output": "v",
                "unet": {
                    "channels": 128,
                    "multipliers": (1, 1, 2, 2, 4, 4),
                    "num_blocks": 2,
                    "attention_resolutions": (16,),
                    "head_dim": 512,  # one head
                    "emb_channels": 512,
                },
            },
            "diffusion": {"schedule": "cosine"},
            "train": {
                "steps": 500_000,
                "batch_size": 64,
                "learning_rate": 2e-5,
                "dropout": 0.0,
                "ema_decay": 0.9999,
                "weight": "snr_trunc",
            },
            "distill": {
                "start_steps": 1024,
                "updates": "50000, 2: 100000, 1: 100000",
                "batch_size": 64,
                "learning_rate": 2e-5,
                "ema_decay": 0.0,
                "weight": "snr_trunc",
            },
        }
    )
    return config
