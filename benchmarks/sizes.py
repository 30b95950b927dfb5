"""The sizes at which speed is measured, by name."""

from typing import Any, TypeAlias

from configs import cifar10, cifar10_gpu, digits, digits_dit, imagenet64

# An `ml_collections.ConfigDict`, whose fields a type checker cannot know.
Config: TypeAlias = Any

_TINY = {
    "model": {
        "unet": {
            "channels": 8,
            "num_blocks": 1,
            "emb_channels": 16,
            "groups": 4,
            "head_dim": 8,
        },
    },
    "loop": {"steps_per_call": 2},
    "train": {"batch_size": 8},
    "distill": {"batch_size": 8},
}
# CIFAR-10's network at a quarter of its width: as much as two cores can do.
_CIFAR4M = {
    "model": {"unet": {"channels": 64, "head_dim": 64, "emb_channels": 256}},
    "loop": {"steps_per_call": 4},
    "train": {"batch_size": 32},
    "distill": {"batch_size": 32},
}
SIZES: dict[str, tuple[Any, dict[str, Any]]] = {
    "tiny": (digits, _TINY),
    "digits": (digits, {}),
    "digits_dit": (digits_dit, {}),
    "cifar4m": (cifar10, _CIFAR4M),
    "cifar10": (cifar10, {}),
    "cifar10_gpu": (cifar10_gpu, {}),
    "imagenet64": (imagenet64, {}),
}


def config(size: str, dtype: str = "float32") -> Config:
    """The config of a size, whose network computes in `dtype`.

    Raises:
      ValueError: If there is no such size.
    """
    if size not in SIZES:
        raise ValueError(f"Unknown size {size!r}; choose from {tuple(SIZES)}.")
    module, changes = SIZES[size]
    config = module.get_config()
    config.update(changes)
    config.update({"model": {"dtype": dtype}})
    return config
