from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import GaussianData, MixtureData
from vdiff_jax import samplers, schedules
from vdiff_jax.diffusion import alpha_sigma, diffuse, predict

COSINE = schedules.cosine()


def _noise(shape=(64, 2, 2, 1), seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def _keys(batch, seed=1):
    return jax.random.split(jax.random.key(seed), batch)


PREDICTORS = [samplers.at_start, samplers.extrapolated, samplers.at_both_ends]


@pytest.mark.parametrize(
    "data", [GaussianData(), MixtureData()], ids=["normal", "mixture"]
)
@pytest.mark.parametrize(
    ("predictor", "order"), list(zip(PREDICTORS, (1, 2, 2), strict=True))
)
def test_the_order_of_convergence(data, predictor, order):
    # To t = 1/4: there the steps in log-SNR are as short as their number is large. The
    # last step, to infinite log-SNR, never is.
    schedule, z_1 = schedules.cosine(-6.0, 6.0), _noise((256, 1))
    exact = data.flow(z_1, schedule(jnp.float32(1.0)), schedule(jnp.float32(0.25)))
    steps = np.array([16, 32, 64, 128])
    errors = []
    for n in steps:
        path = samplers.sample_trajectory(
            data.denoise, z_1, schedule=schedule, num_steps=int(n), predictor=predictor
        )
        errors.append(np.abs(np.asarray(path.z_s[3 * n // 4 - 1]) - exact).mean())
    slope = -np.polyfit(np.log(steps), np.log(errors), deg=1)[0]
    assert slope == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(
    "data", [GaussianData(), MixtureData()], ids=["normal", "mixture"]
)
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_every_method_ends_in_the_data(data, predictor):
    z_1 = _noise((256, 1))
    found = samplers.sample(
        data.denoise, z_1, schedule=COSINE, num_steps=256, predictor=predictor
    )
    exact = data.flow(z_1, COSINE(jnp.float32(1.0)), jnp.float32(np.inf))
    error = np.abs(np.asarray(found) - exact).mean()
    assert error < (3e-3 if predictor is samplers.at_start else 4e-4)


@pytest.mark.parametrize(("num_steps", "evaluations"), [(1, 1), (2, 3), (5, 9)])
def test_heun_asks_the_network_twice_in_each_step_but_the_last(num_steps, evaluations):
    asked = []

    def denoise(z_t, logsnr_t):
        jax.debug.callback(lambda logsnr: asked.append(float(logsnr)), logsnr_t[0])
        return GaussianData().denoise(z_t, logsnr_t)

    samplers.sample(
        denoise,
        _noise((3, 1)),
        schedule=COSINE,
        num_steps=num_steps,
        predictor=samplers.at_both_ends,
    ).block_until_ready()
    jax.effects_barrier()
    assert (
        len(asked)
        == evaluations
        == samplers.evaluations(samplers.at_both_ends, num_steps)
    )
    assert np.isfinite(asked).all()


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    "stepper",
    [
        samplers.ddim_step,
        partial(samplers.ddim_step, eta=0.7),
        partial(samplers.ancestral_step, interpolation=0.0),
        partial(samplers.ancestral_step, interpolation=1.0),
    ],
)
def test_a_known_picture_is_reached_in_any_number_of_steps(stepper, num_steps):
    data = GaussianData(mean=0.4, std=0.0)
    x = samplers.sample(
        data.denoise,
        _noise(),
        schedule=COSINE,
        num_steps=num_steps,
        stepper=stepper,
        keys=_keys(64),
    )
    np.testing.assert_allclose(x, 0.4, atol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 4, 9])
def test_n_steps_are_n_evaluations_from_pure_noise_on(num_steps):
    def denoise(z_t, logsnr_t):
        spy = jnp.broadcast_to(logsnr_t[:, None], z_t.shape)
        return predict(spy, z_t, logsnr_t, "x")

    found = samplers.sample_trajectory(
        denoise, _noise((1, 1)), schedule=COSINE, num_steps=num_steps
    ).x_hat
    times = jnp.arange(num_steps, 0, -1) / num_steps
    # One rounding of t = 1 is 5e-4 of the log-SNR -20.
    np.testing.assert_allclose(found[:, 0, 0], COSINE(times), rtol=5e-5, atol=1e-5)


def test_the_last_step_returns_x_hat_and_the_trajectory_ends_in_the_sample():
    data, z_1 = GaussianData(), _noise()
    path = samplers.sample_trajectory(data.denoise, z_1, schedule=COSINE, num_steps=5)
    sample = samplers.sample(data.denoise, z_1, schedule=COSINE, num_steps=5)
    np.testing.assert_array_equal(path.z_s[-1], path.x_hat[-1])
    np.testing.assert_allclose(path.z_s[-1], sample, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "interpolation"),
    [
        (GaussianData(mean=0.5, std=0.0), 0.0),  # "small" is exact for one picture
        (GaussianData(mean=0.0, std=1.0), 1.0),  # "large" is exact for white noise
    ],
)
def test_ancestral_marginals_are_exact_where_the_variance_is_right(data, interpolation):
    # Ho et al. (2020), arXiv:2006.11239, Sec. 3.2, name these two extremes.
    z_1 = _noise((1, 20_000))
    path = samplers.sample_trajectory(
        data.denoise,
        z_1 + alpha_sigma(COSINE(jnp.float32(1.0)))[0] * data.mean,
        schedule=COSINE,
        num_steps=6,
        stepper=partial(samplers.ancestral_step, interpolation=interpolation),
        keys=_keys(1),
    )
    for z_s, s in zip(path.z_s[:-1], np.arange(5, 0, -1) / 6, strict=True):
        logsnr_s = COSINE(jnp.float32(s))
        mean = alpha_sigma(logsnr_s)[0] * data.mean
        assert float(z_s.mean()) == pytest.approx(float(mean), abs=0.03)
        assert float(z_s.std()) == pytest.approx(float(data.spread(logsnr_s)), rel=0.03)


@pytest.mark.parametrize("interpolation", [0.0, 0.3, 1.0])
def test_ancestral_samples_approach_the_data(interpolation):
    data = GaussianData(mean=0.3, std=0.5)
    x = samplers.sample(
        data.denoise,
        _noise((1, 20_000)),
        schedule=COSINE,
        num_steps=400,
        stepper=partial(samplers.ancestral_step, interpolation=interpolation),
        keys=_keys(1),
    )
    assert float(x.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(x.std()) == pytest.approx(0.5, rel=0.03)


def test_ddim_with_eta_one_is_ancestral_with_small_variance():
    prediction = GaussianData().denoise(_noise(), jnp.full(64, -1.0))
    step = samplers.Step(jnp.full(64, -1.0), jnp.full(64, 0.5), _noise(seed=3))
    np.testing.assert_allclose(
        samplers.ddim_step(prediction, step, eta=1.0),
        samplers.ancestral_step(prediction, step, interpolation=0.0),
        atol=1e-6,
    )


def test_medium_variance_lies_between_on_a_log_scale():
    zero = jnp.zeros((1, 1))
    prediction = predict(zero, zero, jnp.zeros(1), "x")
    step = samplers.Step(jnp.zeros(1), jnp.ones(1), jnp.ones((1, 1)))
    small, medium, large = (
        float(samplers.ancestral_step(prediction, step, interpolation=f)[0, 0])
        for f in (0.0, 0.25, 1.0)
    )
    assert np.log(medium) == pytest.approx(0.75 * np.log(small) + 0.25 * np.log(large))
    assert small < medium < large


@pytest.mark.parametrize("num_steps", [1, 5])
def test_a_traced_step_count_gives_the_same_samples_from_one_compilation(num_steps):
    data, z_1, keys = GaussianData(), _noise(), _keys(64)
    jax.clear_caches()  # of other tests, beside which this one's might be let go
    compiled = jax.jit(
        lambda n: samplers.sample(
            data.denoise,
            z_1,
            schedule=COSINE,
            num_steps=n,
            stepper=samplers.ancestral_step,
            keys=keys,
        )
    )
    static = samplers.sample(
        data.denoise,
        z_1,
        schedule=COSINE,
        num_steps=num_steps,
        stepper=samplers.ancestral_step,
        keys=keys,
    )
    np.testing.assert_allclose(compiled(num_steps), static, atol=1e-5)
    compiled(num_steps + 1)
    assert compiled._cache_size() == 1


def test_noise_of_an_example_does_not_depend_on_its_batch():
    data, keys = GaussianData(), _keys(64)
    run = partial(
        samplers.sample,
        data.denoise,
        schedule=COSINE,
        num_steps=3,
        stepper=samplers.ancestral_step,
    )
    whole = run(z_1=_noise(), keys=keys)
    part = run(z_1=_noise()[40:], keys=keys[40:])
    np.testing.assert_allclose(whole[40:], part, atol=1e-6)


def test_a_step_that_needs_noise_says_so():
    with pytest.raises(ValueError, match="pass `keys`"):
        samplers.sample(
            GaussianData().denoise,
            _noise(),
            schedule=COSINE,
            num_steps=2,
            stepper=samplers.ancestral_step,
        )


def _exact_jumps(data, schedule, num_steps):
    """A denoiser with which DDIM lands on the flow, two steps ahead."""
    end = schedules.ending_in_data(schedule)
    grid = jnp.arange(1, num_steps + 1) / num_steps

    def denoise(z_t, logsnr_t):
        at = jnp.abs(schedule(grid) - logsnr_t[0]).argmin()
        logsnr_r = end(grid[at] - 2.0 / num_steps)
        z_r = data.flow(z_t, logsnr_t[0], logsnr_r)
        (alpha_t, sigma_t), (alpha_r, sigma_r) = map(
            alpha_sigma, (logsnr_t[0], logsnr_r)
        )
        ratio = sigma_r / sigma_t
        x = (z_r - ratio * z_t) / (alpha_r - ratio * alpha_t)
        return predict(x, z_t, logsnr_t, "x")

    return denoise


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_the_stochastic_sampler_with_exact_jumps_keeps_the_marginals(num_steps):
    """At every time of its grid; standard errors of 40,000 draws, five of them."""
    data, schedule, count = GaussianData(), schedules.cosine(), 40_000
    keys = jax.random.split(jax.random.key(1), count)
    z_1 = jax.random.normal(jax.random.key(0), (count, 1))
    path = samplers.sample_trajectory(
        _exact_jumps(data, schedule, num_steps),
        z_1,
        schedule=schedule,
        num_steps=num_steps,
        stepper=samplers.stochastic_step,
        keys=keys,
    )
    for k, z_s in enumerate(path.z_s):
        logsnr_s = schedules.ending_in_data(schedule)(
            jnp.float32(1.0 - (k + 1) / num_steps)
        )
        std = float(data.spread(logsnr_s))
        mean = float(alpha_sigma(logsnr_s)[0]) * data.mean
        assert float(z_s.mean()) == pytest.approx(mean, abs=5 * std / count**0.5)
        assert float(z_s.std()) == pytest.approx(std, abs=5 * std / (2 * count) ** 0.5)


def test_with_one_step_the_stochastic_sampler_is_the_deterministic_one():
    z_1 = jax.random.normal(jax.random.key(0), (7, 3))
    keys = jax.random.split(jax.random.key(1), 7)
    options = {"schedule": schedules.cosine(), "num_steps": 1}
    found = samplers.sample(
        GaussianData().denoise,
        z_1,
        stepper=samplers.stochastic_step,
        keys=keys,
        **options,
    )
    np.testing.assert_array_equal(
        found, samplers.sample(GaussianData().denoise, z_1, **options)
    )


def test_with_two_steps_it_jumps_to_the_data_and_back_half_way():
    """As consistency models are sampled: x_hat, noise to t = 1/2, x_hat."""
    schedule, data = schedules.cosine(), GaussianData()
    z_1 = jax.random.normal(jax.random.key(0), (9, 3))
    keys = jax.random.split(jax.random.key(1), 9)
    path = samplers.sample_trajectory(
        data.denoise,
        z_1,
        schedule=schedule,
        num_steps=2,
        stepper=samplers.stochastic_step,
        keys=keys,
    )
    noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 2), (3,)))(keys)
    half = jnp.broadcast_to(schedule(jnp.float32(0.5)), 9)
    np.testing.assert_allclose(
        path.z_s[0], diffuse(path.x_hat[0], noise, half), atol=1e-6
    )
    np.testing.assert_allclose(path.z_s[1], path.x_hat[1], rtol=1e-6)


def test_encoding_and_decoding_return_the_picture_with_an_error_of_order_one():
    data, schedule = GaussianData(), schedules.cosine()
    x = jnp.linspace(-0.8, 0.8, 12)[:, None]
    errors = []
    for num_steps in (32, 64, 128):
        options = {"schedule": schedule, "num_steps": num_steps}
        z_1 = samplers.encode(data.denoise, x, **options)
        again = samplers.sample(data.denoise, z_1, **options)
        errors.append(float(jnp.abs(again - x).max()))
    np.testing.assert_allclose(np.diff(np.log2(errors)), -1.0, atol=0.15)
    assert errors[-1] < 0.05


def test_from_half_way_only_the_second_half_of_the_steps_is_taken():
    data, schedule = GaussianData(), schedules.cosine()
    z_1 = jax.random.normal(jax.random.key(0), (5, 3))
    for first in (4, jnp.int32(4)):
        path = samplers.sample_trajectory(
            data.denoise, z_1, schedule=schedule, num_steps=8
        )
        found = samplers.sample(
            data.denoise, path.z_s[3], schedule=schedule, num_steps=8, first=first
        )
        np.testing.assert_allclose(found, path.z_s[-1], atol=1e-6)
