import itertools
import tracemalloc
from typing import get_args

import numpy as np
import pytest
import scipy.linalg

from vdiff_jax.evaluation import moments, sample_size
from vdiff_jax.evaluation.frechet import frechet_distance, with_root
from vdiff_jax.evaluation.kernel import kernel_distance
from vdiff_jax.evaluation.moments import Moments, merge
from vdiff_jax.evaluation.neighbours import nearest, overlap
from vdiff_jax.evaluation.scores import inception_score


def _rng():
    return np.random.default_rng(0)


def _rotation(num_features):
    return np.linalg.qr(_rng().normal(size=(num_features, num_features)))[0]


def _peak_bytes(function, *args, **kwargs):
    tracemalloc.start()
    try:
        function(*args, **kwargs)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# Moments


@pytest.mark.parametrize("cut", [0, 1, 2, 17, 39, 40])
def test_merged_moments_of_parts_are_those_of_the_whole(cut):
    x = _rng().normal(size=(40, 3)) * [1.0, 2.0, 5.0] + np.arange(40.0)[:, None]
    merged = merge(moments.moments(x[:cut]), moments.moments(x[cut:]))
    assert merged.count == 40
    np.testing.assert_allclose(merged.mean, x.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(merged.covariance, np.cov(x.T), rtol=1e-13)


def test_many_small_parts_make_the_whole():
    x = _rng().normal(size=(100, 4))
    total = moments.moments(x[:0])
    for part in np.array_split(x, 23):
        total = merge(total, moments.moments(part))
    np.testing.assert_allclose(total.covariance, np.cov(x.T), rtol=1e-12)


def test_moments_far_from_zero_lose_nothing():
    x = _rng().integers(-8, 9, size=(1000, 3)).astype(np.float64)
    near, far = moments.moments(x), moments.moments(x + 1e8)
    merged = merge(moments.moments(x[:300] + 1e8), moments.moments(x[300:] + 1e8))
    np.testing.assert_allclose(far.covariance, near.covariance, atol=1e-10)
    np.testing.assert_allclose(merged.covariance, near.covariance, atol=1e-7)


def test_float32_is_summed_in_float64_without_a_copy_of_everything():
    x = (_rng().normal(size=(50_001, 16)) + 1000).astype(np.float32)
    exact = x.astype(np.float64)
    whole = moments.moments(x)
    np.testing.assert_allclose(whole.mean, exact.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(whole.covariance, np.cov(exact.T), rtol=1e-9, atol=1e-12)
    assert _peak_bytes(moments.moments, x) < exact.nbytes / 3


def test_a_covariance_of_fewer_than_two_examples_is_refused():
    none = moments.moments(np.ones((0, 3)))
    assert merge(none, none).count == 0
    one = moments.moments(np.ones((1, 3)))
    np.testing.assert_array_equal(one.mean, np.ones(3))
    with pytest.raises(ValueError, match="at least two examples, got 1"):
        _ = one.covariance


def test_features_that_are_not_finite_are_refused():
    x = _rng().normal(size=(20, 3))
    bad = x.copy()
    bad[[3, 3, 4], [0, 1, 2]] = np.nan, np.inf, -np.inf
    for measure in (
        lambda: moments.moments(bad),
        lambda: kernel_distance(bad, x),
        lambda: kernel_distance(x, bad),
        lambda: overlap(bad, x),
        lambda: overlap(x, bad),
        lambda: nearest(bad, x, 1),
        lambda: nearest(x, bad, 1),
        lambda: inception_score(bad),
    ):
        with pytest.raises(ValueError, match=r"2 of 20 examples .* not finite"):
            measure()


# Frechet distance


def _gaussian(mean, covariance):
    return Moments(11, np.array(mean, float), 10 * np.array(covariance, float))


def _distance(a, b):
    return frechet_distance(a, with_root(b)).value


def _random_gaussian(seed, num_features):
    x = np.random.default_rng(seed).normal(size=(3 * num_features, num_features))
    mean = np.full(num_features, float(seed))
    return _gaussian(mean, np.cov(x.T * np.arange(1, num_features + 1)[:, None]))


def test_the_distance_of_commuting_gaussians_has_its_closed_form():
    a = _gaussian([0.0, 1.0], [[4.0, 0.0], [0.0, 1.0]])
    b = _gaussian([3.0, 1.0], [[1.0, 0.0], [0.0, 9.0]])
    # |mean difference|^2 + sum of (std difference)^2.
    assert _distance(a, b) == pytest.approx(9 + (2 - 1) ** 2 + (1 - 3) ** 2)


def test_the_distance_of_gaussians_in_the_plane_has_its_closed_form():
    a, b = [[4.0, 1.0], [1.0, 2.0]], [[1.0, -1.0], [-1.0, 5.0]]
    # In the plane tr(M^1/2)^2 = tr M + 2 det(M)^1/2, here of M = a b: 12, 28.
    root = np.sqrt(12 + 2 * np.sqrt(7 * 4))
    distance = _distance(_gaussian([0.0, 0.0], a), _gaussian([0.0, 2.0], b))
    assert distance == pytest.approx(4 + 6 + 6 - 2 * root)


def test_the_distance_agrees_with_a_root_of_the_plain_product():
    a, b = _random_gaussian(1, 8), _random_gaussian(2, 8)
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    trace = np.trace(a.covariance + b.covariance - 2 * root.real)
    assert _distance(a, b) == pytest.approx(8 + trace, rel=1e-9)


def test_the_distance_does_not_depend_on_the_axes_or_the_order():
    x, y = _rng().normal(size=(2, 400, 5)) * [[[1.0]], [[2.0]]] + [[[0.0]], [[0.5]]]
    a, b = moments.moments(x), moments.moments(y)
    turned = _distance(
        moments.moments(x @ _rotation(5) + 9), moments.moments(y @ _rotation(5) + 9)
    )
    assert turned == pytest.approx(_distance(a, b), rel=1e-9)
    assert _distance(b, a) == pytest.approx(_distance(a, b), rel=1e-9)
    assert _distance(a, b) == pytest.approx(5 * 0.25 + 5 * 1.0, rel=0.15)


def test_the_distance_to_itself_is_nothing_and_never_negative():
    rng = _rng()
    full = [_random_gaussian(seed, 6) for seed in range(20)]
    singular = [moments.moments(x) for x in rng.normal(size=(20, 5, 30))]
    values = [_distance(a, a) for a in full + singular]
    assert 0 <= max(values[:20]) < 1e-10
    assert 0 <= max(values) < 1e-5
    assert np.median(values[20:]) == 0


def test_points_have_the_distance_of_their_places():
    a, b = _gaussian([0.0, 0.0], np.zeros((2, 2))), _gaussian([3.0, 4.0], np.eye(2))
    assert _distance(a, b) == pytest.approx(25 + 2)
    assert frechet_distance(b, with_root(a)) == (pytest.approx(25 + 2), 0.0)


def test_the_residual_says_how_far_the_root_is_from_one():
    exact = with_root(_random_gaussian(0, 50))
    assert 0 < exact.residual < 1e-13
    # No covariance: its root is that of the part that has one, diag(1, 0).
    wrong = with_root(_gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, -1.0]]))
    assert wrong.residual == pytest.approx(1 / np.sqrt(2))
    value = frechet_distance(_gaussian([0.0, 0.0], np.eye(2)), wrong)
    assert value.residual == wrong.residual


