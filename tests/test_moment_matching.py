"""Moment matching, on data for which all that it learns is known in closed form.

The draws are those of `oracles.signs`: a mean over the batch is an expectation.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import GaussianData, MixtureData, Signs, signs
from vdiff_jax import losses, samplers, schedules
from vdiff_jax.codec import Latents, Pixels
from vdiff_jax.diffusion import predict
from vdiff_jax.distillation.method import Course, Phase, one_by_one
from vdiff_jax.distillation.moment_matching import (
    METHOD,
    moment_matching_loss,
    noised_again,
    times,
)
from vdiff_jax.generation.sampler import Sampler, request
from vdiff_jax.guidance import PLAIN
from vdiff_jax.model import Model, with_weights_of
from vdiff_jax.nets.unet import Level, UNet
from vdiff_jax.types import Prediction

DATA, COSINE = GaussianData(), schedules.cosine()
SHAPE = (1,)
WEIGHTS = {
    "constant": losses.constant,
    "snr": losses.snr,
    "snr_trunc": losses.snr_trunc,
    "snr_plus_one": losses.snr_plus_one,
    "min_snr": losses.min_snr(5.0),
}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def _affine(gain, offset):
    """The denoiser v = gain z + offset."""
    return lambda z_t, logsnr_t: predict(gain * z_t + offset, z_t, logsnr_t, "v")


def _sampling(draws):
    """The student that draws from p(x | z_t), by the noise that it takes."""
    return lambda z_t, logsnr_t: DATA.posterior(
        z_t, logsnr_t, draws.normal("input", SHAPE)
    )


def _values(student, auxiliary, draws, num_steps, **options):
    options = {
        "teacher": DATA.denoise,
        "weight": losses.snr_plus_one,
        "schedule": COSINE,
        "takes_noise": True,  # for the times i / num_steps, and no others
        **options,
    }
    x = DATA.mean + DATA.std * draws.normal("x", SHAPE)
    return moment_matching_loss(
        student, auxiliary, x=x, draws=draws, num_steps=num_steps, **options
    )


def _loss(student, auxiliary, draws, num_steps, **options):
    return _values(student, auxiliary, draws, num_steps, **options)["loss"].mean()


def _gradient_of_auxiliary(line, student, draws, num_steps):
    return jax.grad(lambda p: _loss(student, _affine(*p), draws, num_steps))(line)


def _fitted(student, draws, num_steps):
    """Gain and offset of the auxiliary network that training would end in.

    Its loss is a parabola in them, so one step of Newton's finds the minimum.
    """
    gradient = partial(
        _gradient_of_auxiliary, student=student, draws=draws, num_steps=num_steps
    )
    start = jnp.zeros(2)
    return start - jnp.linalg.solve(jax.jacfwd(gradient)(start), gradient(start))


def _gap(student, draws, num_steps):
    """The gap of a student with the best auxiliary network."""
    auxiliary = _affine(*_fitted(student, draws, num_steps))
    return float(_values(student, auxiliary, draws, num_steps)["gap"].mean())


# The auxiliary network.


@pytest.mark.parametrize(("gain", "offset"), [(0.4, 0.1), (0.9, -0.3), (0.0, 0.2)])
@pytest.mark.parametrize(("i", "num_steps"), [(1, 2), (2, 2), (3, 8)])
def test_the_auxiliary_learns_the_mean_of_what_the_student_makes(
    float64, gain, offset, i, num_steps
):
    """x~ = gain z_t + offset, z_s and v~ are normal, so E[v~ | z_s] is a line."""
    draws = signs(i, num_steps, share=0.3)

    def student(z_t, logsnr_t):
        return predict(gain * z_t + offset, z_t, logsnr_t, "x")

    found = _fitted(student, draws, num_steps)

    t, s = i / num_steps, (i - 0.7) / num_steps
    low, high = np.arctan(np.exp([-10.0, 10.0]))
    angle_t, angle_s = low + (high - low) * t, low + (high - low) * s
    # z_t's own deviation and fresh noise, as rows of what they do to eps and to x~.
    kept = np.tan(angle_s) / np.tan(angle_t)
    spread = np.hypot(np.cos(angle_t) * DATA.std, np.sin(angle_t))
    middle = np.cos(angle_t) * DATA.mean
    slope = (1 - np.cos(angle_t) * gain) / np.sin(angle_t)
    eps = np.array([kept * slope * spread, np.sqrt(1 - kept**2)])
    x = np.array([gain * spread, 0.0])
    mean_x = gain * middle + offset
    mean_eps = kept * (middle - np.cos(angle_t) * mean_x) / np.sin(angle_t)
    rotation = np.array(
        [[np.cos(angle_s), np.sin(angle_s)], [-np.sin(angle_s), np.cos(angle_s)]]
    )
    z_s, v = rotation @ np.array([x, eps])
    mean_z, mean_v = rotation @ np.array([mean_x, mean_eps])
    expected = v @ z_s / (z_s @ z_s)
    np.testing.assert_allclose(
        found, [expected, mean_v - expected * mean_z], atol=1e-10
    )
    np.testing.assert_allclose(
        _gradient_of_auxiliary(found, student, draws, num_steps), 0.0, atol=1e-12
    )


def test_the_auxiliary_of_a_posterior_sampler_is_the_teacher(float64):
    """Nothing ties it to the teacher: it arrives there because the samples are data."""
    draws = signs(2, 4, share=0.25)
    gain, offset = _fitted(_sampling(draws), draws, 4)
    logsnr = COSINE(jnp.full(16, 1.25 / 4))
    z = jnp.linspace(-2.0, 2.0, 16)[:, None]
    np.testing.assert_allclose(gain * z + offset, DATA.denoise(z, logsnr).v, atol=1e-10)


# The student: where its gradient points, and where it is at rest.


@pytest.mark.parametrize("s", [0.2, 0.5, 0.8])
@pytest.mark.parametrize(
    ("std", "sign"), [(0.45, -1), (0.5, 0), (0.55, 1)], ids=["low", "right", "high"]
)
def test_the_gradient_brings_the_deviation_of_samples_to_that_of_data(
    float64, std, sign, s
):
    """One step, x~ = mean + std z_1: less than data must grow, more must shrink."""
    draws = signs(1, 1, share=s)

    def student(std):
        def denoise(z_t, logsnr_t):
            return predict(DATA.mean + std * z_t, z_t, logsnr_t, "x")

        return denoise

    auxiliary = _affine(*_fitted(student(std), draws, 1))
    found = jax.grad(lambda std: _loss(student(std), auxiliary, draws, 1))(std)
    if sign == 0:
        assert abs(found) < 1e-4  # z_1 is noise but for exp(-10) of x
    else:
        assert np.sign(found) == sign
        assert abs(found) > 2e-3


@pytest.mark.parametrize("s", [0.2, 0.5, 0.8])
@pytest.mark.parametrize(("mean", "sign"), [(0.2, -1), (0.3, 0), (0.4, 1)])
def test_the_gradient_brings_the_mean_of_samples_to_that_of_data(
    float64, mean, sign, s
):
    draws = signs(1, 1, share=s)

    def student(mean):
        def denoise(z_t, logsnr_t):
            return predict(mean + DATA.std * z_t, z_t, logsnr_t, "x")

        return denoise

    auxiliary = _affine(*_fitted(student(mean), draws, 1))
    found = jax.grad(lambda mean: _loss(student(mean), auxiliary, draws, 1))(mean)
    assert abs(found) < 1e-4 if sign == 0 else sign * found > 2e-3


@pytest.mark.parametrize(("i", "num_steps"), [(1, 1), (2, 2), (1, 2), (3, 8), (1, 8)])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_only_a_student_that_draws_from_the_posterior_closes_the_gap(
    float64, i, num_steps, share
):
    draws = signs(i, num_steps, share=share)
    assert _gap(_sampling(draws), draws, num_steps) < 1e-16
    assert _gap(DATA.denoise, draws, num_steps) > 1e-4


def test_the_gap_of_the_posterior_mean_begins_at_0_and_grows_with_the_step(float64):
    """As s goes to t, z_s goes to z_t, where the teacher knows no better."""
    shares = 1.0 - np.array([1e-9, 1e-3, 0.03, 0.1, 0.3, 0.6, 1.0])
    gaps = [_gap(DATA.denoise, signs(2, 2, share=share), 2) for share in shares]
    assert gaps[0] < 1e-12
    assert np.all(np.diff(gaps) > 0)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_the_gradient_of_a_posterior_sampler_is_0(float64, num_steps):
    draws = signs(num_steps, num_steps, share=0.4)
    auxiliary = _affine(*_fitted(_sampling(draws), draws, num_steps))

    def loss(change):
        def student(z_t, logsnr_t):
            x = _sampling(draws)(z_t, logsnr_t).x
            more = change[0] + change[1] * z_t + change[2] * draws.normal("input", (1,))
            return predict(x + more, z_t, logsnr_t, "x")

        return _loss(student, auxiliary, draws, num_steps)

    np.testing.assert_allclose(jax.grad(loss)(jnp.zeros(3)), 0.0, atol=1e-10)


# What its students make.


@pytest.mark.parametrize("num_steps", [1, 2, 3])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_steps_of_a_posterior_sampler_keep_the_distribution_with_any_fresh_noise(
    num_steps, eta
):
    """(x~, z_t) are distributed as (x, z_t), so eps_hat is noise: DDIM will do."""
    data, size = MixtureData(), 20_000
    path = samplers.sample_trajectory(
        data.denoise,
        jax.random.normal(jax.random.key(0), (1, size)),
        schedule=COSINE,
        num_steps=num_steps,
        stepper=partial(samplers.ddim_step, eta=eta),
        predictor=lambda denoise, z_t, step: (
            prediction := data.posterior(_key(step), z_t, step.logsnr_t),
            prediction.x,
        ),
        keys=jax.random.split(jax.random.key(1), 1),
    )
    ends = schedules.ending_in_data(COSINE)(jnp.arange(num_steps)[::-1] / num_steps)
    for z_s, logsnr_s in zip(path.z_s, ends, strict=True):
        assert data.distance(z_s, logsnr_s) < 0.014  # 1.95 / sqrt(size): p = 0.001


def _key(step):
    """A key of a step, made of the noise that it has."""
    bits = jax.lax.bitcast_convert_type(step.noise_input[0, 0], jnp.uint32)
    return jax.random.fold_in(jax.random.key(2), bits)


# Noise put back.


def test_noise_put_back_has_the_mean_and_the_variance_of_bayes_rule(float64):
    """q(z_s | z_t, x) ~ q(z_t | z_s) q(z_s | x), as a product of two normals."""
    logsnr_t, logsnr_s = jnp.array([-20.0, -1.0, 0.5, 3.0]), jnp.array([-2.0, 0, 6, 20])
    z_t, x = jax.random.normal(jax.random.key(0), (2, 4, 1))
    prediction = predict(x, z_t, logsnr_t, "x")
    low, high = (
        noised_again(prediction, logsnr_t, logsnr_s, jnp.full((4, 1), sign))[0][:, 0]
        for sign in (-1.0, 1.0)
    )

    angle_t, angle_s = (
        np.arctan(np.exp(-np.asarray(l) / 2)) for l in (logsnr_t, logsnr_s)
    )
    shrunk = np.cos(angle_t) / np.cos(angle_s)
    added = np.sin(angle_t) ** 2 - (shrunk * np.sin(angle_s)) ** 2
    precision = shrunk**2 / added + 1 / np.sin(angle_s) ** 2
    weighted = shrunk * z_t[:, 0] / added
    weighted += np.cos(angle_s) * x[:, 0] / np.sin(angle_s) ** 2
    np.testing.assert_allclose((low + high) / 2, weighted / precision, rtol=1e-9)
    np.testing.assert_allclose(((high - low) / 2) ** 2, 1 / precision, rtol=1e-9)


def test_the_networks_look_at_the_ancestral_step_of_the_student(float64):
    """The noise and the times of training are those of the sampler."""
    draws = losses.draw(jax.random.key(3), 8)
    x = jnp.clip(jax.random.normal(jax.random.key(4), (8, 2)), -1, 1)
    asked = []

    def spy(z, logsnr):
        asked.append((z, logsnr))
        return DATA.denoise(z, logsnr)

    moment_matching_loss(
        spy,
        spy,
        spy,
        x,
        draws,
        schedule=COSINE,
        weight=losses.snr,
        num_steps=2,
        takes_noise=True,
    )
    (z_t, logsnr_t), *others = asked
    step = samplers.Step(logsnr_t, others[0][1], draws.normal("noise", (2,)))
    z_s = samplers.ancestral_step(DATA.denoise(z_t, logsnr_t), step, interpolation=0.0)
    assert len(others) == 2
    for z, logsnr in others:
        np.testing.assert_allclose(z, z_s, atol=1e-9)
        np.testing.assert_array_equal(logsnr, step.logsnr_s)
    assert np.all(step.logsnr_s > logsnr_t)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 64])
def test_an_update_begins_on_the_samplers_grid_and_ends_within_its_step(num_steps):
    t, s = times(losses.draw(jax.random.key(0), 4000), num_steps, takes_noise=True)
    i = np.asarray(t) * num_steps
    np.testing.assert_allclose(i, np.round(i), atol=1e-4)
    assert set(np.round(i)) == set(range(1, num_steps + 1))
    back = i - np.asarray(s) * num_steps
    assert back.min() > -1e-4
    assert back.max() < 1.0 + 1e-4
    assert np.histogram(back, 4, (0, 1))[0] == pytest.approx(1000, abs=120)


# Gradients that must not mix, and values.


class _Silent(Signs):
    """Draws whose normals are 0."""

    def normal(self, name, shape):
        return jnp.zeros_like(super().normal(name, shape))


def test_the_auxiliary_is_trained_on_samples_alone():
    """One that predicts them exactly is at rest, however far from the teacher."""
    draws = signs(1, 1, share=0.5)
    silent = _Silent(draws.u, draws.key, share=draws.share)
    one = jnp.ones((16, 1))

    def student(z_t, logsnr_t):
        return Prediction(one, 0 * one, 0 * one)

    def loss(theta):
        # Without noise and at log-SNR 0, z_s = alpha x~ and v~ = -sigma x~ = -z_s.
        return moment_matching_loss(
            student,
            lambda z, logsnr: predict(theta - z, z, logsnr, "v"),
            DATA.denoise,
            one,
            silent,
            schedule=lambda t: 40.0 * (0.5 - t),
            weight=losses.snr_plus_one,
            num_steps=1,
        )["loss"].mean()

    value, gradient = jax.value_and_grad(loss)(0.0)
    assert value > 0.01
    assert gradient == 0.0
    assert jax.grad(loss)(0.1) != 0.0


def test_a_student_whose_auxiliary_is_its_teacher_is_at_rest():
    """As at the start of a run: what trains the auxiliary is not the student's."""
    draws = losses.draw(jax.random.key(0), 64)

    def loss(theta, auxiliary):
        return moment_matching_loss(
            lambda z, logsnr: DATA.denoise(theta * z, logsnr),
            auxiliary,
            DATA.denoise,
            jnp.zeros((64, 3)),
            draws,
            schedule=COSINE,
            weight=losses.snr_trunc,
            num_steps=4,
        )["loss"].mean()

    assert jax.grad(loss)(1.1, DATA.denoise) == 0.0
    assert jax.grad(loss)(1.1, GaussianData(0.1, 0.3).denoise) != 0.0


