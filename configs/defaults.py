"""What the paper's four data sets share. The other files say where they differ.

Salimans & Ho (2022), arXiv:2202.00512, and, where the text is silent, their published
code. Two things differ from both, in every config:

- `model.output` is "v". The paper takes x for CIFAR-10 and both for the others; each
  is one override away: --config.model.output=x
- Gradients are clipped after they are averaged over devices. The published code clips
  each device's own, so that its result depends on how many there are.

Each field, its default and its range are in docs/config.md. A field of `loop` can be
given to one stage only: --config.train.log_every_steps=10.
"""

from ml_collections import ConfigDict

from vdiff_jax.from_config.defaults import defaults


def get_config(stage: str = "all") -> ConfigDict:
    """The shared settings; `data` and the sizes in `model.unet` are yet to be set."""
    return defaults(stage)
