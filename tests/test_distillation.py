import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import mixture
from oracles import GaussianData
from vdiff_jax import diffusion, losses, samplers, schedules
from vdiff_jax.distillation.guided import decoding_stochastically, encoding
from vdiff_jax.distillation.method import ladder
from vdiff_jax.distillation.progressive import (
    decoding,
    distillation_loss,
    two_step_target,
)

SCHEDULES = {
    "cosine": schedules.cosine(),
    "linear_beta": schedules.linear_beta(),
}
POWERS = [1, 2, 4, 16, 64, 512, 1024, 4096]


def _grid(schedule, num_steps):
    """log-SNR at t, in the middle and at s, for at most 64 of the N steps."""
    i = np.unique(np.linspace(1, num_steps, 64).round()).astype(np.float32)
    end = schedules.ending_in_data(schedule)
    return i, [end(jnp.asarray((i - back) / num_steps)) for back in (0.0, 0.5, 1.0)]


def _curved_teacher(z_t, logsnr_t):
    """A teacher that is wrong, in a way that differs between z_t and z_mid."""
    x = jnp.tanh(z_t) * 0.9 + 0.1 * jnp.sin(diffusion.expand_like(logsnr_t, z_t))
    return diffusion.predict(x, z_t, logsnr_t, "x")


def _two_steps(teacher, z_t, logsnr_t, logsnr_mid, logsnr_s):
    z_mid = samplers.ddim_step(
        teacher(z_t, logsnr_t), samplers.Step(logsnr_t, logsnr_mid)
    )
    second = teacher(z_mid, logsnr_mid)
    return samplers.ddim_step(second, samplers.Step(logsnr_mid, logsnr_s)), second


@pytest.mark.parametrize(
    ("name", "num_steps"),
    [("cosine", n) for n in POWERS] + [("linear_beta", n) for n in (1, 4, 125, 500)],
)
def test_one_student_step_to_the_target_lands_where_two_teacher_steps_land(
    name, num_steps
):
    i, (lt, lm, ls) = _grid(SCHEDULES[name], num_steps)
    z_t = jax.random.normal(jax.random.key(0), (len(i), 4, 4, 3))
    target = two_step_target(
        _curved_teacher, _curved_teacher, z_t, logsnr_t=lt, logsnr_mid=lm, logsnr_s=ls
    )
    landed = samplers.ddim_step(target, samplers.Step(lt, ls))
    expected, _ = _two_steps(_curved_teacher, z_t, lt, lm, ls)
    np.testing.assert_allclose(landed, expected, atol=5e-6)


@pytest.mark.parametrize("num_steps", POWERS)
def test_the_target_keeps_its_digits_in_float32(num_steps):
    # In float64, by the equation of the paper: x~ = (z_s - r z_t) / (alpha_s - r
    # alpha_t) with r = sigma_s / sigma_t. In float32 that loses three digits at 4096.
    span = np.pi / 2 - 2 * np.arctan(np.exp(-10.0))
    i, logsnrs = _grid(SCHEDULES["cosine"], num_steps)
    angles = [span * (i - b) / num_steps + np.arctan(np.exp(-10)) for b in (0, 0.5, 1)]
    angles[2] = np.where(i == 1, 0.0, angles[2])
    z_t = np.random.default_rng(0).normal(size=len(i))
    c2 = 0.25

    def x_hat(z, angle):
        a, s = np.cos(angle), np.sin(angle)
        return c2 * a * z / (c2 * a**2 + s**2)

    def ddim(z, at, to):
        x = x_hat(z, at)
        eps = (z - np.cos(at) * x) / np.sin(at)
        return np.cos(to) * x + np.sin(to) * eps

    z_s = ddim(ddim(z_t, angles[0], angles[1]), angles[1], angles[2])
    r = np.sin(angles[2]) / np.sin(angles[0])
    x_tilde = (z_s - r * z_t) / (np.cos(angles[2]) - r * np.cos(angles[0]))

    z_t = jnp.asarray(z_t, jnp.float32)[:, None]
    lt, lm, ls = logsnrs

    def teacher(z, logsnr):  # exact, and as a v: x would lose digits near t = 0
        alpha, sigma = diffusion.alpha_sigma(diffusion.expand_like(logsnr, z))
        v = alpha * sigma * (1.0 - c2) * z / (c2 * alpha**2 + sigma**2)
        return diffusion.predict(v, z, logsnr, "v")

    target = two_step_target(
        teacher, teacher, z_t, logsnr_t=lt, logsnr_mid=lm, logsnr_s=ls
    )
    np.testing.assert_allclose(target.x[:, 0], x_tilde, atol=3e-6)


