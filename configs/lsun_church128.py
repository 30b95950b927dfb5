r"""LSUN churches, 128x128, unconditional: as the bedrooms, with other images.

    python launch.py --config configs/lsun_church128.py --workdir runs/church

or stage by stage: --config configs/lsun_church128.py:train, then :distill, :evaluate,
:sample. What differs from the paper is said in configs/lsun_bedroom128.py.

Result: not yet run at this size.
"""

from ml_collections import ConfigDict

from configs import lsun_bedroom128


def get_config(stage: str = "all") -> ConfigDict:
    """The run described above."""
    config = lsun_bedroom128.get_config(stage)
    config.update(
        {
            "data": {"name": "lsun/church_outdoor"},
            "diffusion": {"schedule": "cosine"},
            "train": {
                "steps": 400_000,
                "batch_size": 2048,
                "learning_rate": 3e-4,
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
