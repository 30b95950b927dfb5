"""Tables, figures and grids of images of an evaluation."""

import csv as csv_format
import io
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vdiff_jax.distillation.methods import FIRST, METHODS
from vdiff_jax.distillation.role import BASE, Role, name_among
from vdiff_jax.evaluation.measurement import Measurement
from vdiff_jax.files.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Columns of the CSV.
COLUMNS = (
    "model",
    "sampler",
    "steps",
    "evaluations",
    "metric",
    "value",
    "spread",
    "num_images",
    "seed",
    "seconds_per_image",
    "batch_size",
    "device",
    "w",
    "method",
)


def table(rows: Sequence[Measurement]) -> str:
    """The rows as text: a line for each candidate, a column for each metric."""
    metrics = list(dict.fromkeys(row.metric for row in rows))
    guided = any(row.w is not None for row in rows)
    methods = {row.method or "" for row in rows}
    width = max(len("method"), *map(len, methods)) if methods - {"", FIRST} else 0
    lines = [
        f"{'model':>10}"
        + (f" {'method':>{width}}" if width else "")
        + f" {'sampler':>10} {'steps':>6}"
        + (f" {'w':>5} {'scale':>5}" if guided else "")
        + "".join(f" {name:>{_width(name)}}" for name in metrics)
        + f" {'ms / image':>11}"
    ]
    for candidate in dict.fromkeys(row.candidate for row in rows):
        of_metric = {row.metric: row for row in rows if row.candidate == candidate}
        model, method, sampler, steps, w = candidate
        first = next(iter(of_metric.values()))
        lines.append(
            f"{model:>10}"
            + (f" {method or '-':>{width}}" if width else "")
            + f" {sampler:>10} {steps:>6}"
            + ("" if w is None else f" {w:>5g} {1.0 + w:>5g}")
            + "".join(f" {_value(of_metric[name]):>{_width(name)}}" for name in metrics)
            + f" {1e3 * first.seconds_per_image:>11.3f}"
        )
    return "\n".join(lines)


def _width(metric: str) -> int:
    return max(len(metric), 17)


def _value(row: Measurement) -> str:
    if row.spread is None:
        return f"{row.value:.4g}"
    return f"{row.value:.4g} ± {row.spread:.2g}"


