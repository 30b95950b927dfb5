"""Distilled students against better solvers, at equal evaluations of the network.

    python -m benchmarks.mixture

Data are a mixture of two normals in each pixel, so the exact denoiser and the exact
probability flow are known. A small network is distilled from the exact denoiser by the
library's own losses: from 64 steps down to one, progressively; by moment matching, from
the progressive student of as many steps; and by consistency. The peers solve the exact
flow by DDIM, DPM-Solver++(2M) and Heun. Two tables:

1. The mean distance to where the exact flow ends, of progressive students. A student of
   moment matching does not aim there, but at the distribution.
2. The Wasserstein-1 distance to the data, and the share of samples in the lower mode.
"""

import argparse
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from tests.one_pixel import Net, descend
from tests.oracles import MixtureData
from vdiff_jax import diffusion, losses, samplers, schedules
from vdiff_jax.distillation.guided import imitation_loss
from vdiff_jax.distillation.method import Denoisers, Setting, ladder
from vdiff_jax.distillation.methods import METHODS
from vdiff_jax.distillation.progressive import distillation_loss
from vdiff_jax.training import step as training
from vdiff_jax.types import Batch, Feed

SOLVERS = {
    "ddim": samplers.at_start,
    "dpmpp_2m": samplers.extrapolated,
    "heun": samplers.at_both_ends,
}
SCHEDULE = schedules.cosine()
DATA = MixtureData()
START_STEPS = 64
BUDGETS = (1, 2, 4, 8)
# Between the modes, where the density is least; 40.0 % of the data lie below it.
BOUNDARY = -0.35
NUM_SAMPLES = 2**18
# Draws of students that take noise: with the variance of q(z_s | z_t, x~).
POSTERIOR = functools.partial(samplers.ancestral_step, interpolation=0.0)


class Recipe(NamedTuple):
    """Settings of a method.

    Attributes:
      updates: Updates of a student.
      rate: The student's learning rate, after a warm-up of 50 updates.
      auxiliary_rate: That of the auxiliary network.
      ema_decay: Decay of the student's moving average, which is what is evaluated.
      batch_size: Examples of an update.
    """

    updates: int
    rate: float
    auxiliary_rate: float = 1e-3
    ema_decay: float = 0.0
    batch_size: int = 512


RECIPES = {
    "moment_matching": Recipe(5000, rate=3e-4, auxiliary_rate=2e-3, ema_decay=0.99),
    "consistency": Recipe(4000, rate=1e-3),
}
BASE_UPDATES = 6000
# Steps of consistency's teacher, at first and at last.
TEACHER_STEPS = (32, 256)


def student(params, noise=None):
    """The network as a denoiser of examples of any shape with one pixel each."""
    told = () if noise is None else (noise.reshape(-1),)

    def net(z_t, logsnr_t):
        v = Net().apply(params, z_t.reshape(-1, 1), logsnr_t, *told)
        return v.reshape(z_t.shape)

    return diffusion.denoiser(net, "v")


def distill(updates: int, batch_size: int) -> dict[int, object]:
    """Parameters of the progressive students, by their number of steps."""
    x = _data()

    def fit(params, teacher, num_steps, key):
        def loss(params, key):
            pick, draw = jax.random.split(key)
            batch = x[jax.random.randint(pick, (batch_size,), 0, len(x))]
            draws = losses.draw(draw, batch_size, stratified=True)
            return distillation_loss(
                student(params),
                teacher,
                batch,
                draws,
                schedule=SCHEDULE,
                weight=losses.snr_trunc,
                num_steps=num_steps,
            ).mean()

        return descend(loss, params, updates, key)

    first = jax.jit(lambda params, n, key: fit(params, DATA.denoise, n, key))
    later = jax.jit(lambda params, n, key: fit(params, student(params), n, key))
    params = Net().init(jax.random.key(0), jnp.zeros((1, 1)), jnp.zeros(1))
    students = {}
    for num_steps in ladder(2 * START_STEPS, 1):
        step = first if num_steps == START_STEPS else later
        params = step(params, num_steps, jax.random.key(num_steps))
        students[num_steps] = params
    return students


