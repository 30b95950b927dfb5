r"""Photographs, 32x32, by class: students of moment matching for every w in [0, 2].

Commands, the second of them in the workdir of the first:

    python launch.py --config configs/cifar10_small.py:train,guide,distill
    python launch.py --config configs/cifar10_small_moment_matching.py:distill,evaluate
        --workdir runs/cifar10_small

Each student begins as the progressive student of as many steps. The method's paper
(Salimans et al., 2024, arXiv:2406.04103) and settings are those of
configs/digits_moment_matching.py.

Result, of an earlier base of 60,000 updates whose weights were not kept:
`frechet_classifier` (not FID) / recall / coverage of 2,048 images, seed 0, at w = 0, in
8, 4, 2 and 1 steps: 5.5 / .63 / .40, 6.2 / .57 / .39, 7.5 / .52 / .38 and
9.6 / .40 / .42, where that base in 128 steps was at 6.2 / .57 / .47. Made in 5 minutes
on a GPU; docs/photographs.md has more.
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
                "updates": "8000, 8: 2500, 4: 4000, 1: 10000",
                "batch_size": 32,
                "learning_rate": 5e-4,
                "warmup_steps": 50,
                "ema_decay": 0.998,
                "weight": "snr_plus_one",
            },
        }
    )
    return config
