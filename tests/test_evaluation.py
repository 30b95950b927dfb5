import dataclasses
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from vdiff_jax.datasets.digits import digits
from vdiff_jax.datasets.reader import Reader
from vdiff_jax.datasets.source import Arrays
from vdiff_jax.distillation import progressive
from vdiff_jax.distillation.methods import METHODS
from vdiff_jax.evaluation import (
    classifier,
    classifier_nets,
    features,
    figures,
    metrics,
    statistics_file,
)
from vdiff_jax.evaluation.features import Features
from vdiff_jax.evaluation.measurement import Measurement
from vdiff_jax.evaluation.metrics import Ruler
from vdiff_jax.files.fingerprints import DamagedError
from vdiff_jax.stages.evaluate import stage
from vdiff_jax.stages.evaluate.bench import Bench


def _normal(count, width=4, shift=0.0, seed=0):
    drawn = np.random.default_rng(seed).normal(size=(count, width)) + shift
    return drawn.astype(np.float32)


def _features(count, shift=0.0, seed=0):
    pooled = _normal(count, shift=shift, seed=seed)
    return Features(pooled, pooled[:, :3] + 1.0, 5.0 * pooled)


@pytest.mark.slow
def test_the_classifier_knows_the_digits_and_is_the_same_every_time():
    train, test = digits("train"), digits("test")
    trained = classifier.train(Reader(train), Reader(test))
    assert trained.accuracy > 0.95
    assert classifier.train(Reader(train), Reader(test)).sha256 == trained.sha256

    known = features.of_classifier(trained)
    ruler = Ruler(metrics.statistics(known.extract(train.images)), "classifier")
    near = ruler.distance(known.extract(test.images))
    noise = np.random.default_rng(0).integers(0, 256, test.images.shape, np.uint8)
    assert ruler.distance(known.extract(noise)) > 20 * near


def test_the_updates_of_a_classifier_are_counted(monkeypatch):
    monkeypatch.setattr(classifier, "NUM_UPDATES", 3)
    data, counts = Reader(digits("test")), []
    classifier.train(data, data, advance=counts.append)
    assert sum(counts) == 3