def test_the_teacher_has_no_gradient():
    draws = losses.draw(jax.random.key(0), 64)

    def loss(theta):
        return _loss_of_batch(
            draws, teacher=lambda z, logsnr: DATA.denoise(theta * z, logsnr)
        )["loss"].mean()

    assert jax.grad(loss)(1.1) == 0.0
    assert loss(1.1) != loss(1.2)


def _loss_of_batch(draws, **options):
    options = {
        "student": MixtureData().denoise,
        "auxiliary": GaussianData(0.1, 0.3).denoise,
        "teacher": DATA.denoise,
        "weight": losses.snr_trunc,
        "num_steps": 4,
        **options,
    }
    x = jnp.linspace(-1.0, 1.0, 3 * len(draws.u)).reshape(-1, 3)
    return moment_matching_loss(x=x, draws=draws, schedule=COSINE, **options)


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_reported_loss_is_the_weighted_gap(name):
    draws = losses.draw(jax.random.key(0), 32)
    found = _loss_of_batch(draws, weight=WEIGHTS[name])
    _, s = times(draws, 4)
    expected = WEIGHTS[name](COSINE(s)) * found["gap"]
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)
    same = _loss_of_batch(draws, weight=WEIGHTS[name], auxiliary=DATA.denoise)
    np.testing.assert_array_equal(same["loss"], 0.0)
    assert float(same["auxiliary_loss"].min()) > 0.0


