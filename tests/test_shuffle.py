import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdiff_jax.datasets import shuffle


def _epoch(length, seed=(0,), epoch=0, xp=np):
    position = xp.arange(length, dtype=xp.uint32)
    key = xp.asarray(shuffle.key_of(seed), dtype=xp.uint32)
    return shuffle.shuffled(position, length, key, xp.full(length, epoch, xp.uint32))


@pytest.mark.parametrize("length", [1, 2, 3, 10, 97, 1024, 50_000])
def test_an_epoch_is_a_permutation(length):
    np.testing.assert_array_equal(np.sort(_epoch(length)), np.arange(length))


def test_every_order_of_four_examples_is_equally_likely():
    # 24 orders, 200 of each expected; chi-squared with 23 degrees of freedom, of
    # which 45 is the 99.5 % quantile. The draw is fixed by its seed.
    orders = [tuple(_epoch(4, (1,), epoch)) for epoch in range(4800)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert np.sum((counts - 200.0) ** 2 / 200.0) < 45.0


def test_neighbours_in_one_epoch_are_strangers_in_the_data():
    length = 20_000
    first, second = _epoch(length).astype(int), _epoch(length, epoch=1).astype(int)
    # Correlations of independent orders are N(0, 1 / length).
    for a, b in ((first[1:], first[:-1]), (first, second), (first, np.arange(length))):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.0 / np.sqrt(length)
    assert np.sum(np.abs(np.diff(first)) == 1) < 12  # 2 on average
    assert np.sum(first == second) < 8  # 1 on average


def test_the_order_depends_on_every_part_of_the_seed():
    orders = [_epoch(50, seed) for seed in ((0,), (0, 0), (0, 1), (1, 0))]
    orders.append(_epoch(50, (0, 1), epoch=1))
    assert len({tuple(each) for each in orders}) == len(orders)
    np.testing.assert_array_equal(_epoch(50, (0, 1)), _epoch(50, (0, 1)))


def test_a_device_computes_the_order_of_the_host():
    on_device = jax.jit(lambda: _epoch(1617, (3, 4), 5, jnp))()
    assert on_device.dtype == np.uint32
    np.testing.assert_array_equal(on_device, _epoch(1617, (3, 4), 5))


def test_batches_cut_the_stream_of_epochs_even_if_they_hold_several():
    length, batch_size = 10, 23
    row = np.arange(batch_size, dtype=np.uint32)
    seen = np.concatenate(
        [
            shuffle.example_index(
                shuffle.cursor(step, batch_size=batch_size, length=length, seed=(0,)),
                row,
                length,
            )
            for step in range(10)
        ]
    )
    for epoch in range(23):
        np.testing.assert_array_equal(
            seen[epoch * length : (epoch + 1) * length],
            _epoch(length, epoch=epoch),
        )


def test_a_step_far_beyond_32_bits_of_examples_has_its_batch():
    # 5e6 steps of 2,048 examples are 1e10 positions.
    start = shuffle.cursor(5_000_000, batch_size=2048, length=1_281_167, seed=(0,))
    assert int(start.epoch) * 1_281_167 + int(start.offset) == 5_000_000 * 2048
    index = shuffle.example_index(start, np.arange(2048, dtype=np.uint32), 1_281_167)
    assert index.max() < 1_281_167
    assert len(np.unique(index)) == 2048


@pytest.mark.parametrize("length", [0, 2**31])
def test_a_length_that_has_no_order_is_refused(length):
    with pytest.raises(ValueError, match=f"got {length}"):
        shuffle.cursor(0, batch_size=1, length=length, seed=(0,))