def _photographs(num, size):
    """Images whose class is the brighter half, upper or lower, with noise."""
    rng = np.random.default_rng(num)
    labels = rng.integers(2, size=num).astype(np.int32)
    images = rng.integers(0, 200, (num, size, size, 3))
    images[labels == 0, : size // 2] += 50
    images[labels == 1, size // 2 :] += 50
    return Arrays(images.astype(np.uint8), labels)


@pytest.mark.parametrize(
    ("num", "size", "plan"),
    [
        (1000, 16, (600, 0, False)),
        (1000, 32, (600, 16, True)),
        (12_800, 64, (1200, 16, True)),
        (50_000, 32, (4687, 32, True)),
        (1_280_000, 32, (20_000, 32, True)),
    ],
)
def test_width_and_length_of_a_classifier_follow_the_data(num, size, plan):
    class Images:
        def __len__(self):
            return num

        def __getitem__(self, index):
            return {"image": np.zeros((size, size, 3), np.uint8), "label": 0}

    assert classifier.Plan.of(Reader(Images()), flip=True) == plan


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classifier", "judge"])
def test_a_classifier_of_photographs_learns_and_is_the_same_every_time(
    monkeypatch, kind
):
    for name, value in {"NUM_UPDATES": 40, "PASSES": 1, "BATCH_SIZE": 32}.items():
        monkeypatch.setattr(classifier, name, value)
    train, test = (Reader(_photographs(num, size=18)) for num in (512, 256))
    trained = classifier.train(train, test, kind=kind, flip=True)
    assert trained.accuracy > 0.95
    assert classifier.train(train, test, kind=kind, flip=True).sha256 == trained.sha256


@pytest.mark.parametrize("size", [32, 48, 64, 256])
def test_photographs_of_any_size_have_as_many_spatial_features(size):
    net = classifier_nets.ResidualClassifier(num_classes=3, width=8)
    params = net.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    images = jnp.zeros((2, size, size, 3), jnp.uint8)
    features, spatial, logits = classifier_nets.apply(params, images)
    assert features.ndim == 2
    assert spatial.shape[1] in (3 * 3 * 7, 4 * 4 * 7)
    assert logits.shape == (2, 3)


def test_moved_photographs_are_shifted_ones_and_half_of_them_mirrored():
    image = np.arange(8 * 8).reshape(1, 8, 8, 1).astype(np.uint8)
    images = jnp.asarray(np.repeat(image, 512, axis=0))
    padded = np.pad(image[0], ((2, 2), (2, 2), (0, 0)), mode="edge")
    shifted = {
        padded[i : i + 8, j : j + 8].tobytes() for i in range(5) for j in range(5)
    }
    mirrored = {
        np.frombuffer(x, np.uint8).reshape(8, 8)[:, ::-1].tobytes() for x in shifted
    }
    plain = classifier_nets.moved(jax.random.key(0), images, flip=False)
    assert {np.asarray(x).tobytes() for x in plain} == shifted
    flipped = classifier_nets.moved(jax.random.key(0), images, flip=True)
    kinds = [np.asarray(x).tobytes() in mirrored for x in flipped]
    assert 0.4 < np.mean(kinds) < 0.6
    assert {np.asarray(x).tobytes() for x in flipped} <= shifted | mirrored


def test_unlabelled_data_have_no_classifier():
    source = Arrays(np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.int32))
    with pytest.raises(ValueError, match="at least two classes"):
        classifier.train(Reader(source), Reader(source))


def test_features_do_not_depend_on_the_batch(monkeypatch):
    images = digits("test").images[:37]
    pixels = features.of_pixels()
    whole = pixels.extract(images)
    assert whole.pooled.shape == (37, 64)
    assert whole.spatial is None
    np.testing.assert_allclose(
        whole.pooled, images.reshape(37, -1) / 127.5 - 1.0, atol=1e-6
    )
    monkeypatch.setattr(features, "BATCH_SIZE", 8)
    np.testing.assert_array_equal(pixels.extract(images).pooled, whole.pooled)


def test_features_do_not_depend_on_the_parts_and_are_compiled_once(monkeypatch):
    """The last bit of an image's features may depend on its place in the batch."""
    monkeypatch.setattr(features, "BATCH_SIZE", 16)
    shapes = []

    def apply(params, images):
        shapes.append(images.shape)
        place = jnp.arange(len(images), dtype=jnp.float32)
        mean = images.mean(axis=(1, 2, 3))
        return Features(params * mean[:, None], None, place[:, None])

    images = digits("test").images[:77]
    once = features.FeatureSet("mean", np.float32(0.5), apply, {})
    whole = once.extract(images)
    np.testing.assert_array_equal(whole.logits[:, 0], np.arange(77) % 16)
    for ends in ([5, 40, 50, 51], [1], [16, 64], [76]):
        extraction, took = once.begin(77), []
        for part in np.split(images, ends):
            own = extraction.add(part, took.append)
            assert len(own.pooled) == len(part)
        assert sum(took) == 77
        jax.tree.map(np.testing.assert_array_equal, extraction.features, whole)
    assert shapes == [(16, *images.shape[1:])]


def test_features_of_an_earlier_part_are_put_between_others():
    images, pixels = digits("test").images[:30], features.of_pixels()
    whole = pixels.extract(images)
    extraction = pixels.begin(30)
    extraction.add(images[:7])
    extraction.put(Features(whole.pooled[7:20], None, None))
    with pytest.raises(RuntimeError, match="20 of 30 images have come"):
        _ = extraction.features
    extraction.add(images[20:])
    np.testing.assert_array_equal(extraction.features.pooled, whole.pooled)


def test_large_pictures_are_averaged_to_16_pixels():
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    found = features.of_pixels().extract(images).pooled
    assert found.shape == (3, 16 * 16 * 3)
    flat = np.full((1, 64, 64, 3), 51, np.uint8)
    np.testing.assert_allclose(
        features.of_pixels().extract(flat).pooled, -0.6, atol=1e-6
    )
    mean = images.mean(axis=(1, 2, 3)) / 127.5 - 1.0
    np.testing.assert_allclose(found.mean(axis=1), mean, atol=5e-3)


def test_only_inception_features_have_the_names_of_the_literature():
    ruler = {
        name: Ruler(metrics.statistics(_features(50)), name)
        for name in ("inception", "pixels")
    }
    found = ruler["inception"].measure(_features(60, seed=1))
    assert set(found) == {
        "fid", "sfid", "kid", "precision", "recall", "density", "coverage",
        "inception_score",
    }  # fmt: skip
    others = ruler["pixels"].measure(_features(60, seed=1))
    assert all(name.endswith("_pixels") for name in others)
    assert {"frechet_pixels", "score_pixels"} <= set(others)


def test_the_same_pictures_are_at_no_distance_and_others_are():
    real = _features(400)
    ruler = Ruler(metrics.statistics(real), "inception")
    same = {name: found.value for name, found in ruler.measure(real).items()}
    assert same["fid"] == pytest.approx(0.0, abs=1e-6)
    assert same["sfid"] == pytest.approx(0.0, abs=1e-6)
    assert same["precision"] == same["recall"] == same["coverage"] == 1.0
    far = ruler.measure(_features(400, shift=2.0, seed=1))
    assert far["fid"].value == pytest.approx(4 * 2.0**2, rel=0.05)
    assert far["sfid"].value == pytest.approx(3 * 2.0**2, rel=0.05)
    assert far["kid"].value > 1.0
    assert far["precision"].value < 0.5


def test_a_metric_of_few_pictures_says_so():
    ruler = Ruler(metrics.statistics(_features(6000)), "inception")
    few, many = ruler.measure(_features(20)), ruler.measure(_features(6000, seed=1))
    assert all(found.warning for found in few.values())
    assert not any(found.warning for found in many.values())


def test_the_floor_is_between_random_halves():
    # Sorted by class, as a folder is: its halves as they lie are far apart.
    pooled = np.sort(_normal(2000, width=1), axis=0)
    floor = metrics.real_vs_real(Features(pooled, None, None), "pixels")
    assert floor["frechet_pixels"] < 0.02
    assert floor["coverage_pixels"] > 0.9


def test_pairs_are_taken_evenly(monkeypatch):
    monkeypatch.setattr(metrics, "MOST_PAIRED", 100)
    pooled = np.concatenate([_normal(200), _normal(200, shift=50.0)])
    ruler = Ruler(metrics.statistics(Features(pooled, None, None)), "pixels")
    near_both = np.concatenate([_normal(50, seed=1), _normal(50, shift=50.0, seed=2)])
    found = ruler.measure(Features(near_both, None, None))
    assert found["coverage_pixels"].value > 0.6
    assert found["precision_pixels"].value > 0.8  # not only in the first half


def test_statistics_come_back_from_disk_and_only_for_the_same_pictures(tmp_path):
    path, facts = tmp_path / "new" / "a.npz", {"split": "train", "num_images": 50}
    kept = metrics.statistics(_features(50))
    statistics_file.save(path, kept, {"fid": 1.5}, facts)
    found, floor = statistics_file.load(path, dict(facts))
    assert floor == {"fid": 1.5}
    for name in ("pooled", "spatial"):
        ours, theirs = getattr(found, name), getattr(kept, name)
        assert ours.count == theirs.count
        np.testing.assert_array_equal(ours.mean, theirs.mean)
        np.testing.assert_array_equal(ours.scatter, theirs.scatter)
    np.testing.assert_array_equal(found.features, kept.features)
    with pytest.raises(ValueError, match=r"num_images: 50 there, 51 now"):
        statistics_file.load(path, {**facts, "num_images": 51})
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DamagedError, match="cannot be read"):
        statistics_file.load(path, facts)


