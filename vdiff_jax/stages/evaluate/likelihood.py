"""Bits per dimension of held-out images under the base model."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vdiff_jax import likelihood, parallel
from vdiff_jax.distillation.role import BASE
from vdiff_jax.files.atomic import write_json
from vdiff_jax.from_config.choices import Config
from vdiff_jax.model import Model
from vdiff_jax.progress import Bar
from vdiff_jax.stages.evaluate.models import Models
from vdiff_jax.stages.evaluate.references import Real
from vdiff_jax.types import Condition, Params, PerExample
from vdiff_jax.workdir.layout import Project

# Above this log-SNR the noise is finer than the grey values: `vdiff_jax.likelihood`.
LARGEST_LOGSNR = 13.3
DISCRETE_STEPS = 1000
FLOW_STEPS = 32

Row = dict[str, Any]


def images_of_likelihood(config: Config) -> Real | None:
    """The held-out images whose likelihood is asked for; None if it is of none.

    Raises:
      ValueError: If the data have no held-out images.
    """
    num = config.evaluate.likelihood_num
    return Real(config, "test", num) if num else None


def measure_likelihood(
    project: Project, models: Models, real: Real | None
) -> list[Row]:
    """Rows for held-out images; none if there are none.

    Only the base model has a likelihood, as vdiff_jax/likelihood.py explains.

    Args:
      project: The config and its folder.
      models: Its finished models.
      real: The images; None for none.
    """
    if real is None:
        return []
    config, model = project.config, models.trained(BASE).model
    params = models.params(BASE)
    ends = {
        "logsnr_min": float(model.schedule(jnp.float32(1.0))),
        "logsnr_max": min(LARGEST_LOGSNR, float(model.schedule(jnp.float32(0.0)))),
    }
    estimates = {
        "variational bound": partial(likelihood.variational_bits, **ends),
        f"variational bound of {DISCRETE_STEPS} steps": partial(
            likelihood.variational_bits, num_steps=DISCRETE_STEPS, **ends
        ),
        "probability flow": partial(likelihood.flow_bits, num_steps=FLOW_STEPS, **ends),
    }
    rows = []
    for name, estimate in estimates.items():
        bits = _bits(estimate, model, params, real, config.sample.batch_size, name)
        rows.append(
            {
                "model": "base",
                "estimate": name,
                "bits_per_dim": float(bits.mean()),
                "standard_error": float(bits.std() / np.sqrt(len(bits))),
                "num_images": len(bits),
                "split": "test",
                **ends,
            }
        )
        print(f"evaluate: {name}: {rows[-1]['bits_per_dim']:.4f} bits/dim")
    if parallel.is_main():
        of = {"params_sha256": models.trained(BASE).sha256}
        path = project.output / "evaluate" / "likelihood.json"
        write_json(path, [{**row, **of} for row in rows])
    return rows


def _bits(
    estimate: Callable[..., PerExample],
    model: Model,
    params: Params,
    real: Real,
    batch_size: int,
    name: str,
) -> np.ndarray:
    """One estimate for each image."""

    @jax.jit
    def compiled(params: Params, image: Array, label: Array, key: Array) -> PerExample:
        return estimate(model.denoiser(params, Condition(label)), image, key)

    num, mesh = len(real.reader), parallel.make_mesh()
    batch_size = min(batch_size, -(-num // mesh.size) * mesh.size)
    split, done = parallel.split(mesh), []
    # The last batch is filled up from the start: one shape, compiled once.
    starts = range(0, num, batch_size)
    batches = [np.arange(first, first + batch_size) % num for first in starts]
    with Bar(name, num, shown=parallel.is_main()) as bar:
        for first, batch in zip(starts, real.reader.batches(batches), strict=True):
            key = jax.random.fold_in(jax.random.key(0), first)
            placed = parallel.put((batch["image"], batch["label"]), split)
            done.append(parallel.fetch(compiled(params, *placed, key)))
            bar.update(min(batch_size, num - first))
    return np.concatenate(done)[:num]
