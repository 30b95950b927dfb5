r"""Handwritten digits, 8x8, by the context of a caption in place of the class.

    python -m benchmarks.latents --part digits --out runs/latents

writes the digits with the contexts of captions such as "a photograph of a three", and
runs this file:

    python launch.py --config configs/digits_contexts.py \
        --config.data.path=runs/latents/digits-captions

The network is that of configs/digits.py, and attends to 8 vectors of width 32 in its
middle and at 4x4; training leaves one caption in ten out, and puts the null context in
its place.

Result: a judge takes 97 % of 1,000 samples of 4 steps for the digit of their caption.
For the same noise and the captions of the next digit it is 96 % for that digit, and
0.4 % for the one before. `frechet_classifier` (not FID) to the training images and
recall, mean of the seeds 0, 1 and 2 of 1,000 samples each: base at 16 steps of DDIM 6.3
and 0.83, student of 4 steps 6.9 and 0.82, base at 4 steps of DPM-Solver++(2M) 10.2 and
0.66; the standard deviation of the distances is about 1.1.
"""

from ml_collections import ConfigDict

from configs import digits


def get_config(stage: str = "all") -> ConfigDict:
    """The run described above."""
    config = digits.get_config(stage)
    config.update(
        {
            "data": {"source": "npz", "path": "data/digits-captions"},
            "model": {
                "unet": {
                    "attention_resolutions": (4,),
                    "context_features": 32,
                    "context_tokens": 8,
                },
            },
            "diffusion": {"schedule": "cosine"},
            "train": {
                "steps": 2500,
                "batch_size": 64,
                "learning_rate": 1e-3,
                "label_dropout": 0.1,
                "ema_decay": 0.998,
                "weight": "snr_trunc",
            },
            "distill": {
                "start_steps": 16,
                "end_steps": 4,
                "updates": "300, 4: 500",
                "batch_size": 64,
                "learning_rate": 5e-4,
                "ema_decay": 0.0,
                "weight": "snr_trunc",
            },
            "evaluate": {
                "steps": (4,),
                "reference_steps": 16,
                "num": 1000,
                "samplers": ("dpmpp_2m",),
                "judge": True,
                "likelihood_num": 0,
            },
        }
    )
    return config
