"""Pictures from a trained model: one PNG each, a grid, and what they came from."""

import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import NamedSharding
from jaxtyping import Float, Num

from vdiff_jax import parallel, schedules
from vdiff_jax.evaluation import report
from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.losses import ladder_of
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.sampler import asked_strengths, make_sampler
from vdiff_jax.generation.batches import draw
from vdiff_jax.generation.grids import enlarge, save_image, tile, to_show
from vdiff_jax.generation.sampler import Sampler, Start
from vdiff_jax.generation.trajectories import interpolation, trajectory_sheet
from vdiff_jax.guidance import describe
from vdiff_jax.model import Model
from vdiff_jax.stages import given
from vdiff_jax.stages.guide import check_can_be_guided
from vdiff_jax.types import Params
from vdiff_jax.workdir import layout as places
from vdiff_jax.workdir.trained import find, in_file, load_params

GRID = 64
ROWS = 8  # of trajectories and interpolations
COLUMNS = 12  # of the grid over strengths of guidance


def plan(config: Config, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """What `run` would do."""
    _check(config)
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
    _check(config)
    if spec.from_file:
        config, (folder, model) = in_file(config, pathlib.Path(spec.from_file))
        spec = config.sample
    else:
        ladder = ladder_of(spec.sampler)
        folder, model = find(config, workdir, spec.model, spec.steps, ladder)
    strengths = _strengths(config, folder, model)
    starts = _Starts(config, model)
    start_of: given.StartOf = starts
    if spec.image:
        start_of = given.starts(config, workdir, starts.sampler, starts)
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
        report.comparison_grid(
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
    found = asked_strengths(config, model)
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
    start_of: given.StartOf,
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
            first=given.first_step(config),
            advance=bar.update,
        ).images


def _write_paths(
    config: Config,
    out: pathlib.Path,
    starts: "_Starts",
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


class _Starts:
    """The start of picture number i as `sample` in the config says."""

    def __init__(self, config: Config, model: Model):
        spec = config.sample
        self.sampler: Sampler = make_sampler(config, model)
        self._seed = spec.seed
        self._labels = _labels(spec.labels, model.num_classes)
        self._noise = _noise(spec.noise, (spec.num, *model.image_shape))
        self._mesh = parallel.make_mesh()

    def __call__(self, index: np.ndarray) -> Start:
        """Split over the devices."""
        return self._start(index, parallel.split(self._mesh))

    def on_all(self, index: np.ndarray) -> Start:
        """Whole on every device, for any number of pictures."""
        return self._start(index, parallel.replicated(self._mesh))

    def _start(self, index: np.ndarray, place: NamedSharding) -> Start:
        start = self.sampler.start(parallel.put(index, place), np.int32(self._seed))
        # Numbers beyond the last only fill up a batch.
        if self._labels is not None:
            label = jnp.asarray(self._labels[index % len(self._labels)])
            start = start._replace(label=parallel.put(label, place))
        if self._noise is not None:
            z_1 = jnp.asarray(self._noise[index % len(self._noise)])
            start = start._replace(z_1=parallel.put(z_1, place))
        return start


def _labels(labels: tuple[int, ...], num_classes: int) -> np.ndarray | None:
    if not labels:
        return None
    if not num_classes:
        raise ValueError(
            f"sample.labels={labels}, but this model knows no classes"
            " (model.num_classes=0): leave sample.labels out."
        )
    if not all(0 <= label < num_classes for label in labels):
        raise ValueError(
            f"sample.labels={labels} must be from 0 to {num_classes - 1}, the last of"
            f" model.num_classes={num_classes}."
        )
    return np.asarray(labels, np.int32)


def _noise(
    path: str, shape: tuple[int, ...]
) -> Float[np.ndarray, " n height width channels"] | None:
    if not path:
        return None
    wanted = f"an .npy of z_1 of shape {shape}, standard normal"
    try:
        noise = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"sample.noise={path!r} cannot be read ({error}); it should be {wanted}."
        ) from error
    if not isinstance(noise, np.ndarray) or noise.shape != shape:
        found = getattr(noise, "shape", "several arrays")
        raise ValueError(
            f"sample.noise={path!r} holds {found}; it should be {wanted}: sample.num"
            " pictures of the data's size."
        )
    return noise.astype(np.float32)


def _check(config: Config) -> None:
    model, spec = make_model(config), config.sample
    make_sampler(config, model)
    asked_strengths(config, model)
    given.first_step(config)
    schedules.check_num_steps(model.schedule, spec.steps)
    for field, least in (("num", 1), ("interpolate", 0)):
        if spec[field] < least:
            raise ValueError(
                f"sample.{field} must be at least {least}, got {spec[field]}."
            )
