"""A distilled student against better solvers, at equal evaluations of the network.

    python -m benchmarks.mixture

Data are a mixture of two normals in each pixel, so the exact denoiser and the exact
probability flow are known. A small network is distilled from 64 steps of the exact
denoiser down to one, by the library's own loss; the peers solve the exact flow by DDIM,
DPM-Solver++(2M) and Heun. The error is the mean distance to where the exact flow ends.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from tests.one_pixel import Net, descend
from tests.oracles import MixtureData
from vdiff_jax import diffusion, losses, samplers, schedules
from vdiff_jax.distillation.method import ladder
from vdiff_jax.distillation.progressive import distillation_loss

SOLVERS = {
    "ddim": samplers.at_start,
    "dpmpp_2m": samplers.extrapolated,
    "heun": samplers.at_both_ends,
}
SCHEDULE = schedules.cosine()
DATA = MixtureData()
START_STEPS = 64


def student(params):
    """The network as a denoiser."""
    return diffusion.denoiser(lambda *inputs: Net().apply(params, *inputs), "v")


def distill(updates: int, batch_size: int) -> dict[int, object]:
    """Parameters of the students, by their number of steps."""
    x = jnp.asarray(DATA.sample(np.random.default_rng(0), (2**16, 1)), jnp.float32)

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


def table(updates: int, batch_size: int) -> list[dict[str, float]]:
    """The error of the student and of every solver, by evaluations."""
    students = distill(updates, batch_size)
    z_1 = jax.random.normal(jax.random.key(9), (4096, 1))
    logsnr_1 = SCHEDULE(jnp.float32(1.0))
    exact = DATA.flow(z_1, logsnr_1, jnp.float32(jnp.inf))

    def error(denoise, num_steps, predictor=samplers.at_start):
        run = jax.jit(
            lambda z_1: samplers.sample(
                denoise,
                z_1,
                schedule=SCHEDULE,
                num_steps=num_steps,
                predictor=predictor,
            )
        )
        return float(np.abs(np.asarray(run(z_1)) - exact).mean())

    rows = []
    for budget in (1, 2, 4, 8, 16):
        row = {
            "evaluations": budget,
            "student": error(student(students[budget]), budget),
        }
        for name, predictor in SOLVERS.items():
            steps = (budget + 1) // 2 if name == "heun" else budget
            row[name] = error(DATA.denoise, steps, predictor)
        rows.append(row)
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=1000, help="for each student")
    parser.add_argument("--batch_size", type=int, default=512)
    arguments = parser.parse_args()
    rows = table(arguments.updates, arguments.batch_size)
    print(f"| {' | '.join(rows[0])} |")
    print("|" + " --- |" * len(rows[0]))
    for row in rows:
        evaluations, *errors = row.values()
        print(f"| {evaluations} | " + " | ".join(f"{e:.3f}" for e in errors) + " |")


if __name__ == "__main__":
    main()
