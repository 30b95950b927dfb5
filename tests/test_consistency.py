"""Multistep consistency, on data whose flow is known in closed form."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import GaussianData, MixtureData, signs
from vdiff_jax import losses, samplers, schedules
from vdiff_jax.diffusion import predict
from vdiff_jax.distillation import consistency, teacher_step
from vdiff_jax.distillation.consistency import (
    consistency_loss,
    phases,
    segments,
    teacher_steps,
)
from vdiff_jax.distillation.guided import imitation_loss
from vdiff_jax.distillation.method import Course, Denoisers, Phase, Setting
from vdiff_jax.distillation.progressive import decoding, two_step_target

DATA, MIXTURE, COSINE = GaussianData(), MixtureData(), schedules.cosine()
END = schedules.ending_in_data(COSINE)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def _other(z_t, logsnr_t):
    """A network that has nothing to do with the teacher."""
    v = jnp.sin(2.0 * z_t) + 0.1 * logsnr_t[:, None]
    return predict(v, z_t, logsnr_t, "v")


def _draws(j, num_teacher_steps):
    """Draws for which t is j / K."""
    j = jnp.asarray(j)
    draws = losses.draw(jax.random.key(0), len(j))
    return dataclasses.replace(draws, u=(j - 0.5) / num_teacher_steps)


def _loss(student, draws, num_steps, num_teacher_steps, **options):
    options = {
        "teacher": MIXTURE.denoise,
        "reference": _other,
        "schedule": COSINE,
        "weight": losses.snr_trunc,
        **options,
    }
    x = jnp.linspace(-1.0, 1.0, 3 * len(draws.u)).reshape(-1, 3)
    return consistency_loss(
        student,
        x=x,
        draws=draws,
        num_steps=num_steps,
        num_teacher_steps=jnp.asarray(num_teacher_steps, jnp.int32),
        **options,
    )


# Times.

GRIDS = [(n, n * m) for n in range(1, 13) for m in (1, 2, 3, 5, 7, 8, 12)]


@pytest.mark.parametrize("how", ["plain", "compiled"])
def test_times_are_those_of_whole_numbers(optimized, how):
    """t = j / K; s is the last i / N below t, and mid is s itself just above it."""
    of = jax.jit(segments) if how == "compiled" else segments
    for num_steps, k in GRIDS:
        j = np.arange(1, k + 1)
        u = jnp.asarray((np.resize(j, 144) - 0.5) / k, jnp.float32)  # one program
        t, mid, s = (np.asarray(v)[:k] for v in of(u, num_steps, jnp.int32(k)))
        np.testing.assert_allclose(t * k, j, rtol=1e-6)
        np.testing.assert_allclose(mid * k, j - 1, rtol=1e-6)
        below = [
            max(i for i in range(num_steps) if i * k < each * num_steps) for each in j
        ]
        np.testing.assert_allclose(s * num_steps, below, rtol=1e-6)
        np.testing.assert_array_equal(s == mid, (j - 1) % (k // num_steps) == 0)
        assert np.all(s <= mid)
        assert np.all((s == 0) == (np.array(below) == 0))


@pytest.mark.parametrize(
    ("num_steps", "first", "last"),
    [(1, 64, 1280), (8, 64, 1280), (4, 12, 100), (3, 9, 9)],
)
def test_the_teachers_steps_grow_from_the_first_to_the_last(num_steps, first, last):
    at = [
        int(teacher_steps(num_steps, first, last, p)) for p in np.linspace(0.0, 1.0, 41)
    ]
    assert at[0] == first
    assert set(at[20:]) == {last}
    assert np.all(np.diff(at) >= 0)
    assert all(k % num_steps == 0 for k in at)
    middle = np.sqrt(first * last)  # half of the way on a log scale
    assert abs(at[10] - middle) <= num_steps / 2 + 1e-3


def test_all_students_and_all_numbers_of_teacher_steps_share_one_program():
    draws, traces = losses.draw(jax.random.key(0), 32), []

    def loss(num_steps, progress):
        k = teacher_steps(num_steps, 8, 64, progress)
        return _loss(_other, draws, num_steps, k, reference=DATA.denoise)

    @jax.jit
    def traced(num_steps, progress):
        traces.append(num_steps)
        return loss(num_steps, progress)

    for num_steps, progress in [(1, 0.0), (2, 0.2), (4, 0.3), (8, 1.0)]:
        np.testing.assert_allclose(
            traced(num_steps, progress), loss(num_steps, progress), rtol=1e-3, atol=1e-6
        )
    assert len(traces) == 1


# Targets.


def test_jumps_along_the_flow_compose(float64):
    """From t to mid, and from there to s: the jump from t to s."""
    t = jnp.array([1.0, 1.0, 0.9, 0.6, 0.5, 0.2, 1 / 64])
    mid = jnp.array([0.9, 0.5, 0.1, 0.55, 1 / 64, 0.1, 1 / 128])
    s = jnp.array([0.5, 0.0, 0.0, 0.5, 0.0, 0.05, 0.0])
    logsnr_t, logsnr_mid, logsnr_s = COSINE(t), COSINE(mid), END(s)
    z_t = jax.random.normal(jax.random.key(0), (7, 3))
    target = two_step_target(
        lambda z, logsnr: DATA.jump(z, logsnr, logsnr_mid),
        lambda z, logsnr: DATA.jump(z, logsnr, logsnr_s),
        z_t,
        logsnr_t=logsnr_t,
        logsnr_mid=logsnr_mid,
        logsnr_s=logsnr_s,
    )
    expected = DATA.jump(z_t, logsnr_t, logsnr_s)
    for form, of_flow in zip(target[::2], expected[::2], strict=True):  # x and v
        np.testing.assert_allclose(form, of_flow, rtol=1e-11, atol=1e-12)


def _flow_to_segments(num_steps):
    """The perfect student: from any t it jumps to where its segment begins."""

    def denoise(z_t, logsnr_t):
        i = jnp.ceil(_time(logsnr_t) * num_steps - 1e-6) - 1.0
        return DATA.jump(z_t, logsnr_t, END(i / num_steps))

    return denoise


def _time(logsnr):
    low, high = np.arctan(np.exp([-10.0, 10.0]))
    return (jnp.arctan(jnp.exp(-logsnr / 2)) - low) / (high - low)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_the_flow_is_at_rest_under_the_exact_teacher(float64, num_steps):
    """By the times of the loss itself: its student, reference and schedule agree."""
    flow, k = _flow_to_segments(num_steps), 16

    def exactly(denoise, z_t, step):
        del denoise
        # To t = 0 the teacher's own step goes to the data.
        return DATA.jump(z_t, step.logsnr_t, step.logsnr_s)

    draws = _draws(np.arange(1, k + 1), k)
    found = _loss(flow, draws, num_steps, k, reference=flow, step_of_teacher=exactly)
    np.testing.assert_allclose(found, 0.0, atol=1e-20)
    off = _loss(flow, draws, num_steps, k, reference=_other, step_of_teacher=exactly)
    nowhere_to_go = (np.arange(k) % (k // num_steps)) == 0
    np.testing.assert_array_equal(np.asarray(off) > 1e-3, ~nowhere_to_go)


@pytest.mark.parametrize(
    ("t", "num_steps"), [(0.75, 2), (0.5, 1), (1.0, 1), (0.375, 4)]
)
def test_a_short_ddim_step_of_the_teacher_is_wrong_in_second_order(
    float64, t, num_steps
):
    """Half as long a step, a quarter of the error of the target."""
    z_t = jnp.linspace(-2.0, 2.0, 9)[:, None]
    errors = []
    for k in (128, 256):
        u = jnp.full(9, t - 0.5 / k)
        at, mid, s = segments(u, num_steps, jnp.int32(k))
        np.testing.assert_array_equal(at, t)
        target = two_step_target(
            DATA.denoise,
            _flow_to_segments(num_steps),
            z_t,
            logsnr_t=COSINE(at),
            logsnr_mid=COSINE(mid),
            logsnr_s=END(s),
        )
        expected = DATA.jump(z_t, COSINE(at), END(s))
        errors.append(float(jnp.abs(target.v - expected.v).max()))
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.05)
    assert errors[0] > 1e-7


# Known cases.


@pytest.mark.parametrize("num_steps", [1, 2, 8])
def test_a_teacher_of_the_students_steps_is_imitated(num_steps):
    """K = N: the reference has no part in it."""
    draws = _draws(np.resize(np.arange(1, num_steps + 1), 16), num_steps)
    at = losses.step_index(draws.u, num_steps) / num_steps
    expected = imitation_loss(
        _other,
        MIXTURE.denoise,
        jnp.linspace(-1.0, 1.0, 48).reshape(-1, 3),
        dataclasses.replace(draws, u=at),
        schedule=COSINE,
        weight=losses.snr_plus_one,
    )
    found, other = (
        _loss(
            _other,
            draws,
            num_steps,
            num_steps,
            reference=reference,
            weight=losses.snr_plus_one,
        )
        for reference in (_other, MIXTURE.denoise)
    )
    np.testing.assert_array_equal(found, other)
    # The distance where imitation has its square.
    h = consistency.HUBER
    np.testing.assert_allclose((found + h) ** 2 - h**2, expected, rtol=1e-4)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 16])
def test_two_steps_in_a_segment_are_those_of_progressive_distillation(num_steps):
    """K = 2 N, the reference the teacher: bit for bit, where t is on the grid of N."""
    j = np.arange(1, 2 * num_steps + 1)
    draws = _draws(j, 2 * num_steps)
    even = jnp.asarray(j % 2 == 0)
    times = decoding((jnp.ceil(j / 2) - 0.5) / num_steps, num_steps)

    def student(z_t, logsnr_t):
        two = two_step_target(
            MIXTURE.denoise,
            MIXTURE.denoise,
            z_t,
            logsnr_t=logsnr_t,
            logsnr_mid=COSINE(times.mid),
            logsnr_s=END(times.s),
        )
        one = MIXTURE.denoise(z_t, logsnr_t)
        return jax.tree.map(lambda a, b: jnp.where(even[:, None], a, b), two, one)

    found = partial(
        _loss, draws=draws, num_steps=num_steps, num_teacher_steps=2 * num_steps
    )
    error = np.asarray(found(student, reference=MIXTURE.denoise))
    np.testing.assert_array_equal(error[j % 2 == 0], 0.0)
    np.testing.assert_allclose(error, 0.0, atol=1e-12)
    # Each of the two is not the other.
    other = found(MIXTURE.denoise, reference=MIXTURE.denoise)
    np.testing.assert_array_equal(np.asarray(other) > 1e-9, even)


@pytest.mark.parametrize("kind", ["heun", "addim"])
def test_the_last_step_of_the_teacher_returns_its_x_hat_whatever_its_kind(kind):
    x = jnp.full((4, 3), 0.7)
    steps = {"heun": teacher_step.heun, "addim": teacher_step.adjusted(x, 0.75)}
    found = _loss(
        MIXTURE.denoise, _draws(np.ones(4), 8), 2, 8, step_of_teacher=steps[kind]
    )
    np.testing.assert_allclose(found, 0.0, atol=1e-12)
    before = _loss(
        MIXTURE.denoise, _draws(np.full(4, 5), 8), 2, 8, step_of_teacher=steps[kind]
    )
    assert float(before.min()) > 1e-6


# What a student ends as.

K = 16


@jax.jit
def _learn(lines, j, num_steps):
    """The line of a linear student at t = j / K, given those below it.

    The square of the loss is a parabola in it, if all of it is a distance: one step of
    Newton's finds the minimum.
    """
    draws = signs(j, K)
    x = DATA.mean + DATA.std * draws.normal("x", (1,))

    def loss(line):
        distance = consistency_loss(
            lambda z, logsnr: predict(line[0] * z + line[1], z, logsnr, "v"),
            DATA.denoise,
            _by_table(lines),
            x,
            draws,
            schedule=COSINE,
            weight=losses.snr_plus_one,
            num_steps=num_steps,
            num_teacher_steps=jnp.asarray(K, jnp.int32),
        )
        return jnp.square(distance).mean()

    zero = jnp.zeros(2)
    line = -jnp.linalg.solve(jax.hessian(loss)(zero), jax.grad(loss)(zero))
    return lines.at[j].set(line)


def _by_table(lines):
    def denoise(z_t, logsnr_t):
        gain, offset = lines[jnp.round(_time(logsnr_t) * K).astype(int)].T
        return predict(gain[:, None] * z_t + offset[:, None], z_t, logsnr_t, "v")

    return denoise


def test_a_student_of_any_number_of_steps_ends_where_its_teacher_does(
    float64, monkeypatch
):
    """It composes the teacher's steps, and so makes their samples, not the data."""
    monkeypatch.setattr(consistency, "HUBER", 0.0)
    z_1 = jnp.linspace(-2.0, 2.0, 5)[:, None]
    of_teacher = samplers.sample(DATA.denoise, z_1, schedule=COSINE, num_steps=K)
    of_flow = DATA.flow(z_1, jnp.float64(-20.0), jnp.float64(np.inf))
    assert float(jnp.abs(of_teacher - of_flow).max()) > 0.01
    for num_steps in (1, 2, 4, 8, 16):
        lines = jnp.zeros((K + 1, 2))
        for j in range(1, K + 1):
            lines = _learn(lines, j, num_steps)
        found = samplers.sample(
            _by_table(lines), z_1, schedule=COSINE, num_steps=num_steps
        )
        np.testing.assert_allclose(found, of_teacher, atol=1e-10)


