"""Moment matching where the data's distribution is known: no mode lost, none moved."""

import numpy as np
import pytest

from benchmarks import mixture
from vdiff_jax import samplers

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("optimized")]


@pytest.fixture(scope="module")
def students():
    """Of one step and of two, by moment matching."""
    progressive = mixture.distill(updates=600, batch_size=256)
    base = mixture.imitate(updates=2000, batch_size=256)
    recipe = mixture.RECIPES["moment_matching"]._replace(updates=1500)
    return {n: mixture.matched(progressive, base, n, recipe) for n in (1, 2)}


def test_a_student_of_one_step_keeps_both_modes_and_their_weights(students):
    samples = mixture.draw(students[1], mixture.noise(2**16), 1)
    lower, upper = mixture.DATA.means
    for mean, std, weight in zip(
        mixture.DATA.means, mixture.DATA.stds, mixture.DATA.weights, strict=True
    ):
        own = samples[abs(samples - mean) < abs(samples - (lower + upper - mean))]
        assert abs(len(own) / len(samples) - weight) < 0.05
        assert abs(np.median(own) - mean) < 0.5 * std


def test_a_student_of_two_steps_is_nearer_to_the_data_than_a_better_solver(students):
    z_1 = mixture.noise(2**16)
    by_solver = mixture.solve(mixture.DATA.denoise, z_1, 2, samplers.extrapolated)
    of_student = mixture.wasserstein(mixture.draw(students[2], z_1, 2))
    assert of_student < 0.5 * mixture.wasserstein(by_solver)
