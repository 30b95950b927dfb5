r"""Handwritten digits, 8x8."""

from ml_collections import ConfigDict

from configs import paper


def get_config(stage: str = "all") -> ConfigDict:
    """The run described above."""
    config = paper.get_config(stage)
    optimisation = {
        "batch_size": 64,
        "stratified_times": True,
        "steps_per_call": 10,
        "log_every_steps": 100,
        "eval_every_steps": 1000,
        "sample_every_steps": 1000,
        "checkpoint_every_steps": 500,
    }
    config.update(
        {
            "data": {
                "source": "digits",
                "image_size": 8,
                "channels": 1,
                "flip": False,
                "held_out": 180,
                "workers": 0,
            },
            "model": {
                "channels": 32,
                "multipliers": (1,),
                "num_blocks": 2,
                "attention_resolutions": (),
                "num_heads": 2,
                "head_dim": 0,
                "emb_channels": 128,
                "groups": 8,
                "patch": 2,
            },
            "train": {
                **optimisation,
                "steps": 3500,
                "sample_steps": 64,
                "learning_rate": 1e-3,
                "warmup_steps": 200,
                "decay": "cosine",
                "ema_decay": 0.998,
                "dropout": 0.0,
            },
            "distill": {
                **optimisation,
                "start_steps": 128,
                "updates": "400, 16: 600, 8: 1200, 4: 1500, 2: 1300, 1: 1600",
                "learning_rate": 5e-4,
                "warmup_steps": 50,
            },
            "sample": {"batch_size": 512},
            "evaluate": {"reference_steps": 128, "num": 4096},
        }
    )
    return config
