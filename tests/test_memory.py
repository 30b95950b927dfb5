"""Pixels are let go: the memory of an evaluation does not grow with them."""

import dataclasses
import errno
import os
import tracemalloc
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import tiny
from vdiff_jax.datasets.reader import Reader
from vdiff_jax.diffusion import from_pixels
from vdiff_jax.distillation.role import BASE
from vdiff_jax.evaluation import (
    classifier,
    features,
    metrics,
    moments,
    neighbours,
    statistics_file,
)
from vdiff_jax.evaluation.features import Features
from vdiff_jax.files import scratch
from vdiff_jax.files.fingerprints import DamagedError
from vdiff_jax.from_config.model import make_model
from vdiff_jax.generation.batches import Drawn, in_parts
from vdiff_jax.model import Model
from vdiff_jax.stages.evaluate import (
    bench,
    drawing,
    feature_sets,
    likelihood,
    references,
)
from vdiff_jax.stages.evaluate.candidates import Candidate
from vdiff_jax.stages.evaluate.models import Models
from vdiff_jax.stages.sample import output
from vdiff_jax.workdir.layout import Project

SHAPE = (64, 64, 3)
BYTES = 64 * 64 * 3  # of an image
NUM = 4000


def _image(index):
    return np.random.default_rng(index).integers(0, 256, SHAPE, np.uint8)


@dataclasses.dataclass(frozen=True)
class _Images:
    """So many images and their labels, made as they are read."""

    num: int
    needs_workers: ClassVar[bool] = False

    @property
    def labels(self):
        return np.arange(self.num) % 3

    def __len__(self):
        return self.num

    def __getitem__(self, index):
        return {"image": _image(index), "label": index % 3}


def _apply(params, images):
    del params
    x = images.reshape(len(images), 4, 16, 4, 16, 3).astype(jnp.float32)
    return Features(x.mean(axis=(2, 4)).reshape(len(images), -1), None, None)


# 192 bytes of an image's 12,288.
FEW = features.FeatureSet("few", {}, _apply, {})


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """What is bounded by a number of images is bounded by a small one."""
    monkeypatch.setattr(metrics, "MOST_PAIRED", 100)
    monkeypatch.setattr(drawing, "BATCHES_IN_A_PART", 2)
    monkeypatch.setattr(feature_sets.features, "of_pixels", lambda: FEW)


def _config(**changes):
    config = tiny.small("evaluate")
    config.sample.batch_size = 64
    config.evaluate.update(
        {
            "features": ("pixels",), "reference_num": 0, "repeats": 1, **changes
        }
    )  # fmt: skip
    return config


def _real(monkeypatch, num):
    monkeypatch.setattr(references, "make_images", lambda config, split: _Images(num))
    return references.Real(_config(), "test", 0)


class _Models(Models):
    """Models of which nothing is drawn."""

    def __init__(self, project):
        self.model = make_model(project.config)

    def trained(self, role):
        del role
        return self

    sha256 = "none"

    def sampler(self, role, name):
        return None

    def eta(self, role):
        return 0.0

    def params(self, role):
        return None


def _draw(sampler, params, numbers, *, batch_size, advance, **others):
    advance(len(numbers))
    return Drawn(np.stack([_image(i) for i in numbers]), [0.1])


def _reference(monkeypatch, folder, num):
    real = _real(monkeypatch, num)
    return lambda: references.make_references([FEW], real, folder)


