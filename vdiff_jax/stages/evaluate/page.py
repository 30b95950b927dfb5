"""report.html of a workdir: its measurements and runs, and a few images more."""

import shlex
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from vdiff_jax import parallel
from vdiff_jax.distillation.methods import FIRST
from vdiff_jax.distillation.role import BASE, Role, count, name_among
from vdiff_jax.evaluation import neighbours, page
from vdiff_jax.evaluation.measurement import Measurement, by_method, of_metric
from vdiff_jax.evaluation.page import (
    Content,
    Frame,
    Loss,
    Neighbours,
    Series,
)
from vdiff_jax.evaluation.page.panels import SAMPLERS, metric_named, name_of
from vdiff_jax.files.atomic import write_text
from vdiff_jax.from_config.choices import Config, as_json
from vdiff_jax.from_config.sampler import clip_of
from vdiff_jax.guidance import describe
from vdiff_jax.stages.evaluate.bench import Bench
from vdiff_jax.stages.evaluate.illustrations import Illustrations
from vdiff_jax.stages.evaluate.models import Models
from vdiff_jax.stages.evaluate.records import Records
from vdiff_jax.stages.evaluate.references import Reference
from vdiff_jax.training.records import curves_of_loss
from vdiff_jax.workdir import layout
from vdiff_jax.workdir.layout import Project
from vdiff_jax.workdir.trained import finished

NOISES = 12  # in the strips
SAMPLES = 8  # whose neighbours are looked for
NEAREST = 3


def write(
    project: Project,
    rows: Sequence[Measurement],
    bench: Bench,
    likelihood: Sequence[Mapping[str, Any]],
) -> None:
    """Writes `evaluate/report.html`.

    Args:
      project: The config and its folder.
      rows: All measurements.
      bench: The references, the models and the kept images.
      likelihood: Rows of likelihood.json.
    """
    illustrations = Illustrations(project.config, bench, rows)
    references = bench.references
    roles = finished(project)
    content = Content(
        title=f"{project.workdir.resolve().name}: base and distilled",
        command=shlex.join(["python", *sys.argv]),
        date=time.strftime("%Y-%m-%d"),
        summary=_summary(bench.models, rows),
        series=_series(bench.records, rows),
        ladder=rows,
        real_vs_real={
            name: value
            for reference in references
            for name, value in reference.real_vs_real.items()
        },
        provenance=[
            *_provenance(project.config, rows, references),
            *_of_autoencoder(bench),
        ],
        timing=_timing(rows),
        trajectories=illustrations.trajectories(),
        interpolations=illustrations.interpolations(),
        neighbours=_neighbours(bench, rows),
        likelihood=likelihood,
        losses=[loss for role in roles for loss in _losses(project, role)],
        costs=[cost for role in roles if (cost := _cost(project, role)) is not None],
        config=as_json(project.config),
    )
    if parallel.is_main():
        write_text(bench.records.out / "report.html", page.render(content))


def _run_name(role: Role) -> str:
    if not role.is_student:
        return role.name
    steps = count(role.num_steps)
    return steps if role.method == FIRST else f"{steps}, {name_among(role, [role])}"


def _losses(project: Project, role: Role) -> list[Loss]:
    """The curves of a finished run: of its loss, and of the loss's other metrics."""
    curves = curves_of_loss(project.folder(role))
    return [
        Loss(name=_run_name(role), metric=metric, **curve._asdict())
        for metric, curve in curves.items()
    ]


def _cost(project: Project, role: Role) -> dict[str, Any] | None:
    """The cost of a finished run; None for a model that was imported."""
    folder = project.folder(role)
    result = layout.result(folder) or {}
    if "seconds" not in result:
        return None
    section = layout.recorded_section(layout.made_with(folder), role)
    return {
        "run": _run_name(role),
        "updates": result["step"],
        "images": result["step"] * section["batch_size"],
        "seconds": result["seconds"],
        "images_per_second": result["images_per_second"],
        "held_out_loss": result.get("held_out_loss"),
    }


def _summary(models: Models, rows: Sequence[Measurement]) -> list[tuple[str, Any]]:
    """The first metric: the base's, and each method's at most and at fewest steps."""
    metric = rows[0].metric
    shown = [row for row in of_metric(rows, metric) if row.w == rows[0].w]
    named, roles = [shown[0]], {row.role for row in rows}
    for students in by_method(shown):
        students.sort(key=lambda row: -row.steps)
        named += [students[0], *students[1:][-1:]]
    label = metric_named(metric).label
    facts: list[tuple[str, Any]] = [
        (f"{label}: {name_among(row.role, roles)}, {count(row.steps)}", row.value)
        for row in named
    ]
    return [*facts, ("parameters", models.trained(BASE).model.num_parameters())]


def _name(row: Measurement, roles: Collection[Role]) -> str:
    if row.role.is_student:
        return name_among(row.role, roles)
    return name_of(row, roles)


