r"""A folder of your own images: copy this file, and change the three fields.

    cp configs/folder.py configs/mine.py
    python launch.py --config configs/mine.py:train --workdir runs/mine

then :distill, :evaluate and :sample. As it stands:
--config configs/folder.py. The folder holds JPEG, PNG or WebP files of any size, flat
or with one sub-folder for each class; a square in the centre of each is resized. One
image in twenty is held out. Large files are read faster once they are prepared:

    python -m vdiff_jax.datasets.prepare PATH --out data/mine --size 64

and "source" is then "lmdb" and "path" data/mine. docs/data.md has the other sources.

Not from the paper (Salimans & Ho, 2022, arXiv:2202.00512): a network for some ten
thousand images of 64x64. For 32x32 one level less will do; every level halves the
size.

Result: yours.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(stage: str = "all") -> ConfigDict:
    """The run described above."""
    config = defaults.get_config(stage)
    config.update(
        {
            "data": {
                "path": "data/pictures",  # 1. the folder
                "image_size": 64,  # 2. height and width of what the model draws
                "source": "folder",
                "train_split": "",
                "held_out_fraction": 0.05,
                "held_out": 256,
            },
            "model": {
                "num_classes": 0,  # 3. the number of sub-folders; 0: no classes
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
                "steps": 200_000,
                "batch_size": 64,
                "learning_rate": 1e-4,
                "dropout": 0.1,
                "ema_decay": 0.9999,
                "weight": "snr_trunc",
                "eval_every_steps": 5000,
                "sample_every_steps": 5000,
            },
            "distill": {
                "start_steps": 1024,
                "updates": "10000, 2: 20000, 1: 20000",
                "batch_size": 64,
                "learning_rate": 5e-5,
                "ema_decay": 0.0,
                "weight": "snr_trunc",
            },
        }
    )
    return config
