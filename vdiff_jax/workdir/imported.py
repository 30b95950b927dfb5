"""What a workdir's model is, where that came with the model and not from a config.

`imported.json` says it. Of every stage in such a workdir, `model` and `diffusion` are
those of that file; the data, and how to train, are the config's.
"""

import json
import pathlib
from typing import Any

from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.moved import current

FILE = "imported.json"
Fields = dict[str, dict[str, Any]]


def resolved(config: Config, workdir: pathlib.Path) -> Config:
    """The config with what is known of the model that a workdir was made from."""
    fields = _fields(config, workdir)
    return config if fields is None else with_fields(config, fields)


def of_source(config: Config) -> Fields | None:
    """Of the imported model that `train.init_from` names; None if it was not imported.

    The network and the noise schedule are that model's, but it says what the config
    asks for. What was known of its training holds no longer.
    """
    path = pathlib.Path(config.train.init_from).parent / FILE
    if not config.train.init_from or not path.exists():
        return None
    fields = current(json.loads(path.read_text()))
    own = {name: config.model[name] for name in ("output", "computed_from")}
    kept = {name: fields[name] for name in ("model", "diffusion", "data")}
    return {**kept, "model": {**fields["model"], **own}}


def with_fields(config: Config, fields: Fields) -> Config:
    """The config with the fields of a model that it did not make.

    Raises:
      ValueError: If the data are of other channels than the model's, or the fields are
        of a later version.
    """
    made = config.copy_and_resolve_references()
    _take_data(made.data, fields["data"])
    for section, values in fields.items():
        if section != "data":
            _take(made[section], values, section)
    return made


def _take(ours: Config, theirs: dict[str, Any], section: str) -> None:
    for name, value in theirs.items():
        if name not in ours:
            raise ValueError(
                f"The model has {section}.{name}, which this version does not know:"
                " use the one that wrote it, or a later one."
            )
        if isinstance(value, dict):
            _take(ours[name], value, f"{section}.{name}")
        else:
            ours[name] = tuple(value) if isinstance(ours[name], tuple) else value


def _fields(config: Config, workdir: pathlib.Path) -> Fields | None:
    path = workdir / FILE
    if path.exists():
        return current(json.loads(path.read_text()))
    return of_source(config)


def _take_data(data: Config, theirs: dict[str, Any]) -> None:
    """A network is made for its channels, and works at any size."""
    if data.channels not in (0, theirs["channels"]):
        raise ValueError(
            f"data.channels={data.channels}, but the imported model takes pictures of"
            f" {theirs['channels']} channels."
        )
    data.channels = theirs["channels"]
    data.image_size = data.image_size or theirs["image_size"]
    if not data.image_size:
        raise ValueError(
            "What is imported does not say how large its pictures are: set"
            " data.image_size."
        )
    data.latent_scale = theirs.get("latent_scale", data.latent_scale)
