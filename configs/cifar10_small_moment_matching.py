r"""Photographs, 32x32, by class: students of moment matching for every w in [0, 2].

Commands, the second of them in the workdir of the first:

    python launch.py --config configs/cifar10_small.py:train,guide,distill
    python launch.py --config configs/cifar10_small_moment_matching.py:distill,evaluate
        --workdir runs/cifar10_small

Each student begins as the progressive student of as many steps. The method's paper
(Salimans et al., 2024, arXiv:2406.04103) and settings are those of
configs/digits_moment_matching.py, but for batches of 32 and a share of fresh noise in
the steps of the samples: docs/photographs.md has why.

Result: `frechet_classifier` (not FID) to the training images / recall / coverage of
three seeds of 10,000 images at w = 0, in 8, 4, 2 and 1 steps: 5.9 / .56 / .71,
6.3 / .54 / .69, 7.2 / .45 / .70 and 7.7 / .39 / .70, where the base in 128 steps is at
6.7 / .51 / .72. 100 minutes on 2 cores, after those of configs/cifar10_small.py. The
students come with the repository (data/pretrained).
"""

from ml_collections import ConfigDict

from configs import cifar10_small


def get_config(stage: str = "all") -> ConfigDict:
    """The run described above."""
    config = cifar10_small.get_config(stage)
    config.update(
        {
            "distill": {
                "method": "moment_matching",
                "students": (8, 4, 2, 1),
                "start": "progressive",
                "updates": "8000, 8: 2500, 4: 9000, 1: 10000",
                "batch_size": 32,
                "learning_rate": 5e-4,
                "warmup_steps": 50,
                "ema_decay": 0.998,
                "weight": "snr_plus_one",
            },
            "sample": {"eta": 0.8},
        }
    )
    return config
