r"""Handwritten digits, 8x8: students of multistep consistency.

python launch.py --config configs/digits.py:train --workdir runs/digits
python launch.py --config configs/digits_consistency.py --workdir runs/digits

"""

from ml_collections import ConfigDict

from configs import digits


def get_config(stage: str = "all") -> ConfigDict:
    """The run described above."""
    config = digits.get_config(stage)
    config.update(
        {
            "distill": {
                "method": "consistency",
                "students": (8, 4, 2, 1),
                "start": "previous",
                "teacher_steps": (8, 16),
                "teacher_step": "heun",
                "updates": "800, 4: 1400, 2: 2000, 1: 2800",
                "batch_size": 64,
                "learning_rate": 1e-3,
                "warmup_steps": 50,
                "ema_decay": 0.9,
                "weight": "snr_trunc",
            },
        }
    )
    return config
