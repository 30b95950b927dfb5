"""A file of configs/: Python of the user's, whose `get_config` makes the config."""

import importlib.util
import inspect
import pathlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from vdiff_jax.from_config.defaults import ExperimentConfig, defaults

_OURS = pathlib.Path(__file__).parents[1]


def load(file: pathlib.Path, stage: str = "") -> ExperimentConfig:
    """Runs a config file.

    Args:
      file: The file.
      stage: The stage that is asked for; "" leaves it to the file.

    Raises:
      ValueError: In one line, if the file cannot be run, or makes no config.
    """
    get_config = _run(file, lambda: _get_config(file))
    config = _run(file, lambda: _called(file, get_config, stage))
    if not isinstance(config, ExperimentConfig):
        config = _run(file, lambda: _completed(file, config))
    if stage:
        config.stage = stage
    return config


def _get_config(file: pathlib.Path) -> Callable[..., Any]:
    name = f"config_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is no file of Python: a config's name ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as dataclasses need it
    spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(
            f"{file} has no function get_config(stage), which makes the config: see"
            " configs/digits.py."
        )
    return module.get_config


def _called(file: pathlib.Path, get_config: Callable[..., Any], stage: str) -> Any:
    """The result of a file's function, which may do without the stage."""
    parameters = inspect.signature(get_config).parameters.values()
    needed = [
        each
        for each in parameters
        if each.default is each.empty
        and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    if len(needed) > 1 or any(each.kind is each.KEYWORD_ONLY for each in needed):
        raise ValueError(
            f"get_config of {file} takes {', '.join(each.name for each in needed)}: it"
            " is called with the stage alone."
        )
    positional = [each for each in parameters if each.kind is not each.KEYWORD_ONLY]
    if not positional or not (stage or needed):
        return get_config()
    return get_config(stage or "all")


def _completed(file: pathlib.Path, fields: Any) -> ExperimentConfig:
    """The config of a file that sets fields and begins without our defaults."""
    if fields is None:
        raise ValueError(
            f"get_config of {file} returns nothing: its last line must be `return"
            " config`."
        )
    if not isinstance(fields, (dict, ConfigDict)):
        raise ValueError(
            f"get_config of {file} returns a {type(fields).__name__}, and must return a"
            " config: see configs/digits.py."
        )
    config = defaults()
    config.update(fields)
    return config


def _run(file: pathlib.Path, function: Callable[[], Any]) -> Any:
    """Runs what runs a user's code, and gives the reason and the line if it fails."""
    try:
        return function()
    except SyntaxError as error:
        place = f"{error.filename or file}, line {error.lineno}"
        raise ValueError(f"{error.msg} ({place}).") from error
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [each.lineno for each in frames if _is(file, each.filename)]
        if not lines and isinstance(error, ValueError):
            raise  # of this module
        reason = _first(error)
        if not pathlib.Path(frames[-1].filename).is_relative_to(_OURS):
            reason = f"{type(error).__name__}: {reason}"
        place = f"{file}, line {lines[-1]}" if lines else str(file)
        raise ValueError(f"{reason.rstrip('.')} ({place}).") from error


def _is(file: pathlib.Path, name: str) -> bool:
    return pathlib.Path(name).absolute() == file.absolute()


def _first(error: BaseException) -> str:
    """The first line of what an error says."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return next(iter(str(text).splitlines()), "")
