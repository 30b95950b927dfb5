"""Values of a field: from the text of a command, and from the code of a config file.

Whatever has one meaning only is understood: 20k, 2e4 and 20000.0 are the whole number
20000, (4) and 4 are a tuple where a tuple is due, and `~` is the user's home in a path.
What else there is comes out as it went in, for `Range.contains` to refuse.
"""

import decimal
import operator
import os
import re
import typing
from typing import Any

from vdiff_jax.from_config.ranges import Range

SWITCH = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
_THOUSANDS = {"k": 1000, "K": 1000, "M": 1_000_000}
_NUMBER = re.compile(r"([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d{1,2})?)([kKM]?)")
_TUPLE = re.compile(r"\(([^()\[\]]*)\)|\[([^()\[\]]*)\]|([^()\[\]]*)")
# In quotes, or up to a comma or a space.
_ENTRY = re.compile(r"""'[^']*'|"[^"]*"|[^,\s]+""")


def read(allowed: Range, path: str, text: str) -> Any:
    """The value that a word of a command stands for.

    Args:
      allowed: The range of the field or flag.
      path: Its name, for the message.
      text: The word, such as "20k", "false" or "1,2,4".

    Raises:
      ValueError: If the text is no value of the type of the range.
    """
    try:
        return _read(allowed, text)
    except ValueError as error:
        raise ValueError(allowed.refusal(path, text)) from error


def of_type(allowed: Range, value: Any) -> Any:
    """A value of Python as one of the type of a range; itself, if it is none."""
    if isinstance(value, bool):
        return value
    if allowed.kind is tuple and allowed.each is not None:
        return _as_tuple(allowed.each, value)
    if allowed.kind is int:
        return _as_whole(value)
    if allowed.kind is float:
        return float(value) if isinstance(value, typing.SupportsFloat) else value
    if allowed.kind is str:
        return _as_text(allowed, value)
    return value


def _read(allowed: Range, text: str) -> Any:
    if allowed.kind is str:
        return of_type(allowed, text)
    text = text.strip()
    if allowed.kind is bool:
        if text.lower() not in SWITCH:
            raise ValueError(text)
        return SWITCH[text.lower()]
    if allowed.kind is tuple and allowed.each is not None:
        return tuple(_read(allowed.each, entry) for entry in _entries(text))
    number = _number(text)
    return _as_whole(number) if allowed.kind is int else float(number)


def _entries(text: str) -> list[str]:
    """The entries of a tuple, with or without parentheses, quotes and commas."""
    match = _TUPLE.fullmatch(text)
    if match is None:
        raise ValueError(text)
    inside = next(group for group in match.groups() if group is not None)
    return [entry.strip("'\"") for entry in _ENTRY.findall(inside)]


def _number(text: str) -> int | float:
    """The number that a text is: exact, if it is whole."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return float(text)  # nan, inf, or an error
    number = decimal.Decimal(match[1]) * _THOUSANDS.get(match[2], 1)
    return int(number) if number == number.to_integral_value() else float(number)


def _as_tuple(each: Range, value: Any) -> Any:
    if isinstance(value, (str, int, float)):
        value = (value,)
    if not isinstance(value, (list, tuple)):
        return value
    # Others stay as they were written, for the message on them.
    return tuple(of_type(each, x) if _is_read(each, x) else x for x in value)


def _is_read(each: Range, value: Any) -> bool:
    """True for a whole number, and for a place that is a text."""
    return each.kind is int or (each.is_path and isinstance(value, str))


def _as_whole(value: Any) -> Any:
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    try:
        return operator.index(value)
    except TypeError:
        return value


def _as_text(allowed: Range, value: Any) -> Any:
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if allowed.is_path and isinstance(value, str):
        return os.path.expanduser(value)
    return value