def imitate(updates: int, batch_size: int = 512) -> Any:
    """Parameters of the network that imitates the exact denoiser."""
    x = _data()

    def loss(params, key):
        pick, draw = jax.random.split(key)
        batch = x[jax.random.randint(pick, (batch_size,), 0, len(x))]
        draws = losses.draw(draw, batch_size, stratified=True)
        return imitation_loss(
            student(params),
            DATA.denoise,
            batch,
            draws,
            schedule=SCHEDULE,
            weight=losses.snr_trunc,
        ).mean()

    params = Net().init(jax.random.key(0), jnp.zeros((1, 1)), jnp.zeros(1))
    return jax.jit(lambda params: descend(loss, params, updates, jax.random.key(1)))(
        params
    )


def further(name: str, start: Any, base: Any, num_steps: int, recipe: Recipe) -> Any:
    """Parameters of the student of `num_steps` steps, by the exact denoiser.

    Args:
      name: The name of the method.
      start: The parameters that it begins with, of a network with or without noise.
      base: Those of the network that imitates the exact denoiser.
      num_steps: N.
      recipe: The settings.
    """
    method, takes_noise = METHODS[name], _takes_noise(start)

    def loss(networks, batch, draws, given):
        noise = draws.normal("input", (1, 1, 1)) if takes_noise else None
        auxiliary = student(networks.auxiliary) if method.auxiliary else None
        return method.loss(
            Denoisers(
                student(networks.main, noise),
                DATA.denoise,
                student(given.ema, noise),
                auxiliary,
            ),
            batch.image,
            draws,
            Setting(
                SCHEDULE,
                losses.snr_trunc,
                given.num_steps,
                given.progress,
                TEACHER_STEPS,
                takes_noise=takes_noise,
            ),
        )

    b1, b2 = method.betas
    optimizer = training.make_optimizer(grad_clip=0.0, weight_decay=0.0, b1=b1, b2=b2)
    step = training.make_train_step(
        loss,
        optimizer,
        training.make_learning_rate(recipe.rate, warmup_steps=50, decay="linear"),
        ema_decay=recipe.ema_decay,
        auxiliary_learning_rate=training.make_learning_rate(
            recipe.auxiliary_rate, warmup_steps=0, decay="linear"
        ),
        stratified=True,
    )
    shape = (recipe.updates, recipe.batch_size)
    x = _data().reshape(-1, 1, 1, 1)
    rows = jax.random.randint(jax.random.key(num_steps), shape, 0, len(x))
    job = training.Job(
        jax.random.key(num_steps),
        jnp.int32(recipe.updates),
        num_steps=jnp.int32(num_steps),
    )
    state = training.init_state(start, optimizer, base if method.auxiliary else None)
    updates = training.many_updates(step, lambda x, rows: Batch(x[rows]))
    state, _ = jax.jit(updates)(state, Feed(rows, x), job)
    return state.ema_params


def with_noise_input(params: Any) -> Any:
    """The parameters of a network with an input more, of which it takes a little.

    The new weights are not 0: there, the gradient of symmetric noise is 0 too.
    """
    first = params["params"]["Dense_0"]
    kernel = first["kernel"]
    row = jnp.std(kernel) * jax.random.normal(jax.random.key(5), (1, kernel.shape[1]))
    wider = {**first, "kernel": jnp.concatenate([kernel, row])}
    return {"params": {**params["params"], "Dense_0": wider}}


def _takes_noise(params: Any) -> bool:
    return len(params["params"]["Dense_0"]["kernel"]) == 5


def _data() -> jax.Array:
    return jnp.asarray(DATA.sample(np.random.default_rng(0), (2**16, 1)), jnp.float32)


def solve(denoise, z_1, num_steps, predictor=samplers.at_start):
    """Samples by a solver, or by a student that takes no noise."""
    run = jax.jit(
        lambda z_1: samplers.sample(
            denoise, z_1, schedule=SCHEDULE, num_steps=num_steps, predictor=predictor
        )
    )
    return np.asarray(run(z_1))


def draw(params, z_1, num_steps):
    """Samples of a student: by DDIM, or with its noise if it takes any."""
    if not _takes_noise(params):
        return solve(student(params), z_1, num_steps)
    keys = jax.random.split(jax.random.key(3), len(z_1))
    run = jax.jit(
        lambda z_1: samplers.sample(
            DATA.denoise,
            z_1,
            schedule=SCHEDULE,
            num_steps=num_steps,
            stepper=POSTERIOR,
            predictor=samplers.with_noise(lambda noise: student(params, noise)),
            keys=keys,
        )
    )
    return np.asarray(run(z_1))


