"""Our models as one file: safetensors, and what is needed to sample from it.

Names are paths in the tree of parameters, joined by "/": modules have dots in their
names. The metadata have one entry, JSON, so that the bytes of a file depend on nothing
but the model.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.typing import DTypeLike

from vdiff_jax.distillation.role import RoleName
from vdiff_jax.files import weights
from vdiff_jax.files.atomic import to_json
from vdiff_jax.types import Params

VERSION = 1
ENTRY = "vdiff_jax"


class About(NamedTuple):
    """The description of a model in its file.

    Attributes:
      fields: Its fields of a config, by section.
      kind: base, guided or distilled.
      num_steps: Steps of the sampler that it was distilled for; 0 for any other model.
      facts: Its origin, and the values of metrics.
    """

    fields: dict[str, dict[str, Any]]
    kind: RoleName
    num_steps: int
    facts: dict[str, Any]


def write(
    path: pathlib.Path, params: Params, about: About, dtype: DTypeLike = jnp.float32
) -> None:
    """Writes a model.

    Args:
      path: The `.safetensors` file to write.
      params: The model's parameters.
      about: Its description; everything in it must be JSON.
      dtype: The type of the parameters in the file; read, they are float32.

    Raises:
      OSError: If it cannot be written.
    """
    entry = {"version": VERSION, **about._asdict()}
    text = to_json(entry, sort_keys=True)
    tensors = {name: x.astype(dtype) for name, x in tensors_of(params).items()}
    weights.write(path, tensors, {ENTRY: text})


def read(path: pathlib.Path) -> Params:
    """Reads the parameters of a model.

    Raises:
      ValueError: If `write` did not write the file, or a later version did.
    """
    read_about(path)
    return params_of(weights.read(path))


def read_about(path: pathlib.Path) -> About:
    """Reads the description of a model, and not its parameters.

    Raises:
      ValueError: If `write` did not write the file, or a later version did.
    """
    try:
        entry = json.loads(weights.metadata(path)[ENTRY])
        version = entry.pop("version")
        about = About(**entry)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} was not written by vdiff_jax: it does not describe the network of"
            " its tensors. Files of diffusers are imported with their folder."
        ) from error
    if version > VERSION:
        raise ValueError(
            f"{path} is of version {version}, and this package knows up to {VERSION}:"
            " use the one that wrote it, or a later one."
        )
    return about


def tensors_of(params: Params) -> dict[str, np.ndarray]:
    """The parameters as arrays by name."""
    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
    return {name: np.asarray(leaf) for name, leaf in flat.items()}


def params_of(tensors: Mapping[str, Any]) -> Params:
    """The tree of parameters from arrays by name: the inverse of `tensors_of`."""
    return traverse_util.unflatten_dict(tensors, sep="/")