# Gradients, and the method.


def test_only_the_student_has_a_gradient():
    draws = losses.draw(jax.random.key(0), 64)

    def loss(scales):
        student, teacher, reference = (
            lambda z, logsnr, scale=scale: _other(scale * z, logsnr) for scale in scales
        )
        return _loss(student, draws, 2, 16, teacher=teacher, reference=reference).mean()

    scales = jnp.array([1.1, 0.9, 1.2])
    of_student, *others = jax.grad(loss)(scales)
    assert of_student != 0.0
    assert others == [0.0, 0.0]
    for n in range(3):
        assert loss(scales) != loss(scales.at[n].add(0.1))


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("k", [4, 64, 1280])
def test_all_is_finite_in_float32_and_no_example_outweighs_the_others(num_steps, k):
    """The least angle of a teacher's step is 0.001, the largest of a student's 1.6."""
    draws = _draws(np.unique(np.linspace(1, k, 64).round()), k)

    def loss(scale):
        return _loss(lambda z, logsnr: _other(scale * z, logsnr), draws, num_steps, k)

    found, slope = jax.jvp(loss, (1.1,), (1.0,))
    for values in (found, slope):
        assert bool(jnp.isfinite(values).all())
    assert float(found.max()) < 150.0


def test_the_method_asks_the_ema_to_go_on_and_the_teacher_for_steps_of_its_kind():
    """Its K is that of the progress of the run."""
    draws, num_steps = losses.draw(jax.random.key(0), 32), 2
    x = jnp.linspace(-1.0, 1.0, 96).reshape(-1, 3)
    ema = GaussianData(0.1, 0.3).denoise
    setting = Setting(
        COSINE,
        losses.snr,
        num_steps,
        progress=0.25,
        teacher_steps=(8, 32),
        teacher_step=lambda x, num_steps: teacher_step.adjusted(x, 0.5),
    )
    found = consistency.loss(
        Denoisers(student=_other, teacher=MIXTURE.denoise, ema=ema), x, draws, setting
    )
    expected = consistency_loss(
        _other,
        MIXTURE.denoise,
        ema,
        x,
        draws,
        schedule=COSINE,
        weight=losses.snr,
        num_steps=num_steps,
        num_teacher_steps=jnp.int32(16),
        step_of_teacher=teacher_step.adjusted(x, 0.5),
    )
    np.testing.assert_array_equal(found["loss"], expected)


# Phases.


def test_every_student_is_taught_by_the_first_teacher():
    course = Course(1, 1, students=(8, 4, 1), start="teacher", teacher_steps=(64, 1280))
    assert phases(course) == [Phase(n, "teacher", "teacher") for n in (8, 4, 1)]


@pytest.mark.parametrize(
    ("students", "first", "last"),
    [((3,), 64, 1280), ((8, 3), 9, 24), ((8,), 8, 12), ((8,), 8, 4), ((4,), 6, 8)],
)
def test_a_grid_that_a_student_does_not_divide_is_refused(students, first, last):
    course = Course(1, 1, students=students, teacher_steps=(first, last))
    with pytest.raises(ValueError, match=r"distill\.teacher_steps=.* multiples of"):
        phases(course)


@pytest.mark.parametrize("students", [(), (1, 2), (4, 4)])
def test_students_that_do_not_fall_are_refused(students):
    with pytest.raises(ValueError, match=r"distill\.students=.* numbers of steps that"):
        phases(Course(1, 1, students=students, teacher_steps=(8, 8)))
