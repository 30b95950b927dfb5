"""The sample stage: which pictures, from which noise, by which sampler."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import launch
import tiny
from vdiff_jax.distillation import progressive
from vdiff_jax.distillation.methods import METHODS
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.generation.sampler import request
from vdiff_jax.generation.trajectories import interpolation, slerp
from vdiff_jax.types import Condition

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(small_project):
    """What holds here holds whatever the network."""
    return small_project


@pytest.fixture
def workdir(project, tmp_path):
    """A project of one's own."""
    return shutil.copytree(project, tmp_path / "project")


def _drawn(workdir, stage="sample", **sample):
    shutil.rmtree(workdir / "sample", ignore_errors=True)
    config = tiny.small(stage, sample={"batch_size": 16, "steps": 2, **sample})
    launch.launch(config, workdir)
    paths = sorted((workdir / "sample").glob("[0-9]*.png"))
    return np.stack([np.asarray(PIL.Image.open(path)) for path in paths])


def test_pictures_are_the_same_whatever_the_batch(workdir):
    large, small = _drawn(workdir), _drawn(workdir, batch_size=2)
    assert large.shape == (5, 8, 8)
    assert np.abs(large.astype(int) - small).max() <= 1
    assert (workdir / "sample_grid.png").exists()


def test_what_made_the_images_names_the_method_and_the_sampler(workdir, monkeypatch):
    monkeypatch.setitem(METHODS, "moment_matching", progressive.METHOD)
    (workdir / "distill").rename(workdir / "distill_moment_matching")
    _drawn(workdir, num=1)
    made_by = json.loads((workdir / "sample" / "sample.json").read_text())
    assert made_by["model"]["method"] == "moment_matching"
    # As it was taught: it was left at auto.
    assert made_by["sampler"] == made_by["sample"]["sampler"] == "ddim"


def test_a_student_that_was_not_trained_cannot_be_sampled(workdir):
    with pytest.raises(ValueError, match="No finished distilled model"):
        _drawn(workdir, model="distilled", steps=64)


def test_pictures_of_a_seed_are_those_of_its_noise(workdir):
    by_seed = _drawn(workdir, seed=3, eta=0.0)
    sampler = make_sampler(*_built())
    start = sampler.start(jnp.arange(5), jnp.int32(3))
    np.save(workdir / "z_1.npy", np.asarray(start.z_1))
    noise = str(workdir / "z_1.npy")
    np.testing.assert_array_equal(_drawn(workdir, noise=noise), by_seed)
    flipped = np.asarray(start.z_1)[::-1]
    np.save(workdir / "z_1.npy", flipped)
    np.testing.assert_array_equal(_drawn(workdir, noise=noise), by_seed[::-1])


def _built():
    config = tiny.small("sample")
    return config, make_model(config)


def test_every_sampler_draws_its_own_pictures_and_the_same_again(workdir):
    samplers = ("ddim", "ancestral", "dpmpp_2m", "heun", "ancestral")
    *found, again = (
        _drawn(workdir, sampler=name, steps=4, model="base") for name in samplers
    )
    assert len({pictures.tobytes() for pictures in found}) == 4
    np.testing.assert_array_equal(again, found[1])


def test_a_trajectory_ends_in_the_sample_and_begins_in_the_noise(workdir):
    pictures = _drawn(workdir, trajectory=True, steps=4, model="base")
    with PIL.Image.open(workdir / "sample_trajectory.png") as opened:
        sheet = np.asarray(opened)
    factor = sheet.shape[0] // (2 * 5 * 9 - 1)
    sheet = sheet[::factor, ::factor]
    assert sheet.shape == (2 * 5 * 9 - 1, 4 * 9 - 1)
    for i, picture in enumerate(pictures):
        last = sheet[18 * i : 18 * i + 8, 27:35]
        np.testing.assert_array_equal(last, picture)
    config, model = _built()
    z_1 = make_sampler(config, model).start(jnp.arange(5), jnp.int32(0)).z_1
    np.testing.assert_array_equal(
        sheet[9:17, :8], np.asarray(model.codec.from_x(z_1))[0, ..., 0]
    )


