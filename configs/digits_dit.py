r"""Handwritten digits, 8x8, by a diffusion transformer in place of the U-Net.

    python launch.py --config configs/digits_dit.py

or stage by stage, as configs/digits.py, of which all is that is not here.

The network is that of Peebles & Xie (2023), arXiv:2212.09748, at the size of digits.
"""

from ml_collections import ConfigDict

from configs import digits


def get_config(stage: str = "all") -> ConfigDict:
    """The run described above."""
    config = digits.get_config(stage)
    config.update(
        {
            "model": {
                "net": "dit",
                "dit": {"patch": 2, "depth": 6, "features": 64, "num_heads": 4},
            },
            "diffusion": {"schedule": "cosine"},
            "train": {
                "steps": 3500,
                "batch_size": 64,
                "learning_rate": 2e-3,
                "ema_decay": 0.998,
                "weight": "snr_trunc",
            },
        }
    )
    return config
