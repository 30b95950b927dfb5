import numpy as np
import PIL.Image
import pytest

from vdiff_jax.datasets.digits import digits
from vdiff_jax.evaluation import report
from vdiff_jax.evaluation.features import train_classifier
from vdiff_jax.evaluation.frechet import Moments, frechet_distance, moments


def _gaussian(mean, covariance):
    return Moments(np.array(mean, float), np.array(covariance, float))


def test_the_distance_of_two_gaussians_has_its_closed_form():
    a = _gaussian([0.0, 1.0], [[4.0, 0.0], [0.0, 1.0]])
    b = _gaussian([3.0, 1.0], [[1.0, 0.0], [0.0, 9.0]])
    # Commuting covariances: |mean difference|^2 + sum of (std difference)^2.
    assert frechet_distance(a, b) == pytest.approx(9 + (2 - 1) ** 2 + (1 - 3) ** 2)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b))
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-12)


def test_the_distance_does_not_depend_on_the_axes():
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    x, y = rng.normal(size=(2, 400, 5)) * [[[1.0]], [[2.0]]] + [[[0.0]], [[0.5]]]
    plain = frechet_distance(moments(x), moments(y))
    turned = frechet_distance(moments(x @ rotation), moments(y @ rotation))
    assert turned == pytest.approx(plain, rel=1e-9)
    assert plain == pytest.approx(5 * 0.25 + 5 * 1.0, rel=0.15)


def test_a_singular_covariance_is_no_trouble():
    flat = _gaussian([0.0, 0.0], [[1.0, 1.0], [1.0, 1.0]])
    assert frechet_distance(flat, flat) == pytest.approx(0.0, abs=1e-7)


def test_moments_of_one_example_are_refused():
    with pytest.raises(ValueError, match="at least two"):
        moments(np.zeros((1, 3)))


def test_the_classifier_knows_the_digits_and_is_the_same_every_time():
    train, test = digits("train"), digits("test")
    trained = train_classifier(train.images, train.labels, (test.images, test.labels))
    assert trained.accuracy > 0.95
    again = train_classifier(train.images, train.labels, (test.images, test.labels))
    features = trained.extract(test.images)
    np.testing.assert_array_equal(features, again.extract(test.images))

    reference = moments(trained.extract(train.images))
    near = frechet_distance(moments(features), reference)
    noise = np.random.default_rng(0).integers(0, 256, test.images.shape, np.uint8)
    far = frechet_distance(moments(trained.extract(noise)), reference)
    assert far > 20 * near


def test_unlabelled_data_have_no_classifier():
    images = np.zeros((4, 8, 8, 1), np.uint8)
    with pytest.raises(ValueError, match="at least two classes"):
        train_classifier(images, np.zeros(4, np.int32), (images, np.zeros(4, np.int32)))


def test_the_report_draws_its_pictures(tmp_path):
    rows = [
        {
            "model": kind,
            "steps": steps,
            "metric": "frechet_classifier",
            "value": 1.0 / steps,
            "num_images": 10,
            "seconds_per_image": 1e-3,
        }
        for kind in ("base", "distilled")
        for steps in (1, 4)
    ]
    report.ladder_figure(tmp_path / "ladder.png", rows, floor=0.1)
    images = [np.full((3, 8, 8, 1), 50 * i, np.uint8) for i in range(4)]
    report.comparison_grid(tmp_path / "grid.png", images, ["a", "b", "c", "d"])
    for name in ("ladder.png", "grid.png"):
        picture = np.asarray(PIL.Image.open(tmp_path / name).convert("L"))
        assert picture.shape[0] > 100
        assert picture.std() > 10
    assert "distilled      4     0.250       1.000" in report.table(rows)
