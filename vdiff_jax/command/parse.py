"""A command, understood: a config, a workdir, and how to run."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence, Set
from typing import Any

from vdiff_jax.command.source import FINETUNE, Source, find
from vdiff_jax.command.words import Flags, understand
from vdiff_jax.files.place import path_of
from vdiff_jax.from_config import config_file, moved
from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.fields import TRAINING, is_override
from vdiff_jax.from_config.moved import flat, nested, translated
from vdiff_jax.workdir.recorded import recorded_config


@dataclasses.dataclass(frozen=True)
class Command:
    """What a command asks for.

    Attributes:
      config: The config, with the fields that the command sets.
      workdir: The project's folder.
      asked: Paths of the fields that the command itself sets, by today's names.
      flags: How to run.
    """

    config: Config
    workdir: pathlib.Path
    asked: frozenset[str]
    flags: Flags


def parse(argv: Sequence[str]) -> Command:
    """Understands a command.

    Args:
      argv: Its words, the first being the name of the program.

    Raises:
      ValueError: In one line, if anything in it cannot be understood.
    """
    flags, fields, old = understand(argv[1:])
    source = find(flags.config)
    if source.stage == FINETUNE:
        source, old = source._replace(stage="train"), _finetuned(fields, old)
    try:
        config = _config(source)
        asked = {*fields, *_today(old, config)}
        config.update(nested(fields))
        config.update(nested(old))
        if source.is_workdir:
            _ask_every_stage(config, asked)
    except (KeyError, TypeError) as error:
        raise ValueError(str(error.args[0])) from error
    workdir = path_of(flags.workdir or source.workdir)
    return Command(config, workdir, frozenset(asked), flags)


def _config(source: Source) -> Config:
    if source.is_workdir:
        return recorded_config(source.place, source.stage or "all")
    return config_file.load(source.place, source.stage)


def _ask_every_stage(config: Config, asked: Set[str]) -> None:
    """Gives each stage the fields of `loop` that the command sets.

    A record has the fields of `loop` in the section of every stage that trains, where
    they go before those of all stages.
    """
    for stage in TRAINING:
        for name in config[stage]:
            path = f"{stage}.{name}"
            if is_override(path) and f"loop.{name}" in asked and path not in asked:
                config[stage][name] = config.loop[name]


def _today(old: Mapping[str, Any], config: Config) -> list[str]:
    """Today's names of fields that a command spells in an old way."""
    return [path for path, _ in flat(translated(nested(old), config).fields)]


def _finetuned(fields: Mapping[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """The old fields, with the defaults of the former stage `finetune`."""
    given = [path.partition(".") for path in (*fields, *old)]
    taken = {name for section, _, name in given if section in ("train", FINETUNE)}
    left = {name: x for name, x in moved.FINETUNE.items() if name not in taken}
    return {**{f"{FINETUNE}.{name}": x for name, x in left.items()}, **old}
