"""The config that a workdir records, as one to run stages with."""

import pathlib
from typing import Any

from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.defaults import defaults
from vdiff_jax.workdir.layout import CONFIG
from vdiff_jax.workdir.migration import read_config


def recorded_config(workdir: pathlib.Path, stage: str) -> Config:
    """The config that a workdir was made with, for a stage of today's.

    Args:
      workdir: A folder with a config.json.
      stage: The stage, as in the field `stage`.

    Raises:
      ValueError: If the record is damaged, or a later version wrote it.
    """
    config: Config = defaults(stage)
    record = read_config(workdir / CONFIG)
    config.update(
        {
            name: as_tuples(record[name])
            for name in config
            if name in record and name != "stage"
        }
    )
    return config


def as_tuples(value: Any) -> Any:
    """A value of JSON with tuples for lists, as configs have them."""
    if isinstance(value, dict):
        return {name: as_tuples(inner) for name, inner in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value
