"""Gathers what a workdir holds, and draws a few pictures more, for report.html."""

import json
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from vdiff_jax import parallel
from vdiff_jax.evaluation import neighbours, page
from vdiff_jax.evaluation.page import (
    Content,
    Frame,
    Loss,
    Neighbours,
    Series,
    Strip,
    Trajectory,
)
from vdiff_jax.evaluation.page.panels import SAMPLERS, metric_named
from vdiff_jax.files.atomic import write_text
from vdiff_jax.from_config.choices import Config, as_json
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.moved import current
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.generation.sampler import Sampler, Start
from vdiff_jax.generation.trajectories import columns_of, interpolation
from vdiff_jax.guidance import describe
from vdiff_jax.model import Model
from vdiff_jax.stages.evaluate.candidates import of_row
from vdiff_jax.stages.evaluate.references import Real, Reference
from vdiff_jax.types import Params
from vdiff_jax.workdir import layout as places
from vdiff_jax.workdir.trained import find, load_params

NOISES = 12  # in the strips
PATHS = 4  # trajectories of each model
COLUMNS = 12
BASE_STEPS, STUDENT_STEPS = 16, 4  # of trajectories
ROWS = 4  # of interpolations
FRAMES = 9
SAMPLES = 8  # whose neighbours are looked for
NEAREST = 3

Row = dict[str, Any]


def write(
    config: Config,
    workdir: pathlib.Path,
    rows: Sequence[Row],
    references: Sequence[Reference],
    real: Real,
    likelihood: Sequence[Row],
) -> None:
    """Writes `evaluate/report.html`.

    Args:
      config: The whole config.
      workdir: The project's folder.
      rows: Of ladder.json.
      references: What they were measured by.
      real: The pictures they were measured against.
      likelihood: Of likelihood.json.
    """
    evaluate = workdir / "evaluate"
    students = sorted({r["steps"] for r in rows if r["model"] == "distilled"})
    drawing = _Drawing(config, workdir, students)
    made_with = current(json.loads((workdir / "config.json").read_text())["config"])
    runs = _runs(workdir)
    content = Content(
        title=f"{workdir.resolve().name}: base and distilled",
        command=shlex.join(["python", *sys.argv]),
        date=time.strftime("%Y-%m-%d"),
        summary=_summary(drawing.model, rows),
        series=_series(evaluate, rows),
        ladder=[_shown(row) for row in rows],
        floors={name: v for made in references for name, v in made.floor.items()},
        provenance=_provenance(config, rows, references),
        timing=_timing(rows),
        trajectories=drawing.trajectories(),
        interpolations=drawing.interpolations(),
        neighbours=_neighbours(evaluate, rows, references[0], real),
        likelihood=likelihood,
        losses=[_loss(name, folder) for name, folder in runs],
        costs=[
            _cost(name, folder, made_with)
            for name, folder in runs
            if "seconds" in (places.result(folder) or {})  # else it was imported
        ],
        config=as_json(config),
    )
    if parallel.is_main():
        write_text(workdir / "evaluate" / "report.html", page.render(content))