def test_moments_of_other_features_are_refused():
    a, b = _random_gaussian(0, 3), _random_gaussian(0, 4)
    with pytest.raises(ValueError, match=r"of 3 features .* of 4"):
        _distance(a, b)


# Kernel distance


@pytest.mark.parametrize("num_features", [1, 3])
def test_the_discrepancy_is_unbiased_for_two_coins(num_features):
    a, b = 0.7, 1.5
    # All draws of two x from +-a and two y from +-b. By hand, E k(x, y) is
    # ((1 + a b)^3 + (1 - a b)^3) / 2 = 1 + 3 a^2 b^2, in any number of equal features.
    estimates = [
        kernel_distance(
            np.full((num_features, 2), a * np.array(x)).T,
            np.full((num_features, 2), b * np.array(y)).T,
        )
        for x in itertools.product([-1.0, 1.0], repeat=2)
        for y in itertools.product([-1.0, 1.0], repeat=2)
    ]
    assert np.mean(estimates) == pytest.approx(3 * (a**2 - b**2) ** 2, rel=1e-12)


def test_the_discrepancy_of_two_points_has_its_closed_form():
    x, y = np.full((12, 4), 0.5), np.full((30, 4), 2.0)
    expected = 1.25**3 + 5.0**3 - 2 * 2.0**3
    assert kernel_distance(x, y) == pytest.approx(expected)
    assert kernel_distance(y, x) == pytest.approx(expected)