@pytest.mark.parametrize("num_steps", [1, 3, 64, 4096])
def test_a_teacher_of_one_picture_teaches_that_picture(num_steps):
    data = GaussianData(mean=-0.35, std=0.0)
    i, (lt, lm, ls) = _grid(SCHEDULES["cosine"], num_steps)
    z_t = jax.random.normal(jax.random.key(0), (len(i), 3))
    target = two_step_target(
        data.denoise, data.denoise, z_t, logsnr_t=lt, logsnr_mid=lm, logsnr_s=ls
    )
    np.testing.assert_allclose(target.x, -0.35, atol=2e-4)


@pytest.mark.parametrize("num_steps", [1, 4, 1024])
def test_at_the_last_step_the_target_is_the_teachers_second_x_hat(num_steps):
    lt, lm, ls = (
        schedules.ending_in_data(SCHEDULES["cosine"])(jnp.full(8, t / num_steps))
        for t in (1.0, 0.5, 0.0)
    )
    z_t = jax.random.normal(jax.random.key(0), (8, 5))
    target = two_step_target(
        _curved_teacher, _curved_teacher, z_t, logsnr_t=lt, logsnr_mid=lm, logsnr_s=ls
    )
    _, second = _two_steps(_curved_teacher, z_t, lt, lm, ls)
    np.testing.assert_allclose(target.x, second.x, atol=2e-6)
    assert all(bool(jnp.isfinite(form).all()) for form in target)


@pytest.mark.parametrize("kind", ["x", "eps", "v", "both"])
def test_a_student_of_any_output_that_knows_the_target_has_no_loss(kind):
    """The target serves every output kind, through the same loss."""
    num_steps, schedule = 4, SCHEDULES["cosine"]
    draws = losses.draw(jax.random.key(0), 32)
    x = jnp.clip(jax.random.normal(jax.random.key(1), (32, 4, 4, 3)), -1, 1)

    def know_all(z_t, logsnr_t):
        i = losses.step_index(draws.u, num_steps)
        end = schedules.ending_in_data(schedule)
        target = two_step_target(
            _curved_teacher,
            _curved_teacher,
            z_t,
            logsnr_t=logsnr_t,
            logsnr_mid=end((i - 0.5) / num_steps),
            logsnr_s=end((i - 1.0) / num_steps),
        )
        both = jnp.concatenate([target.x, target.eps], axis=-1)
        output = {"x": target.x, "eps": target.eps, "v": target.v, "both": both}[kind]
        return output

    def loss(student):
        return distillation_loss(
            student,
            _curved_teacher,
            x,
            draws,
            schedule=schedule,
            weight=losses.snr_trunc,
            num_steps=num_steps,
        )

    assert float(loss(diffusion.denoiser(know_all, kind)).max()) < 1e-6
    assert float(loss(_curved_teacher).mean()) > 1e-4


def test_a_traced_number_of_steps_gives_the_same_loss():
    draws = losses.draw(jax.random.key(0), 16)

    def loss(num_steps):
        return distillation_loss(
            GaussianData(0.1, 0.4).denoise,
            _curved_teacher,
            jnp.zeros((16, 4, 4, 1)),
            draws,
            schedule=SCHEDULES["cosine"],
            weight=losses.snr_trunc,
            num_steps=num_steps,
        )

    for num_steps in (1, 8, 512):
        np.testing.assert_allclose(jax.jit(loss)(num_steps), loss(num_steps), rtol=1e-4)


def test_distilling_the_exact_flow_of_gaussian_data_composes():
    """Replace the student by its target, stage by stage: the ladder keeps z_0."""
    data, schedule = GaussianData(), SCHEDULES["cosine"]
    z_1 = jax.random.normal(jax.random.key(0), (16, 3))
    by_teacher = samplers.sample(data.denoise, z_1, schedule=schedule, num_steps=8)

    def student_of(teacher, num_steps):
        end = schedules.ending_in_data(schedule)

        def denoise(z_t, logsnr_t):
            t = jnp.arctan(jnp.exp(-logsnr_t / 2)) - np.arctan(np.exp(-10.0))
            i = jnp.round(t / (np.pi / 2 - 2 * np.arctan(np.exp(-10.0))) * num_steps)
            return two_step_target(
                teacher,
                teacher,
                z_t,
                logsnr_t=logsnr_t,
                logsnr_mid=end((i - 0.5) / num_steps),
                logsnr_s=end((i - 1.0) / num_steps),
            )

        return denoise

    student = data.denoise
    for num_steps in ladder(8, 1):
        student = student_of(student, num_steps)
        by_student = samplers.sample(
            student, z_1, schedule=schedule, num_steps=num_steps
        )
        np.testing.assert_allclose(by_student, by_teacher, atol=1e-5)