def _runs(workdir: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """Name and folder of every finished run, in their order."""
    students = sorted((workdir / "distill").glob("[0-9]*"), reverse=True)
    named = [
        ("base", places.train_folder(workdir)),
        ("guided", places.guide_folder(workdir)),
    ]
    named += [(_count(int(folder.name)), folder) for folder in students]
    return [(name, folder) for name, folder in named if places.result(folder)]


def _loss(name: str, folder: pathlib.Path) -> Loss:
    points: dict[str, list[tuple[int, float]]] = {"loss": [], "held_out_loss": []}
    path = folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        said = json.loads(line)
        for kind, found in points.items():
            if kind in said:
                found.append((said["step"], said[kind]))
    return Loss(name=name, training=points["loss"], held_out=points["held_out_loss"])


def _cost(name: str, folder: pathlib.Path, made_with: dict[str, Any]) -> Row:
    result = places.result(folder) or {}
    section = made_with[{"base": "train", "guided": "guide"}.get(name, "distill")]
    return {
        "run": name,
        "updates": result["step"],
        "images": result["step"] * section["batch_size"],
        "seconds": result["seconds"],
        "images_per_second": result["images_per_second"],
        "held_out_loss": result.get("held_out_loss"),
    }


def _summary(model: Model, rows: Sequence[Row]) -> list[tuple[str, Any]]:
    """What matters most: what a few steps of the students are worth."""
    metric = rows[0]["metric"]
    shown = [
        row
        for row in rows
        if row["metric"] == metric and row.get("w") == rows[0].get("w")
    ]
    students = sorted(
        (row for row in shown if row["model"] == "distilled"),
        key=lambda row: -row["steps"],
    )
    # The base, and of the students those of the most and of the fewest steps.
    told = [shown[0], *students[:1], *students[1:][-1:]]
    label = metric_named(metric).label
    said: list[tuple[str, Any]] = [
        (f"{label}: {row['model']}, {_count(row['steps'])}", row["value"])
        for row in told
    ]
    return [*said, ("parameters", model.num_parameters())]


def _count(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def _name(row: Row) -> str:
    if row["model"] == "distilled" and row["sampler"] == "ddim":
        return "distilled"
    return f"{row['model']}, {SAMPLERS[row['sampler']]}"


def _series(evaluate: pathlib.Path, rows: Sequence[Row]) -> list[Series]:
    """The kept pictures of every candidate, those of the students first."""
    reference, metric = rows[0], rows[0]["metric"]
    groups: dict[str, list[Row]] = {}
    students = [row["steps"] for row in rows if row["model"] == "distilled"]
    if students and reference["steps"] not in students:
        groups["distilled"] = [
            row
            for row in rows
            if row["metric"] == metric and _key(row) == _key(reference)
        ]
    for row in rows:
        if row["metric"] == metric:
            groups.setdefault(_name(row), []).append(row)
    made = []
    for name, group in groups.items():
        frames = [
            Frame(
                label=_label(row),
                steps=row["steps"],
                pictures=_pictures(evaluate, row)[:NOISES],
                w=row.get("w"),
            )
            for row in sorted(group, key=lambda row: -row["steps"])
        ]
        made.append(Series(name=name, frames=frames))
    return made


def _key(row: Row) -> tuple[str, str, int]:
    return row["model"], row["sampler"], row["steps"]


def _label(row: Row) -> str:
    label = f"{_name(row)}, {_count(row['steps'])}"
    return label if "w" not in row else f"{label}, {describe(row['w'])}"


def _pictures(evaluate: pathlib.Path, row: Row) -> np.ndarray:
    return np.load(evaluate / "pictures" / f"{of_row(row)}.npy")


def _shown(row: Row) -> Row:
    """What the page tells of a row."""
    hidden = ("key", "residual", "batch_size", "device")
    return {name: value for name, value in row.items() if name not in hidden}


def _timing(rows: Sequence[Row]) -> list[Row]:
    """One row for each candidate."""
    metric = rows[0]["metric"]
    return [
        {
            "model": row["model"],
            "sampler": SAMPLERS[row["sampler"]],
            "steps": row["steps"],
            **({"w": row["w"]} if "w" in row else {}),
            "evaluations": row["evaluations"],
            "seconds_per_image": row["seconds_per_image"],
            "images_per_second": 1.0 / row["seconds_per_image"],
            "batch_size": row["batch_size"],
            "device": row["device"],
        }
        for row in rows
        if row["metric"] == metric
    ]


def _provenance(
    config: Config, rows: Sequence[Row], references: Sequence[Reference]
) -> list[tuple[str, Any]]:
    """What was measured against what."""
    facts = references[0].facts
    sample, spec = config.sample, config.evaluate
    clip = {"none": "no clipping", "x": "x_hat clipped to [-1, 1]"}.get(sample.clip)
    if clip is None:
        kind, _, size = sample.clip.partition(":")
        clip = f"x_hat and eps_hat clipped to {size}"
        if kind == "dynamic":
            clip = f"x_hat thresholded by its quantile {size}"
    said = [
        (
            "real pictures",
            f"{facts['num_images']:,} of {facts['of']:,} of the {facts['split']} split"
            f" of {facts['data']} (sample hash {facts['sha256_of_sample']})",
        ),
        (
            "their size",
            f"{facts['image_size']} x {facts['image_size']}, resized by"
            f" {facts['resize']}, uint8",
        ),
        ("generated pictures", f"{spec.num:,} of each seed, uint8 by rounding"),
        ("seeds", f"{spec.seed} to {spec.seed + spec.repeats - 1}, the same noise"),
        ("sampling", clip),
        ("worst residual of a matrix root", max(r["residual"] or 0.0 for r in rows)),
    ]
    for made in references:
        details = ", ".join(
            f"{name.replace('_', ' ')}: {value}"
            for name, value in made.features.facts.items()
        )
        said.append((f"{made.features.name} features", details))
    return said


def _neighbours(
    evaluate: pathlib.Path, rows: Sequence[Row], reference: Reference, real: Real
) -> Neighbours:
    """The real pictures nearest to samples of the student of the fewest steps."""
    students = [row for row in rows if row["model"] == "distilled"]
    least = min(students or rows[:1], key=lambda row: row["steps"])
    samples = _pictures(evaluate, least)[:SAMPLES]
    features = reference.features.extract(samples).pooled
    most = min(NEAREST, len(reference.all))
    found = neighbours.nearest(features, reference.all, most)
    nearest = [
        np.stack([real.source[int(index)]["image"] for index in row])
        for row in found.indices
    ]
    return Neighbours(
        distance=f"Euclidean, of {reference.features.name} features",
        samples=samples,
        nearest=np.stack(nearest),
        distances=found.distances,
    )


class _Drawing:
    """Draws the pictures that measuring does not need."""

    def __init__(self, config: Config, workdir: pathlib.Path, students: list[int]):
        self.model = make_model(config)
        self._config, self._workdir = config, workdir
        self._seed = config.evaluate.seed
        self._students = students
        self._base_steps = min(BASE_STEPS, config.evaluate.reference_steps)

    def _load(self, kind: str, steps: int) -> tuple[Sampler, Params]:
        folder, model = find(self._config, self._workdir, kind, steps)
        return make_sampler(self._config, model, "ddim"), load_params(model, folder)

    def _start(self, sampler: Sampler, num: int) -> Start:
        place = parallel.replicated(parallel.make_mesh())
        index = parallel.put(np.arange(num), place)
        return sampler.start(index, np.int32(self._seed))

    def trajectories(self) -> list[Trajectory]:
        """Of the base, and of a student of a few steps."""
        found = [self._trajectory("base", self._base_steps)]
        if self._students:
            few = min(self._students, key=lambda steps: abs(steps - STUDENT_STEPS))
            found.append(self._trajectory("distilled", few))
        return found

    def _trajectory(self, kind: str, steps: int) -> Trajectory:
        sampler, params = self._load(kind, steps)
        path = sampler.path(params, self._start(sampler, PATHS), steps)
        shown = columns_of(steps, most=COLUMNS)
        z_t, x_hat = (parallel.fetch(part)[shown].swapaxes(0, 1) for part in path)
        times = (steps - shown) / steps
        return Trajectory(
            label=f"{kind}, {_count(steps)}",
            columns=[f"t = {time:.3g}" for time in times],
            x_hat=x_hat,
            z=z_t,
        )

    def interpolations(self) -> list[Strip]:
        """Between noises, by the student of the fewest steps, or by the base."""
        kind, steps = "base", self._base_steps
        if self._students:
            kind, steps = "distilled", self._students[0]
        sampler, params = self._load(kind, steps)
        rows = interpolation(
            sampler,
            params,
            self._start(sampler, 2 * ROWS),
            num_steps=steps,
            frames=FRAMES,
        )
        return [
            Strip(label=f"noise {2 * i} to {2 * i + 1}", pictures=row)
            for i, row in enumerate(rows)
        ]
