r"""ImageNet, 64x64, class-conditional.

    python launch.py --config configs/imagenet64.py --workdir runs/imagenet64

or stage by stage: --config configs/imagenet64.py:train, then :distill, :evaluate,
:sample. The data set is read with TensorFlow Datasets from data/; see data/README.md.

Follows Salimans & Ho (2022), arXiv:2202.00512, and their published code, except:

- model.output is v; theirs is both (--config.model.output=both, 295,905,222
  parameters).
- The images are those of `imagenet_resized/64x64` (box-resized, the ones of
  Chrabaszcz et al., 2017); theirs were cropped and area-resized from the originals.
  --config.data.name=imagenet2012 does that as it reads; done once, by `python -m
  vdiff_jax.datasets.prepare`, it is read faster (docs/data.md).
- The number of base updates is not in their code; 550,000 is the number usually quoted.
- Evaluation needs the weights of Inception for FID (docs/evaluation.md); without them
  it is on features of a classifier trained on the data, and on pixels.

Result: not yet run at this size.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(stage: str = "all") -> ConfigDict:
    """The run described above."""
    config = defaults.get_config(stage)
    config.update(
        {
            "data": {
                "name": "imagenet_resized/64x64",
                "test_split": "validation",
                "image_size": 64,
                "workers": 8,
            },
            "model": {
                "output": "v",
                "num_classes": 1000,
                "unet": {
                    "channels": 192,
                    "multipliers": (1, 2, 3, 4),
                    "num_blocks": 3,
                    "attention_resolutions": (8, 16, 32),
                    "head_dim": 64,
                    "emb_channels": 768,
                },
            },
            "diffusion": {"schedule": "cosine"},
            "train": {
                "steps": 550_000,
                "batch_size": 2048,
                "learning_rate": 3e-4,
                "dropout": 0.1,
                "label_dropout": 0.0,  # without guidance no class is ever left out
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
        }
    )
    return config