def noise(num_samples: int) -> jax.Array:
    """The noise that all start from."""
    return jax.random.normal(jax.random.key(9), (num_samples, 1))


def flow_table(students: dict[int, object]) -> list[dict[str, float]]:
    """The distance to where the exact flow ends, by evaluations."""
    z_1 = noise(4096)
    exact = DATA.flow(z_1, SCHEDULE(jnp.float32(1.0)), jnp.float32(jnp.inf))

    def error(samples):
        return float(np.abs(samples - exact).mean())

    rows = []
    for budget in (*BUDGETS, 16):
        row = {
            "evaluations": budget,
            "student": error(solve(student(students[budget]), z_1, budget)),
        }
        for name, predictor in SOLVERS.items():
            steps = (budget + 1) // 2 if name == "heun" else budget
            row[name] = error(solve(DATA.denoise, z_1, steps, predictor))
        rows.append(row)
    return rows


def table(updates: int, batch_size: int) -> list[dict[str, float]]:
    """`flow_table` of progressive students of so many updates each."""
    return flow_table(distill(updates, batch_size))


@functools.cache
def quantiles(num_samples: int) -> np.ndarray:
    """Quantiles of the data, at the middles of so many equal parts."""
    ranks = (jnp.arange(num_samples) + 0.5) / num_samples
    return DATA.flow(norm.ppf(ranks), -100.0, np.inf)


def wasserstein(samples: np.ndarray) -> float:
    """The Wasserstein-1 distance of samples to the data."""
    samples = np.sort(np.asarray(samples, np.float64).ravel())
    return float(np.abs(samples - quantiles(len(samples))).mean())


def lower_share(samples: np.ndarray) -> float:
    """Share of samples in the lower mode."""
    return float((samples < BOUNDARY).mean())


class Entry(NamedTuple):
    """A cell of the second table."""

    distance: float
    share: float

    def __str__(self) -> str:
        """Both numbers."""
        return f"{self.distance:.4f} ({100 * self.share:.1f} %)"


def measured(samples: np.ndarray) -> Entry:
    """Both numbers of some samples."""
    return Entry(wasserstein(samples), lower_share(samples))


def matched(
    progressive: dict[int, Any],
    base: Any,
    num_steps: int,
    recipe: Recipe = RECIPES["moment_matching"],
) -> Any:
    """Parameters of a student by moment matching, from the progressive one.

    One of one step takes no noise: z_1 is noise enough.
    """
    start = progressive[num_steps]
    start = start if num_steps == 1 else with_noise_input(start)
    return further("moment_matching", start, base, num_steps, recipe)


def distribution_table(
    progressive: dict[int, Any], base: Any, budgets: Iterable[int] = BUDGETS
) -> list[dict[str, Any]]:
    """The distance to the data, by evaluations: of students and of solvers."""
    z_1 = noise(NUM_SAMPLES)
    rows = []
    for budget in budgets:
        consistent = further("consistency", base, base, budget, RECIPES["consistency"])
        rows.append(
            {
                "evaluations": budget,
                "moment matching": measured(
                    draw(matched(progressive, base, budget), z_1, budget)
                ),
                "progressive": measured(draw(progressive[budget], z_1, budget)),
                "consistency": measured(draw(consistent, z_1, budget)),
                "DDIM": measured(solve(DATA.denoise, z_1, budget)),
                "DPM-Solver++(2M)": measured(
                    solve(DATA.denoise, z_1, budget, samplers.extrapolated)
                ),
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Prints a table."""
    print(f"| {' | '.join(rows[0])} |")
    print("|" + " --- |" * len(rows[0]))
    for row in rows:
        cells = (f"{c:.3f}" if isinstance(c, float) else str(c) for c in row.values())
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--updates", type=int, default=1000, help="for each progressive student"
    )
    parser.add_argument("--batch_size", type=int, default=512)
    arguments = parser.parse_args()
    progressive = distill(arguments.updates, arguments.batch_size)
    print("Mean distance to where the exact flow ends:\n")
    show(flow_table(progressive))
    print("\nWasserstein-1 distance to the data (share of the lower mode):\n")
    show(distribution_table(progressive, imitate(BASE_UPDATES)))
    data = DATA.sample(np.random.default_rng(5), (NUM_SAMPLES, 1))
    print(f"\nThe same of as many samples of the data: {measured(data)}")


if __name__ == "__main__":
    main()