def test_the_discrepancy_of_halves_of_one_set_is_zero_on_average():
    rng = _rng()
    x = rng.normal(size=(60, 3))
    halves = (np.split(rng.permutation(x), 2) for _ in range(2000))
    values = [kernel_distance(*pair) for pair in halves]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error
    assert error < 0.01  # where a diagonal that is counted adds 0.4


def test_subsets_have_the_same_mean_as_everything():
    rng = _rng()
    x, y = rng.normal(size=(2, 300, 4))
    y += 0.5
    subsets = [
        kernel_distance(*(z[rng.choice(300, 100, replace=False)] for z in (x, y)))
        for _ in range(400)
    ]
    error = np.std(subsets) / np.sqrt(400)
    assert abs(np.mean(subsets) - kernel_distance(x, y)) < 3 * error
    assert np.mean(subsets) > 20 * error


@pytest.mark.parametrize("chunk", [1, 7, 30])
def test_the_discrepancy_does_not_depend_on_the_chunks(chunk):
    x, y = _rng().normal(size=(2, 30, 5))
    assert kernel_distance(x, y, chunk=chunk) == pytest.approx(kernel_distance(x, y))


def test_the_discrepancy_of_float32_is_computed_in_float64():
    x, y = (100 + _rng().normal(size=(2, 30, 5))).astype(np.float32)
    exact = kernel_distance(x.astype(np.float64), y.astype(np.float64))
    assert kernel_distance(x, y) == exact


def test_one_example_has_no_kernel_distance():
    with pytest.raises(ValueError, match="at least 2 examples of each, got 1"):
        kernel_distance(np.zeros((4, 2)), np.zeros((1, 2)))


# Precision, recall, density, coverage


def test_equal_sets_overlap_wholly():
    x = _rng().normal(size=(200, 6)) + 50
    # A ball of 5 neighbours has its centre in it too.
    assert overlap(x, x) == (1.0, 1.0, 6 / 5, 1.0)
    assert overlap(x, x, k_density=2).density == 3 / 2


def test_sets_far_apart_do_not_overlap():
    x = _rng().normal(size=(100, 6))
    assert overlap(x, x + 100) == (0.0, 0.0, 0.0, 0.0)


def test_a_dropped_mode_costs_recall_and_an_invented_one_precision():
    mode = _rng().normal(size=(100, 4))
    both = np.concatenate([mode, mode + 1000])
    assert overlap(mode, both) == (1.0, 0.5, 6 / 5, 0.5)
    assert overlap(both, mode) == (0.5, 1.0, 3 / 5, 1.0)


def test_draws_of_one_distribution_have_a_density_of_one():
    x, y = _rng().normal(size=(2, 1500, 3))
    agreement = overlap(x, y)
    assert agreement.density == pytest.approx(1.0, abs=0.05)
    # Of 2 k draws around one of them, the k nearest are all of one set: 1 / 2^5.
    assert agreement.coverage == pytest.approx(1 - 1 / 2**5, abs=0.02)


@pytest.mark.parametrize(
    ("k", "balls"), [(1, 2), (2, 2), (3, 4), (4, 4), (5, 6), (6, 6)]
)
def test_density_counts_the_balls_of_a_circle(k, balls):
    # Neighbours 1 and 2 are one step away, 3 and 4 two. From half way between two
    # examples, two are half a step away, four one and a half.
    angle = np.arange(60) * 2 * np.pi / 60
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    between = circle @ scipy.linalg.expm([[0, np.pi / 60], [-np.pi / 60, 0]])
    assert overlap(between, circle, k_density=k).density == balls / k
    assert overlap(between, circle, k_density=k).coverage == 1.0


def test_precision_and_recall_reach_to_the_third_neighbour():
    real = np.array([[0.0], [1.0], [3.0], [7.0], [15.0], [31.0]])
    # Downwards the ball around 0 reaches furthest: 1, 3, 7 or 15 for k = 1 .. 4.
    generated = -np.array([[2.9], [3.1], [6.9], [7.1], [14.9], [15.1]])
    found = overlap(generated, real, k_density=5)
    assert found.precision == 3 / 6
    assert overlap(generated, real, k_precision=2).precision == 1 / 6
    assert overlap(generated, real, k_precision=4).precision == 5 / 6
    assert overlap(real, generated).recall == found.precision