class _Linear(nn.Module):
    """A classifier of the mean colours."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = x.mean(axis=(1, 2))
        return x, x, nn.Dense(self.num_classes, name="logits")(x)


def _classifier(monkeypatch, folder, num):
    def logits(params, images):
        num_classes = params["params"]["logits"]["bias"].size
        return _Linear(num_classes).apply(params, from_pixels(images))[2]

    monkeypatch.setattr(classifier, "SMALL_PIXELS", 64)
    monkeypatch.setattr(classifier, "Classifier", _Linear)
    monkeypatch.setitem(classifier.LOGITS, "classifier", logits)
    monkeypatch.setattr(classifier, "NUM_UPDATES", num // 128)
    examples, held_out = (Reader(_Images(many)) for many in (num, num // 4))
    monkeypatch.setattr(classifier, "MOST_PIXELS", 128 * 64 * 64)
    return lambda: classifier.train(examples, held_out)


def _likelihood(monkeypatch, folder, num):
    real = _real(monkeypatch, num)

    class Labels(Model):
        def denoiser(self, params, condition):
            return condition.label

    model = object.__new__(Labels)

    def estimate(denoiser, image, key):
        return image.mean(axis=(1, 2, 3)) + denoiser

    return lambda: likelihood._bits(estimate, model, {}, real, 64, "mean")


def _candidate(monkeypatch, folder, num):
    monkeypatch.setattr(drawing, "draw", _draw)
    monkeypatch.setattr(
        drawing, "start_of_seed", lambda sampler, seed, condition_of: None
    )
    _real(monkeypatch, 50)
    project = Project(_config(num=num), folder)
    measuring = bench.Bench(project, _Models(project))
    return lambda: measuring.rows(Candidate(BASE, "ddim", 2))


def _tuning(monkeypatch, folder, num):
    monkeypatch.setattr(drawing, "TUNING_IMAGES", num)
    monkeypatch.setattr(drawing, "VARIANCES", (0.5,))
    _candidate(monkeypatch, folder, num)
    project = Project(_config(num=num), folder)
    measuring = bench.Bench(project, _Models(project))
    candidate, reference = Candidate(BASE, "ancestral", 2), measuring.references[0]
    return lambda: measuring._drawing.best_variance(candidate, reference, num)


def _peak(work):
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "prepare", [_reference, _classifier, _likelihood, _candidate, _tuning]
)
def test_images_are_not_held(prepare, monkeypatch, tmp_path):
    prepare(monkeypatch, tmp_path / "first", 200)()  # compiles
    peaks = [
        _peak(prepare(monkeypatch, tmp_path / str(num), num)) for num in (NUM, 2 * NUM)
    ]
    assert peaks[0] < NUM * BYTES / 4
    # Features may be there more than once, and in float64.
    assert peaks[1] - peaks[0] < NUM * BYTES / 10


def test_real_images_are_read_once_for_all_sets(monkeypatch, tmp_path):
    reads = []

    class Counted(_Images):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    real = _real(monkeypatch, 200)
    real.reader = Reader(Counted(200))
    other = dataclasses.replace(FEW, name="other")
    first, second = references.make_references([FEW, other], real, tmp_path)
    assert reads[1:] == list(range(200))  # one to know the size
    np.testing.assert_array_equal(first.all, second.all)
    np.testing.assert_array_equal(first.all[7], FEW.extract(_image(7)[None]).pooled[0])
    references.make_references([FEW, other], real, tmp_path)
    assert len(reads) == 201


def test_a_part_of_large_images_has_fewer_batches(monkeypatch, tmp_path):
    monkeypatch.setattr(drawing, "BATCHES_IN_A_PART", 16)
    config = _config()
    models = _Models(Project(config, tmp_path))
    of_large = drawing.Drawing(config, models, None, BYTES)
    assert of_large.in_parts(1500) == [range(1024), range(1024, 1500)]
    monkeypatch.setattr(drawing, "MOST_BYTES_IN_A_PART", 3 * 64 * BYTES + 1)
    assert of_large.in_parts(500) == [range(192), range(192, 384), range(384, 500)]
    monkeypatch.setattr(drawing, "MOST_BYTES_IN_A_PART", 1)
    assert of_large.in_parts(100) == [range(64), range(64, 100)]


def _written(folder, dtype, num, part=50):
    def parts():
        for first in range(0, num, part):
            yield np.stack([_image(i) for i in range(first, first + part)]).astype(
                dtype
            )

    return lambda: output.write(folder, {None: parts()}, {}, num=num, keep=64)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_samples_are_not_held(dtype, tmp_path):
    peaks = []
    for num in (200, 200, 600):
        folder = tmp_path / str(num)
        peaks.append(_peak(_written(folder, dtype, num)))
    assert peaks[2] - peaks[1] < 400 * BYTES * np.dtype(dtype).itemsize / 10
    names = {path.name for path in (folder / "sample").iterdir()} - {"sample.json"}
    if dtype == np.uint8:
        assert names == {f"{i:06d}.png" for i in range(600)}
        read = np.stack(
            [PIL.Image.open(folder / f"sample/{i:06d}.png") for i in (0, 599)]
        )
    else:
        read = np.load(folder / "sample" / "latents.npz")["latents"]
        assert read.shape == (600, *SHAPE)
        read = read[[0, 599]]
    np.testing.assert_array_equal(read, [_image(0), _image(599)])


def test_the_first_samples_are_kept_for_the_grid(tmp_path):
    images = np.stack([_image(i) for i in range(6)])
    drawn = {0.5: np.split(images, 3)}
    first = output.write(tmp_path, drawn, {}, num=6, keep=3)
    np.testing.assert_array_equal(first[0.5], images[:3])


def test_parts_are_of_whole_batches():
    assert in_parts(50, 4, 1, most_batches=4) == [
        range(16), range(16, 32), range(32, 48), range(48, 50)
    ]  # fmt: skip
    assert in_parts(9, 4, 100, most_bytes=800) == [range(8), range(8, 9)]
    assert in_parts(9, 4, 100, most_bytes=1) == [range(4), range(4, 8), range(8, 9)]


@pytest.fixture
def on_disk(monkeypatch, tmp_path):
    """Every array of features is mapped from a file."""
    monkeypatch.setattr(scratch, "FROM_BYTES", 1)
    monkeypatch.setenv("VDIFF_JAX_CACHE", str(tmp_path / "cache"))


def test_a_scratch_array_leaves_no_file(on_disk, tmp_path):
    array = scratch.empty((3, 4), np.dtype(np.float32))
    array[:] = np.arange(12).reshape(3, 4)
    assert type(array) is np.ndarray
    assert type(array[[2, 0]]) is np.ndarray
    np.testing.assert_array_equal(array[[2, 0], 1], [9, 1])
    assert list((tmp_path / "cache" / "scratch").iterdir()) == []


def test_without_room_on_a_disk_an_array_is_in_memory(on_disk, monkeypatch, capsys):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(os, "posix_fallocate", full)
    array = scratch.empty((3, 4), np.dtype(np.float32))
    array[:] = 1.0
    assert "No space left); VDIFF_JAX_CACHE names" in capsys.readouterr().err


def _features(num, dim=400):
    draw = np.random.default_rng(0).normal
    logits = scratch.empty((num, 3), np.dtype(np.float32))
    pooled = scratch.empty((num, dim), np.dtype(np.float32))
    for first in range(0, num, 100):
        pooled[first : first + 100] = draw(size=(min(100, num - first), dim))
        logits[first : first + 100] = draw(size=(min(100, num - first), 3))
    return Features(pooled, None, logits)


def test_features_on_disk_are_measured_to_the_same_bits(on_disk, monkeypatch):
    monkeypatch.setattr(metrics, "MOST_PAIRED", 100)
    on_disk = metrics.real_vs_real(_features(350, 8), "inception")
    monkeypatch.setattr(scratch, "FROM_BYTES", 2**28)
    in_memory = _features(350, 8)
    # As the halves were taken before there was a `Chosen`.
    monkeypatch.setattr(metrics, "Chosen", lambda rows, index: rows[index])
    assert metrics.real_vs_real(in_memory, "inception") == on_disk
    assert "inception_score" in on_disk


def test_features_are_not_held_twice_nor_as_doubles(on_disk, monkeypatch):
    for module in (moments, neighbours):
        monkeypatch.setattr(module, "CHUNK", 64)
    monkeypatch.setattr(neighbours, "MOST_NUMBERS", 4096)

    def work(num):
        features = _features(num)
        metrics.real_vs_real(features, "inception")
        moments.check_finite(features.pooled)
        neighbours.nearest(features.pooled[:64], features.pooled, 3)

    peaks = [_peak(lambda num=num: work(num)) for num in (1000, 1000, 3000)]
    # Of 2,000 more, whose features are 3.2 MB.
    assert peaks[2] - peaks[1] < 2000 * 400 * 4 / 10


def test_statistics_are_mapped(on_disk, monkeypatch, tmp_path):
    monkeypatch.setattr(metrics, "MOST_PAIRED", 100)
    statistics = metrics.statistics(_features(20_000, 128))
    path = tmp_path / "statistics.npz"
    statistics_file.save(path, statistics, {"fid": 1.0}, {})
    peak = _peak(lambda: statistics_file.load(path, {}))
    assert peak < 20_000 * 128 * 4 / 2
    read = statistics_file.load(path, {})[0]
    assert read.pooled.count == 20_000
    np.testing.assert_array_equal(read.features, statistics.features)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="remove it"):
        statistics_file.load(path, {})


def test_the_nearest_are_the_same_however_many_are_looked_at_at_once(monkeypatch):
    features = _features(300, 16).pooled
    whole = neighbours.nearest(features[:20], features, 4)
    monkeypatch.setattr(neighbours, "MOST_NUMBERS", 900)
    for one, other in zip(
        whole, neighbours.nearest(features[:20], features, 4), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(whole.indices[:, 0], range(20))
