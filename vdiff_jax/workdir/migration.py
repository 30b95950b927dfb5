"""Workdirs of earlier versions, read as those of today.

Version 0.1 wrote no schema number: its workdirs are of schema 1. `from_config.moved`
translates fields that have moved since, and gives a field that a file lacks the value
of that time.
"""

import json
import pathlib
from typing import Any

from vdiff_jax.from_config.moved import current

SCHEMA = 2


def read_record(path: pathlib.Path) -> dict[str, Any]:
    """The content of a `config.json`, its config as it is written today.

    Args:
      path: The file.

    Raises:
      ValueError: If a later version wrote it, or it is damaged or cannot be read.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        schema, config = record.get("schema", 1), record["config"]
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}): let it be read, or use another"
            " --workdir."
        ) from error
    except (AttributeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): restore it, or use another --workdir."
        ) from error
    if schema > SCHEMA:
        raise ValueError(
            f"{path} is of schema {schema}, and this version knows up to {SCHEMA}: use"
            " the version that wrote it, or a later one."
        )
    return {**record, "config": current(config)}


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """The config that a `config.json` records; errors as of `read_record`."""
    return read_record(path)["config"]
