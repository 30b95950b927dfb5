"""Pictures from a trained model: one PNG each, a grid, and what they came from."""

import pathlib
import sys
from typing import Any

import jax
import numpy as np
import tqdm
from jaxtyping import Num

from vdiff_jax import parallel
from vdiff_jax.evaluation import figures
from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.losses import ladder_of
from vdiff_jax.generation.batches import draw
from vdiff_jax.generation.grids import enlarge, save_image, tile, to_show
from vdiff_jax.generation.sampler import Sampler
from vdiff_jax.generation.trajectories import interpolation, trajectory_sheet
from vdiff_jax.guidance import describe
from vdiff_jax.model import Model
from vdiff_jax.stages.guide import check_can_be_guided
from vdiff_jax.stages.sample.starts import StartOf, Starts, first_step, from_images
from vdiff_jax.types import Params
from vdiff_jax.workdir import layout as places
from vdiff_jax.workdir.trained import find, in_file, load_params

GRID = 64
ROWS = 8  # of trajectories and interpolations
COLUMNS = 12  # of the grid over strengths of guidance


def plan(config: Config, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """What `run` would do."""
    return [
        {
            "stage": "sample",
            "folder": str(workdir / "sample"),
            "num": config.sample.num,
            "steps": config.sample.steps,
        }
    ]


def run(config: Config, workdir: pathlib.Path) -> None:
    """Writes `sample.num` pictures of the model for `sample.steps` steps."""
    spec = config.sample
    if spec.from_file:
        config, (folder, model) = in_file(config, pathlib.Path(spec.from_file))
        spec = config.sample
    else:
        ladder = ladder_of(spec.sampler)
        folder, model = find(config, workdir, spec.model, spec.steps, ladder)
    strengths = _strengths(config, folder, model)
    starts = Starts(config, model)
    start_of: StartOf = starts
    if spec.image:
        start_of = from_images(config, workdir, starts.sampler, starts)
    if not spec.from_file:
        places.claim(workdir, config, None)
    params = load_params(model, folder)
    print(f"sample: {spec.num} pictures in {spec.steps} steps with {folder}")

    out, rows = workdir / "sample", []
    for w in strengths:
        name = "sample" if w is None else f"sample, {describe(w)}"
        images = _draw(config, name, starts.sampler, start_of, params, w)
        _write(out if len(strengths) == 1 else out / f"w_{w:g}", images)
        rows.append(images[:COLUMNS])
    if len(strengths) > 1:
        figures.comparison_grid(
            out / "grid.png",
            [to_show(images) for images in rows],
            [describe(w) for w in strengths if w is not None],
        )
    _write_paths(config, out, starts, params, strengths[0])
    print(f"sample: see {out}/grid.png")


def _strengths(
    config: Config, folder: pathlib.Path, model: Model
) -> list[float | None]:
    """The strengths of guidance; one None for no guidance."""
    found = tuple(config.sample.w)
    if not found:
        return [None]
    if model.w_range is None:
        check_can_be_guided(folder)
        return list(found)
    low, high = model.w_range
    for w in found:
        if not low <= w <= high:
            print(
                f"sample: {describe(w)} is outside of what this student was trained"
                f" for, w from {low:g} to {high:g}; the pictures may be poor.",
                file=sys.stderr,
            )
    return list(found)


def _draw(
    config: Config,
    name: str,
    sampler: Sampler,
    start_of: StartOf,
    params: Params,
    w: float | None,
) -> Num[np.ndarray, " n h w c"]:
    spec = config.sample
    with tqdm.tqdm(
        desc=name,
        total=spec.num,
        unit=" images",
        dynamic_ncols=True,
        disable=not parallel.is_main(),
    ) as bar:
        return draw(
            sampler,
            params,
            range(spec.num),
            num_steps=spec.steps,
            batch_size=spec.batch_size,
            start_of=start_of,
            w=w,
            first=first_step(config),
            advance=bar.update,
        ).images


def _write_paths(
    config: Config,
    out: pathlib.Path,
    starts: Starts,
    params: Params,
    w: float | None,
) -> None:
    """What pictures pass through, and what lies between two noises, if asked for."""
    spec = config.sample
    if spec.trajectory:
        start = starts.on_all(np.arange(min(ROWS, spec.num)))
        options = {} if w is None else {"w": np.float32(w)}
        path = starts.sampler.path(params, start, spec.steps, **options)
        sheet = trajectory_sheet(jax.tree.map(parallel.fetch, path))
        save_image(out / "trajectory.png", enlarge(sheet))
    if spec.interpolate:
        ends = starts.on_all(np.arange(2 * ROWS))
        frames = interpolation(
            starts.sampler,
            params,
            ends,
            num_steps=spec.steps,
            frames=spec.interpolate,
            w=w,
        )
        rows = to_show(frames.reshape(-1, *frames.shape[2:]))
        save_image(out / "interpolation.png", enlarge(tile(rows, spec.interpolate)))


def _write(out: pathlib.Path, images: Num[np.ndarray, " n h w c"]) -> None:
    if images.dtype == np.uint8:
        for i, image in enumerate(images):
            save_image(out / f"{i:06d}.png", image)
    elif parallel.is_main():
        out.mkdir(parents=True, exist_ok=True)
        np.savez(out / "latents.npz", latents=images)
    columns = int(np.ceil(np.sqrt(min(len(images), GRID))))
    save_image(out / "grid.png", enlarge(tile(to_show(images[:GRID]), columns)))
