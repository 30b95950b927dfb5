"""What fields of a config may say."""

import importlib
import json
from typing import Any, TypeAlias, get_args

# An `ml_collections.ConfigDict`, whose fields a type checker cannot know.
Config: TypeAlias = Any


def as_json(config: Config) -> dict[str, Any]:
    """The resolved config as plain values."""
    return json.loads(config.to_json_best_effort())


def choice(field: str, value: str, choices: Any) -> Any:
    """The value, if it is one of a `Literal`."""
    if value not in get_args(choices):
        raise ValueError(
            f"{field}={value!r} is unknown; choose from {get_args(choices)}."
        )
    return value


def number(field: str, text: str) -> float:
    """The number that a text says."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{field}: {text!r} is not a number.") from None


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
