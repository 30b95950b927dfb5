r"""ImageNet, 256x256, class-conditional, in the latents of latent diffusion (LDM-4).

The published model (Rombach et al., 2022, arXiv:2112.10752; "cin256-v2") as a folder of
diffusers, `unet/`, `vqvae/`, `scheduler/` and `class_embedder.safetensors`, here called
cin256 (docs/interop.md), to students of 1 to 32 steps for every guidance weight:

    python -m vdiff_jax.datasets.prepare imagenet/ --out data/imagenet256-vq \
        --size 256 --splits train val --encode cin256 --mirror
    python -m vdiff_jax.datasets.prepare imagenet/ --out data/imagenet256 --size 256 \
        --splits train val
    python launch.py --config configs/cin256.py:import --workdir runs/cin256 \
        --config.source.path=cin256
    python launch.py --config configs/cin256.py:train --workdir runs/cin256_v \
        --config.train.init_from=runs/cin256/train
    python launch.py --config configs/cin256.py:guide,distill --workdir runs/cin256_v
    python launch.py --config configs/cin256.py:sample --workdir runs/cin256_v \
        --config.sample.steps=4 --config.sample.w=0.5
    python launch.py --config configs/cin256.py:evaluate --workdir runs/cin256_v \
        --config.evaluate.inception_weights=...

The network predicts eps; `train` goes on from it to v, computed from eps, since eps
determines little of x in few steps. Students of 8, 4, 2 and 1 steps can be exported to
diffusers, since those divide the 1000 steps of the chain.

The network has 401,433,091 parameters: 400,920,579 of the U-Net and 512,512 of the
table of classes. The first stage has 55,322,782; `--dry_run` counts it too where its
folder is known: after an import, or by --config.data.autoencoder=cin256.

Follows Meng et al. (2023), arXiv:2210.03142, in what it trains, and in that students
begin at 64 steps. What it set for these latents was not at hand, and is ours:

- train: 50,000 updates from eps to v, with the batch and the learning rate of the
  published model; its 0.1 of the classes left out.
- guide: 100,000 updates, for w in [0, 4]. The published model is at its best FID at
  w = 0.5, and is shown at w = 2.
- distill: the updates of Salimans & Ho (2022), arXiv:2202.00512, for ImageNet.

Result: none measured; the weights were not at hand. With small random networks of this
kind the whole path was gone, and agrees with diffusers (docs/interop.md).
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(stage: str = "all") -> ConfigDict:
    """The run described above."""
    config = defaults.get_config(stage)
    config.update(
        {
            "data": {
                "source": "npz",
                "path": "data/imagenet256-vq",
                "train_split": "train",
                "test_split": "val",
                "image_size": 64,  # of the latents
                "channels": 3,
                "latent_scale": 1.0,
                "flip": False,  # mirrored before they were encoded
                "workers": 8,
            },
            "model": {
                "output": "v",
                "computed_from": "eps",
                "num_classes": 1000,
                "timesteps": "scaled_linear_beta",
                # `nets.serialization.describe` of the network that
                # `interop.diffusers.read_folder` makes; an import brings the same.
                # The class is the one vector of the context.
                "unet": {
                    "patch": 1,
                    "layout": '{"context_features": 512, "emb_features": 768, "levels":'
                    ' [{"features": 192, "num_blocks": 2, "num_heads_up": 0,'
                    ' "resample_in_block": false}, {"depth": 1, "features": 384,'
                    ' "num_blocks": 2, "num_heads": 1, "num_heads_up": 1,'
                    ' "resample_in_block": false}, {"depth": 1, "features": 576,'
                    ' "num_blocks": 2, "num_heads": 1, "num_heads_up": 1,'
                    ' "resample_in_block": false}, {"depth": 1, "features": 960,'
                    ' "num_blocks": 2, "num_heads": 1, "num_heads_up": 1,'
                    ' "resample_in_block": false}], "mid_depth": 1, "style":'
                    ' {"class_bias": false, "cosine_first": true, "epsilon": 1e-05,'
                    ' "film": false, "frequency_shift": 0, "pad_both_sides": true}}',
                },
            },
            "diffusion": {
                "schedule": "scaled_linear_beta",
                "beta_first": 0.0015,
                "beta_last": 0.0195,
                "num_train_steps": 1000,
            },
            "train": {
                "steps": 50_000,
                "batch_size": 1200,
                "learning_rate": 1e-4,
                "dropout": 0.0,
                "label_dropout": 0.1,
                "ema_decay": 0.9999,
                "weight": "snr_trunc",
            },
            "guide": {
                "steps": 100_000,
                "w_range": (0.0, 4.0),
                "batch_size": 1200,
                "learning_rate": 1e-4,
                "ema_decay": 0.9999,
                "weight": "snr_trunc",
            },
            "distill": {
                "start_steps": 64,
                "updates": "50000, 2: 100000, 1: 100000",
                "batch_size": 1200,
                "learning_rate": 1e-4,
                "ema_decay": 0.0,
                "weight": "snr_trunc",
            },
            "evaluate": {
                "images": "data/imagenet256",
                "w": (0.0, 0.5, 1.0, 2.0),
                "reference_steps": 250,
                "samplers": ("dpmpp_2m",),
                "judge": True,
            },
        }
    )
    return config
