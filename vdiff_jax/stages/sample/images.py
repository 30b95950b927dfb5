"""Images from a trained model, and sheets of them: a grid, and trajectories."""

import dataclasses
import math
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vdiff_jax import parallel
from vdiff_jax.evaluation import figures
from vdiff_jax.files.fingerprints import params_sha256
from vdiff_jax.files.place import path_of
from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.data import shapes_of
from vdiff_jax.from_config.starts import StartOf, Starts
from vdiff_jax.generation.batches import draw, in_parts
from vdiff_jax.generation.grids import enlarge, save_image, tile, to_show
from vdiff_jax.generation.sampler import Request, request
from vdiff_jax.generation.trajectories import (
    interpolation,
    trajectory,
    trajectory_sheet,
)
from vdiff_jax.guidance import describe
from vdiff_jax.progress import Bar
from vdiff_jax.stages import Stage
from vdiff_jax.stages.sample import output
from vdiff_jax.stages.sample.starts import first_step, from_images
from vdiff_jax.types import Params
from vdiff_jax.workdir.classes import class_names
from vdiff_jax.workdir.layout import Project
from vdiff_jax.workdir.teachers import check_can_be_guided
from vdiff_jax.workdir.trained import Trained, find, in_file, roles_named, sampler_of

GRID = 64
ROWS = 8  # of trajectories and interpolations
COLUMNS = 12  # of the grid over guidance weights


def plan(project: Project) -> list[dict[str, Any]]:
    """The one entry of the stage, for --dry_run."""
    return [
        {
            "stage": "sample",
            "folder": str(project.output / "sample"),
            "num": project.config.sample.num,
            "steps": project.config.sample.steps,
        }
    ]


def run(project: Project) -> None:
    """Writes `sample.num` images of the model for `sample.steps` steps."""
    with output.alone(project.output):
        _run(project)


def _run(project: Project) -> None:
    config, trained = _trained(project)
    section, model = config.sample, trained.model
    weights = _guidance_weights(config, trained)
    names = class_names(trained)
    starts = Starts(config, model, names)
    start_of: StartOf = starts
    if section.image:
        project = dataclasses.replace(project, config=config)
        start_of = from_images(project, starts.sampler, starts, names)
    params = trained.params()
    print(f"sample: {section.num} images in {section.steps} steps: {trained.folder}")

    drawn = {}
    for w in weights:
        asked = request(section.steps, w=w, first=first_step(config))
        drawn[w] = _draw(config, starts, start_of, params, asked)
    sheets = _paths(config, starts, params, weights[0])
    made_by = output.about(config, trained, params_sha256(params))
    first = output.write(
        project.output, drawn, made_by, num=section.num, keep=max(GRID, COLUMNS)
    )
    _write_grid(project.output / "sample_grid.png", first)
    for name, sheet in sheets.items():
        save_image(project.output / name, enlarge(sheet))
    print(f"sample: see {project.output}/sample and {project.output}/sample_grid.png")


def _trained(project: Project) -> tuple[Config, Trained]:
    """The model that is asked for, and the config with the fields of its file."""
    config, section = project.config, project.config.sample
    if section.from_file:
        return in_file(config, path_of(section.from_file), project.asked)
    trained = find(project, *roles_named(config, section.model, section.steps))
    config = config.copy_and_resolve_references()
    config.sample.sampler = sampler_of(trained.role, section.sampler)
    return config, trained


def _guidance_weights(config: Config, trained: Trained) -> list[float | None]:
    """The guidance weights that are asked for; one None for no guidance."""
    weights = list(config.sample.w)
    if not weights:
        return [None]
    if trained.model.w_range is None:
        check_can_be_guided(trained.folder)
        return [*weights]
    low, high = trained.model.w_range
    for w in weights:
        if not low <= w <= high:
            print(
                f"sample: {describe(w)} is outside of what this student was trained"
                f" for, w from {low:g} to {high:g}; the images may be poor.",
                file=sys.stderr,
            )
    return [*weights]


def _draw(
    config: Config,
    starts: Starts,
    start_of: StartOf,
    params: Params,
    asked: Request,
) -> Iterator[output.Part]:
    """The images of a guidance weight, part after part."""
    num, w = config.sample.num, asked.w
    batch_size, shape = config.sample.batch_size, shapes_of(config).image
    # Without a way to images they are latents, in float32.
    bytes_of_image = math.prod(shape or (4, *starts.sampler.model.image_shape))
    name = "sample" if w is None else f"sample, {describe(float(w))}"
    with Bar(name, num, shown=parallel.is_main()) as bar:
        for numbers in in_parts(num, batch_size, bytes_of_image):
            yield draw(
                starts.sampler,
                params,
                numbers,
                request=asked,
                batch_size=batch_size,
                start_of=start_of,
                advance=bar.update,
            ).images


def _write_grid(
    path: pathlib.Path, drawn: Mapping[float | None, output.Images]
) -> None:
    """Writes a square of images; of several guidance weights, a row of each."""
    if len(drawn) == 1:
        (images,) = drawn.values()
        columns = int(np.ceil(np.sqrt(min(len(images), GRID))))
        save_image(path, enlarge(tile(to_show(images[:GRID]), columns)))
    elif parallel.is_main():
        figures.comparison_grid(
            path,
            [to_show(images[:COLUMNS]) for images in drawn.values()],
            [describe(w) for w in drawn if w is not None],
        )


def _paths(
    config: Config, starts: Starts, params: Params, w: float | None
) -> dict[str, UInt8[np.ndarray, " height width c"]]:
    """Trajectories, and images between two noises, by the name of their sheet."""
    section, asked = config.sample, request(config.sample.steps, w=w)
    sheets = {}
    if section.trajectory:
        start = starts.on_all(np.arange(min(ROWS, section.num)))
        path = trajectory(starts.sampler, params, start, section.steps, asked.w)
        sheet = trajectory_sheet(path)
        sheets["sample_trajectory.png"] = sheet
    if section.interpolate:
        ends = starts.on_all(np.arange(2 * ROWS))
        frames = interpolation(
            starts.sampler, params, ends, request=asked, frames=section.interpolate
        )
        rows = to_show(frames.reshape(-1, *frames.shape[2:]))
        sheets["sample_interpolation.png"] = tile(rows, section.interpolate)
    return sheets


STAGE = Stage(name="sample", plan=plan, run=run)
