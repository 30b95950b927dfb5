import numpy as np
import pytest

from vdiff_jax.datasets.digits import digits
from vdiff_jax.datasets.loader import load
from vdiff_jax.datasets.source import Arrays, Source


def _source(length):
    images = np.zeros((length, 1, 1, 1), np.uint8)
    return Arrays(images, np.arange(length, dtype=np.int32))


class _OneByOne:
    """A source without batched access, as a user may write it."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {"image": np.full((2, 2, 3), index, np.uint8), "label": index}


def _labels(source, calls, batch_size=4, seed=(0,), **options):
    stacks = load(source, batch_size=batch_size, seed=seed, calls=calls, **options)
    return [stack["label"] for stack in stacks]


def test_every_example_comes_once_in_every_epoch():
    # 10 examples in batches of 4: five batches are two epochs.
    labels = np.concatenate(_labels(_source(10), [(0, 2), (2, 3)])).ravel()
    assert sorted(labels[:10]) == list(range(10))
    assert sorted(labels[10:]) == list(range(10))
    assert list(labels[:10]) != list(labels[10:])


def test_a_resumed_run_sees_the_batches_it_would_have_seen():
    whole = np.concatenate(_labels(_source(10), [(0, 4), (4, 4), (8, 4)]))
    resumed = np.concatenate(_labels(_source(10), [(5, 3), (8, 4)]))
    np.testing.assert_array_equal(whole[5:], resumed)


def test_the_order_depends_on_every_part_of_the_seed():
    first = _labels(_source(50), [(0, 5)], seed=(0, 1))[0]
    again = _labels(_source(50), [(0, 5)], seed=(0, 1))[0]
    other = _labels(_source(50), [(0, 5)], seed=(0, 2))[0]
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_source_without_batches_loads_too(num_workers):
    assert isinstance(_OneByOne(), Source)
    (stack,) = load(
        _OneByOne(), batch_size=3, seed=(0,), calls=[(0, 2)], num_workers=num_workers
    )
    assert stack["image"].shape == (2, 3, 2, 2, 3)
    np.testing.assert_array_equal(stack["image"][..., 0, 0, 0], stack["label"])


def test_the_digits_are_whole_and_split():
    train, test = digits("train"), digits("test")
    assert len(train) == 1617
    assert len(test) == 180
    assert train[0]["image"].shape == (8, 8, 1)
    assert train.images.max() == 255
    assert train.images.min() == 0
    assert set(train.labels) == set(test.labels) == set(range(10))
    seen = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in seen for image in test.images)
