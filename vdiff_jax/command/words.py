"""The words of a command: its flags, and the fields of the config that it sets."""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from vdiff_jax.from_config.fields import (
    FIELDS,
    SECTIONS,
    STAGES,
    Field,
    field_at,
    is_override,
    unknown,
)
from vdiff_jax.from_config.moved import OLD, range_of_old
from vdiff_jax.from_config.ranges import Range, any_text, place, whole, yes_or_no
from vdiff_jax.from_config.values import SWITCH, read

# Flags that are no fields of the config, as fields have a default and a range.
FLAGS = {
    "config": Field(
        None,
        any_text("a config file or a workdir"),
        "A file of configs/ or a workdir, and :stage, or several: :train,distill.",
    ),
    "workdir": Field(
        None, place("a folder"), "The project's folder; else runs/<name of the config>."
    ),
    "out": Field(
        None,
        place("a folder"),
        "Where sample, evaluate and export write; else the workdir.",
    ),
    "dry_run": Field(False, yes_or_no(), "Print what would be done, as JSON."),
    "status": Field(False, yes_or_no(), "Print where every stage is; touches nothing."),
    "profile": Field(0, whole(0), "Trace so many updates, to profile/."),
    "replay": Field(None, whole(0), "Find where this update went wrong."),
    "traceback": Field(False, yes_or_no(), "Show the code that refused."),
    "compilation_cache": Field(
        True,
        yes_or_no(),
        "Keep compiled programs; --nocompilation_cache: none.",
    ),
    "distributed": Field(False, yes_or_no(), "Join the other hosts of the cluster."),
    "coordinator": Field(None, any_text("host:port"), "Where process 0 listens."),
    "num_processes": Field(None, whole(1), "With --coordinator."),
    "process_id": Field(None, whole(0), "With --coordinator, from 0."),
}
_FLAG = re.compile(r"--?(\w[\w.-]*)(?:=(.*))?", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Flags:
    """The values of `FLAGS`, by the same names."""

    config: str | None
    workdir: str | None
    out: str | None
    dry_run: bool
    status: bool
    profile: int
    replay: int | None
    traceback: bool
    compilation_cache: bool
    distributed: bool
    coordinator: str | None
    num_processes: int | None
    process_id: int | None


class Words(NamedTuple):
    """A command, word for word.

    Attributes:
      flags: Its flags.
      fields: The fields of today's config that it sets, by path.
      old: The fields of former versions that it sets, by path.
    """

    flags: Flags
    fields: dict[str, Any]
    old: dict[str, Any]


def understand(argv: Sequence[str]) -> Words:
    """Takes a command apart.

    Args:
      argv: The words, without the name of the program.

    Raises:
      ValueError: In one line, at the first word that cannot be understood.
    """
    flags = {name: flag.default for name, flag in FLAGS.items()}
    words = Words(Flags(**flags), {}, {})
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        match = _FLAG.fullmatch(word)
        if match is None:
            raise ValueError(_stray(word))
        name, text = match[1].replace("-", "_"), match[2]
        if re.match(r"(no)?config\.", name):
            _take_field(words, name, text, rest)
        else:
            name, allowed, text = _flag(word, name, text)
            text = _text(f"--{name}", allowed, text, rest)
            value = read(allowed, f"--{name}", text)
            if not allowed.contains(value) or value == "":
                raise ValueError(allowed.refusal(f"--{name}", value))
            flags[name] = value
    return words._replace(flags=Flags(**flags))


def _flag(word: str, name: str, text: str | None) -> tuple[str, Range, str | None]:
    """The name, the range and the text of a flag; --noNAME is --NAME=false."""
    if name in FLAGS:
        return name, FLAGS[name].allowed, text
    positive = name.removeprefix("no").lstrip("_")
    if positive in FLAGS and FLAGS[positive].allowed.kind is bool and text is None:
        return positive, FLAGS[positive].allowed, "false"
    spelled = word.partition("=")[0]
    if not unknown(name):
        raise ValueError(f"Unknown flag {spelled}: write --config.{name}.")
    near = difflib.get_close_matches(name, [*FLAGS, "help"], 1, 0.6)
    paths = [path for path in FIELDS if path.rpartition(".")[2] == name]
    paths += difflib.get_close_matches(name, FIELDS, 1, 0.7)
    if near := [*near, *(f"config.{path}" for path in paths)]:
        raise ValueError(f"Unknown flag {spelled}; the nearest is --{near[0]}.")
    raise ValueError(f"Unknown flag {spelled}: see --help.")


def _take_field(words: Words, name: str, text: str | None, rest: list[str]) -> None:
    """Notes a field of the config, with the value that the command gives it."""
    no, _, path = name.partition("config.")
    path = "sample.from_file" if path == "sample.from" else path  # a word of Python
    if path in SECTIONS and path not in OLD:
        raise ValueError(
            f"{path} is a section of fields: --help {path} lists them; write"
            f" --config.{path}.FIELD=VALUE."
        )
    if path not in OLD and (wrong := unknown(path)):
        raise ValueError(f"The config has no field {wrong}.")
    allowed = range_of_old(path) if path in OLD else field_at(path).allowed
    was_switch = path == "sample.clip"
    if no:
        if text is not None or not (allowed.kind is bool or was_switch):
            raise ValueError(f"--{name}: write --config.{path}=VALUE.")
        text = "false"
    if was_switch and text is None and not _has_value(rest):
        text = "true"
    text = _text(f"--config.{path}", allowed, text, rest)
    if was_switch and text.lower() in SWITCH:
        words.old[path] = SWITCH[text.lower()]
    else:
        is_old = path in OLD
        (words.old if is_old else words.fields)[path] = read(allowed, path, text)


def _text(flag: str, allowed: Range, text: str | None, rest: list[str]) -> str:
    """The text of a flag's value, which may be a word of its own."""
    if text is not None:
        return text
    if allowed.kind is bool:
        return rest.pop(0) if rest and rest[0].lower() in SWITCH else "true"
    if not _has_value(rest):
        raise ValueError(
            f"{flag} has no value: write {flag}=VALUE, {allowed.describe()}."
        )
    return rest.pop(0)


def _has_value(rest: list[str]) -> bool:
    return bool(rest) and not rest[0].startswith("--")


def _stray(word: str) -> str:
    """The line on a word that is no flag, and no value of one."""
    name = re.split("[=:]", word)[0].lstrip("-").removeprefix("config.")
    if name in FIELDS or is_override(name):
        return f"{word!r} is no flag: write --config.{name}=VALUE."
    if word in STAGES:
        return f"{word!r} is no flag: stages are named as in --config digits:{word}."
    if "=" in word or word.startswith("-"):
        return f"{word!r} is no flag: write --FLAG=VALUE; --help lists the flags."
    return (
        f"{word!r} is no flag, and no value of one: write --config {word} for a config,"
        " --FLAG=VALUE without spaces for a value, and quotes around spaces in it."
    )
