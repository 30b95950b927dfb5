"""Fields of a config that are more than a value, and how they are read."""

import importlib
import json
import math
from typing import Any, TypeAlias

from ml_collections import ConfigDict

from vdiff_jax.from_config.ranges import LARGEST

# An `ml_collections.ConfigDict`, whose fields a type checker cannot know.
Config: TypeAlias = Any


def as_json(config: Config) -> dict[str, Any]:
    """The resolved config as plain values."""
    return json.loads(config.to_json_best_effort())


def number(field: str, text: str) -> float:
    """The finite number that a text is."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{field}: {text!r} is not a number.")
    return value


def section_of(config: Config, stage: str) -> Config:
    """The fields of a stage that trains: its own, and those of `loop`.

    A field of `loop` that the stage has too is the stage's.
    """
    return ConfigDict({**config.loop, **config[stage]})


def updates_table(text: str) -> tuple[int, dict[int, int]]:
    """The updates of each student: the usual number, and exceptions by step count.

    Args:
      text: A number, then exceptions: "50000, 2: 100000, 1: 100000".

    Raises:
      ValueError: If it cannot be read, a number is not above 0 or is too large for the
        32 bits of a counter, or a student is there twice.
    """
    usual, *exceptions = text.split(",")
    by_steps = dict(
        (int(num_steps), int(updates))
        for num_steps, updates in (entry.split(":") for entry in exceptions)
    )
    numbers = [int(usual), *by_steps, *by_steps.values()]
    if min(numbers) < 1 or max(numbers) > LARGEST:
        raise ValueError(f"{text!r} has a number that is not from 1 to {LARGEST:,}.")
    if len(by_steps) < len(exceptions):
        raise ValueError(f"{text!r} has a student twice.")
    return int(usual), by_steps


def updates_of(text: str, num_steps: int) -> int:
    """Updates of the student of `num_steps` steps; see `updates_table`."""
    usual, by_steps = updates_table(text)
    return by_steps.get(num_steps, usual)


def user_function(field: str, path: str) -> Any:
    """The user's own function, named "package.module:function"."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{field}={path!r} is neither built in nor a function of yours, written"
            f" package.module:function ({error})."
        ) from error
