"""Stage one and both ladders, against two classes whose guided flow is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from one_pixel import Net, descend
from oracles import GaussianData, MixtureData
from vdiff_jax import diffusion, losses, samplers, schedules
from vdiff_jax.distillation.guided import decoding_stochastically, imitation_loss
from vdiff_jax.distillation.method import ladder
from vdiff_jax.distillation.progressive import decoding, distillation_loss
from vdiff_jax.guidance import NO_CLASS, Guidance, classifier_free
from vdiff_jax.types import Condition

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("optimized")]

SCHEDULE = schedules.cosine()
CLASSES = GaussianData(-0.5, 0.2), GaussianData(0.5, 0.2)
EVERYTHING = MixtureData((-0.5, 0.5), (0.2, 0.2), (0.5, 0.5))
W_MAX = 4.0
UPDATES, BATCH_SIZE = 3000, 512


def _denoiser_of(condition):
    """The exact denoiser of two classes, or of their mixture."""

    def denoise(z_t, logsnr_t):
        low, high, both = (
            data.denoise(z_t, logsnr_t).x for data in (*CLASSES, EVERYTHING)
        )
        which = diffusion.expand_like(condition.label, z_t)
        x = jnp.where(which == NO_CLASS, both, jnp.where(which > 0, high, low))
        return diffusion.predict(x, z_t, logsnr_t, "x")

    return denoise


def _guided(label, w):
    return classifier_free(_denoiser_of, Condition(label), w, Guidance())


def _student(params, label, w):
    return diffusion.denoiser(
        lambda *inputs: Net().apply(params, *inputs, *_told(label, w)), "v"
    )


def _told(label, w):
    return label.astype(jnp.float32), w / W_MAX


def _fit(params, loss_of, key):
    """Trains on what `loss_of(params, x, draws, label, w)` gives for each example."""

    def loss(params, key):
        noise, classes, draw = jax.random.split(key, 3)
        label = jax.random.bernoulli(classes, shape=(BATCH_SIZE,)).astype(jnp.int32)
        x = 0.2 * jax.random.normal(noise, (BATCH_SIZE, 1))
        x += (label - 0.5)[:, None]
        draws = losses.draw(draw, BATCH_SIZE, stratified=True)
        return loss_of(params, x, draws, label, W_MAX * draws.uniform("w")).mean()

    return descend(loss, params, UPDATES, key)


def _options(plan=None, num_steps=None):
    options = {"schedule": SCHEDULE, "weight": losses.snr_trunc}
    return (
        options if plan is None else {**options, "plan": plan, "num_steps": num_steps}
    )


@pytest.fixture(scope="module")
def stage_one():
    one = jnp.zeros(1)
    params = Net().init(jax.random.key(0), one[:, None], one, one, one)

    def loss_of(params, x, draws, label, w):
        student, teacher = _student(params, label, w), _guided(label, w)
        return imitation_loss(student, teacher, x, draws, **_options())

    return jax.jit(lambda params, key: _fit(params, loss_of, key))(
        params, jax.random.key(1)
    )


def _ladder(params, plan):
    """The student of 8 steps of a ladder that starts at 32."""

    def halve(params, num_steps, key):
        def loss_of(own, x, draws, label, w):
            student, teacher = _student(own, label, w), _student(params, label, w)
            return distillation_loss(
                student, teacher, x, draws, **_options(plan, num_steps)
            )

        return _fit(params, loss_of, key)

    step = jax.jit(halve)
    for num_steps in ladder(32, 8):
        params = step(params, num_steps, jax.random.key(num_steps))
    return params


def _drawn(denoise, num_steps, stepper=samplers.ddim_step):
    z_1 = jax.random.normal(jax.random.key(9), (4096, 1))
    keys = jax.random.split(jax.random.key(8), 4096)
    x = samplers.sample(
        denoise, z_1, schedule=SCHEDULE, num_steps=num_steps, stepper=stepper, keys=keys
    )
    return np.asarray(x)[:, 0]


def _jumped(denoise, num_steps, substeps=64):
    """The stochastic sampler, with jumps of two steps that the flow itself makes."""
    end = schedules.ending_in_data(SCHEDULE)
    z = jax.random.normal(jax.random.key(9), (4096, 1))

    @jax.jit
    def jump(z, t, r):
        def advance(k, z):
            times = t + (r - t) * jnp.stack([k, k + 1]) / substeps
            at, to = (jnp.broadcast_to(end(time), 4096) for time in times)
            return samplers.ddim_step(denoise(z, at), samplers.Step(at, to))

        return jax.lax.fori_loop(0, substeps, advance, z)

    for i in range(num_steps, 0, -1):
        t, s, r = (jnp.float32(max(i - back, 0) / num_steps) for back in (0, 1, 2))
        z = jump(z, t, r)
        (alpha_s, sigma_s), (alpha_r, sigma_r) = (
            diffusion.alpha_sigma(end(time)) for time in (s, r)
        )
        kept = alpha_s / alpha_r
        noise = jax.random.normal(jax.random.key(i), z.shape)
        z = kept * z + jnp.sqrt(sigma_s**2 - (kept * sigma_r) ** 2) * noise
    return np.asarray(z)[:, 0]


@pytest.mark.parametrize("ladder", ["deterministic", "stochastic"])
def test_eight_steps_of_a_student_end_where_the_guided_teacher_ends(stage_one, ladder):
    plan, stepper = {
        "deterministic": (decoding, samplers.ddim_step),
        "stochastic": (
            decoding_stochastically,
            samplers.stochastic_step,
        ),
    }[ladder]
    params = _ladder(stage_one, plan)
    label = jnp.ones(4096, jnp.int32)
    found = {}
    for strength in (0.0, 1.0, 4.0):
        w = jnp.full(4096, strength)
        # Where guidance bends the flow, adding noise on the way ends elsewhere.
        by_teacher = (
            _drawn(_guided(label, w), 512)
            if ladder == "deterministic"
            else _jumped(_guided(label, w), 8)
        )
        by_student = _drawn(_student(params, label, w), 8, stepper)
        found[strength] = np.abs(np.sort(by_teacher) - np.sort(by_student)).mean()
    print(ladder, found)
    # Quantiles, in units of a picture; the classes are 1 apart and 0.2 wide.
    limit = 0.02 if ladder == "deterministic" else 0.05
    assert all(distance < limit for distance in found.values()), found


def test_between_strengths_the_student_interpolates(stage_one):
    """What it says at w, it says a little more of at w + 0.1, as its teacher does."""
    z_t = jnp.linspace(-1.0, 1.0, 41)[:, None]
    logsnr_t, label = jnp.full(41, -1.0), jnp.ones(41, jnp.int32)
    strengths = jnp.linspace(0.0, W_MAX, 41)
    by_student, by_teacher = (
        np.stack([
            np.asarray(denoiser_of(label, jnp.full(41, w))(z_t, logsnr_t).x)
            for w in strengths
        ])
        for denoiser_of in (lambda *how: _student(stage_one, *how), _guided)
    )  # fmt: skip
    assert np.all(np.diff(by_teacher, axis=0) >= -1e-5)
    assert np.all(np.diff(by_student, axis=0) >= -5e-3)
    np.testing.assert_allclose(by_student, by_teacher, atol=0.1)
