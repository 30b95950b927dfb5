"""The words that checks share: the stages that run, conditions, numbers of steps."""

from typing import Any

from vdiff_jax import schedules
from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.fields import words_of
from vdiff_jax.from_config.model import context_shape_of, make_schedule


def runs(config: Config, *stages: str) -> bool:
    """True if one of these stages is to run."""
    return config.stage == "all" or not set(stages).isdisjoint(words_of(config.stage))


def is_conditional(config: Config) -> bool:
    """True if the model is conditioned on a class or a context."""
    return bool(config.model.num_classes) or context_shape_of(config) is not None


def no_classes(path: str, value: Any) -> ValueError:
    """The error of a field that needs a condition, for a model without one."""
    return ValueError(
        f"{path}={value} needs a model that is conditioned on a class or a context, and"
        " this one is not (model.num_classes=0, and no model.unet.context_tokens)."
    )


def check_num_steps(config: Config, path: str, num_steps: int) -> None:
    """Refuses a number of steps that the schedule cannot be sampled in."""
    if not num_steps:
        return
    try:
        schedules.check_num_steps(make_schedule(config), num_steps)
    except ValueError as error:
        raise ValueError(f"{path}={num_steps}: {error}") from error
