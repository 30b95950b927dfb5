r"""Photographs, 32x32, by class, on one GPU: students of moment matching.

Commands, the second of them in the workdir of the first:

    python launch.py --config configs/cifar10_gpu.py:train,guide,distill
    python launch.py --config configs/cifar10_gpu_moment_matching.py:distill,evaluate
        --workdir runs/cifar10_gpu

As configs/cifar10_small_moment_matching.py, but for larger batches and fewer updates.

Result: `frechet_classifier` (not FID) / recall / coverage of 2,048 images, seed 0, at
w = 0, in 8, 4 and 2 steps: 2.8 / .69 / .46, 3.8 / .60 / .43 and 4.8 / .52 / .54. One
step failed, at 31: see docs/photographs.md. Made in 3 minutes of an H100.
"""

from ml_collections import ConfigDict

from configs import cifar10_gpu


def get_config(stage: str = "all") -> ConfigDict:
    """The run described above."""
    config = cifar10_gpu.get_config(stage)
    config.update(
        {
            "distill": {
                "method": "moment_matching",
                "students": (8, 4, 2, 1),
                "start": "progressive",
                "updates": "2500, 1: 4000",
                "batch_size": 128,
                "learning_rate": 5e-4,
                "warmup_steps": 50,
                "ema_decay": 0.998,
                "weight": "snr_plus_one",
            },
            "sample": {"eta": 0.8},
        }
    )
    return config
