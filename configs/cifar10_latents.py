r"""Latents of 32x32 photographs, by class, with every stage: the path on two cores.

    python -m vdiff_jax.datasets.prepare cifar10/ --splits train test --size 32 \
        --encode path/to/vae --mirror --out data/cifar10-latents
    python launch.py --config configs/cifar10_latents.py \
        --config.data.autoencoder=path/to/vae --config.evaluate.images=cifar10/

or stage by stage: :train, then :guide, :distill, :evaluate, :sample. cifar10/ is a
folder of train/<class>/ and test/<class>/; the autoencoder is one of diffusers with a
factor of 4 and 4 channels. `python -m benchmarks.latents` makes such a one and runs all
of this; docs/latents.md explains.

Not from a paper; the losses are those of configs/digits_guided.py:

- A network of 1.1 M parameters on 2x2 latents, for the two cores of a small computer.
- Mirrored copies are encoded and stored, so the step mirrors nothing.
- `sample.clip` is none, as `auto` makes it: latents are not bounded.

Result: `frechet_classifier` (not FID) to 10,000 training images, on CIFAR-10 saved as
JPEG; mean of the seeds 0 and 1 of 1,024 samples each. The real images, encoded and
decoded by that autoencoder, are at 1.2; recall and accuracies are in docs/latents.md:

    evaluations              1      2      4      8     32
    distilled, w = 0         6.4    6.0    5.3    4.5
    distilled, w = 1         7.4    7.6    7.5    7.4
    base, w = 0, DDIM                                   6.4
    base, w = 0, DPM-Solver++(2M)   91.9   36.5   11.1

21 minutes of one core, and 14 for the evaluation.
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
                "path": "data/cifar10-latents",
                "image_size": 8,
                "channels": 4,
                "flip": False,
                "held_out": 512,
                "workers": 0,
            },
            "model": {
                "output": "v",
                "num_classes": 10,
                "unet": {
                    "channels": 64,
                    "multipliers": (1,),
                    "num_blocks": 2,
                    "attention_resolutions": (4,),
                    "head_dim": 32,
                    "emb_channels": 256,
                    "groups": 8,
                    "patch": 2,
                },
            },
            "diffusion": {"schedule": "cosine"},
            "loop": {
                "stratified_times": True,
                "log_every_steps": 500,
                "eval_every_steps": 2500,
                "sample_every_steps": 2500,
                "sample_steps": 32,
                "checkpoint_every_steps": 1000,
            },
            "train": {
                "steps": 15_000,
                "batch_size": 64,
                "learning_rate": 1e-3,
                "warmup_steps": 200,
                "decay": "cosine",
                "dropout": 0.0,
                "label_dropout": 0.1,
                "ema_decay": 0.999,
                "weight": "snr_trunc",
            },
            "guide": {
                "steps": 2000,
                "w_range": (0.0, 4.0),
                "w_features": 32,
                "w_scale": 4.0,
                "batch_size": 64,
                "learning_rate": 5e-4,
                "warmup_steps": 50,
                "decay": "cosine",
                "ema_decay": 0.998,
                "weight": "snr_trunc",
            },
            "distill": {
                "start_steps": 32,
                "updates": "400, 4: 800, 2: 1200, 1: 1600",
                "batch_size": 64,
                "learning_rate": 5e-4,
                "warmup_steps": 50,
                "ema_decay": 0.0,
                "weight": "snr_trunc",
            },
            "sample": {"batch_size": 256, "w": (1.0,)},
            "evaluate": {
                "reference_steps": 32,
                "steps": (1, 2, 4, 8),
                "samplers": ("dpmpp_2m",),
                "w": (0.0, 1.0),
                "num": 1024,
                "repeats": 2,
                "reference_num": 10_000,
                "features": ("classifier", "pixels"),
                "judge": True,
            },
        }
    )
    return config
