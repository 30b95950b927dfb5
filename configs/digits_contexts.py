r"""Handwritten digits, 8x8, by the context of a caption in place of the class.

    python -m benchmarks.latents --part digits --out runs/latents

writes the digits with the contexts of captions such as "a photograph of a three", and
runs this file. The network is that of configs/digits.py, and attends to 8 vectors of
width 32 in its middle and at 4x4; training leaves one caption in ten out, and puts the
null context in its place.

Result: in docs/latents.md.
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
            "train": {"steps": 2500, "label_dropout": 0.1, "weight": "snr_trunc"},
            "distill": {
                "start_steps": 16,
                "end_steps": 4,
                "updates": "300, 4: 500",
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
