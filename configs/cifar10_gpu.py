r"""Photographs, 32x32, by class, in ten minutes of one GPU: CIFAR-10.

    python launch.py --config configs/cifar10_gpu.py --config.data.path=cifar10

or stage by stage: :train, then :guide, :distill, :evaluate, :sample. Better students by
moment matching: configs/cifar10_gpu_moment_matching.py.

It is configs/cifar10_small.py, which is for two cores, but for

- patches of 2 x 2 in place of 4 x 4, which is five times the work for an image, in
  bfloat16;
- larger batches: 6.1 M images for the base model in place of 2.6 M.

Result: a held-out loss of 0.0933, where configs/cifar10_small.py has 0.0991, after 4.5
minutes of an H100, beside another run; guidance and the ladder took 3 more.
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
                "dtype": "bfloat16",
                "num_classes": 10,
                "net": "dit",
                "dit": {"patch": 2, "depth": 5, "features": 128, "num_heads": 4},
            },
            "diffusion": {"schedule": "cosine"},
            "loop": {
                "stratified_times": True,
                "steps_per_call": 50,
                "log_every_steps": 500,
                "eval_every_steps": 5000,
                "sample_every_steps": 0,
                "sample_steps": 32,
                "checkpoint_every_steps": 0,
                "checkpoint_every_minutes": 2.0,
            },
            "train": {
                "steps": 24_000,
                "batch_size": 256,
                "learning_rate": 4e-3,
                "warmup_steps": 500,
                "decay": "cosine",
                "dropout": 0.0,
                "label_dropout": 0.1,
                "ema_decay": 0.9995,
                "weight": "snr_trunc",
            },
            "guide": {
                "steps": 2500,
                "w_range": (0.0, 2.0),
                "w_features": 32,
                "w_scale": 4.0,
                "batch_size": 256,
                "learning_rate": 1e-3,
                "warmup_steps": 200,
                "decay": "cosine",
                "ema_decay": 0.999,
                "weight": "snr_trunc",
            },
            "distill": {
                "start_steps": 32,
                "updates": "1000, 2: 1500, 1: 2000",
                "batch_size": 128,
                "learning_rate": 7e-4,
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
