"""The path of the digits, shrunk to seconds, for the tests of the stages."""

from configs import digits

TINY = {
    "model": {
        "num_classes": 0,
        "unet": {
            "channels": 8, "num_blocks": 1, "emb_channels": 16, "groups": 4,
            "head_dim": 8,
        },
    },
    "train": {
        "steps": 6, "batch_size": 8, "warmup_steps": 0, "sample_steps": 2,
        "steps_per_call": 2, "checkpoint_every_steps": 2, "log_every_steps": 2,
        "eval_every_steps": 4, "sample_every_steps": 4,
    },
    "distill": {
        "start_steps": 8, "updates": "4, 1: 6", "batch_size": 8, "steps_per_call": 2,
        "checkpoint_every_steps": 2, "log_every_steps": 2,
        "eval_every_steps": 4, "sample_every_steps": 4,
    },
    "data": {"held_out": 16},
    "sample": {"batch_size": 16, "num": 5, "steps": 2},
    "evaluate": {
        "num": 24, "steps": (1, 2), "reference_steps": 8, "repeats": 2,
        "likelihood_num": 8, "features": (),
    },
}  # fmt: skip


def config(stage, **changes):
    """The digits' config, with changes by section."""
    made = digits.get_config(stage)
    made.update(TINY)
    made.update(changes)
    return made