@pytest.mark.parametrize("name", WEIGHTS)
def test_all_is_finite_at_the_ends_of_time_in_float32(name):
    """From t = 1 to s = 0: log-SNRs of -20 and 20."""
    draws = signs(1, 1, share=0.0)

    def values(line):
        student, auxiliary = _affine(*line[0]), _affine(*line[1])
        return _values(student, auxiliary, draws, 1, weight=WEIGHTS[name])

    line = jnp.array([[0.9, 0.1], [0.2, -0.1]])
    gradient = jax.grad(lambda line: values(line)["loss"].mean())(line)
    for leaf in jax.tree.leaves((values(line), gradient)):
        assert leaf.dtype == jnp.float32
        assert bool(jnp.isfinite(leaf).all())
        assert float(jnp.abs(leaf).max()) < 100.0


def test_all_students_share_one_program():
    draws, traces = losses.draw(jax.random.key(0), 16), []

    @jax.jit
    def traced(num_steps):
        traces.append(num_steps)
        return _loss_of_batch(draws, num_steps=num_steps)

    for num_steps in (8, 4, 2, 1):
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
            traced(num_steps),
            _loss_of_batch(draws, num_steps=num_steps),
        )
    assert len(traces) == 1


# Phases.


def test_every_student_is_taught_by_the_first_teacher():
    course = Course(1, 1, students=(8, 2, 1), start="previous")
    assert METHOD.phases(course) == [Phase(n, "teacher", "previous") for n in (8, 2, 1)]


