"""A U-Net as plain values and back, for configs and for files of weights."""

import dataclasses
import json
from typing import Any

from vdiff_jax.nets.layers import Style
from vdiff_jax.nets.unet import Level, UNet

# The fields that define a U-Net; the others say how it is run, or come from elsewhere.
FIELDS = (
    "levels", "emb_features", "mid_heads", "mid_depth", "context_features",
    "context_tokens", "groups", "style", "logsnr_input", "time_table",
)  # fmt: skip


def describe(net: UNet) -> str:
    """One line of JSON: each of `FIELDS` that is not at its default."""
    fields = {name: getattr(net, name) for name in FIELDS}
    fields["levels"] = [_changed(level) for level in net.levels]
    fields["style"] = _changed(net.style)
    defaults = {field.name: field.default for field in dataclasses.fields(UNet)}
    fields = {k: v for k, v in fields.items() if v != defaults[k] and v != {}}
    return json.dumps(fields, sort_keys=True)


def fields_of(description: str) -> dict[str, Any]:
    """The fields of a U-Net from its description, as `UNet` takes them.

    Raises:
      ValueError: If the text is not a description that `describe` wrote.
    """
    try:
        fields = json.loads(description)
        unknown = set(fields) - set(FIELDS)
        if unknown:
            raise ValueError(f"unknown fields {sorted(unknown)}")
        fields["levels"] = tuple(Level(**level) for level in fields["levels"])
        fields["style"] = Style(**fields.get("style", {}))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"model.unet.layout={description!r} does not describe a U-Net ({error}):"
            " let the import stage write it, or leave it out."
        ) from error
    return fields


def _changed(part: Level | Style) -> dict[str, Any]:
    return {
        field.name: getattr(part, field.name)
        for field in dataclasses.fields(part)
        if getattr(part, field.name) != field.default
    }
