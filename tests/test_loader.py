import dataclasses
import itertools
import os
import pathlib
import threading
import time

import numpy as np
import pytest

from vdiff_jax.datasets import loader
from vdiff_jax.datasets.digits import digits
from vdiff_jax.datasets.loader import LoaderError, load, prefetch, read_all
from vdiff_jax.datasets.shuffle import batch_indices
from vdiff_jax.datasets.source import Arrays, Part, Source
from vdiff_jax.training.calls import Calls


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


def test_a_host_reads_its_rows_of_the_same_batches():
    (whole,) = load(_source(10), batch_size=6, seed=(0,), calls=[(3, 2)])
    for rows in ([0, 1, 2], [4, 1]):
        (part,) = load(
            _source(10), batch_size=6, seed=(0,), calls=[(3, 2)], rows=np.array(rows)
        )
        np.testing.assert_array_equal(part["label"], whole["label"][:, rows])


class _Spoilt(_OneByOne):
    def __getitem__(self, index):
        if index == 7:
            raise ValueError("holiday.jpg cannot be read")
        return super().__getitem__(index)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_a_source_says_of_a_bad_example_is_all_that_is_said(num_workers):
    with pytest.raises(ValueError, match=r"^holiday\.jpg cannot be read$"):
        list(
            load(
                _Spoilt(),
                batch_size=5,
                seed=(0,),
                calls=[(0, 1), (1, 1)],
                num_workers=num_workers,
            )
        )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_everything_is_read_in_its_order(num_workers):
    labels = np.arange(1000, dtype=np.int32)
    images = labels.astype(np.uint8).reshape(-1, 1, 1, 1)
    source = Part(Arrays(images, labels), np.arange(1000))
    source.needs_workers = True
    everything = read_all(source, num_workers)
    np.testing.assert_array_equal(everything["label"], labels)
    np.testing.assert_array_equal(everything["image"], images)
    assert everything["image"].dtype == np.uint8


def test_prefetching_works_ahead_but_not_further_than_it_may():
    drawn, placed = [], []
    third = threading.Event()

    def items():
        for i in range(10):
            drawn.append(i)
            if i == 3:
                third.set()
            yield i

    def place(item):
        placed.append(item)
        return -item

    ahead = prefetch(items(), place, size=2)
    assert not drawn  # nothing begins before the first is wanted
    assert next(ahead) == 0
    # Two wait in the queue and one more is ready to join them.
    assert third.wait(10)
    time.sleep(0.3)
    assert drawn == [0, 1, 2, 3]
    assert list(ahead) == [-i for i in range(1, 10)]
    assert placed == list(range(10))


def test_prefetching_raises_in_its_place_and_stops_when_it_is_left():
    def items():
        yield 1
        raise ValueError("the second cannot be read")

    ahead = prefetch(items(), abs)
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="the second cannot be read"):
        next(ahead)

    before = threading.active_count()
    endless = prefetch(iter(int, 1), abs)
    next(endless)
    assert threading.active_count() == before + 1
    endless.close()
    assert threading.active_count() == before


def test_a_source_that_only_copies_starts_no_process(monkeypatch):
    def refuse():
        raise AssertionError("a worker was started")

    monkeypatch.setattr(loader, "_processes", refuse)
    assert len(_labels(_source(10), [(0, 2)], num_workers=2)) == 1
    with pytest.raises(AssertionError, match="a worker was started"):
        _labels(_OneByOne(), [(0, 2)], num_workers=2)


def test_batches_are_asked_for_as_they_are_needed():
    asked = []

    def batches():
        for number in itertools.count():
            asked.append(number)
            yield [number % 10]

    some = itertools.islice(loader.read_batches(_source(10), batches()), 12)
    assert [int(batch["label"][0]) for batch in some] == [*range(10), 0, 1]
    assert len(asked) == 12


def test_the_calls_of_a_run_are_cut_where_those_of_a_whole_run_are():
    whole = [(0, 4), (4, 4), (8, 2)]
    assert list(Calls(0, 10, 4)) == whole
    assert list(Calls(3, 10, 4)) == [(3, 1), *whole[1:]]
    endless = Calls(0, 10**15, 1)
    feeds = load(_source(10), batch_size=4, seed=(0,), calls=endless)
    assert [len(next(feeds)["label"]) for _ in range(3)] == [1, 1, 1]


# An example of the 16th of 20 batches.
TROUBLED = batch_indices(15, batch_size=3, length=60, seed=(0,))[1]


@dataclasses.dataclass(frozen=True)
class _Trouble:
    """Sixty examples; what happens at one of them happens `times` times."""

    kind: str
    notes: pathlib.Path
    times: int = 1

    def __len__(self):
        return 60

    def __getitem__(self, index):
        seen = len(list(self.notes.iterdir()))
        if index == TROUBLED and seen < self.times:
            (self.notes / str(seen)).touch()
            if self.kind == "dies":
                os._exit(9)
            if self.kind == "hangs":
                time.sleep(600)
            raise RuntimeError("the user's own trouble, exited unexpectedly")
        return {"image": np.full((1, 1, 1), index, np.uint8), "label": index}


def _in_worker(source, **options):
    stacks = load(
        source,
        batch_size=3,
        seed=(0,),
        calls=[(step, 1) for step in range(20)],
        num_workers=2,
        **options,
    )
    return np.concatenate([stack["label"][0] for stack in stacks]).tolist()


# A worker that hangs is waited for; less would be too little to start in on a busy
# machine.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"), [("dies", {}), ("hangs", {"timeout": 9.0})]
)
def test_new_workers_go_on_where_one_was_lost(kind, options, tmp_path, capfd):
    expected = _in_worker(_Trouble(kind, tmp_path, times=0))
    assert _in_worker(_Trouble(kind, tmp_path), **options) == expected
    assert "started new workers" in capfd.readouterr().err


@pytest.mark.slow
def test_workers_that_are_lost_again_and_again_are_an_error(tmp_path):
    with pytest.raises(LoaderError, match=r"failed 3 times at one batch .*exited"):
        _in_worker(_Trouble("dies", tmp_path, times=9))
    # A death may be noticed at a batch before, which a busy worker had not handed over.
    assert 3 <= len(list(tmp_path.iterdir())) < 9


def test_what_a_source_raises_is_not_taken_for_a_lost_worker(tmp_path):
    with pytest.raises(RuntimeError, match="the user's own trouble") as error:
        _in_worker(_Trouble("raises", tmp_path, times=9))
    assert not isinstance(error.value, LoaderError)
    assert len(list(tmp_path.iterdir())) < 3