@pytest.mark.parametrize("students", [(), (1, 2), (4, 4), (8, 1, 2)])
def test_students_that_do_not_fall_are_refused(students):
    with pytest.raises(ValueError, match=r"distill\.students=.* numbers of steps that"):
        one_by_one(Course(1, 1, students=students))


# Noise as an input of the student.


def _unet(**options):
    return UNet(
        levels=(Level(features=8, num_blocks=1),),
        out_channels=1,
        emb_features=8,
        mid_heads=0,
        groups=4,
        **options,
    )


def _model(net, **options):
    return Model(net, "v", COSINE, (4, 4, 1), 0, Pixels(), **options)


@pytest.fixture(scope="module")
def near():
    """A teacher that has learnt something, and the student that begins near it."""
    teacher, student = (
        _model(_unet()),
        _model(_unet(noise_input=True), takes_noise=True),
    )
    params = teacher.init(jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape), params
    )
    return teacher, params, student, with_weights_of(student, params, seed=0)


@pytest.mark.slow
def test_a_student_begins_near_its_teacher_and_depends_on_its_noise(near):
    teacher, params, student, own = near
    z_t, *noises = jax.random.normal(jax.random.key(2), (3, 4, 4, 4, 1))
    logsnr = jnp.full(4, 0.3)
    expected = teacher.denoiser(params)(z_t, logsnr).v
    first, second = (
        student.denoiser(own, noise=noise)(z_t, logsnr).v for noise in noises
    )
    size = float(jnp.std(expected))
    assert 1e-3 * size < float(jnp.std(first - second)) < 0.5 * size
    assert 1e-3 * size < float(jnp.std(first - expected)) < 0.5 * size