def _series(records: Records, rows: Sequence[Measurement]) -> list[Series]:
    """The kept images of every candidate, those of the students first.

    The ladder is the method of the most students, and begins with the base.
    """
    shown = of_metric(rows, rows[0].metric)
    reference, roles = rows[0], {row.role for row in rows}
    groups: dict[str, list[Measurement]] = {}
    # Of as many, the first.
    for students in sorted(by_method(shown), key=len, reverse=True):
        groups[_name(students[0], roles)] = students
    if groups:
        ladder = next(iter(groups.values()))
        if reference.steps not in [row.steps for row in ladder]:
            ladder += [row for row in shown if _key(row) == _key(reference)]
    for row in shown:
        if not row.role.is_student:
            groups.setdefault(_name(row, roles), []).append(row)
    return [
        Series(
            name=name,
            frames=[
                Frame(
                    label=_label(row, roles),
                    steps=row.steps,
                    images=records.images_of(row)[:NOISES],
                    w=row.w,
                )
                for row in sorted(group, key=lambda row: -row.steps)
            ],
        )
        for name, group in groups.items()
    ]


def _key(row: Measurement) -> tuple[str, str, int]:
    return row.model, row.sampler, row.steps


def _label(row: Measurement, roles: Collection[Role]) -> str:
    label = f"{_name(row, roles)}, {count(row.steps)}"
    return label if row.w is None else f"{label}, {describe(row.w)}"


def _timing(rows: Sequence[Measurement]) -> list[dict[str, Any]]:
    """One row for each candidate."""
    roles = {row.role for row in rows}
    return [
        {
            "model": name_among(row.role, roles),
            "sampler": SAMPLERS[row.sampler],
            "steps": row.steps,
            **({} if row.w is None else {"w": row.w}),
            "evaluations": row.evaluations,
            "seconds_per_image": row.seconds_per_image,
            "images_per_second": 1.0 / row.seconds_per_image,
            "batch_size": row.batch_size,
            "device": row.device,
        }
        for row in of_metric(rows, rows[0].metric)
    ]


def _provenance(
    config: Config, rows: Sequence[Measurement], references: Sequence[Reference]
) -> list[tuple[str, Any]]:
    """The images of both sides, how they were drawn, and the sets of features."""
    facts = references[0].facts
    section = config.evaluate
    last_seed = section.seed + section.repeats - 1
    limit = clip_of(config)
    clip = {"none": "no clipping", "x": "x_hat clipped to [-1, 1]"}.get(limit)
    if clip is None:
        kind, _, size = limit.partition(":")
        clip = f"x_hat and eps_hat clipped to {size}"
        if kind == "dynamic":
            clip = f"x_hat thresholded by its quantile {size}"
    entries = [
        (
            "real images",
            f"{facts['num_images']:,} of {facts['of']:,} of the {facts['split']} split"
            f" of {facts['data']} (sample hash {facts['sha256_of_sample']})",
        ),
        (
            "their size",
            f"{facts['image_size']} x {facts['image_size']}, resized by"
            f" {facts['resize']}, uint8",
        ),
        ("generated images", f"{section.num:,} of each seed, uint8 by rounding"),
        (
            "seeds",
            f"{section.seed} to {last_seed}, the same noise",
        ),
        ("sampling", f"{clip}{_noise(rows)}"),
        ("worst residual of a matrix root", max(row.residual or 0.0 for row in rows)),
    ]
    for reference in references:
        details = ", ".join(
            f"{name.replace('_', ' ')}: {value}"
            for name, value in reference.features.facts.items()
        )
        entries.append((f"{reference.features.name} features", details))
    return entries


def _noise(rows: Sequence[Measurement]) -> str:
    """Which students were drawn with fresh noise; empty if none were."""
    etas = {row.role.kind: row.eta for row in rows if row.eta}
    return "".join(
        f"; {kind} students with noise in each step, eta = {eta:g}"
        for kind, eta in etas.items()
    )


def _of_autoencoder(bench: Bench) -> list[tuple[str, Any]]:
    """The distance that the autoencoder of latents keeps, whatever the model."""
    values = [f"{name} {value:.4g}" for name, value in bench.reconstruction.items()]
    return [("real images, encoded and decoded", ", ".join(values))] if values else []


def _neighbours(bench: Bench, rows: Sequence[Measurement]) -> Neighbours:
    """The real images nearest to samples of the student of the fewest steps."""
    reference = bench.references[0]
    students = [row for row in rows if row.role.is_student]
    fewest = min(students or rows[:1], key=lambda row: row.steps)
    samples = bench.records.images_of(fewest)[:SAMPLES]
    features = reference.features.extract(samples).pooled
    most = min(NEAREST, len(reference.all))
    nearest = neighbours.nearest(features, reference.all, most)
    images = [
        np.stack([bench.real.source[int(index)]["image"] for index in indices])
        for indices in nearest.indices
    ]
    return Neighbours(
        distance=f"Euclidean, of {reference.features.name} features",
        samples=samples,
        nearest=np.stack(images),
        distances=nearest.distances,
    )
