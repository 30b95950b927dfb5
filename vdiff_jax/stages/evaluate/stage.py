"""Base and students, measured, beside what one would take instead of students."""

import pathlib
from collections.abc import Collection, Sequence
from typing import Any

from vdiff_jax import parallel
from vdiff_jax.distillation.role import BASE, GUIDED, Role, name_among
from vdiff_jax.evaluation import figures, statistics_file
from vdiff_jax.evaluation.inception import weights
from vdiff_jax.evaluation.measurement import Measurement, of_metric
from vdiff_jax.files.atomic import write_text
from vdiff_jax.files.place import path_of
from vdiff_jax.stages import Stage
from vdiff_jax.stages.evaluate import page
from vdiff_jax.stages.evaluate.bench import Bench
from vdiff_jax.stages.evaluate.candidates import candidates
from vdiff_jax.stages.evaluate.counts import check_num
from vdiff_jax.stages.evaluate.likelihood import (
    images_of_likelihood,
    measure_likelihood,
)
from vdiff_jax.stages.evaluate.models import Models, of_finished
from vdiff_jax.workdir.layout import Project
from vdiff_jax.workdir.teachers import check_can_be_guided

GRID_COLUMNS = 12
OF_GUIDANCE = ("trade_off.png", "guidance.png")


def plan(project: Project) -> list[dict[str, Any]]:
    """The one entry of the stage, for --dry_run."""
    section = project.config.evaluate
    models = candidates(project.config, Models(project).methods)
    return [
        {
            "stage": "evaluate",
            "folder": str(project.output / "evaluate"),
            "models": [each.to_json() for each in models],
            "num": section.num,
            "repeats": section.repeats,
        }
    ]


def check(project: Project) -> None:
    """Refuses files that the stage will read, and numbers of images it cannot take.

    Raises:
      ValueError: If a file has not what it should have, or a number does not fit.
    """
    section = project.config.evaluate
    check_num(section)
    _check_images(project)
    try:
        batch_size = project.config.sample.batch_size
        parallel.check_batch_size(batch_size, parallel.make_mesh())
    except ValueError as error:
        raise ValueError(f"sample.{error}") from error
    if section.inception_weights:
        weights.load(path_of(section.inception_weights))
    if section.reference_stats:
        statistics_file.published(path_of(section.reference_stats))


def _check_images(project: Project) -> None:
    """Refuses `evaluate.files` of images that are not those of the data."""
    if not project.config.evaluate.files:
        return
    base = Models(project).trained(BASE)
    data = project.config.data
    size, _, channels = base.model.image_shape
    if (size, channels) != (data.image_size, data.channels):
        raise ValueError(
            f"evaluate.files: {base.folder} is of data.image_size={size} and"
            f" data.channels={channels}, and this config of {data.image_size} and"
            f" {data.channels}: use the one that it was trained with."
        )


def run(project: Project) -> None:
    """Measures all candidates from the same noise; writes tables, figures, the page."""
    models = Models(project)
    base = models.trained(BASE)  # which must be there
    if any(project.config.evaluate.w):
        check_can_be_guided(base.folder)
    chosen = of_finished(project.config, models)
    held_out = images_of_likelihood(project.config)
    bench = Bench(project, models)
    rows: list[Measurement] = []
    for candidate in chosen:
        rows += bench.rows(candidate)
        bench.records.keep(rows)
    likelihood = measure_likelihood(project, bench.models, held_out)
    bench.finish(rows)
    _report(bench, rows)
    page.write(project, rows, bench, likelihood)
    print(f"evaluate: see {bench.records.out}/report.html")


def _report(bench: Bench, rows: Sequence[Measurement]) -> None:
    """Prints the table, and writes tables and figures."""
    out, reference = bench.records.out, bench.references[0]
    print(figures.table(rows))
    if not parallel.is_main():
        return
    write_text(out / "ladder.csv", figures.csv(rows))
    for name in OF_GUIDANCE:  # of an evaluation with guidance weights before this one
        (out / name).unlink(missing_ok=True)
    shown = of_metric(rows, rows[0].metric)
    first = [row for row in shown if row.w == shown[0].w]
    real_vs_real = reference.real_vs_real.get(rows[0].metric)
    figures.ladder_figure(out / "ladder.png", first, real_vs_real=real_vs_real)
    plain = [row for row in first if row.sampler == row.role.sampler]
    plain.sort(key=lambda row: (row.steps, row.role == BASE))
    _grid(bench, out / "grid.png", plain)
    if len(first) < len(shown):
        _report_guidance(bench, rows)


def _report_guidance(bench: Bench, rows: Sequence[Measurement]) -> None:
    """Writes figures over the guidance weights: the cost, and the images."""
    distances = of_metric(rows, rows[0].metric)
    scores = [row for row in rows if row.metric.startswith(("score", "inception_"))]
    if scores:
        # There may be several metrics, and a figure has the one on its axis.
        scores = of_metric(scores, scores[0].metric)
        figures.trade_off_figure(bench.records.out / "trade_off.png", distances, scores)
    plain = [row for row in distances if row.sampler == row.role.sampler]
    plain = [row for row in plain if row.role != GUIDED]
    reference = plain[0].steps
    plain = [row for row in plain if row.role != BASE or row.steps == reference]
    plain.sort(key=lambda row: (row.w or 0.0, -row.steps))
    _grid(bench, bench.records.out / "guidance.png", plain)


def _grid(bench: Bench, path: pathlib.Path, rows: Sequence[Measurement]) -> None:
    """Writes a row of images for each candidate, all from the same noise."""
    roles = {row.role for row in rows}
    figures.comparison_grid(
        path,
        [bench.records.images_of(row)[:GRID_COLUMNS] for row in rows],
        [_label(row, roles) for row in rows],
    )


def _label(row: Measurement, roles: Collection[Role]) -> str:
    name = f"{name_among(row.role, roles)}, {row.steps}"
    return name if row.w is None else f"{name}, w = {row.w:g}"


STAGE = Stage(name="evaluate", check=check, plan=plan, run=run)