def test_the_ladder_halves_to_the_last_step_inclusive():
    assert ladder(128, 1) == [64, 32, 16, 8, 4, 2, 1]
    assert ladder(12, 3) == [6, 3]
    assert len(ladder(8192, 1)) == 13


@pytest.mark.parametrize(
    ("start", "end"), [(100, 1), (128, 3), (4, 4), (2, 4), (1, 1), (8, 0), (0, 0)]
)
def test_a_ladder_that_does_not_halve_is_refused(start, end):
    with pytest.raises(ValueError, match=f"start_steps={start} does not arrive"):
        ladder(start, end)


@pytest.mark.long
def test_a_student_beats_better_solvers_of_the_exact_flow_in_few_evaluations():
    for row in mixture.table(updates=600, batch_size=256):
        evaluations, of_student, *of_solvers = row.values()
        if evaluations <= 8:
            margin = 0.5 if evaluations <= 4 else 1.0
            assert of_student < margin * min(of_solvers)


PLANS = {
    "decoding": decoding,
    "stochastic": decoding_stochastically,
    "encoding": encoding,
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("num_steps", [1, 2, 8, 1024])
def test_every_plan_lands_where_its_teacher_lands(name, num_steps):
    schedule = SCHEDULES["cosine"]
    times = PLANS[name]((jnp.arange(32) + 0.5) / 32, num_steps)
    lt, lm = schedule(times.t), schedule(times.mid)
    ls = schedules.ending_in_data(schedule)(times.s)
    z_t = jax.random.normal(jax.random.key(0), (32, 4, 4, 3))
    target = two_step_target(
        _curved_teacher, _curved_teacher, z_t, logsnr_t=lt, logsnr_mid=lm, logsnr_s=ls
    )
    landed = samplers.ddim_step(target, samplers.Step(lt, ls))
    two, _ = _two_steps(_curved_teacher, z_t, lt, lm, ls)
    one = samplers.ddim_step(_curved_teacher(z_t, lt), samplers.Step(lt, ls))
    single = np.asarray(times.mid == times.t)
    expected = np.where(single[:, None, None, None], one, two)
    # Near t = 0 the noise that this teacher sees is in the thousands.
    np.testing.assert_allclose(landed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 16])
def test_the_stochastic_plan_uses_only_what_its_teacher_was_taught(num_steps):
    """A student of 2 N steps knows jumps of 1 / N, from the times k / (2 N)."""
    u = (jnp.arange(64) + 0.5) / 64
    t, mid, s = (np.asarray(v) for v in decoding_stochastically(u, num_steps))
    at_one = np.isclose(t, 1.0 / num_steps)
    assert at_one.any()
    np.testing.assert_array_equal(mid[at_one], t[at_one])  # a single jump
    np.testing.assert_allclose((t - mid)[~at_one], 1.0 / num_steps, atol=1e-6)
    np.testing.assert_allclose(mid - s, 1.0 / num_steps, atol=1e-6)
    of_teacher = np.arange(1, 2 * num_steps + 1) / (2 * num_steps)
    for asked in (t, mid):
        assert all(np.isclose(of_teacher, one).any() for one in asked)


def test_an_encoding_student_undoes_a_decoding_one():
    """Exact data: one step up to the target, and one down to the other's, is home."""
    data, schedule, num_steps = GaussianData(), SCHEDULES["cosine"], 64
    u = (jnp.arange(64) + 0.5) / 64
    up, down = encoding(u, num_steps), decoding(u, num_steps)
    end = schedules.ending_in_data(schedule)
    lt, lm, ls = schedule(up.t), schedule(up.mid), schedule(up.s)
    z_t = data.flow(jnp.linspace(-2, 2, 64), jnp.float32(-20.0), lt)[:, None]
    there = two_step_target(
        data.denoise, data.denoise, z_t, logsnr_t=lt, logsnr_mid=lm, logsnr_s=ls
    )
    z_s = samplers.ddim_step(there, samplers.Step(lt, ls))
    back = two_step_target(
        data.denoise,
        data.denoise,
        z_s,
        logsnr_t=ls,
        logsnr_mid=schedule(down.mid),
        logsnr_s=end(up.t),
    )
    home = samplers.ddim_step(back, samplers.Step(ls, end(up.t)))
    np.testing.assert_allclose(home, z_t, atol=2e-3)
    assert float(jnp.abs(z_s - z_t).max()) > 0.01
