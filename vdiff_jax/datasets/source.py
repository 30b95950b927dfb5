"""The protocol of a source of examples, the simplest source, and parts of one."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from vdiff_jax.datasets.names import to_bytes, unmirrored

Example: TypeAlias = dict[str, Any]


@runtime_checkable
class Source(Protocol):
    """Random access to examples {"image": uint8 [H, W, C], "label": int}.

    Latents have floats in the place of uint8; examples without classes have no "label";
    those with a context have "context", floats [tokens, width], and may have "mask",
    bool [tokens], True where a vector counts. Index i is the same example in every
    process and every run. A source is sent to worker processes, so it must pickle: open
    files when they are first read.

    These may be there too, and are used if so:

    - `__getitems__(indices)`: a list of examples or, faster, one dictionary of stacked
      arrays.
    - `labels`: int array of all labels, or None.
    - `classes`: names of the classes, in the order of the labels.
    - `needs_workers`: False if reading is only copying, which other processes would not
      speed up.
    - `is_costly`: True if examples are worth to be held once read; by default, if they
      need workers.
    - `null_context`: the `Context` of an example whose own is left out, or None.
    - `name(index)`: the name of an example in messages, such as its file name. A
      held-out fraction is chosen by it.
    """

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int, /) -> Example:
        """One example."""
        ...


def name_of(source: Source, index: int) -> str:
    """The name of an example: the source's name for it, or its number."""
    name = getattr(source, "name", None)
    return name(index) if name else f"example {index}"


def read_many(source: Source, indices: Sequence[int]) -> list[Example] | Example:
    """Some examples: a list, or one dictionary of stacked arrays."""
    read = getattr(source, "__getitems__", None)
    return read(indices) if read else [source[index] for index in indices]


@dataclasses.dataclass(frozen=True)
class Arrays:
    """A source held in memory, or mapped into it.

    Attributes:
      images: uint8 or, for latents, float32; [examples, height, width, channels].
      labels: int32, [examples]; or None.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    needs_workers: ClassVar[bool] = False

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        """One example."""
        return self._take(index)

    def __getitems__(self, indices: Sequence[int]) -> Example:
        """Many examples, stacked."""
        return self._take(indices)

    def _take(self, which: int | Sequence[int]) -> Example:
        example = {"image": self.images[which]}
        return (
            example if self.labels is None else {**example, "label": self.labels[which]}
        )


class Part:
    """Some of a source's examples."""

    def __init__(self, source: Source, indices: np.ndarray):
        """Keeps some of a source's examples.

        Args:
          source: The source.
          indices: Indices of the examples to keep, in the order of the part.
        """
        self._source, self._indices = source, indices
        labels = getattr(source, "labels", None)
        self.labels = None if labels is None else labels[indices]
        self.classes = getattr(source, "classes", None)
        self.null_context = getattr(source, "null_context", None)
        self.needs_workers = getattr(source, "needs_workers", True)
        self.is_costly = getattr(source, "is_costly", self.needs_workers)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        """One example."""
        return self._source[int(self._indices[index])]

    def __getitems__(self, indices: Sequence[int]) -> list[Example] | Example:
        """Many examples."""
        return read_many(self._source, self._indices[indices].tolist())

    def name(self, index: int) -> str:
        """The name of an example in the whole source."""
        return name_of(self._source, int(self._indices[index]))


def held_out_part(
    source: Source, fraction: float, split: Literal["train", "test"]
) -> Part:
    """One side of a split by a hash of each example's name; adding files moves none.

    The mirrored copy of an image is on the side of the image.

    Args:
      source: All examples.
      fraction: Share of the examples that make up "test", in (0, 1), on average.
      split: The side to return.

    Raises:
      ValueError: If the fraction is out of range, or leaves a side empty.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"The held-out fraction must be in (0, 1), got {fraction}.")
    names = (name_of(source, i) for i in range(len(source)))
    held_out = np.fromiter((_uniform(name) < fraction for name in names), bool)
    indices = np.flatnonzero(held_out if split == "test" else ~held_out)
    if not len(indices):
        raise ValueError(
            f"Holding out {fraction} of {len(source)} examples leaves none in {split}."
        )
    return Part(source, indices)


def _uniform(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    digest = hashlib.sha256(to_bytes(unmirrored(name))).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
