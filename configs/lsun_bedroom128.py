r"""LSUN bedrooms, 128x128, unconditional.

    python launch.py --config configs/lsun_bedroom128.py --workdir runs/bedroom

or stage by stage: --config configs/lsun_bedroom128.py:train, then :distill, :evaluate,
:sample. The data set is read with TensorFlow Datasets from data/; see data/README.md.

A centre crop is area-resized as it is read; prepared once, it is read faster
(docs/data.md). LSUN's own LMDB is read too, with data.source=lmdb and, below data.path,
data.train_split=bedroom_train_lmdb and data.test_split=bedroom_val_lmdb.

Follows Salimans & Ho (2022), arXiv:2202.00512, and their published code, except:

- model.output is v; theirs is both (--config.model.output=both, 139,578,502
  parameters).
- The number of base updates is not in their code; 400,000 is the number usually quoted.
- Evaluation needs the weights of Inception for FID (docs/evaluation.md); without them
  it is on pixels, since LSUN has no classes.

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
                "name": "lsun/bedroom",
                "test_split": "validation",
                "image_size": 128,
                "held_out": 300,  # all there are
                "workers": 8,
            },
            "model": {
                "output": "v",
                "unet": {
                    "channels": 64,
                    "multipliers": (1, 2, 4, 6, 8),
                    "num_blocks": 3,
                    "attention_resolutions": (8, 16, 32),
                    "head_dim": 64,
                    "emb_channels": 768,
                },
            },
            "diffusion": {"schedule": "cosine"},
            "train": {
                "steps": 400_000,
                "batch_size": 2048,
                "learning_rate": 3e-4,
                "dropout": 0.1,
                "ema_decay": 0.9999,
                "weight": "snr_trunc",
            },
            "distill": {
                "start_steps": 1024,
                "updates": "50000, 2: 100000, 1: 100000",
                "batch_size": 2048,
                "learning_rate": 1e-4,
                "ema_decay": 0.0,
                "weight": "snr_trunc",
            },
        }
    )
    return config
