"""The fields of an imported model, which came with it and not from a config.

A workdir keeps them in `imported.json`. In all its stages, `model` and `diffusion` are
those of that file; the data, and how to train, are the config's.
"""

import json
import pathlib
import sys
from typing import Any

from vdiff_jax.files.place import path_of
from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.moved import current

FILE = "imported.json"
# The folder beside it of the autoencoder that came with a model of latents.
AUTOENCODER = "autoencoder"
Fields = dict[str, dict[str, Any]]


def resolved(config: Config, workdir: pathlib.Path) -> Config:
    """The config with the fields of the model that was imported into a workdir."""
    fields = _fields(config, workdir)
    return config if fields is None else with_fields(config, fields)


def of_source(config: Config) -> Fields | None:
    """The fields of the model of `train.init_from`; None if it was not imported.

    The network and the noise schedule are that model's, but it predicts what the config
    asks for. The facts of its training hold no longer.
    """
    path = path_of(config.train.init_from).parent / FILE
    if not config.train.init_from or not path.exists():
        return None
    fields = _read(path)
    own = {name: config.model[name] for name in ("output", "computed_from")}
    kept = {name: fields[name] for name in ("model", "diffusion", "data")}
    return {**kept, "model": {**fields["model"], **own}}


def with_fields(config: Config, fields: Fields) -> Config:
    """The config with the fields of a model that it did not make.

    Raises:
      ValueError: If the data are of other channels than the model's, or the fields are
        of a later version.
    """
    config = config.copy_and_resolve_references()
    _take_data(config.data, fields["data"])
    for section, values in fields.items():
        if section != "data":
            _take(config[section], values, section)
    return config


def _take(config: Config, fields: dict[str, Any], section: str) -> None:
    for name, value in fields.items():
        if name not in config:
            raise ValueError(
                f"The model has {section}.{name}, which this version does not know:"
                " use the one that wrote it, or a later one."
            )
        if isinstance(value, dict):
            _take(config[name], value, f"{section}.{name}")
        else:
            config[name] = tuple(value) if isinstance(config[name], tuple) else value


def _fields(config: Config, workdir: pathlib.Path) -> Fields | None:
    path = workdir / FILE
    return _read(path) if path.exists() else of_source(config)


def _read(path: pathlib.Path) -> Fields:
    """The fields, with the place of their autoencoder as it is now."""
    fields = current(json.loads(path.read_text(encoding="utf-8")))
    # Version 0.2 once wrote that a base model of ours has none, and none could be made.
    fields = {name: values for name, values in fields.items() if name != "guide"}
    data = fields.get("data", {})
    if data.get("autoencoder") == AUTOENCODER:
        own = str((path.parent / AUTOENCODER).resolve())
        fields = {**fields, "data": {**data, "autoencoder": own}}
    return fields


def _autoencoder(fields: dict[str, Any]) -> str:
    """The autoencoder that came with a model; "" if it is not where it was."""
    place = fields.get("autoencoder", "")
    if place and not path_of(place).exists():
        print(
            f"The autoencoder {place} of this model is not there any more: it draws"
            " latents, unless data.autoencoder names its folder.",
            file=sys.stderr,
        )
        return ""
    return place


def _take_data(data: Config, fields: dict[str, Any]) -> None:
    """Takes the channels that the network is made for; it works at any size."""
    if data.channels not in (0, fields["channels"]):
        raise ValueError(
            f"data.channels={data.channels}, but the imported model takes images of"
            f" {fields['channels']} channels."
        )
    data.channels = fields["channels"]
    data.image_size = data.image_size or fields["image_size"]
    if not data.image_size:
        raise ValueError(
            "data.image_size=0, and the imported model does not have the size of its"
            " images: set it."
        )
    for name in ("latent_scale", "latent_shift"):
        data[name] = fields.get(name, data[name])
    data.autoencoder = data.autoencoder or _autoencoder(fields)
