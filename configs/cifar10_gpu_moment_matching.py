r"""Photographs, 32x32, by class, on one GPU: students of moment matching.

Commands, the second of them in the workdir of the first:

    python launch.py --config configs/cifar10_gpu.py:train,guide,distill
    python launch.py --config configs/cifar10_gpu_moment_matching.py:distill,evaluate
        --workdir runs/cifar10_gpu

As configs/cifar10_small_moment_matching.py, but for larger batches and fewer updates.

Result: see docs/photographs.md.
"""

from ml_collections import ConfigDict

from configs import cifar10_gpu, cifar10_small_moment_matching


def get_config(stage: str = "all") -> ConfigDict:
    """The run described above."""
    config = cifar10_gpu.get_config(stage)
    config.distill = cifar10_small_moment_matching.get_config(stage).distill
    config.update({"distill": {"updates": "2500, 1: 4000", "batch_size": 128}})
    return config
