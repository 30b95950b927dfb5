"""The composition root: the only package that turns a config into objects.

Everything a user can get wrong in a config is refused here, at construction.
"""

from vdiff_jax.build.data import feeder, source
from vdiff_jax.build.fields import Config
from vdiff_jax.build.models import (
    has_finetune,
    has_guide,
    model,
    schedule,
    student,
    w_range,
)
from vdiff_jax.build.sampling import (
    PREDICTORS,
    guidance,
    sampler,
    strengths,
    variance_interpolation,
)
from vdiff_jax.build.updates import (
    Ladder,
    distill_loss,
    eval_step,
    guide_loss,
    ladder_name,
    ladder_of,
    learning_rate,
    optimizer,
    train_loss,
    train_step,
    weight,
)

__all__ = [
    "PREDICTORS",
    "Config",
    "Ladder",
    "distill_loss",
    "eval_step",
    "feeder",
    "guidance",
    "guide_loss",
    "has_finetune",
    "has_guide",
    "ladder_name",
    "ladder_of",
    "learning_rate",
    "model",
    "optimizer",
    "sampler",
    "schedule",
    "source",
    "strengths",
    "student",
    "train_loss",
    "train_step",
    "variance_interpolation",
    "w_range",
    "weight",
]
