"""Pictures from a trained model: one PNG each, and a grid."""

import pathlib
import time
from typing import Any, NamedTuple

import numpy as np
import tqdm
from jaxtyping import Num

from vdiff_jax import build, parallel, schedules
from vdiff_jax.build import Config
from vdiff_jax.records import enlarge, save_image, tile, to_show
from vdiff_jax.stages import workdir as places
from vdiff_jax.stages.models import folder_of, load_params
from vdiff_jax.types import Params

GRID = 64


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
    _check(config)
    spec = config.sample
    folder = folder_of(workdir, spec.model, spec.steps)
    model = build.model(config)
    places.claim(workdir, config, None)
    params = load_params(model, folder)
    print(f"sample: {spec.num} pictures in {spec.steps} steps with {folder}")

    images = pictures(
        build.sampler(config, model),
        params,
        num=spec.num,
        num_steps=spec.steps,
        seed=spec.seed,
        batch_size=spec.batch_size,
        name="sample",
    ).images
    out = workdir / "sample"
    if images.dtype == np.uint8:
        for i, image in enumerate(images):
            save_image(out / f"{i:06d}.png", image)
    elif parallel.is_main():
        out.mkdir(parents=True, exist_ok=True)
        np.savez(out / "latents.npz", latents=images)
    columns = int(np.ceil(np.sqrt(min(len(images), GRID))))
    save_image(out / "grid.png", enlarge(tile(to_show(images[:GRID]), columns)))
    print(f"sample: see {out}/grid.png")


class Pictures(NamedTuple):
    """Pictures, and what one of them took.

    Attributes:
      images: All of them: uint8, or float32 latents.
      seconds_per_image: Without the first batch, which compiles, if there are two.
    """

    images: Num[np.ndarray, " n h w c"]
    seconds_per_image: float


def pictures(
    sampler: build.Sampler,
    params: Params,
    *,
    num: int,
    num_steps: int,
    seed: int,
    batch_size: int,
    name: str,
) -> Pictures:
    """Draws pictures number 0 .. num - 1 of a seed, batch by batch."""
    mesh = parallel.make_mesh()
    parallel.check_batch_size(batch_size, mesh)
    split = parallel.split(mesh)
    done, seconds = [], []
    with tqdm.tqdm(
        desc=name,
        total=num,
        unit=" images",
        dynamic_ncols=True,
        disable=not parallel.is_main(),
    ) as bar:
        for first in range(0, num, batch_size):
            began = time.monotonic()
            index = parallel.put(np.arange(first, first + batch_size), split)
            batch = sampler(params, index, np.int32(num_steps), np.int32(seed))
            done.append(parallel.fetch(batch))
            seconds.append(time.monotonic() - began)
            bar.update(min(batch_size, num - first))
    steady = seconds[1:] or seconds
    return Pictures(
        np.concatenate(done)[:num], sum(steady) / (len(steady) * batch_size)
    )


def _check(config: Config) -> None:
    build.stepper(config)
    schedules.check_num_steps(build.schedule(config), config.sample.steps)
