"""The classes of two splits: one name, one number, the one it has in training."""

from collections.abc import Sequence

import numpy as np

from vdiff_jax.datasets.source import Example, Source, name_of, read_many


def common_classes(
    train: Sequence[str], test: Sequence[str], where: str
) -> tuple[str, ...]:
    """The classes of both splits, in the order of the training split.

    Args:
      train: Names of the classes to train on; none for a split without classes.
      test: Those of the other split, which may lack some.
      where: Where the splits lie, for the message.

    Raises:
      ValueError: If the test split has classes that the training split lacks, for they
        would take the numbers of others.
    """
    lacking = sorted(set(test) - set(train))
    if train and lacking:
        raise ValueError(
            f"The splits of {where} have different classes: {', '.join(lacking)} of the"
            f" test split {'is' if len(lacking) == 1 else 'are'} not among the"
            f" {len(train)} to train on ({_some(train)}). Name the classes alike in"
            " both, or take the odd ones away."
        )
    return tuple(train)


def _some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def renumbered(
    labels: np.ndarray, own: Sequence[str], classes: Sequence[str]
) -> np.ndarray:
    """Labels by the numbers that their classes have in another list.

    Args:
      labels: int32, [examples].
      own: Names of the classes that the labels number.
      classes: Names of the classes by their new numbers; all of `own` are in it.

    Returns:
      int32, [examples].
    """
    return _numbers(own, classes)[labels]


def _numbers(own: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number[name] for name in own], np.int32)


class Renumbered:
    """A source whose classes have the numbers of another list."""

    def __init__(self, source: Source, own: Sequence[str], classes: Sequence[str]):
        """Keeps its parts.

        Args:
          source: The examples, with labels.
          own: Names of the classes that its labels number.
          classes: Names of the classes by their new numbers; they have all of `own`.
        """
        self._source = source
        self._number = _numbers(own, classes)
        self.classes = tuple(classes)
        self.null_context = getattr(source, "null_context", None)
        labels = getattr(source, "labels", None)
        self.labels = None if labels is None else self._number[labels]
        self.needs_workers: bool = getattr(source, "needs_workers", True)
        self.is_costly: bool = getattr(source, "is_costly", self.needs_workers)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        """One example."""
        return self._renumber(self._source[index])

    def __getitems__(self, indices: Sequence[int]) -> list[Example] | Example:
        """Many examples."""
        many = read_many(self._source, indices)
        if isinstance(many, list):
            return [self._renumber(example) for example in many]
        return self._renumber(many)

    def _renumber(self, example: Example) -> Example:
        return {**example, "label": self._number[example["label"]]}

    def name(self, index: int) -> str:
        """The name of an example in the source."""
        return name_of(self._source, index)
