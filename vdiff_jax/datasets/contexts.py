"""Contexts of examples: sequences of vectors, such as the embeddings of texts.

contexts       floats, [contexts, tokens, width]
masks          bool, [contexts, tokens]: which vectors count; absent if all do
null_context   floats, [tokens, width]: that of no text; may be absent
null_mask      bool, [tokens]; absent if all count
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Context(NamedTuple):
    """One context.

    Attributes:
      context: Floats, [tokens, width].
      mask: bool, [tokens]: True where a vector counts.
    """

    context: np.ndarray
    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class Table:
    """Contexts by their numbers.

    Attributes:
      contexts: Floats, [contexts, tokens, width]; may be mapped.
      masks: bool, [contexts, tokens].
      null: The context of an example whose own is left out, or None.
    """

    contexts: np.ndarray
    masks: np.ndarray
    null: Context | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens and width of each context."""
        _, tokens, width = self.contexts.shape
        return tokens, width

    def take(self, rows: int | np.integer | np.ndarray) -> dict[str, Any]:
        """The parts of one example, or those of many, stacked."""
        return {"context": self.contexts[rows], "mask": self.masks[rows]}


def table_of(
    arrays: Mapping[str, np.ndarray],
    path: pathlib.Path,
    names: tuple[str, str] = ("contexts", "masks"),
) -> Table:
    """The table in the arrays of a file, each array checked for its shape and type.

    Args:
      arrays: By name, as at the top.
      path: The file, for messages.
      names: Names of the contexts and of their masks.

    Raises:
      ValueError: If an array is missing, or has another shape or type.
    """
    contexts = arrays.get(names[0])
    if contexts is None:
        raise ValueError(
            f"{path} needs an array {names[0]} of shape [contexts, tokens, width]; it"
            f" has {list(arrays)}."
        )
    if contexts.ndim != 3 or contexts.dtype.kind != "f" or 0 in contexts.shape:
        raise ValueError(
            f"{path}: {names[0]} must be floats of shape [contexts, tokens, width], but"
            f" are {contexts.dtype} of shape {contexts.shape}."
        )
    masks = _mask(arrays, names[1], contexts.shape[:2], path)
    return Table(contexts, masks, _null_of(arrays, path, contexts.shape[1:]))


def _null_of(
    arrays: Mapping[str, np.ndarray], path: pathlib.Path, shape: tuple[int, ...]
) -> Context | None:
    null = arrays.get("null_context")
    if null is None:
        if "null_mask" in arrays:
            raise ValueError(f"{path} has a null_mask, but no null_context.")
        return None
    if null.shape != shape or null.dtype.kind != "f":
        raise ValueError(
            f"{path}: null_context must be floats of shape {shape}, as each of the"
            f" contexts, but is {null.dtype} of shape {null.shape}."
        )
    if not np.isfinite(null).all():
        raise ValueError(f"{path}: null_context is not finite.")
    return Context(null, _mask(arrays, "null_mask", shape[:1], path))


def _mask(
    arrays: Mapping[str, np.ndarray],
    name: str,
    shape: tuple[int, ...],
    path: pathlib.Path,
) -> np.ndarray:
    mask = arrays.get(name)
    if mask is None:
        return np.broadcast_to(np.True_, shape)
    if mask.shape != shape or mask.dtype.kind not in "biu":
        raise ValueError(
            f"{path}: {name} must be bool of shape {shape}, a value for each vector of"
            f" a context, but is {mask.dtype} of shape {mask.shape}."
        )
    return mask.astype(bool, copy=False)