def test_published_statistics_are_taken_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    mu, root = rng.normal(size=2048), rng.normal(size=(2048, 8))
    np.savez(tmp_path / "cifar10.npz", mu=mu, sigma=root @ root.T)
    found = statistics_file.published(tmp_path / "cifar10.npz")
    np.testing.assert_array_equal(found.mean, mu)
    np.testing.assert_array_equal(found.covariance, root @ root.T)


def test_what_is_no_published_statistics_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    for content in ({"mu": np.zeros(2048)}, {"mu": np.zeros(3), "sigma": np.eye(3)}):
        np.savez(path, **content)
        with pytest.raises(ValueError, match=r"it should be an \.npz with mu \[2048\]"):
            statistics_file.published(path)
    path.write_text("no zip")
    with pytest.raises(ValueError, match="cannot be read"):
        statistics_file.published(path)


def _row(model, sampler, steps, metric, value, spread=0.1, method=None, w=None):
    if model == "distilled" and method is None:
        method = "progressive"
    return Measurement(
        model=model, method=method, sampler=sampler, steps=steps, w=w,
        evaluations=steps, metric=metric, value=value, spread=spread, num_images=10,
        seconds_per_image=1e-3, batch_size=2, device="1 x cpu",
    )  # fmt: skip


@pytest.fixture
def more_methods(monkeypatch):
    """The table of methods with some that no figure knows."""
    for name in ("moment_matching", "consistency", "tract"):
        monkeypatch.setitem(METHODS, name, progressive.METHOD)


