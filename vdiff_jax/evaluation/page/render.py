"""The page as HTML: its template, filled with the content."""

import base64
import hashlib
import io
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

import jinja2
import numpy as np
import PIL.Image
from jaxtyping import UInt8
from markupsafe import Markup

from vdiff_jax.evaluation.measurement import Measurement
from vdiff_jax.evaluation.page.content import Content, Point, Row
from vdiff_jax.evaluation.page.panels import Panel, curve_of, finite, number, panels

SCRIPTS = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "page.js")
MOST_POINTS = 400  # of a curve; a screen shows no more


def render(content: Content) -> str:
    """The page as HTML; the same content always gives the same text."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(columns=_columns, number=number, png=_png, words=_words)
    ladder = panels(content.ladder, content.real_vs_real)
    scripts = [_read(name) for name in SCRIPTS]
    return environment.from_string(_read("template.html")).render(
        page=content,
        rows=[_shown(row) for row in content.ladder],
        panels=ladder,
        curves=_curves(content.ladder),
        drawn=_drawn(content, ladder),
        style=Markup(_read("page.css")),
        scripts=[Markup(script) for script in scripts],
        script_hashes=[_hash(script) for script in scripts],
        licences=Markup(_read("vendor/LICENSES")),
    )


def _read(name: str) -> str:
    return (resources.files("vdiff_jax.evaluation.page") / name).read_text(
        encoding="utf-8"
    )


def _hash(script: str) -> str:
    """The hash that lets a browser run this script, and none from the data."""
    digest = hashlib.sha256(script.encode()).digest()
    return "sha256-" + base64.b64encode(digest).decode()


def _drawn(content: Content, ladder: Sequence[Panel]) -> dict[str, Any]:
    """The data of the curves, for the script."""
    return {
        "curves": _curves(content.ladder),
        "panels": [
            panel._asdict() | {"points": [point._asdict() for point in panel.points]}
            for panel in ladder
        ],
        "losses": [
            {
                "name": loss.name,
                "metric": loss.metric,
                "training": _thin(loss.training),
                "held_out": _thin(loss.held_out),
            }
            for loss in content.losses
        ],
    }


def _curves(rows: Sequence[Measurement]) -> list[str]:
    """Names of all curves, so that each has one colour; those of students first."""
    roles = {row.role for row in rows}
    students_first = sorted(rows, key=lambda row: not row.role.is_student)
    return list(dict.fromkeys(curve_of(row, roles) for row in students_first))


def _thin(points: Sequence[Point]) -> list[tuple[int, float | None]]:
    """Means of as many neighbours as leave few enough points."""
    size = -(-len(points) // MOST_POINTS) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        (group[-1][0], finite(np.mean([value for _, value in group])))
        for group in groups
    ]


def _shown(row: Measurement) -> Row:
    """The columns of the table of all measurements."""
    hidden = ("key", "residual", "batch_size", "device")
    return {name: v for name, v in row.to_json().items() if name not in hidden}


def _columns(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _png(image: UInt8[np.ndarray, " h w c"]) -> str:
    """The image as a data URI."""
    file = io.BytesIO()
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    PIL.Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