def test_an_interpolation_goes_from_one_sample_to_the_other(workdir):
    pictures = _drawn(workdir, interpolate=5, num=16)
    with PIL.Image.open(workdir / "sample_interpolation.png") as opened:
        sheet = np.asarray(opened)
    factor = sheet.shape[0] // (8 * 9 - 1)
    sheet = sheet[::factor, ::factor]
    for row in range(8):
        for column, number in ((0, 2 * row), (4, 2 * row + 1)):
            shown = sheet[9 * row : 9 * row + 8, 9 * column : 9 * column + 8]
            assert np.abs(shown.astype(int) - pictures[number]).max() <= 1


def test_between_two_noises_the_way_is_even_and_of_constant_length():
    a, b = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    b *= np.linalg.norm(a) / np.linalg.norm(b)
    points = np.stack([slerp(a, b, share) for share in np.linspace(0, 1, 9)])
    np.testing.assert_allclose(points[0], a, atol=1e-12)
    np.testing.assert_allclose(points[-1], b, atol=1e-12)
    lengths = np.linalg.norm(points.reshape(9, -1), axis=1)
    np.testing.assert_allclose(lengths, np.linalg.norm(a))
    strides = np.linalg.norm(np.diff(points, axis=0).reshape(8, -1), axis=1)
    np.testing.assert_allclose(strides, strides[0])
    np.testing.assert_array_equal(slerp(a, a, 0.3), a)


def test_classes_can_be_chosen_and_a_row_keeps_the_class_of_its_first():
    config = tiny.config("sample", model={"num_classes": 10})
    model = make_model(config)
    sampler = make_sampler(config, model)
    # Every parameter away from zero, so that the label matters.
    params = _random(model)
    ends = sampler.start(jnp.arange(4), jnp.int32(0))
    frames = interpolation(sampler, params, ends, request=request(2), frames=3)
    label = ends.condition.label[np.array([0, 0, 2, 2])]
    alone = ends._replace(condition=Condition(label))
    expected = np.asarray(sampler.draw(params, alone, request(2)))
    found = frames[:, [0, 2]].reshape(4, 8, 8, 1)
    assert np.abs(found.astype(int) - expected).max() <= 1
    other = np.asarray(sampler.draw(params, ends, request(2)))
    assert np.abs(found[1].astype(int) - other[1]).max() > 1


def _random(model):
    leaves, tree = jax.tree.flatten(model.abstract_params())
    rng = np.random.default_rng(0)
    made = [
        rng.normal(scale=0.3, size=leaf.shape).astype(np.float32) for leaf in leaves
    ]
    return jax.tree.unflatten(tree, made)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (
            {"labels": (3,)},
            r"sample\.labels=\(3,\) does not fit: this model",
        ),
        ({"noise": "none.npy"}, r"sample\.noise='none\.npy' cannot be read"),
        ({"num": 0}, "sample.num=0 must be a whole number of at least 1"),
        (
            {"interpolate": -1},
            "sample.interpolate=-1 must be a whole number of at least 0",
        ),
        (
            {"clip": "both:-1"},
            "sample.clip='both:-1' must be auto, x, none, both:F with F",
        ),
        ({"eta": 1.5}, r"sample\.eta=1\.5 must be a number from 0 to 1"),
    ],
)
def test_what_cannot_be_sampled_is_refused(project, sample, message):
    with pytest.raises(ValueError, match=message):
        launch.launch(tiny.small("sample", sample=sample), project)


def test_labels_and_noise_that_do_not_fit_are_refused(project, tmp_path):
    np.save(tmp_path / "z.npy", np.zeros((5, 8, 8, 3)))
    noise = {"noise": str(tmp_path / "z.npy")}
    with pytest.raises(
        ValueError, match=r"holds \(5, 8, 8, 3\); it should be .*8, 1\)"
    ):
        launch.launch(tiny.small("sample", sample=noise), project)
    np.save(tmp_path / "z.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read"):
        launch.launch(tiny.small("sample", sample=noise), project)
    with pytest.raises(ValueError, match="must be from 0 to 9"):
        launch.launch(
            tiny.small("sample", sample={"labels": (10,)}, model={"num_classes": 10}),
            tmp_path,
        )
