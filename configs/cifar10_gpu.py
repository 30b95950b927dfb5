r"""Photographs, 32x32, by class, in ten minutes of one GPU: CIFAR-10.

    python launch.py --config configs/cifar10_gpu.py --config.data.path=cifar10

or stage by stage: :train, then :guide, :distill, :evaluate, :sample. Better students by
moment matching: configs/cifar10_gpu_moment_matching.py.

It is configs/cifar10_small.py, which is for two cores, but for

- patches of 2 x 2 in place of 4 x 4, which is five times the work for an image, in
  bfloat16;
- larger batches: 6.1 M images for the base model in place of 3.8 M.

Result: see docs/photographs.md.
"""

from ml_collections import ConfigDict

from configs import cifar10_small


def get_config(stage: str = "all") -> ConfigDict:
    """The run described above."""
    config = cifar10_small.get_config(stage)
    config.update(
        {
            "model": {"dtype": "bfloat16", "dit": {"patch": 2}},
            "loop": {
                "steps_per_call": 50,
                "eval_every_steps": 5000,
                "sample_every_steps": 0,
                "checkpoint_every_steps": 0,
                "checkpoint_every_minutes": 2.0,
            },
            "train": {"steps": 24_000, "batch_size": 256},
            "guide": {"steps": 2500, "batch_size": 256},
            "distill": {
                "updates": "1000, 2: 1500, 1: 2000",
                "batch_size": 128,
                "learning_rate": 7e-4,
            },
        }
    )
    return config