def csv(rows: Sequence[Measurement]) -> str:
    """The rows as comma-separated values."""
    file = io.StringIO()
    writer: Any = csv_format.DictWriter(
        file, COLUMNS, extrasaction="ignore", lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(row.to_json() for row in rows)
    return file.getvalue()


class Look(NamedTuple):
    """The look of a curve: its colour, and matplotlib's letters of marker and line."""

    color: str
    line: str


# Methods that are not here have those of `OTHERS`, in the order of the table.
STUDENTS = {FIRST: Look("C0", "o-"), "stochastic": Look("C9", "d-")}
OTHERS = (
    Look("C5", "P-"), Look("C6", "X-"), Look("C8", "*-"), Look("navy", "h-"),
    Look("darkgreen", "p-"), Look("magenta", "<-"), Look("black", ">-"),
)  # fmt: skip
# Look and name of the curves of all other models.
CURVES = {
    ("guided", "ddim"): (Look("C3", "D--"), "guided, DDIM"),
    ("base", "ddim"): (Look("C7", "o--"), "base, DDIM"),
    ("base", "ancestral"): (Look("C1", "s--"), "base, ancestral"),
    ("base", "dpmpp_2m"): (Look("C2", "^--"), "base, DPM-Solver++(2M)"),
    ("base", "heun"): (Look("C4", "v--"), "base, Heun"),
}


def look_of_students(method: str) -> Look:
    """The look of a method's curves, whatever other methods were measured."""
    if method in STUDENTS:
        return STUDENTS[method]
    drawing = [name for name, other in METHODS.items() if other.draws]
    others = [name for name in drawing if name not in STUDENTS]
    return OTHERS[others.index(method) % len(OTHERS)]


Curve = tuple[Look, str, list[Measurement]]


def _curves(rows: Sequence[Measurement]) -> list[Curve]:
    """The look, the name and the rows of every curve; those of students first."""
    roles = {row.role for row in rows}
    students = [
        (look_of_students(method), name_among(of_method[0].role, roles), of_method)
        for method in METHODS
        if (of_method := [row for row in rows if row.method == method])
    ]
    others = [
        (look, name, of_sampler)
        for (model, sampler), (look, name) in CURVES.items()
        if (of_sampler := _of(model, sampler, rows))
    ]
    return students + others


def _of(model: str, sampler: str, rows: Sequence[Measurement]) -> list[Measurement]:
    return [row for row in rows if (row.model, row.sampler) == (model, sampler)]


def ladder_figure(
    path: pathlib.Path, rows: Sequence[Measurement], *, real_vs_real: float | None
) -> None:
    """Distance against evaluations, spread as a band.

    There is a curve for each method of distillation, and for each sampler of the base.

    Args:
      path: The PNG to write.
      rows: Rows of ladder.json, of one metric.
      real_vs_real: The distance between two halves of the reference, or None.
    """
    figure = _figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for (color, line), label, of_curve in _curves(rows):
        points = sorted(
            (row.evaluations, row.value, row.spread or 0.0) for row in of_curve
        )
        x, y, spread = np.array(points).T
        axes.plot(x, y, line, color=color, label=label, markersize=4)
        low = np.maximum(y - spread, 0.5 * y)  # a band has no end at zero
        axes.fill_between(x, low, y + spread, color=color, alpha=0.2, linewidth=0)
    if real_vs_real:
        axes.axhline(real_vs_real, color="C3", linestyle=":", label="real vs. real")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    taught = [row for row in rows if row.sampler == row.role.sampler]
    ticks = sorted({row.evaluations for row in taught})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("network evaluations per image")
    axes.set_ylabel(f"{rows[0].metric} ({rows[0].num_images:,} images)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    _save(figure, path)


def trade_off_figure(
    path: pathlib.Path, distances: Sequence[Measurement], scores: Sequence[Measurement]
) -> None:
    """Distance against score as guidance grows, one curve for each model.

    Each method of distillation has its colour, paler the more steps a model takes.

    Args:
      path: The PNG to write.
      distances: Rows of ladder.json, of one metric.
      scores: Rows of another, of the same candidates.
    """
    figure = _figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    score_of = {row.candidate: row.value for row in scores}
    curves: dict[tuple[Role, int], list[tuple[float, float, float]]] = {}
    for row in distances:
        if row.sampler == row.role.sampler and row.w is not None:
            point = (row.w, row.value, score_of[row.candidate])
            curves.setdefault((row.role, row.steps), []).append(point)
    roles = {role for role, _ in curves}
    counts = sorted({steps for _, steps in curves})
    for (role, steps), points in curves.items():
        w, x, y = np.array(sorted(points)).T
        color, line = (
            look_of_students(role.method)
            if role.method
            else CURVES[role.name, role.sampler][0]
        )
        alpha = 1.0 - 0.7 * counts.index(steps) / len(counts)
        name = f"{name_among(role, roles)}, {steps}"
        axes.plot(x, y, line, color=color, alpha=alpha, markersize=3, label=name)
        if role == BASE and steps == counts[-1]:
            for one in zip(w, x, y, strict=True):
                axes.annotate(f"w={one[0]:g}", one[1:], fontsize="x-small")
    low, high = axes.get_xlim()
    if high > 4.0 * low:  # powers of two are too few ticks for less
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(distances[0].metric)
    axes.set_ylabel(scores[0].metric)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
    _save(figure, path)


def comparison_grid(
    path: pathlib.Path, rows: Sequence[np.ndarray], labels: Sequence[str]
) -> None:
    """One labelled row of images for each model; a column shares its noise.

    Args:
      path: The PNG to write.
      rows: uint8 images [columns, height, width, channels] of each model.
      labels: A name for each row.
    """
    columns = len(rows[0])
    figure = _figure(figsize=(0.6 * columns + 1.6, 0.6 * len(rows)))
    figure.set_layout_engine("constrained", w_pad=0.04, h_pad=0.01, wspace=0, hspace=0)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, images, label in zip(axes, rows, labels, strict=True):
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
        for ax, image in zip(row, images, strict=True):
            ax.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
    _save(figure, path)


def _figure(**options: Any) -> "Figure":
    # Here, because it takes a second; pyplot would need to know of a screen.
    from matplotlib.figure import Figure

    return Figure(**options)


def _save(figure: "Figure", path: pathlib.Path) -> None:
    """Writes a PNG, whole or not at all."""
    with replacing(path) as half:
        figure.savefig(half, format="png", dpi=150)
