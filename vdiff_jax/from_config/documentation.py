"""docs/config.md, from the table of fields.

python -m vdiff_jax.from_config.documentation > docs/config.md
"""

from vdiff_jax.from_config.fields import SECTIONS, Field

HEAD = """\
# The fields of a config

Written by `python -m vdiff_jax.from_config.documentation` from the table in
`vdiff_jax/from_config/fields.py`, which the checks of the command read too.

A config file sets what differs from these defaults, and a flag what differs from the
file: `--config.train.batch_size=64`. A field of `loop` may be given to one stage only,
and then holds there: `--config.train.log_every_steps=10`. A value out of its range is
refused before anything begins, whichever stage is to run. `--help train` prints a
section of this page, `--help train.steps` one field.

Values are written as in Python, or shorter where that has one meaning: `20k`, `1M` and
`2e4` are whole numbers, `yes` and `no` are True and False, `1,2,4` and `4` are tuples.
In a path `~` is your home. The seeds of all stages are of 31 bits.
"""


def markdown() -> str:
    """The page: for each section a table of its fields."""
    parts = [HEAD]
    for section, (doc, fields) in SECTIONS.items():
        title = f"`{section}`: {doc[0].lower()}{doc[1:]}" if section else doc
        rows = [_row(name, field) for name, field in fields.items()]
        table = "\n".join(("| field | default | range | |", "|---|---|---|---|", *rows))
        parts.append(f"## {title}\n\n{table}\n")
    return "\n".join(parts)


def _row(name: str, field: Field) -> str:
    default = f"`{field.default!r}`".replace("|", "\\|")
    return f"| `{name}` | {default} | {field.allowed.describe()} | {field.doc} |"


if __name__ == "__main__":
    print(markdown(), end="")
