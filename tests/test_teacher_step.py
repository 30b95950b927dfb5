"""The kinds of a teacher's step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import GaussianData, MixtureData
from vdiff_jax import samplers, schedules
from vdiff_jax.diffusion import diffuse, predict, velocity
from vdiff_jax.distillation import teacher_step
from vdiff_jax.types import Prediction

LOGSNR_T = jnp.array([-20.0, -3.0, 0.0, 2.0, 9.0])
LOGSNR_S = jnp.array([-2.0, -2.5, 4.0, jnp.inf, 20.0])
MIXTURE = MixtureData()


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def _noise(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def _kinds(x):
    return {
        "ddim": teacher_step.ddim,
        "heun": teacher_step.heun,
        "addim": teacher_step.adjusted(x, 0.7),
    }


def _landed(prediction, logsnr_t, logsnr_s):
    return samplers.ddim_step(prediction, samplers.Step(logsnr_t, logsnr_s))


@pytest.mark.parametrize("kind", ["ddim", "heun", "addim"])
@pytest.mark.parametrize("way", ["down", "up"])
def test_the_three_forms_of_a_step_land_on_one_point(float64, kind, way):
    """By x and eps, and by turning z_t towards v: students are taught the v."""
    logsnr_t, logsnr_s = jnp.asarray(LOGSNR_T, float), jnp.asarray(LOGSNR_S, float)
    if way == "up":
        logsnr_t, logsnr_s = jnp.where(jnp.isinf(logsnr_s), 19.0, logsnr_s), logsnr_t
    z_t, x = _noise((2, 5, 3))
    step = samplers.Step(logsnr_t, logsnr_s)
    prediction = _kinds(x)[kind](MIXTURE.denoise, z_t, step)
    angle = np.arctan(np.exp(-logsnr_t / 2)) - np.arctan(np.exp(-logsnr_s / 2))
    turned = np.cos(angle)[:, None] * z_t - np.sin(angle)[:, None] * prediction.v
    np.testing.assert_allclose(
        _landed(prediction, logsnr_t, logsnr_s), turned, atol=1e-9
    )


@pytest.mark.parametrize("kind", ["heun", "addim"])
def test_a_step_to_the_data_is_that_of_ddim(kind):
    """Bit for bit, and it returns x_hat; its neighbours in the batch go elsewhere."""
    z_t, x = _noise((2, 5, 3))
    logsnr_s = jnp.array([-1.0, jnp.inf, jnp.inf, 6.0, jnp.inf])
    step = samplers.Step(LOGSNR_T, logsnr_s)
    found = _kinds(x)[kind](MIXTURE.denoise, z_t, step)
    plain = MIXTURE.denoise(z_t, LOGSNR_T)
    at = np.isinf(logsnr_s)
    for form, of_ddim in zip(found, plain, strict=True):
        np.testing.assert_array_equal(form[at], of_ddim[at])
    assert np.abs(found.v - plain.v)[~at].min(axis=1).max() > 1e-3
    np.testing.assert_array_equal(_landed(found, *step[:2])[at], plain.x[at])


@pytest.mark.parametrize("kind", ["heun", "addim"])
def test_a_step_is_finite_in_float32_wherever_it_goes(kind):
    grid = jnp.array([-20.0, -19.99, -5.0, 0.0, 5.0, 19.99, 20.0])
    logsnr_t, logsnr_s = (
        l.ravel() for l in jnp.meshgrid(grid, jnp.append(grid, jnp.inf))
    )
    x = jnp.clip(_noise((len(logsnr_t), 3)), -1, 1)
    z_t = diffuse(x, _noise(x.shape, seed=1), logsnr_t)
    step = samplers.Step(logsnr_t, logsnr_s)
    found = _kinds(x)[kind](GaussianData().denoise, z_t, step)
    for form in found:
        assert form.dtype == jnp.float32
        assert bool(jnp.isfinite(form).all())


# Heun.


@pytest.mark.parametrize(
    ("kind", "order"), [("ddim", 1), ("heun", 2)], ids=["ddim", "heun"]
)
def test_the_error_of_a_step_falls_with_its_order(float64, kind, order):
    """Twice the steps: half the error, or a quarter."""
    schedule, z_1 = schedules.cosine(-6.0, 6.0), _noise((64, 1))
    exact = MIXTURE.flow(z_1, schedule(jnp.float64(1.0)), schedule(jnp.float64(0.25)))
    step_of = _kinds(z_1)[kind]

    def predictor(denoise, z_t, step):
        prediction = step_of(denoise, z_t, step)
        return prediction, prediction.x

    errors = []
    for n in (64, 128):
        path = samplers.sample_trajectory(
            MIXTURE.denoise, z_1, schedule=schedule, num_steps=n, predictor=predictor
        )
        errors.append(np.abs(np.asarray(path.z_s[3 * n // 4 - 1]) - exact).mean())
    assert errors[0] / errors[1] == pytest.approx(2.0**order, rel=0.1)


def test_heun_is_the_samplers_step_of_two_evaluations(float64):
    z_t = _noise((5, 3))
    logsnr_t, logsnr_s = jnp.asarray(LOGSNR_T, float), jnp.asarray(LOGSNR_S, float)
    for n in range(5):  # the sampler's takes its last step with all of a batch
        step = samplers.Step(logsnr_t[n : n + 1], logsnr_s[n : n + 1])
        ours = teacher_step.heun(MIXTURE.denoise, z_t[n : n + 1], step)
        theirs, _ = samplers.at_both_ends(MIXTURE.denoise, z_t[n : n + 1], step)
        for form, of_sampler in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(form, of_sampler, atol=1e-9)


# Adjusted DDIM. A denoiser for which x_hat and eps_hat stand at right angles, as they
# nearly do in many dimensions; the data lie around x_hat in a direction of their own.

X_HAT = np.array([[0.5, -0.5, 0.0, 0.0], [0.2, 0.0, 0.0, 0.7]])
EPS_HAT = np.array([[0.0, 0.0, 1.1, -0.4], [0.0, 0.9, -1.5, 0.0]])
AROUND = np.array([[0.1, 0.3, -0.2, 0.2], [-0.4, 0.1, 0.0, 0.1]])


def _orthogonal(logsnr_t):
    """z_t and its denoiser."""
    x, eps = jnp.asarray(X_HAT), jnp.asarray(EPS_HAT)
    prediction = Prediction(x, eps, velocity(x, eps, logsnr_t))
    return diffuse(x, eps, logsnr_t), lambda z_t, logsnr: prediction


def _square(z):
    return np.square(np.asarray(z)).sum(axis=1)


@pytest.mark.parametrize("logsnr_t", [-20.0, -3.0, 0.0, 4.0])
@pytest.mark.parametrize("longer", [0.01, 2.0, 15.0])
def test_an_adjusted_step_is_as_long_as_the_steps_to_the_data(
    float64, logsnr_t, longer
):
    """Eq. 12: x lies around x_hat, and DDIM with x known goes to where z_s is."""
    logsnr_t = jnp.full(2, logsnr_t)
    logsnr_s = logsnr_t + longer
    z_t, denoise = _orthogonal(logsnr_t)
    step = samplers.Step(logsnr_t, logsnr_s)
    true = []
    for x in jnp.array([X_HAT + AROUND, X_HAT - AROUND]):
        z_s = _landed(predict(x, z_t, logsnr_t, "x"), logsnr_t, logsnr_s)
        true.append(_square(z_s))
        found = teacher_step.adjusted(x, 1.0)(denoise, z_t, step)
    expected = (true[0] + true[1]) / 2
    np.testing.assert_allclose(
        _square(_landed(found, logsnr_t, logsnr_s)), expected, rtol=1e-9
    )
    plain = _square(_landed(denoise(z_t, logsnr_t), logsnr_t, logsnr_s))
    assert np.all(plain < expected)


def test_a_share_of_the_error_is_that_share_of_the_missing_square(float64):
    logsnr_t, logsnr_s = jnp.array([-1.0, 0.5]), jnp.array([1.0, 3.0])
    z_t, denoise = _orthogonal(logsnr_t)
    step = samplers.Step(logsnr_t, logsnr_s)

    def square(share):
        step_of = teacher_step.adjusted(jnp.asarray(X_HAT + AROUND), share)
        return _square(_landed(step_of(denoise, z_t, step), logsnr_t, logsnr_s))

    none, some, all_ = (square(share) for share in (0.0, 0.75, 1.0))
    np.testing.assert_allclose(some - none, 0.75 * (all_ - none), rtol=1e-9)


@pytest.mark.parametrize("share", [0.0, jnp.float32(0.0)])
def test_no_share_is_ddim_bit_for_bit(share):
    z_t, x = _noise((2, 5, 3))
    step = samplers.Step(LOGSNR_T, LOGSNR_S)
    found = teacher_step.adjusted(x, share)(MIXTURE.denoise, z_t, step)
    for form, of_ddim in zip(found, MIXTURE.denoise(z_t, LOGSNR_T), strict=True):
        np.testing.assert_array_equal(form, of_ddim)


def test_a_teacher_that_knows_the_data_needs_no_adjustment():
    z_t, x = _noise((2, 5, 3))
    known = predict(x, z_t, LOGSNR_T, "x")
    step = samplers.Step(LOGSNR_T, LOGSNR_S)
    found = teacher_step.adjusted(x, 1.0)(lambda z, logsnr: known, z_t, step)
    for form, of_data in zip(found, known, strict=True):
        np.testing.assert_array_equal(form, of_data)


def test_noise_of_no_length_is_not_made_longer():
    z_t, x = _noise((2, 5, 3))
    x_hat, none = x + 0.3, jnp.zeros((5, 3))
    prediction = Prediction(x_hat, none, velocity(x_hat, none, LOGSNR_T))
    found = teacher_step.adjusted(x, 1.0)(
        lambda z, logsnr: prediction, z_t, samplers.Step(LOGSNR_T, LOGSNR_S)
    )
    for form, of_ddim in zip(found, prediction, strict=True):
        np.testing.assert_array_equal(form, of_ddim)


def test_a_short_adjusted_step_is_ddim(float64):
    """The change of v is in proportion to the length of the step."""
    logsnr_t = jnp.array([-6.0, -1.0, 0.0, 3.0, 9.0])
    z_t, x = _noise((2, 5, 3))
    changes = []
    for longer in (1e-4, 5e-5, 0.0):
        step = samplers.Step(logsnr_t, logsnr_t + longer)
        found = teacher_step.adjusted(x, 0.75)(MIXTURE.denoise, z_t, step)
        changes.append(np.abs(found.v - MIXTURE.denoise(z_t, logsnr_t).v).max(axis=1))
    np.testing.assert_allclose(changes[0] / changes[1], 2.0, rtol=2e-3)
    np.testing.assert_array_equal(changes[2], 0.0)


def test_examples_are_adjusted_each_by_its_own_error():
    z_t, x = _noise((2, 5, 3))
    step = samplers.Step(LOGSNR_T, LOGSNR_S)
    together = teacher_step.adjusted(x, 0.5)(MIXTURE.denoise, z_t, step)
    for n in range(5):
        one = slice(n, n + 1)
        alone = teacher_step.adjusted(x[one], 0.5)(
            MIXTURE.denoise, z_t[one], samplers.Step(LOGSNR_T[one], LOGSNR_S[one])
        )
        np.testing.assert_allclose(alone.v, together.v[one], rtol=1e-5)
