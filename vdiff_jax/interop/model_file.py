"""Our models as one file: safetensors, and what is needed to sample from it.

Names are paths in the tree of parameters, joined by "/": modules have dots in their
names. The metadata have one entry, JSON, so that the bytes of a file depend on nothing
but the model.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from vdiff_jax.distillation.role import RoleName
from vdiff_jax.files import weights
from vdiff_jax.types import Params

VERSION = 1
ENTRY = "vdiff_jax"


class About(NamedTuple):
    """What a file says of its model.

    Attributes:
      fields: What a config says of it, by section.
      kind: base, guided or distilled.
      num_steps: Of the sampler that it was distilled for; 0 for any other.
      facts: Where it came from, and what was measured.
    """

    fields: dict[str, dict[str, Any]]
    kind: RoleName
    num_steps: int
    facts: dict[str, Any]


def write(path: pathlib.Path, params: Params, about: About) -> None:
    """Writes a model.

    Raises:
      OSError: If it cannot be written.
    """
    said = {"version": VERSION, **about._asdict()}
    text = json.dumps(said, sort_keys=True)
    weights.write(path, tensors_of(params), {ENTRY: text})


def read(path: pathlib.Path) -> Params:
    """Reads the parameters.

    Raises:
      ValueError: If it is no such file, or one of a later version.
    """
    read_about(path)
    return params_of(weights.read(path))


def read_about(path: pathlib.Path) -> About:
    """Reads what a file says of its model, and no more.

    Raises:
      ValueError: If it is no such file, or one of a later version.
    """
    try:
        said = json.loads(weights.metadata(path)[ENTRY])
        version = said.pop("version")
        about = About(**said)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} was not written by vdiff_jax: it does not say what network its"
            " tensors are of. Files of diffusers are imported with their folder."
        ) from error
    if version > VERSION:
        raise ValueError(
            f"{path} is of version {version}, and this package knows up to {VERSION}:"
            " use the one that wrote it, or a later one."
        )
    return about


def tensors_of(params: Params) -> dict[str, np.ndarray]:
    """Parameters by name."""
    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
    return {name: np.asarray(leaf) for name, leaf in flat.items()}


def params_of(tensors: Mapping[str, Any]) -> Params:
    """The inverse of `tensors_of`."""
    return traverse_util.unflatten_dict(tensors, sep="/")