@pytest.mark.slow
def test_the_noise_kernel_has_a_gradient_at_the_start(near):
    """It would have none at 0, where noise and its opposite cancel."""
    _, _, student, own = near
    z_t, noise = jax.random.normal(jax.random.key(2), (2, 8, 4, 4, 1))
    both = jnp.concatenate([z_t, z_t])
    opposite = jnp.concatenate([noise, -noise])

    def loss(kernel):
        params = {**own, "noise_in": {"kernel": kernel}}
        denoise = student.denoiser(params, noise=opposite)
        return jnp.square(denoise(both, jnp.full(16, 0.3)).x).mean()

    kernel = own["noise_in"]["kernel"]
    of_start, of_zero = (
        float(jnp.abs(jax.grad(loss)(scale * kernel)).max()) for scale in (1.0, 0.0)
    )
    assert of_start > 1e-3
    assert of_zero < 1e-6


@pytest.mark.slow
def test_a_student_that_takes_noise_is_not_asked_without(near):
    _, _, student, own = near
    with pytest.raises(ValueError, match="takes noise beside z_t"):
        student.denoiser(own)
    image, one = jnp.zeros((1, 4, 4, 1)), jnp.zeros(1)
    with pytest.raises(ValueError, match="noise_input=True got none"):
        _unet(noise_input=True).apply({"params": own}, image, one)
    with pytest.raises(ValueError, match="noise_input=False got noise"):
        _unet().init(jax.random.key(0), image, one, noise=image)


