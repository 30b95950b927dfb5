"""The values that a field of a config may take, and their description."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, get_args

# Seeds and counts are int32 where they meet a device.
LARGEST = 2**31 - 1
# Characters of a value in a message.
LONGEST = 80


@dataclasses.dataclass(frozen=True)
class Range:
    """A set of values.

    Attributes:
      words: The description, to be read after "must be".
      contains: True for a value in the set.
      kind: The type of its values.
      each: The range of an entry, of a set of tuples.
      is_path: True for places in the file system.
    """

    words: str
    contains: Callable[[Any], bool]
    kind: type = float
    each: "Range | None" = None
    is_path: bool = False

    def describe(self) -> str:
        """The description, to be read after "must be"."""
        return self.words

    def refusal(self, path: str, value: Any) -> str:
        """The line on a value that is not in the set.

        Args:
          path: The field or the flag that it was given to.
          value: The value, or the text that is none.
        """
        most = ""
        if _is_whole(value) and value > LARGEST and str(LARGEST) not in self.words:
            most = f" and at most {LARGEST}"
        return f"{path}={shown(value)} must be {self.words}{most}."


def shown(value: Any) -> str:
    """A value as Python writes it; of a long one the first part."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def whole(low: int) -> Range:
    """Whole numbers from `low` to the largest of 32 bits; True is none."""
    words = f"a whole number of at least {low}"
    return Range(words, lambda x: _is_whole(x) and low <= x <= LARGEST, int)


def seed() -> Range:
    """The seeds of random numbers: whole numbers of 31 bits, the same everywhere."""
    return dataclasses.replace(whole(0), words=f"a whole number from 0 to {LARGEST}")


def finite() -> Range:
    """Any number but infinity and NaN."""
    return Range("a finite number", _is_finite)


def at_least(low: int | float) -> Range:
    """Finite numbers from `low` up."""
    return Range(
        f"a number of at least {low:g}",
        lambda value: _is_finite(value) and low <= value,
    )


def above(low: int | float) -> Range:
    """Finite numbers greater than `low`."""
    return Range(
        f"a number above {low:g}", lambda value: _is_finite(value) and low < value
    )


def between(low: int | float, high: int | float) -> Range:
    """Numbers from `low` to `high`, both included."""
    return Range(
        f"a number from {low:g} to {high:g}",
        lambda value: _is_finite(value) and low <= value <= high,
    )


def from_to_below(low: int | float, high: int | float) -> Range:
    """Numbers from `low` up that are smaller than `high`."""
    return Range(
        f"a number from {low:g} to below {high:g}",
        lambda value: _is_finite(value) and low <= value < high,
    )


def above_up_to(low: int | float, high: int | float) -> Range:
    """Numbers greater than `low` and not greater than `high`."""
    return Range(
        f"a number above {low:g} and up to {high:g}",
        lambda value: _is_finite(value) and low < value <= high,
    )


def yes_or_no() -> Range:
    """True and False."""
    return Range("True or False", lambda value: isinstance(value, bool), bool)


def class_number_or_name() -> Range:
    """Whole numbers of at least 0, and names, which only a workdir knows."""
    number = whole(0)

    def contains(value: Any) -> bool:
        if not isinstance(value, str):
            return number.contains(value)
        try:
            return number.contains(int(value))
        except ValueError:
            return bool(value.strip())

    return Range("a whole number of at least 0 or a class's name", contains, str)


def any_text(meaning: str = "text") -> Range:
    """Every text; for what only a disk or a service can refuse.

    Args:
      meaning: The kind of text: a folder, a name.
    """
    return Range(meaning, lambda value: isinstance(value, str), str)


def place(meaning: str) -> Range:
    """Every place in the file system, in which `~` is the user's home.

    Args:
      meaning: What lies there: a folder, a file.
    """
    return dataclasses.replace(any_text(meaning), is_path=True)


def file_of_export() -> Range:
    """Every place of a file that the export stage may have written."""
    words = "a .safetensors file"

    def contains(value: Any) -> bool:
        return isinstance(value, str) and value.endswith(".safetensors")

    return Range(words, contains, str, is_path=True)


def one_of(*texts: str) -> Range:
    """Some texts; `""` is described as empty."""
    listed = ", ".join(text or '"" (empty)' for text in texts)
    return Range(
        f"one of {listed}",
        lambda value: isinstance(value, str) and value in texts,
        str,
    )


def one_of_literal(literal: Any, *more: str) -> Range:
    """The texts of a `Literal`, after some others."""
    return one_of(*more, *get_args(literal))


def parsed_by(parse: Callable[[str], Any], words: str) -> Range:
    """Texts of a little language.

    Args:
      parse: Raises a ValueError for any other text.
      words: The language.
    """

    def contains(value: Any) -> bool:
        if not isinstance(value, str):
            return False
        try:
            parse(value)
        except ValueError:
            return False
        return True

    return Range(words, contains, str)


def own_or(*names: str) -> Range:
    """Some names, or the place of the user's own function: `package.module:name`."""

    def contains(value: Any) -> bool:
        if not isinstance(value, str):
            return False
        module, _, name = value.partition(":")
        parts = [*module.split("."), name]
        return value in names or all(part.isidentifier() for part in parts)

    words = f"{', '.join(names)}, or a function of your own, package.module:function"
    return Range(words, contains, str)


def tuple_of(
    each: Range, *, least: int = 0, most: int | None = None, words: str = ""
) -> Range:
    """Tuples whose entries are of one range.

    Args:
      each: The range of an entry.
      least: The smallest number of entries.
      most: The largest; None for any.
      words: The description, in place of one that follows from the above.
    """

    def contains(value: Any) -> bool:
        return (
            isinstance(value, tuple)
            and least <= len(value) <= (len(value) if most is None else most)
            and all(each.contains(entry) for entry in value)
        )

    count = " of at least one" if least else ""
    words = words or f"a tuple{count}, each {each.describe()}"
    return Range(words, contains, tuple, each)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)
