"""One measurement: the value of a metric for a model and the way it was sampled."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from vdiff_jax.distillation.methods import FIRST
from vdiff_jax.distillation.role import BASE, GUIDED, Role, student
from vdiff_jax.files.fingerprints import DamagedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """A row of ladder.json.

    Attributes:
      model: The name of the model's role: base, guided or distilled.
      method: The method of a student; None for another model.
      sampler: The sampler that drew the images.
      steps: Its number of steps.
      w: The guidance weight; None without guidance.
      evaluations: Evaluations of the network for one image.
      metric: The metric's name.
      value: Its mean over the seeds; NaN if it could not be measured, in JSON null.
      spread: The standard deviation over the seeds; None for one seed.
      values: The value of each seed.
      warning: A reason why the value means little; None if it is of enough images.
      residual: The worst of the matrix roots in a Frechet distance; else None.
      num_images: Images of each seed.
      seed: The first seed.
      variance: The variance of the ancestral sampler; None for another.
      eta: The share of fresh noise in a student's steps of DDIM.
      seconds_per_image: Median over batches.
      batch_size: Images that were drawn at once.
      device: The devices that drew them.
      key: A hash of all that changes the value.
    """

    model: str
    method: str | None = None
    sampler: str
    steps: int
    w: float | None = None
    evaluations: int
    metric: str
    value: float
    spread: float | None = None
    values: Sequence[float] = ()
    warning: str | None = None
    residual: float | None = None
    num_images: int = 0
    seed: int = 0
    variance: float | None = None
    eta: float = 0.0
    seconds_per_image: float = 0.0
    batch_size: int = 0
    device: str = ""
    key: str = ""

    @property
    def role(self) -> Role:
        """The role of the model."""
        if self.method is not None:
            return student(self.steps, self.method)
        return BASE if self.model == BASE.name else GUIDED

    @property
    def candidate(self) -> tuple[str, str | None, str, int, float | None]:
        """The key of the measured model and sampler, the same for all its metrics."""
        return self.model, self.method, self.sampler, self.steps, self.w

    def to_json(self) -> dict[str, Any]:
        """The row; without guidance it has no w."""
        row = dataclasses.asdict(self)
        if self.w is None:
            del row["w"]
        return row


def from_json(row: dict[str, Any]) -> Measurement:
    """The measurement of a row that `to_json` wrote; fields of other versions go.

    A row of before 0.2 does not name a student's method: its sampler tells which.
    """
    if row["model"] == "distilled" and "method" not in row:
        row = {**row, "method": former_method(row["sampler"])}
    names = {field.name for field in dataclasses.fields(Measurement)}
    known = {name: row[name] for name in row.keys() & names}
    values = tuple(map(_number, row.get("values", ())))
    return Measurement(**{**known, "value": _number(row["value"]), "values": values})


def former_method(sampler: str) -> str:
    """The method of the students that a sampler drew with before 0.2."""
    return "stochastic" if sampler == "stochastic" else FIRST


def _number(value: float | None) -> float:
    """A number that JSON may have had to write as null."""
    return math.nan if value is None else value


def of_metric(measurements: Sequence[Measurement], metric: str) -> list[Measurement]:
    """The measurements of one metric, in their order."""
    return [one for one in measurements if one.metric == metric]


def by_method(rows: Sequence[Measurement]) -> list[list[Measurement]]:
    """The rows of the students of each method."""
    methods: dict[str, list[Measurement]] = {}
    for row in rows:
        if row.method is not None:
            methods.setdefault(row.method, []).append(row)
    return list(methods.values())


def read_rows(path: pathlib.Path) -> list[Measurement]:
    """The rows of a ladder.json; none, if there is no such file.

    Raises:
      DamagedError: If it cannot be read.
    """
    if not path.exists():
        return []
    try:
        return [from_json(row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(
            f"{path} cannot be read ({error!r}): remove it, and all is measured again."
        ) from error