@pytest.fixture
def curves(monkeypatch):
    """The curves of the figures that are written: name, colour, x and y of each."""
    drawn = {}

    def look(figure, path):
        for axes in figure.axes:
            for line in axes.lines:
                points = line.get_color(), *map(list, line.get_data())
                drawn[line.get_label()] = points

    monkeypatch.setattr(figures, "_save", look)
    return drawn


def _students(*methods, metric="fid", w=None):
    return [
        _row(
            "distilled",
            METHODS[name].sampler,
            n,
            metric,
            n + float(i),
            method=name,
            w=w,
        )
        for i, name in zip((0.0, 1.0, 2.0, 3.0, 4.0), methods, strict=False)
        for n in (4, 1)
    ]


@pytest.mark.usefixtures("more_methods")
def test_the_ladder_has_a_curve_of_its_own_for_each_method(curves):
    base = [_row("base", "ddim", n, "fid", 9.0 * n) for n in (1, 8)]
    methods = ("progressive", "stochastic", "moment_matching", "consistency", "tract")
    rows = [*base, *_students(*methods)]
    figures.ladder_figure(pathlib.Path("x"), rows, real_vs_real=0.1)
    names = [name.replace("_", " ") for name in methods]
    assert [*curves] == [*names, "base, DDIM", "real vs. real"]
    for i, name in enumerate(names):
        assert curves[name][1:] == ([1, 4], [1 + i, 4 + i])
    assert curves["base, DDIM"][1:] == ([1, 8], [9.0, 72.0])
    colors = [color for color, *_ in curves.values()]
    assert len({*colors[:-1]}) == len(colors) - 1
    # A colour does not depend on what else was measured.
    alone = dict(curves)
    curves.clear()
    figures.ladder_figure(pathlib.Path("x"), _students("tract"), real_vs_real=None)
    assert [*curves] == ["tract"]
    assert curves["tract"][0] == alone["tract"][0]


def test_the_students_of_the_first_method_alone_have_the_name_of_all(curves):
    figures.ladder_figure(
        pathlib.Path("x"), _students("progressive"), real_vs_real=None
    )
    assert {name: color for name, (color, *_) in curves.items()} == {"distilled": "C0"}


@pytest.mark.usefixtures("more_methods")
def test_a_trade_off_has_a_curve_for_each_student_in_the_colour_of_its_method(curves):
    methods = ("progressive", "moment_matching")
    rows = {
        metric: [
            row
            for w in (0.0, 1.0)
            for row in (
                _row("base", "ddim", 8, metric, 1.0, w=w),
                *_students(*methods, metric=metric, w=w),
            )
        ]
        for metric in ("fid", "inception_score")
    }
    figures.trade_off_figure(pathlib.Path("x"), rows["fid"], rows["inception_score"])
    colors = {name: color for name, (color, *_) in curves.items()}
    assert colors == {
        "base, 8": "C7", "progressive, 4": "C0", "progressive, 1": "C0",
        "moment matching, 4": colors["moment matching, 1"],
        "moment matching, 1": figures.look_of_students("moment_matching").color,
    }  # fmt: skip
    assert len(set(colors.values())) == 3


def test_a_trade_off_is_of_the_one_score_that_its_axis_names(tmp_path, monkeypatch):
    """Once it had the values of the last score, under the name of the first."""
    rows = [
        _row("base", "ddim", 8, metric, value + w, w=w)
        for metric, value in (
            ("frechet_classifier", 1.0), ("score_classifier", 2.0),
            ("frechet_inception", 3.0), ("inception_score", 40.0),
        )
        for w in (0.0, 1.0)
    ]  # fmt: skip
    shown = []
    monkeypatch.setattr(
        figures, "trade_off_figure", lambda path, x, y: shown.extend([x, y])
    )
    monkeypatch.setattr(stage, "_grid", lambda *args: None)
    bench = Bench.__new__(Bench)
    bench.records = types.SimpleNamespace(out=tmp_path)
    stage._report_guidance(bench, rows)
    assert [{row.metric for row in each} for each in shown] == [
        {"frechet_classifier"},
        {"score_classifier"},
    ]