def _noises(keys, num_steps):
    """The noise that a network is given in each step, and that of the stepper."""

    def denoiser_of(noise):
        return lambda z_t, logsnr_t: Prediction(noise, noise, noise)

    def stepper(prediction, step):
        return 0.5 * (prediction.x + step.noise)

    z_1 = jnp.zeros((len(keys), 5))
    return samplers.sample_trajectory(
        DATA.denoise,
        z_1,
        schedule=COSINE,
        num_steps=num_steps,
        predictor=samplers.with_noise(denoiser_of),
        stepper=stepper,
        keys=keys,
    )


def test_every_step_and_every_example_has_other_noise_and_the_same_for_its_key():
    keys = jax.random.split(jax.random.key(0), 400)
    path = _noises(keys, 3)
    given = np.asarray(path.x_hat)
    of_stepper = 2 * np.asarray(path.z_s) - given
    columns = [*given.reshape(3, -1), *of_stepper.reshape(3, -1)]
    assert np.abs(np.corrcoef(columns) - np.eye(6)).max() < 0.08
    assert np.abs(np.corrcoef(given[0].T) - np.eye(5)).max() < 0.2
    assert given.std() == pytest.approx(1.0, abs=0.05)
    np.testing.assert_array_equal(_noises(keys[7:9], 3).x_hat, given[:, 7:9])


def test_noise_needs_keys():
    predictor, z_1 = samplers.with_noise(lambda noise: DATA.denoise), jnp.zeros((1, 1))
    with pytest.raises(ValueError, match="needs keys"):
        samplers.sample(
            DATA.denoise, z_1, schedule=COSINE, num_steps=1, predictor=predictor
        )


class _Noisy(nn.Module):
    """v = noise: the least network that takes it."""

    @nn.compact
    def __call__(self, z_t, logsnr_t, label=None, *, noise, train=False):
        del logsnr_t, label, train
        return self.param("scale", nn.initializers.ones, ()) * noise + 0.0 * z_t


def test_image_number_i_is_the_same_in_every_batch():
    model = _model(_Noisy(), takes_noise=True)
    model = dataclasses.replace(model, codec=Latents(1, 1.0))
    sampler = Sampler(
        model, samplers.at_start, lambda f: samplers.ddim_step, 0.0, (), PLAIN
    )
    params = model.init(jax.random.key(0))

    def images(*index):
        start = sampler.start(jnp.array(index), jnp.int32(5))
        return np.asarray(sampler.draw(params, start, request(3)))

    whole = images(0, 1, 2, 3, 4)
    np.testing.assert_array_equal(images(3)[0], whole[3])
    np.testing.assert_array_equal(images(4, 1), whole[[4, 1]])
    assert np.abs(np.diff(whole, axis=0)).min(axis=0).max() > 0.01
    # At t = 1, where x_hat is -v: the noise given is not that of z_1.
    start = sampler.start(jnp.arange(4), jnp.int32(5))
    one_step = -np.asarray(sampler.draw(params, start, request(1)))
    assert abs(np.corrcoef(one_step.ravel(), start.z_1.ravel())[0, 1]) < 0.4


@pytest.mark.parametrize("num_steps", [2, 5])
def test_without_noise_a_student_is_trained_at_all_times(num_steps):
    t, s = times(losses.draw(jax.random.key(0), 8000), num_steps)
    assert float(s.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(t.max()) == 1.0
    gap = np.asarray(t - s) * num_steps
    assert gap.min() >= 0.0
    assert gap.max() <= 1.0 + 1e-5
    assert len(np.unique(np.asarray(t))) > 1000


def test_a_student_of_one_step_is_trained_where_it_is_asked():
    t, s = times(losses.draw(jax.random.key(0), 4000), 1)
    assert set(np.asarray(t)) == {1.0}
    assert float(s.mean()) == pytest.approx(0.5, abs=0.03)
