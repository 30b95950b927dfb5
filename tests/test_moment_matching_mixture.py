"""Moment matching where the data's distribution is known: no mode lost, none moved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import mixture
from vdiff_jax import losses, samplers
from vdiff_jax.distillation.moment_matching import times


@pytest.fixture(scope="module")
def students(optimized):
    """Of one step and of two, by moment matching."""
    progressive = mixture.distill(updates=600, batch_size=256)
    base = mixture.imitate(updates=2000, batch_size=256)
    recipe = mixture.RECIPES["moment_matching"]._replace(updates=1500)
    return {n: mixture.matched(progressive, base, n, recipe) for n in (1, 2)}


@pytest.mark.long
def test_a_student_of_one_step_keeps_both_modes_and_their_weights(students):
    data = mixture.DATA
    samples = mixture.draw(students[1], mixture.noise(2**16), 1)
    nearer_to = abs(samples - np.array(data.means)).argmin(axis=1)
    for mode in range(2):
        own = samples[nearer_to == mode]
        assert abs(len(own) / len(samples) - data.weights[mode]) < 0.05
        assert abs(np.median(own) - data.means[mode]) < 0.5 * data.stds[mode]


@pytest.mark.long
def test_a_student_of_two_steps_is_nearer_to_the_data_than_a_better_solver(students):
    z_1 = mixture.noise(2**16)
    by_solver = mixture.solve(mixture.DATA.denoise, z_1, 2, samplers.extrapolated)
    of_student = mixture.wasserstein(mixture.draw(students[2], z_1, 2))
    assert of_student < 0.25 * mixture.wasserstein(by_solver)


@pytest.mark.parametrize("num_steps", [1, 2, 8])
def test_a_student_that_takes_noise_is_trained_at_the_times_of_its_sampler(num_steps):
    draws = losses.draw(jax.random.key(0), 4000, stratified=True)
    t, s = times(draws, num_steps, takes_noise=True)
    grid, counts = np.unique(np.asarray(t), return_counts=True)
    np.testing.assert_allclose(grid, np.arange(1, num_steps + 1) / num_steps)
    np.testing.assert_allclose(counts, 4000 / num_steps, atol=2)
    share = (t - s) * num_steps
    assert share.min() >= 0
    assert share.max() <= 1
    assert abs(jnp.mean(share) - 0.5) < 0.03
