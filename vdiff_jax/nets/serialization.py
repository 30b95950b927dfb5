"""A U-Net as plain values and back, for configs and for files of weights."""

import dataclasses
import json
from typing import Any

from vdiff_jax.nets.layers import Style
from vdiff_jax.nets.unet import Level, UNet

# What a U-Net is; the rest of its fields are how it is run, or come from elsewhere.
FIELDS = (
    "levels", "emb_features", "mid_heads", "groups", "style", "logsnr_input",
    "time_table",
)  # fmt: skip


def describe(net: UNet) -> str:
    """One line of JSON: each of `FIELDS` that is not at its default."""
    said = {name: getattr(net, name) for name in FIELDS}
    said["levels"] = [_changed(level) for level in net.levels]
    said["style"] = _changed(net.style)
    defaults = {field.name: field.default for field in dataclasses.fields(UNet)}
    said = {k: v for k, v in said.items() if v != defaults[k] and v != {}}
    return json.dumps(said, sort_keys=True)


def fields_of(description: str) -> dict[str, Any]:
    """The fields that `describe` was told, as `UNet` takes them.

    Raises:
      ValueError: If it is no such description.
    """
    try:
        said = json.loads(description)
        unknown = set(said) - set(FIELDS)
        if unknown:
            raise ValueError(f"unknown fields {sorted(unknown)}")
        said["levels"] = tuple(Level(**level) for level in said["levels"])
        said["style"] = Style(**said.get("style", {}))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"model.unet.layout={description!r} does not describe a U-Net ({error}):"
            " let the import stage write it, or leave it out."
        ) from error
    return said


def _changed(thing: Level | Style) -> dict[str, Any]:
    return {
        field.name: getattr(thing, field.name)
        for field in dataclasses.fields(thing)
        if getattr(thing, field.name) != field.default
    }
