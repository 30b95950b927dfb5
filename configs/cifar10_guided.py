r"""CIFAR-10, conditioned on class: one student for every guidance weight w in [0, 4].

    python launch.py --config configs/cifar10_guided.py --workdir runs/cifar10_guided

or stage by stage: --config configs/cifar10_guided.py:train, then :guide, :distill,
:evaluate, :sample. The network, the data and the base model's training are those of
configs/cifar10.py.

Follows Meng et al. (2023), arXiv:2210.03142, in what it trains and in the
range of w. What the appendix of that paper sets was not at hand, and is ours:

- train.label_dropout 0.1; Ho & Salimans (2022), arXiv:2207.12598, found 0.1 and 0.2
  equal, and 0.5 worse.
- guide: 100,000 updates at 1e-4, with the batch, the weight and the EMA of training.
- distill starts at 1024 steps, the evaluations per half of guidance of the paper's
  reference; the updates of each student are those of configs/cifar10.py.

Result: not yet run at this size.
"""

from ml_collections import ConfigDict

from configs import cifar10


def get_config(stage: str = "all") -> ConfigDict:
    """The run described above."""
    config = cifar10.get_config(stage)
    config.update(
        {
            "model": {"num_classes": 10},
            "diffusion": {"schedule": "cosine"},
            "train": {
                "steps": 800_000,
                "batch_size": 128,
                "learning_rate": 2e-4,
                "label_dropout": 0.1,
                "ema_decay": 0.9999,
                "weight": "snr_trunc",
            },
            "guide": {
                "steps": 100_000,
                "w_range": (0.0, 4.0),
                "batch_size": 128,
                "learning_rate": 1e-4,
                "ema_decay": 0.9999,
                "weight": "snr_trunc",
            },
            "distill": {
                "start_steps": 1024,
                "updates": "50000, 2: 100000, 1: 100000",
                "batch_size": 128,
                "learning_rate": 1e-4,
                "ema_decay": 0.0,
                "weight": "snr_trunc",
            },
            "evaluate": {
                "w": (0.0, 0.3, 1.0, 2.0, 4.0),
                "steps": (1, 2, 4, 8, 16),
                "samplers": ("dpmpp_2m",),
                "judge": True,
            },
        }
    )
    return config