def test_coverage_reaches_to_the_fifth_neighbour():
    real = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [100.0], [200.0]])
    # 100 has its 5th neighbour at 1: 0 .. 4 and 200 are 100 .. 96 and 100 away.
    at = {distance: np.full((6, 1), 100.0 + distance) for distance in (99.9, 100.1)}
    assert overlap(at[99.9], real).coverage == 2 / 7  # that of 200 too
    assert overlap(at[100.1], real).coverage == 1 / 7


def test_duplicates_are_neighbours_of_each_other():
    x = _rng().normal(size=(50, 40)) + 1000
    collapsed = np.repeat(x[:1], 30, axis=0)
    found = overlap(collapsed, x)
    assert (found.precision, found.recall) == (1.0, 1 / 50)
    six = np.repeat(x, 6, axis=0)
    assert overlap(six, six) == (1.0, 1.0, 6 / 5, 1.0)
    assert overlap(x + 1e-3, six) == (0.0, 1.0, 0.0, 0.0)


def _some_overlap():
    rng = _rng()
    return rng.normal(size=(150, 5)), 1.3 * rng.normal(size=(170, 5)) + 1.2


def test_the_overlap_does_not_depend_on_place_axes_or_scale():
    x, y = _some_overlap()
    plain = overlap(x, y)
    assert all(0.1 < share < 0.95 for share in plain)
    assert overlap(x + 1e7, y + 1e7) == plain
    assert overlap(x @ _rotation(5), y @ _rotation(5)) == plain
    assert overlap(1e-9 * x, 1e-9 * y) == plain


@pytest.mark.parametrize("chunk", [10, 37, 150, 10_000])
def test_the_chunk_changes_nothing(chunk):
    x, y = _some_overlap()
    assert overlap(x, y, chunk=chunk) == overlap(x, y)
    assert overlap(y, y, chunk=chunk) == (1.0, 1.0, 6 / 5, 1.0)
    by_chunks, whole = nearest(x, y, 4, chunk=chunk), nearest(x, y, 4)
    np.testing.assert_array_equal(by_chunks.indices, whole.indices)


def test_memory_holds_no_whole_matrix():
    x = _rng().normal(size=(1500, 4)).astype(np.float32)
    matrix = 1500 * 1500 * 8
    assert _peak_bytes(overlap, x, x, chunk=50) < matrix / 5
    assert _peak_bytes(nearest, x, x, 5, chunk=50) < matrix / 5


def test_sets_without_so_many_neighbours_are_refused():
    x = _rng().normal(size=(6, 2))
    assert overlap(x, x).precision == 1.0
    with pytest.raises(ValueError, match=r"k_density=5 .* has 5"):
        overlap(x[:5], x)
    with pytest.raises(ValueError, match="k_precision=0"):
        overlap(x, x, k_precision=0)


# Nearest


def test_the_nearest_are_found_in_order():
    references = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [6.0, 8.0]])
    found = nearest(np.array([[0.0, 0.0], [6.0, 9.0]]), references, 3)
    np.testing.assert_array_equal(found.indices, [[0, 2, 1], [3, 1, 2]])
    np.testing.assert_allclose(
        found.distances, [[0, 1, 5], [1, np.sqrt(34), 10]], rtol=1e-15
    )


def test_a_near_copy_is_found_and_its_distance_exact():
    x = (_rng().normal(size=(300, 64)) + 100).astype(np.float32)
    copies = x[[7, 250]].astype(np.float64)
    copies[:, 0] += [1e-7, 0.0]
    found = nearest(copies, x, 2)
    np.testing.assert_array_equal(found.indices[:, 0], [7, 250])
    np.testing.assert_allclose(found.distances[:, 0], [1e-7, 0.0], rtol=1e-6)
    assert (found.distances[:, 1] > 5).all()


def test_duplicates_come_in_the_order_of_the_references():
    x = np.tile(_rng().normal(size=(4, 16)), (10, 1))
    twins = nearest(x[:4], x, 40).indices.reshape(4, 4, 10)
    assert (np.diff(twins) == 4).all()


def test_more_neighbours_than_references_are_refused():
    x = np.zeros((3, 2))
    assert nearest(x, x, 3).indices.shape == (3, 3)
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"the 3 references, got k={k}"):
            nearest(x, x, k)


