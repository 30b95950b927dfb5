r"""Handwritten digits, 8x8: students of moment matching, better than their teacher.

Commands, the second of them in the workdir of the first:

    python launch.py --config configs/digits.py:train,distill
    python launch.py --config configs/digits_moment_matching.py --workdir runs/digits

Each student begins as the progressive student of as many steps, and gets about as
many updates again. Not from the paper (Salimans et al., 2024, arXiv:2406.04103):
there students begin as the teacher, both networks are updated alternately, and samples
are drawn by ancestral steps; docs/methods.md has what we measured for each.

Result: `frechet_classifier` (not FID) to the training images / recall / coverage, mean
over the seeds 0, 1 and 2 of 1,536 samples each:

    evaluations        1                2                4                8
    matched       3.5 / .87 / .87  3.6 / .92 / .85  4.2 / .92 / .86  4.3 / .92 / .86
    progressive  11.0 / .86 / .80  9.4 / .89 / .82  8.1 / .89 / .83  7.5 / .89 / .85

The base in 128 steps is at 7.0 / .89 / .86, and one half of the data at 3.5 from the
other. Students of other seeds differ by about 0.5, and samples of other seeds by 0.7.
3 minutes on 2 cores after those of configs/digits.py, evaluation included.
"""

from ml_collections import ConfigDict

from configs import digits


def get_config(stage: str = "all") -> ConfigDict:
    """The run described above."""
    config = digits.get_config(stage)
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
