r"""Photographs, 32x32, by class, on the two cores of a small computer: CIFAR-10.

    python launch.py --config configs/cifar10_small.py --config.data.path=cifar10

or stage by stage: :train, then :guide, :distill, :evaluate, :sample. cifar10/ is a
folder of train/<class>/ and test/<class>/. Better students by moment matching:
configs/cifar10_small_moment_matching.py.

Not from the paper (Salimans & Ho, 2022, arXiv:2202.00512), whose network needs a GPU:

- A diffusion transformer of 1.6 M parameters on patches of 4 x 4, which was the best of
  five networks at equal time (docs/photographs.md), and 2.56 M images.
- Guidance is folded in for every w in [0, 2], as in configs/digits_guided.py.
- The ladder begins at 32 steps.

Result: a held-out loss of 0.0991 in 1.6 hours on 2 quiet cores, guidance in 25 minutes
and the ladder in 24. The base in 128 steps is at 6.7 / .51 / .72: `frechet_classifier`
(not FID) to the training images / recall / coverage of three seeds of 10,000 images at
w = 0. It comes with the repository, as do the students of moment matching
(data/pretrained); docs/photographs.md has more.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(stage: str = "all") -> ConfigDict:
    """The run described above."""
    config = defaults.get_config(stage)
    config.update(
        {
            "data": {
                "source": "folder",
                "path": "data/cifar10",
                "image_size": 32,
                "held_out": 512,
                "workers": 0,
            },
            "model": {
                "output": "v",
                "num_classes": 10,
                "net": "dit",
                "dit": {"patch": 4, "depth": 5, "features": 128, "num_heads": 4},
            },
            "diffusion": {"schedule": "cosine"},
            "loop": {
                "stratified_times": True,
                "log_every_steps": 500,
                "eval_every_steps": 2500,
                "sample_every_steps": 5000,
                "sample_steps": 32,
                "checkpoint_every_steps": 2500,
                "checkpoint_every_minutes": 10.0,
            },
            "train": {
                "steps": 40_000,
                "batch_size": 64,
                "learning_rate": 4e-3,
                "warmup_steps": 500,
                "decay": "cosine",
                "dropout": 0.0,
                "label_dropout": 0.1,
                "ema_decay": 0.9995,
                "weight": "snr_trunc",
            },
            "guide": {
                "steps": 6000,
                "w_range": (0.0, 2.0),
                "w_features": 32,
                "w_scale": 4.0,
                "batch_size": 64,
                "learning_rate": 1e-3,
                "warmup_steps": 200,
                "decay": "cosine",
                "ema_decay": 0.999,
                "weight": "snr_trunc",
            },
            "distill": {
                "start_steps": 32,
                "updates": "1000, 2: 1500, 1: 2500",
                "batch_size": 64,
                "learning_rate": 1e-3,
                "warmup_steps": 50,
                "ema_decay": 0.0,
                "weight": "snr_trunc",
            },
            "sample": {"batch_size": 256, "w": (1.0,)},
            "evaluate": {
                "reference_steps": 128,
                "steps": (1, 2, 4, 8),
                "w": (0.0, 1.0, 2.0),
                "samplers": ("ddim", "ancestral", "dpmpp_2m", "heun"),
                "num": 2000,
                "repeats": 1,
                "reference_num": 0,
                "features": ("classifier", "pixels"),
                "judge": True,
                "likelihood_num": 1000,
            },
        }
    )
    return config