# Inception score


def _sure(labels, num_classes, size=1000.0):
    return size * np.eye(num_classes)[np.asarray(labels)]


def test_a_classifier_that_cannot_tell_scores_one():
    assert inception_score(np.full((100, 7), 3.0)) == (
        pytest.approx(1.0),
        pytest.approx(0.0, abs=1e-12),
    )
    one_class = _sure(np.zeros(100, int), 7)
    assert inception_score(one_class).mean == pytest.approx(1.0)


@pytest.mark.parametrize("size", [100.0, 1e30])
def test_a_sure_classifier_of_balanced_classes_scores_their_number(size):
    logits = _sure(np.arange(70) % 7, 7, size)
    assert inception_score(logits, splits=1) == (pytest.approx(7.0), 0.0)
    # Two more classes that are never seen.
    more = _sure(np.arange(70) % 7, 9, size)
    assert inception_score(more, splits=1).mean == pytest.approx(7.0)


def test_an_unsure_classifier_scores_what_it_tells():
    p = 0.8
    logits = np.log([[p, 1 - p], [1 - p, p]] * 20)
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    score = inception_score(logits, splits=1).mean
    assert score == pytest.approx(2 * np.exp(-entropy))
    shifted = logits + 1e4 * _rng().normal(size=(40, 1))
    assert inception_score(shifted, splits=1).mean == pytest.approx(score)
    assert inception_score(logits.astype(np.float32), splits=1).mean == pytest.approx(
        score, rel=1e-6
    )


def test_the_parts_are_mixed_and_their_scores_averaged():
    sorted_by_class = _sure(np.arange(1000) // 100, 10)
    assert 9 < inception_score(sorted_by_class).mean < 10
    # Parts of two and of one: {0, 0} {1} or {0, 1} {0}.
    scores = {
        inception_score(_sure([0, 0, 1], 2), splits=2, seed=seed) for seed in range(20)
    }
    means_and_stds = {(round(mean, 9), round(std, 9)) for mean, std in scores}
    assert means_and_stds == {(1.0, 0.0), (1.5, 0.5)}


def test_more_parts_than_examples_are_refused():
    for splits in (0, 4):
        with pytest.raises(ValueError, match=f"1 and 3 splits.*splits={splits}"):
            inception_score(np.zeros((3, 2)), splits=splits)


# How many images are enough


@pytest.mark.parametrize(
    ("metric", "num_features", "needed"),
    [
        ("frechet_distance", 64, 640),
        ("frechet_distance", 2048, 20_480),
        ("kernel_distance", 2048, 1000),
        ("overlap", 2048, 2500),
        ("inception_score", 10, 5000),
        ("inception_score", 1000, 50_000),
    ],
)
def test_fewer_images_than_needed_are_warned_of(metric, num_features, needed):
    assert sample_size.warning(metric, needed, num_features) is None
    sentence = sample_size.warning(metric, needed - 1, num_features)
    assert f"{needed - 1:,} images" in sentence
    assert f"{needed:,}." in sentence


def test_every_metric_is_content_with_what_papers_use():
    for metric in get_args(sample_size.Metric):
        assert sample_size.warning(metric, 50_000, 2048) is None
        assert sample_size.warning(metric, 100, 2048) is not None


def test_a_singular_covariance_is_called_so():
    assert "singular" in sample_size.warning("frechet_distance", 64, 64)
    assert "singular" not in sample_size.warning("frechet_distance", 65, 64)
    covariance = moments.moments(_rng().normal(size=(64, 64))).covariance
    assert np.linalg.matrix_rank(covariance) == 63


def test_the_frechet_distance_is_biased_as_much_as_is_said():
    num, num_features, rng = 200, 6, _rng()
    truth = with_root(_gaussian(np.zeros(num_features), np.eye(num_features)))
    draws = rng.normal(size=(300, num, num_features))
    values = [frechet_distance(moments.moments(draw), truth).value for draw in draws]
    relative = np.mean(values) / num_features
    assert relative == pytest.approx((num_features + 5) / (4 * num), rel=0.1)


def test_the_inception_score_is_biased_as_much_as_is_said():
    draws = _rng().integers(10, size=(200, 500))
    scores = [inception_score(_sure(draw, 10), splits=1).mean for draw in draws]
    assert 1 - np.mean(scores) / 10 == pytest.approx(9 / (2 * 500), rel=0.1)
