"""A config with every field at its default, which a file of configs/ then changes."""

import sys
from typing import Any

from ml_collections import ConfigDict

from vdiff_jax.from_config.fields import FIELDS, LOOP, TRAINING, unknown
from vdiff_jax.from_config.moved import flat, nested, translated


class ExperimentConfig(ConfigDict):
    """A config whose `update` understands more than its fields.

    A stage that trains may be given a field of `loop`, which then is its own; and a
    field that has moved is understood, with a line on stderr that names its new place.
    """

    def update(self, *other: Any, **kwargs: Any) -> None:
        """Changes fields, given by section.

        Raises:
          KeyError: If there is no such field.
          TypeError: If a value is not of the field's type.
          ValueError: If an old field cannot be expressed in the new ones.
        """
        for fields in (*other, kwargs):
            fields = fields.to_dict() if isinstance(fields, ConfigDict) else fields
            changes, notes = translated(fields, self)
            _refuse_heads(fields, changes)
            for note in notes:
                print(note, file=sys.stderr)
            for path, _ in flat(changes):
                if wrong := unknown(path):
                    raise KeyError(wrong)
            self._take_overrides(changes)
            super().update(changes)

    def _take_overrides(self, changes: dict[str, Any]) -> None:
        """Makes room for the fields of `loop` that a stage is to have of its own."""
        for stage in TRAINING:
            section: Any = self[stage]
            for name in changes.get(stage, {}):
                if name in LOOP and name not in section:
                    with section.unlocked():
                        section[name] = LOOP[name].default


def defaults(stage: str = "all") -> ExperimentConfig:
    """Every field at its default, locked: a misspelt field is an error."""
    config = ExperimentConfig(
        nested({path: field.default for path, field in FIELDS.items()})
    )
    config.update({"stage": stage})
    config.lock()
    return config


def _refuse_heads(old: dict[str, Any], new: dict[str, Any]) -> None:
    num_heads = old.get("model", {}).get("num_heads", 0)
    if num_heads and new["model"].get("unet", {}).get("layout"):
        raise ValueError(
            f"model.num_heads={num_heads} is gone, and these levels have attention at"
            " several widths: set model.unet.head_dim, the features of one head."
        )
