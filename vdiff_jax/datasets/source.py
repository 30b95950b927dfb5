"""What a source of pictures is, and the simplest one."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Source(Protocol):
    """Random access to examples {"image": uint8 [H, W, C], "label": int}.

    A source may also have `__getitems__(indices)`, which returns a list of examples or,
    faster, one dictionary of stacked arrays.
    """

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """One example."""
        ...


@dataclasses.dataclass(frozen=True)
class Arrays:
    """A source held in memory.

    Attributes:
      images: uint8, [examples, height, width, channels].
      labels: int32, [examples].
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example."""
        return {"image": self.images[index], "label": self.labels[index]}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Many examples, stacked."""
        return {"image": self.images[indices], "label": self.labels[indices]}
