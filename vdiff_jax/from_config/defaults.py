"""A config with every field at its default, which a file of configs/ then changes."""

import sys
from typing import Any

from ml_collections import ConfigDict, FieldReference

from vdiff_jax.from_config.fields import (
    FIELDS,
    SECTIONS,
    field_at,
    is_override,
    unknown,
)
from vdiff_jax.from_config.moved import flat, nested, translated
from vdiff_jax.from_config.values import of_type


class ConfigSection(ConfigDict):
    """Fields of a config, which know what they are called and what they may be.

    A value is brought to its field's type as it is set, by attribute, by key or by
    `update`; and a stage that trains may be given a field of `loop`, which then is its
    own.
    """

    def __init__(self, *args: Any, path: str | None = None, **kwargs: Any) -> None:
        object.__setattr__(self, "_path", path)  # None: of no known place
        super().__init__(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets a field.

        Raises:
          AttributeError: If there is no such field.
          TypeError: If a value is not of the field's type.
        """
        try:
            self[name] = value
        except KeyError as error:
            raise AttributeError(*error.args) from None

    def __getattr__(self, name: str) -> Any:
        """The value of a field.

        Raises:
          AttributeError: If there is no such field.
        """
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(*self._missing(name, error)) from None

    def __setitem__(self, name: str, value: Any) -> None:
        """Sets a field.

        Raises:
          KeyError: If there is no such field.
          TypeError: If a value is not of the field's type.
        """
        if self._path is None or not self.is_locked:
            return super().__setitem__(name, value)
        path = self._path_of(name)
        if path in SECTIONS:
            _check_is_section(path, value)
            section: Any = self[name]
            return section.update(value)
        if path not in FIELDS and not is_override(path):
            raise KeyError(f"no field {unknown(path)}")
        allowed = field_at(path).allowed
        if not isinstance(value, FieldReference):
            value = of_type(allowed, value)
            if not isinstance(value, allowed.kind):
                raise TypeError(allowed.refusal(path, value))
        if name in self:
            return super().__setitem__(name, value)
        with self.unlocked():
            return super().__setitem__(name, value)

    def copy_and_resolve_references(
        self, visit_map: dict[int, Any] | None = None
    ) -> "ConfigSection":
        """A copy that shares nothing with this config."""
        copy = super().copy_and_resolve_references(visit_map)
        object.__setattr__(copy, "_path", self._path)
        return copy

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes the state of a copy, or of another process."""
        super().__setstate__(state)
        object.__setattr__(self, "_path", state["_path"])

    def _path_of(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def _missing(self, name: str, error: KeyError) -> tuple[Any, ...]:
        """The words on a field that is not there."""
        if self._path is None or name.startswith("_"):
            return error.args
        return (f"no field {unknown(self._path_of(name)) or self._path_of(name)}",)


class ExperimentConfig(ConfigSection):
    """A whole config, whose `update` understands more than its fields.

    A field that has moved is understood, with a line on stderr that names its new
    place.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"path": "", **kwargs})

    def update(self, *other: Any, **kwargs: Any) -> None:
        """Changes fields, given by section.

        Raises:
          KeyError: If there is no such field.
          TypeError: If a value is not of the field's type.
          ValueError: If an old field cannot be expressed in the new ones.
        """
        for fields in (*other, kwargs):
            fields = fields.to_dict() if isinstance(fields, ConfigDict) else fields
            for name, value in fields.items():
                if name in SECTIONS:
                    _check_is_section(name, value)
            changes, notes = translated(fields, self)
            _refuse_heads(fields, changes)
            for note in notes:
                print(note, file=sys.stderr)
            for path, _ in flat(changes):
                if wrong := unknown(path):
                    raise KeyError(f"no field {wrong}")
            super().update(changes)


def defaults(stage: str = "all") -> ExperimentConfig:
    """Every field at its default, locked: a misspelt field is an error."""
    config = ExperimentConfig()
    _fill(config, nested({path: field.default for path, field in FIELDS.items()}))
    config.lock()
    config.update({"stage": stage})
    return config


def _fill(section: ConfigSection, fields: dict[str, Any], path: str = "") -> None:
    for name, value in fields.items():
        if isinstance(value, dict):
            inner = f"{path}.{name}" if path else name
            section[name] = empty = ConfigSection(path=inner)
            _fill(empty, value, inner)
        else:
            section[name] = value


def _check_is_section(path: str, value: Any) -> None:
    if not isinstance(value, (dict, ConfigDict)):
        raise TypeError(f"{path} is a section of fields, and takes no value itself.")


def _refuse_heads(old: dict[str, Any], new: dict[str, Any]) -> None:
    num_heads = old.get("model", {}).get("num_heads", 0)
    if num_heads and new["model"].get("unet", {}).get("layout"):
        raise ValueError(
            f"model.num_heads={num_heads} is gone, and these levels have attention at"
            " several widths: set model.unet.head_dim, the features of one head."
        )
