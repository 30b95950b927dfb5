import jax.numpy as jnp
import numpy as np
import pytest

from vdiff_jax import schedules
from vdiff_jax.diffusion import alpha_sigma

ALL = {
    "cosine": schedules.cosine(),
    "linear_beta": schedules.linear_beta(),
    "scaled_linear_beta": schedules.scaled_linear_beta(),
}


@pytest.mark.parametrize(
    ("t", "logsnr", "alpha", "sigma"),
    [
        (0.0, 20.0, 1.0, 0.00004540),
        (1 / 8192, 16.693750, 0.99999997, 0.00023714),
        (1 / 1024, 12.901556, 0.99999875, 0.00157929),
        (0.1, 3.684990, 0.98768266, 0.15647034),
        (0.25, 1.762619, 0.92387085, 0.38270440),
        (0.5, 0.0, 0.70710678, 0.70710678),
        (0.75, -1.762619, 0.38270440, 0.92387085),
        (1.0, -20.0, 0.00004540, 1.0),
    ],
)
def test_cosine_has_the_golden_values(t, logsnr, alpha, sigma):
    found = schedules.cosine()(jnp.float32(t))
    assert found == pytest.approx(logsnr, rel=2e-6, abs=2e-6)
    np.testing.assert_allclose(alpha_sigma(found), (alpha, sigma), rtol=2e-5)


def test_the_cosine_angle_is_linear_in_time():
    t = jnp.linspace(0.0, 1.0, 33)
    alpha, sigma = alpha_sigma(schedules.cosine(-15.0, 12.0)(t))
    angle = np.arctan2(sigma, alpha)
    np.testing.assert_allclose(np.diff(angle), np.diff(angle).mean(), rtol=1e-4)


@pytest.mark.parametrize(
    ("schedule", "golden"),
    [
        (
            schedules.linear_beta(1e-4, 0.02),
            {0: 9.21024037, 1: 8.42208168, 100: 2.14437095, 999: -10.11767318},
        ),
        (
            schedules.scaled_linear_beta(0.0015, 0.0195),
            {0: 6.50078904, 10: 4.06915955, 500: -2.04142213, 999: -8.85740280},
        ),
        (
            schedules.scaled_linear_beta(0.00085, 0.012),
            {0: 7.06942385, 250: 0.72538909, 750: -2.82156613, 999: -5.36404770},
        ),
    ],
)
def test_betas_have_the_golden_values(schedule, golden):
    for step, logsnr in golden.items():
        assert schedule(jnp.float32((step + 1) / 1000)) == pytest.approx(
            logsnr, abs=2e-5
        )


@pytest.mark.parametrize("name", ALL)
def test_logsnr_falls_strictly(name):
    t = jnp.linspace(0.001, 1.0, 1000)
    assert np.all(np.diff(ALL[name](t)) < 0)


@pytest.mark.parametrize("name", ALL)
def test_at_the_end_is_data(name):
    logsnr = schedules.ending_in_data(ALL[name])(jnp.array([0.0, 0.5]))
    assert logsnr[0] == jnp.inf
    assert logsnr[1] == ALL[name](jnp.float32(0.5))
    assert alpha_sigma(logsnr[0]) == (1.0, 0.0)


def test_a_chain_of_1000_steps_allows_1000():
    schedules.check_num_steps(ALL["linear_beta"], 1000)
    with pytest.raises(ValueError, match="num_steps=2000 is more than this schedule"):
        schedules.check_num_steps(ALL["linear_beta"], 2000)
    schedules.check_num_steps(ALL["cosine"], 8192)
    with pytest.raises(ValueError, match="at least 1"):
        schedules.check_num_steps(ALL["cosine"], 0)


def test_impossible_schedules_are_refused():
    with pytest.raises(ValueError, match="below logsnr_max"):
        schedules.cosine(20.0, -20.0)
    for betas in ([0.1, 1.0], [0.0, 0.1], [0.1, -0.1], []):
        with pytest.raises(ValueError, match=r"in \[0, 1\), the first above 0"):
            schedules.from_betas(np.array(betas))
