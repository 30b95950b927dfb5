r"""Handwritten digits, 8x8, by class: moment matching for every guidance weight w.

python launch.py --config configs/digits_guided.py:train,guide,distill
python launch.py --config configs/digits_guided_moment_matching.py:distill,evaluate \
        --workdir runs/digits_guided

"""

from ml_collections import ConfigDict

from configs import digits_guided


def get_config(stage: str = "all") -> ConfigDict:
    """The run described above."""
    config = digits_guided.get_config(stage)
    config.update(
        {
            "distill": {
                "method": "moment_matching",
                "students": (8, 4, 2, 1),
                "start": "progressive",
                "updates": "1200, 8: 600, 1: 2000",
                "batch_size": 64,
                "learning_rate": 5e-4,
                "warmup_steps": 50,
                "ema_decay": 0.998,
                "weight": "snr_plus_one",
            },
        }
    )
    return config
