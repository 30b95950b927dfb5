"""The pages of --help: the command, a section of the config, or one field."""

import difflib
import textwrap
from collections.abc import Sequence

from vdiff_jax.command.words import FLAGS
from vdiff_jax.from_config.fields import (
    FIELDS,
    LOOP,
    SECTIONS,
    TRAINING,
    Field,
    field_at,
    is_override,
)

_WORDS = {"-h", "-help", "--help", "--helpfull", "--helpshort"}
_STAGES = {
    "train": "trains the base model, the first teacher",
    "guide": "folds guidance into one network, for every guidance weight w",
    "distill": "halves the steps again and again: a student for each number",
    "sample": "draws images",
    "evaluate": "measures base and students, and writes the page",
    "export": "writes a model as files for others",
    "import": "takes another project's model as the base model",
}
# Sections by the stages whose fields they hold.
_SECTION_OF = {"import": "source"}
_WIDTH = 88

HEAD = """\
Trains a diffusion model, distills it into students of few steps, and measures both.

    python launch.py --config CONFIG[:STAGE[,STAGE...]] [--config.FIELD=VALUE ...]

CONFIG is a file of configs/ (configs/digits.py, or digits), or a workdir, whose config
is then the one that it was made with. Without a stage, train, distill and evaluate run,
and guide where the config has it. The same command resumes.

Stages:
"""

EXAMPLES = """\
Examples:
    python launch.py --config digits
    python launch.py --config cifar10:train,distill --workdir ~/runs/cifar10
    python launch.py --config runs/digits:sample --config.sample.steps=4

Fields of the config, with their defaults and ranges:
    --help train              a section, or what a stage reads
    --help train.steps        one field
"""


def page(argv: Sequence[str]) -> str | None:
    """The page that a command asks for; None if it asks for none.

    Args:
      argv: The words, without the name of the program.

    Raises:
      ValueError: If there is nothing of the name that help is wanted on.
    """
    places = [i for i, word in enumerate(argv) if word.partition("=")[0] in _WORDS]
    if not places:
        return None
    rest = [*argv[places[0] + 1 :], ""]
    topic = argv[places[0]].partition("=")[2] or rest[0]
    topic = topic.lstrip("-").removeprefix("config.").partition("=")[0]
    if not topic or topic.split(".")[0] in FLAGS or topic == "config":
        return _command()
    return _about(topic)


def _command() -> str:
    stages = "".join(f"    {name:10}{text}\n" for name, text in _STAGES.items())
    width = max(map(len, FLAGS)) + 2
    docs = {**{name: flag.doc for name, flag in FLAGS.items()}, "help": "This page."}
    flags = "".join(f"    --{name:{width}}{doc}\n" for name, doc in docs.items())
    sections = _wrapped(", ".join(name for name in SECTIONS if name), "    ")
    return f"{HEAD}{stages}\nFlags:\n{flags}\n{EXAMPLES}\nSections: \n{sections}\n"


def _about(topic: str) -> str:
    """The page on a section, a stage or a field."""
    if topic in FIELDS or is_override(topic):
        return _field(topic, field_at(topic))
    section = _SECTION_OF.get(topic, topic)
    if section not in SECTIONS:
        known = [*FIELDS, *SECTIONS, *_STAGES]
        near = difflib.get_close_matches(topic, known, 1, 0.7)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise ValueError(f"There is no help on {topic!r}{hint}: see --help.")
    parts = [
        f"{name}: {SECTIONS[name].doc}\n\n" + _fields(name, SECTIONS[name].fields)
        for name in SECTIONS
        if name == section or name.startswith(f"{section}.")
    ]
    if section in TRAINING:
        parts.append(
            f"Fields of `loop`, which {section} may have of its own"
            f" (--config.{section}.NAME):\n" + _wrapped(", ".join(LOOP), "    ") + "\n"
        )
    return "\n".join(parts)


def _fields(section: str, fields: dict[str, Field]) -> str:
    return "".join(_field(f"{section}.{name}", each) for name, each in fields.items())


def _field(path: str, field: Field) -> str:
    """The default, the range and the meaning of a field."""
    facts = f"{field.doc} Default {field.default!r}; {field.allowed.describe()}."
    return f"  --config.{path}\n{_wrapped(facts, '      ')}\n"


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )
