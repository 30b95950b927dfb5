"""Measurements as they are drawn and tabulated: one panel for each metric."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from vdiff_jax.distillation.role import Role, name_among
from vdiff_jax.evaluation.measurement import Measurement, of_metric

SAMPLERS = {
    "ddim": "DDIM",
    "ancestral": "ancestral",
    "dpmpp_2m": "DPM-Solver++(2M)",
    "heun": "Heun",
    "stochastic": "stochastic",
}


class Metric(NamedTuple):
    """The name, the direction and the axis of a metric.

    Attributes:
      label: The name for people.
      better: The better values, low or high; None if that is not known.
      scale: The scale of the axis; "unit" is linear and shows 0 .. 1 at least.
    """

    label: str
    better: Literal["lower", "higher"] | None
    scale: Literal["log", "linear", "unit"]


METRICS = {
    "fid": Metric("FID", "lower", "log"),
    "sfid": Metric("sFID", "lower", "log"),
    "inception_score": Metric("Inception score", "higher", "linear"),
    "frechet": Metric("Fréchet distance", "lower", "log"),
    "spatial_frechet": Metric("Spatial Fréchet distance", "lower", "log"),
    "score": Metric("Score", "higher", "linear"),
    "kid": Metric("KID", "lower", "linear"),
    "kernel_distance": Metric("Kernel distance", "lower", "linear"),
    "precision": Metric("Precision", "higher", "unit"),
    "recall": Metric("Recall", "higher", "unit"),
    "density": Metric("Density", "higher", "unit"),
    "coverage": Metric("Coverage", "higher", "unit"),
    "accuracy": Metric("Accuracy", "higher", "unit"),
}


class Point(NamedTuple):
    """A measurement, as drawn.

    Attributes:
      curve: The curve it lies on.
      evaluations: Evaluations of the network for one image.
      value: The metric's value; None if it is not a number.
      low: Value less spread, on a logarithmic axis at least `lowest`; None without.
      high: Value and spread; None without.
      shown: Value and spread as text.
      best: True if, of two or more at as many evaluations, none is better.
      note: The number of its warning, 0 without.
    """

    curve: str
    evaluations: int
    value: float | None
    low: float | None
    high: float | None
    shown: str
    best: bool
    note: int


class Panel(NamedTuple):
    """One metric of the ladder.

    Attributes:
      name: The metric's name in the rows.
      label: The metric's name for people.
      better: The better values, low or high, if that is known.
      scale: "log", "linear" or "unit".
      real_vs_real: The value for one half of the reference against the other, or None.
      real_vs_real_shown: The same as text.
      curves: Names, in the order of the rows.
      evaluations: All numbers of evaluations, ascending.
      points: All measurements.
      notes: Warnings; the first is number 1.
    """

    name: str
    label: str
    better: str | None
    scale: str
    real_vs_real: float | None
    real_vs_real_shown: str
    curves: list[str]
    evaluations: list[int]
    points: list[Point]
    notes: list[str]

    def at(self, curve: str, evaluations: int) -> Point | None:
        """The measurement in one cell of the table."""
        for point in self.points:
            if (point.curve, point.evaluations) == (curve, evaluations):
                return point
        return None


def panels(
    rows: Sequence[Measurement], real_vs_real: Mapping[str, float]
) -> list[Panel]:
    """One panel for each metric, in the order of the rows."""
    roles = {row.role for row in rows}
    return [
        _panel(name, of_metric(rows, name), finite(real_vs_real.get(name)), roles)
        for name in dict.fromkeys(row.metric for row in rows)
    ]


def number(value: Any, digits: int = 4) -> str:
    """A value as text: fractions with `digits` digits, what is missing as a dash."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    whole = isinstance(value, int) or abs(value) >= 10 ** (digits - 1)
    return _minus(f"{value:,.0f}" if whole else f"{value:#.{digits}g}")


def _with_spread(value: Any, spread: float | None) -> str:
    """Both to the second digit of the spread."""
    if not spread or finite(value) is None:
        return number(value)
    decimals = max(0, 1 - math.floor(math.log10(spread)))
    return _minus(f"{value:,.{decimals}f} ± {spread:,.{decimals}f}")


def _minus(text: str) -> str:
    return text.replace("-", "−")


def finite(value: Any) -> float | None:
    """The value if it is a number that can be drawn."""
    return float(value) if value is not None and math.isfinite(value) else None


def _panel(
    name: str,
    rows: Sequence[Measurement],
    real_vs_real: float | None,
    roles: Collection[Role],
) -> Panel:
    metric = metric_named(name)
    drawn = _values(rows) + ([] if real_vs_real is None else [real_vs_real])
    lowest = min(drawn, default=0.0)
    scale = "linear" if metric.scale == "log" and lowest <= 0 else metric.scale
    notes = list(dict.fromkeys(row.warning for row in rows if row.warning))
    return Panel(
        name=name,
        label=metric.label,
        better=metric.better,
        scale=scale,
        real_vs_real=real_vs_real,
        real_vs_real_shown=number(real_vs_real),
        curves=list(dict.fromkeys(curve_of(row, roles) for row in rows)),
        evaluations=sorted({row.evaluations for row in rows}),
        points=[
            _point(
                row,
                curve=curve_of(row, roles),
                least=lowest if scale == "log" else -math.inf,
                best=_is_best(row, rows, metric.better),
                notes=notes,
            )
            for row in sorted(rows, key=lambda row: row.evaluations)
        ],
        notes=notes,
    )


def metric_named(name: str) -> Metric:
    """The metric of a name like "kid_classifier": that of "kid", labelled in full."""
    for known, metric in METRICS.items():
        if f"{name}_".startswith(f"{known}_"):
            rest = name.removeprefix(known).replace("_", " ").strip()
            return metric._replace(label=f"{metric.label}, {rest}".removesuffix(", "))
    return Metric(name.replace("_", " "), None, "linear")


def _point(
    row: Measurement, *, curve: str, least: float, best: bool, notes: Sequence[str]
) -> Point:
    value, spread = finite(row.value), finite(row.spread)
    low = high = None
    if value is not None and spread is not None:
        low, high = max(least, value - spread), value + spread
    return Point(
        curve=curve,
        evaluations=row.evaluations,
        value=value,
        low=low,
        high=high,
        shown=_with_spread(row.value, spread),
        best=best,
        note=notes.index(row.warning) + 1 if row.warning else 0,
    )


def curve_of(row: Measurement, roles: Collection[Role]) -> str:
    """The name of the curve of a measurement.

    Args:
      row: The measurement.
      roles: The models of all measurements.
    """
    name = name_of(row, roles)
    return name if row.w is None else f"{name}, w = {row.w:g}"


def name_of(row: Measurement, roles: Collection[Role]) -> str:
    """The name of a model and its sampler; a method's name tells the sampler.

    Args:
      row: The measurement of the model.
      roles: The models of all measurements.
    """
    name = name_among(row.role, roles)
    if name != row.model:
        return name
    return f"{name}, {SAMPLERS.get(row.sampler, row.sampler)}"


def _is_best(row: Measurement, rows: Sequence[Measurement], better: str | None) -> bool:
    rivals = _values(
        other
        for other in rows
        if other.evaluations == row.evaluations and other.w == row.w
    )
    if better is None or len(rivals) < 2:
        return False
    return row.value == (min if better == "lower" else max)(rivals)


def _values(rows: Iterable[Measurement]) -> list[float]:
    """The values that are numbers."""
    values = [finite(row.value) for row in rows]
    return [value for value in values if value is not None]