@pytest.mark.parametrize("distance", [5.0, 500.0])
def test_a_trade_off_has_numbers_on_its_axis_however_far_it_goes(monkeypatch, distance):
    def look(figure, path):
        (axes,) = figure.axes
        low, high = axes.get_xlim()
        assert sum(low <= tick <= high for tick in axes.get_xticks()) > 2

    monkeypatch.setattr(figures, "_save", look)
    ends = [(0.0, 4.0), (1.0, distance)]
    fid, score = (
        [_row("base", "ddim", 8, metric, value, w=w) for w, value in ends]
        for metric in ("fid", "inception_score")
    )
    figures.trade_off_figure(pathlib.Path("x"), fid, score)


def test_a_ladder_has_a_tick_at_every_point(monkeypatch):
    base = _row("base", "ddim", 128, "fid", 1.0, w=1.0)
    guided = dataclasses.replace(base, evaluations=256)
    ticks = []
    monkeypatch.setattr(
        figures, "_save", lambda figure, _: ticks.extend(figure.axes[0].get_xticks())
    )
    rows = [guided, *_students("progressive", w=1.0)]
    figures.ladder_figure(pathlib.Path("x"), rows, real_vs_real=None)
    assert ticks == sorted({row.evaluations for row in rows})


def test_the_report_draws_its_pictures(tmp_path):
    rows = [
        _row(kind, "ddim", steps, "frechet_classifier", 1.0 / steps)
        for kind in ("base", "distilled")
        for steps in (1, 4)
    ]
    figures.ladder_figure(tmp_path / "ladder.png", rows, real_vs_real=0.1)
    images = [np.full((3, 8, 8, 1), 50 * i, np.uint8) for i in range(4)]
    figures.comparison_grid(tmp_path / "grid.png", images, ["a", "b", "c", "d"])
    for name in ("ladder.png", "grid.png"):
        picture = np.asarray(PIL.Image.open(tmp_path / name).convert("L"))
        assert picture.shape[0] > 100
        assert picture.std() > 10


def test_figures_leave_those_of_a_notebook_alone():
    """With another backend chosen for it, a notebook would show nothing."""
    program = "import launch, sys; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_table_has_a_line_for_each_candidate_and_a_column_for_each_metric():
    rows = [
        _row("base", "heun", 4, "fid", 12.345),
        _row("base", "heun", 4, "kid", -0.01, spread=None),
        _row("distilled", "ddim", 1, "fid", 2.0),
        _row("distilled", "ddim", 1, "kid", 0.5),
    ]
    head, *lines = figures.table(rows).splitlines()
    assert head.split()[:5] == ["model", "sampler", "steps", "fid", "kid"]
    assert " ".join(lines[0].split()) == "base heun 4 12.35 ± 0.1 -0.01 1.000"
    assert " ".join(lines[1].split()) == "distilled ddim 1 2 ± 0.1 0.5 ± 0.1 1.000"
    said = figures.csv(rows).splitlines()
    assert len(said) == 5
    assert said[1].startswith("base,heun,4,4,fid,12.345,0.1,10,0,0.001")
    # A column that is new comes last: the others keep their places.
    assert said[0].endswith(",w,method")
    assert [line.rpartition(",")[2] for line in said[1:3]] == ["", ""]
    assert said[3].endswith(",progressive")


@pytest.mark.usefixtures("more_methods")
def test_the_table_names_methods_where_there_are_others_than_the_first():
    rows = [
        _row("base", "heun", 4, "fid", 12.345),
        *_students("progressive", "moment_matching")[::2],
    ]
    head, *lines = figures.table(rows).splitlines()
    assert head.split()[:4] == ["model", "method", "sampler", "steps"]
    assert [line.split()[:4] for line in lines] == [
        ["base", "-", "heun", "4"],
        ["distilled", "progressive", "ddim", "4"],
        ["distilled", "moment_matching", "ddim", "4"],
    ]
    assert len({len(line) for line in (head, *lines)}) == 1
