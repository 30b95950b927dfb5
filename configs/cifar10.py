r"""CIFAR-10, unconditional, 32x32: the paper's first data set.

    python launch.py --config configs/cifar10.py --workdir runs/cifar10

or stage by stage: --config configs/cifar10.py:train, then :distill, :evaluate, :sample.
The data set is read with TensorFlow Datasets from data/; data/README.md says how to put
it there. Its original archive will do too: --config.data.source=cifar10, with
data/cifar-10-python.tar.gz. See also --dry_run.

Follows Salimans & Ho (2022), arXiv:2202.00512, and their published code, except:

- model.output is v; theirs is x (--config.model.output=x, 60,004,099 parameters).
- Distillation anneals from 1e-4 as the paper's appendix is reported to; the published
  config has 5e-5.
- The number of base updates is in neither; 800,000 is the number usually quoted.
- Evaluation needs the weights of Inception for FID (docs/evaluation.md); without them
  it is on features of a classifier trained on the data, and on pixels.

Result: not yet run at this size. The paper reports FID 9.12, 4.51, 3.00 and 2.57 in 1,
2, 4 and 8 steps.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(stage: str = "all") -> ConfigDict:
    """The run described above."""
    config = defaults.get_config(stage)
    config.update(
        {
            "data": {"name": "cifar10", "image_size": 32},
            "model": {
                "output": "v",
                "unet": {
                    "channels": 256,
                    "multipliers": (1, 1, 1),
                    "num_blocks": 3,
                    "attention_resolutions": (8, 16),
                    "head_dim": 256,  # one head
                    "emb_channels": 1024,
                },
            },
            "diffusion": {"schedule": "cosine"},
            "train": {
                "steps": 800_000,
                "batch_size": 128,
                "learning_rate": 2e-4,
                "weight_decay": 0.001,
                "dropout": 0.2,
                "ema_decay": 0.9999,
                "weight": "snr_trunc",
            },
            "distill": {
                "start_steps": 8192,
                "updates": "50000, 2: 100000, 1: 100000",
                "batch_size": 128,
                "learning_rate": 1e-4,
                "ema_decay": 0.0,
                "weight": "snr_trunc",
            },
        }
    )
    return config
