r"""ImageNet, 64x64: one student for every guidance weight w in [0, 4].

    python launch.py --config configs/imagenet64_guided.py --workdir runs/guided64

or stage by stage: --config configs/imagenet64_guided.py:train, then :guide, :distill,
:evaluate, :sample. Stochastic students, which the paper finds better from 4 steps on
for w = 0, are others: --config configs/imagenet64_guided.py:distill
--config.distill.method=stochastic. The network and the data are those of
configs/imagenet64.py.

Follows Meng et al. (2023), arXiv:2210.03142, in what it trains and in the
range of w. What the appendix of that paper sets was not at hand, and is ours:

- train.label_dropout 0.1, as in configs/cifar10_guided.py.
- guide: 100,000 updates at 1e-4, with the batch, the weight and the EMA of training.
- distill starts at 1024 steps, with the updates of configs/imagenet64.py.

Result: not yet run at this size.
"""

from ml_collections import ConfigDict

from configs import imagenet64


def get_config(stage: str = "all") -> ConfigDict:
    """The run described above."""
    config = imagenet64.get_config(stage)
    config.update(
        {
            "diffusion": {"schedule": "cosine"},
            "train": {
                "steps": 550_000,
                "batch_size": 2048,
                "learning_rate": 3e-4,
                "label_dropout": 0.1,
                "ema_decay": 0.9999,
                "weight": "snr_trunc",
            },
            "guide": {
                "steps": 100_000,
                "w_range": (0.0, 4.0),
                "batch_size": 2048,
                "learning_rate": 1e-4,
                "ema_decay": 0.9999,
                "weight": "snr_trunc",
            },
            "distill": {
                "start_steps": 1024,
                "updates": "50000, 2: 100000, 1: 100000",
                "batch_size": 2048,
                "learning_rate": 1e-4,
                "ema_decay": 0.0,
                "weight": "snr_trunc",
            },
            "evaluate": {
                "w": (0.0, 0.3, 1.0, 4.0),
                "samplers": ("dpmpp_2m",),
                "judge": True,
            },
        }
    )
    return config
