"""The calls of the compiled step that a run is cut into."""

import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Calls:
    """(first step, steps) of each call, cut at multiples of `steps_per_call`.

    A resumed run is cut where the run that was never stopped is. There may be millions
    of them: they are computed as they are needed.

    Attributes:
      first: Updates that are done.
      last: Updates to reach.
      steps_per_call: Updates of one compiled call, at most.
    """

    first: int
    last: int
    steps_per_call: int

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yields each."""
        first, at_most = self.first, self.steps_per_call
        while first < self.last:
            steps = min(at_most - first % at_most, self.last - first)
            yield first, steps
            first += steps
