"""Examples are read when they are needed, in the order that was asked for."""

import dataclasses

import numpy as np
import pytest

from vdiff_jax.datasets import reader
from vdiff_jax.datasets.reader import Reader
from vdiff_jax.datasets.source import Arrays, Part
from vdiff_jax.datasets.splits import Renumbered
from vdiff_jax.datasets.validation import Checked

IMAGES = np.random.default_rng(0).integers(0, 256, (300, 2, 2, 1), np.uint8)
LABELS = np.arange(300) % 7


@dataclasses.dataclass
class _Decoded:
    """A source that counts what it reads, and whose labels are in its examples."""

    reads: int = 0

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        self.reads += 1
        return {"image": IMAGES[index], "label": LABELS[index]}


SOURCES = {"arrays": Arrays(IMAGES, LABELS), "decoded": _Decoded()}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("held_bytes", [0, 2**28])
def test_parts_and_batches_are_the_examples_that_were_asked_for(
    source, held_bytes, monkeypatch
):
    monkeypatch.setattr(reader, "HELD_BYTES", held_bytes)
    read = Reader(source)
    parts = list(read.parts())
    assert [len(part["image"]) for part in parts] == [128, 128, 44]
    np.testing.assert_array_equal(np.concatenate([p["image"] for p in parts]), IMAGES)
    order = np.random.default_rng(1).integers(len(read), size=(3, 5))
    for indices, batch in zip(order, read.batches(order), strict=True):
        np.testing.assert_array_equal(batch["image"], IMAGES[indices])
        np.testing.assert_array_equal(batch["label"], LABELS[indices])
        assert batch["label"].dtype == np.int32
    np.testing.assert_array_equal(read.labels, LABELS)
    assert read.labels.dtype == np.int32


def test_what_is_small_and_costly_to_read_is_read_once(monkeypatch):
    """Of 600 batches of 128, an image of a small set would be decoded 100 times."""
    order = np.zeros((9, 50), np.int64)
    source = _Decoded()
    read = Reader(source)
    for _ in range(2):
        assert len(list(read.batches(order))) == len(order)
        assert len(list(read.parts())) == 3
    assert source.reads <= len(IMAGES) + 1  # one to know the size

    monkeypatch.setattr(reader, "HELD_BYTES", IMAGES.nbytes - 1)
    source = _Decoded()
    batches = Reader(source).batches(order)
    next(batches)
    assert source.reads < len(IMAGES)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda source: Part(source, np.arange(len(source))),
        lambda source: Checked(source, num_classes=0, uint8_shape=(2, 2, 1)),
        lambda source: Renumbered(source, ("a",), ("a",)),
    ],
    ids=["part", "checked", "renumbered"],
)
def test_what_is_costly_is_so_in_whatever_wraps_it(wrap):
    source = _Decoded()
    source.needs_workers, source.is_costly = False, True
    source.classes = ("a",)
    assert wrap(source).is_costly
    source.is_costly = False
    assert not wrap(source).is_costly


def test_labels_that_the_source_has_cost_no_image():
    source = _Decoded()
    source.labels = LABELS.astype(np.int64)
    read = Reader(source)
    np.testing.assert_array_equal(read.labels, LABELS)
    assert source.reads == 0
