"""Latents in shards, contexts beside them, and every way in which they can be bad."""

import pickle
import shutil
import tracemalloc

import numpy as np
import pytest

from vdiff_jax.datasets import catalog
from vdiff_jax.datasets.device_feed import batch_of, size_in_bytes
from vdiff_jax.datasets.identity import sha256_of_sample
from vdiff_jax.datasets.loader import load, read_all
from vdiff_jax.datasets.names import mirrored
from vdiff_jax.datasets.npz import Npz
from vdiff_jax.datasets.source import Arrays, held_out_part
from vdiff_jax.datasets.splits import Renumbered
from vdiff_jax.datasets.validation import Checked

TOKENS, WIDTH = 3, 5


def _latents(count, channels=4, seed=0):
    latents = np.random.default_rng(seed).normal(size=(count, 2, 2, channels))
    return latents.astype(np.float16)


def _store(folder, counts=(4, 1, 3), null=True, **changes):
    """A folder of shards; what is in it as one file would have it."""
    rng = np.random.default_rng(1)
    total = sum(counts)
    whole = {
        "latents": _latents(total),
        "labels": np.arange(total, dtype=np.int32) % 2,
        "names": np.array([f"{i}.jpg".encode() for i in range(total)]),
        "context": rng.integers(0, 6, total, np.int32),
    }
    classes = np.array([b"ant", b"bee"])
    table = {
        "contexts": rng.normal(size=(6, TOKENS, WIDTH)).astype(np.float32),
        "masks": rng.integers(0, 2, (6, TOKENS)).astype(bool),
    }
    if null:
        table["null_context"] = rng.normal(size=(TOKENS, WIDTH)).astype(np.float32)
        table["null_mask"] = np.array([True, False, False])
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "contexts.npz", **{**table, **changes})
    ends = np.cumsum(counts)
    for k, (end, count) in enumerate(zip(ends, counts, strict=True)):
        part = {name: values[end - count : end] for name, values in whole.items()}
        np.savez(folder / f"{k:05d}.npz", **part, classes=classes)
    return whole, table


def _checked(source, shape=(2, 2, 4), context_shape=(TOKENS, WIDTH), **options):
    return Checked(
        source,
        num_classes=0,
        float_shapes=[shape],
        context_shape=context_shape,
        **options,
    )


def test_shards_are_read_in_any_order_as_one_file(tmp_path):
    whole, table = _store(tmp_path / "store")
    source = Npz(tmp_path / "store")
    assert len(source) == 8
    assert source.classes == ("ant", "bee")
    np.testing.assert_array_equal(source.labels, whole["labels"])
    order = [7, 0, 4, 4, 3, 5, 1, 6, 2]
    many = pickle.loads(pickle.dumps(source)).__getitems__(order)
    rows = whole["context"][order]
    expected = {
        "image": whole["latents"][order],
        "label": whole["labels"][order],
        "context": table["contexts"][rows],
        "mask": table["masks"][rows],
    }
    assert many.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(many[name], values)
        assert many[name].dtype == values.dtype
        for place, i in enumerate(order):
            np.testing.assert_array_equal(source[i][name], values[place])
    assert [source.name(i) for i in order] == [f"{i}.jpg" for i in order]
    assert source.name(-1) == "7.jpg"
    with pytest.raises(IndexError):
        source[8]


def test_one_shard_is_a_file_by_itself(tmp_path):
    whole, table = _store(tmp_path)
    source = Npz(tmp_path / "00002.npz")
    assert len(source) == 3
    np.testing.assert_array_equal(
        source[1]["context"], table["contexts"][whole["context"][6]]
    )


def test_the_store_of_a_split_and_size_is_found(tmp_path):
    _store(tmp_path / "train" / "2")

    def length(path, split_name, size=2, **of_latents):
        source = catalog.open_source(
            "npz",
            path=path,
            name="",
            split_name=split_name,
            split="train",
            image_shape=(size, size, 4),
            resize="area",
            **of_latents,
        )
        return len(source)

    assert length(tmp_path, "train") == 8
    assert length(tmp_path / "train", "") == 8
    assert length(tmp_path / "train" / "2", "") == 8
    with pytest.raises(ValueError, match=r"There is none of .*test/2"):
        length(tmp_path, "test")
    # With an autoencoder images are larger than latents, and either may be there.
    assert length(tmp_path, "train", size=8, latent_size=2) == 8
    np.savez(tmp_path / "train" / "8.npz", images=np.zeros((3, 8, 8, 4), np.uint8))
    assert length(tmp_path, "train", size=8, latent_size=2) == 8
    shutil.rmtree(tmp_path / "train" / "2")
    assert length(tmp_path, "train", size=8, latent_size=2) == 3


def test_shards_that_do_not_fit_together_are_refused_by_name(tmp_path):
    _store(tmp_path)
    second = dict(np.load(tmp_path / "00001.npz"))
    for change in (
        {"latents": _latents(1, channels=8)},
        {"latents": second["latents"].astype(np.float32)},
        {"classes": np.array([b"ant", b"cow"])},
        {"labels": None},
        {"context": None},
    ):
        arrays = {name: x for name, x in {**second, **change}.items() if x is not None}
        np.savez(tmp_path / "00001.npz", **arrays)
        with pytest.raises(ValueError, match=r"00001\.npz has .* but 00000\.npz"):
            Npz(tmp_path)
    np.savez(tmp_path / "00001.npz", **{**second, "context": np.array([6])})
    with pytest.raises(ValueError, match=r"00001\.npz: context has rows 6 to 6,.* 6 c"):
        Npz(tmp_path)
    (tmp_path / "00001.npz").unlink()
    with pytest.raises(ValueError, match=r"lacks 00001\.npz, one of .* 00002\.npz"):
        Npz(tmp_path)
    (tmp_path / "contexts.npz").unlink()
    with pytest.raises(ValueError, match=r"no file .*contexts\.npz"):
        Npz(tmp_path / "00000.npz")


def test_contexts_in_a_file_of_ones_own_are_read(tmp_path):
    contexts = np.random.default_rng(0).normal(size=(6, TOKENS, WIDTH))
    masks = np.arange(18).reshape(6, TOKENS) % 2
    arrays = {"latents": _latents(6), "context": contexts}
    np.savez(tmp_path / "a.npz", **arrays, mask=masks)
    example = _checked(Npz(tmp_path / "a.npz"))[4]
    assert example["context"].dtype == np.float32
    np.testing.assert_allclose(example["context"], contexts[4], rtol=1e-6)
    np.testing.assert_array_equal(example["mask"], [False, True, False])
    assert example["mask"].dtype == bool
    np.savez(tmp_path / "b.npz", **arrays)
    assert _checked(Npz(tmp_path / "b.npz"))[4]["mask"].all()
    assert Npz(tmp_path / "b.npz").null_context is None
    # Where no model reads them they are left out.
    unread = _checked(Npz(tmp_path / "a.npz"), context_shape=None)
    assert unread[0].keys() == {"image", "label"}
    assert unread.null_context is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contexts": np.zeros((6, 3))}, r"contexts must be floats of shape"),
        ({"contexts": np.zeros((6, 3, 5), int)}, r"contexts must be floats of shape"),
        ({"masks": np.zeros((6, 4), bool)}, r"masks must be bool of shape \(6, 3\)"),
        ({"masks": np.zeros((6, 3))}, r"masks must be bool .* is float64"),
        ({"null_context": np.zeros((3, 4))}, r"null_context must be floats .*\(3, 5\)"),
        ({"null_context": np.full((3, 5), np.nan)}, "null_context is not finite"),
        ({"null_mask": np.ones(2, bool)}, r"null_mask must be bool of shape \(3,\)"),
    ],
    ids=str,
)
def test_contexts_of_another_form_are_refused_by_name(tmp_path, change, message):
    _store(tmp_path, **change)
    with pytest.raises(ValueError, match=rf"contexts\.npz: {message}"):
        Npz(tmp_path)


def test_a_mask_of_no_text_without_the_text_is_refused(tmp_path):
    _store(tmp_path, null=False, null_mask=np.ones(3, bool))
    with pytest.raises(ValueError, match=r"has a null_mask, but no null_context"):
        Npz(tmp_path)


def test_the_context_of_no_text_comes_through_every_source(tmp_path):
    _, table = _store(tmp_path)
    source = Npz(tmp_path)
    for each in (
        source,
        held_out_part(source, 0.5, "train"),
        Renumbered(source, ("ant", "bee"), ("bee", "ant")),
        _checked(source),
        _checked(held_out_part(source, 0.5, "test")),
    ):
        context, mask = each.null_context
        np.testing.assert_array_equal(context, table["null_context"])
        np.testing.assert_array_equal(mask, table["null_mask"])
    assert Renumbered(Arrays(_latents(2)), (), ()).null_context is None


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (TOKENS, 6),
            r"0\.jpg has a context of width 5, .*context_features is 6",
        ),
        ((4, WIDTH), r"0\.jpg has a context of 3 vectors, .*\.context_tokens is 4"),
    ],
)
def test_contexts_that_do_not_fit_the_model_are_refused(tmp_path, shape, message):
    _store(tmp_path)
    with pytest.raises(ValueError, match=message):
        _checked(Npz(tmp_path), context_shape=shape)


def test_examples_of_ones_own_are_checked_for_their_contexts():
    def example(**changes):
        context = np.zeros((TOKENS, WIDTH), np.float16)
        parts = {"image": _latents(1)[0], "context": context, **changes}
        return {name: x for name, x in parts.items() if x is not None}

    good = _checked([example(), example(mask=[True, False, True])])
    many = good.__getitems__([1, 0])
    np.testing.assert_array_equal(many["mask"], [[True, False, True], [True] * 3])
    assert many["context"].dtype == np.float16
    for change, message in (
        ({"context": None}, r"example 1 has no context, but .*--context"),
        (
            {"context": np.zeros(3)},
            r"example 1 has a context of float64 and shape",
        ),
        ({"context": np.zeros((3, 5), int)}, "example 1 has a context of int64"),
        ({"mask": [True, False]}, r"example 1 has a mask of bool and shape \(2,\)"),
        ({"mask": [0.0, 1.0, 1.0]}, "example 1 has a mask of float64"),
    ):
        source = _checked([example(), example(**change)])
        with pytest.raises(ValueError, match=message):
            source.__getitems__([0, 1])
    with pytest.raises(ValueError, match=r"example 0 has no context"):
        _checked(Arrays(_latents(2)))


def test_latents_or_their_moments_fit_but_not_both_at_once():
    shapes = [(2, 2, 4), (2, 2, 8)]
    for channels in (4, 8):
        images = Arrays(_latents(3, channels))
        source = Checked(images, num_classes=0, float_shapes=shapes)
        assert source[2]["image"].shape == (2, 2, channels)
    with pytest.raises(ValueError, match=r"ask for \(2, 2, 4\) or \(2, 2, 8\)"):
        Checked(Arrays(_latents(3, 5)), num_classes=0, float_shapes=shapes)
    mixed = [{"image": _latents(1, channels)[0]} for channels in (4, 8)]
    source = Checked(mixed, num_classes=0, float_shapes=shapes)
    with pytest.raises(ValueError, match=r"example 1 has shape \(2, 2, 8\)"):
        source[1]
    pixels = np.zeros((2, 16, 16, 3), np.uint8)
    either = {"num_classes": 0, "uint8_shape": (16, 16, 3), "float_shapes": shapes}
    assert Checked(Arrays(pixels), **either)[0]["image"].dtype == np.uint8
    mixed = [{"image": _latents(1)[0]}, {"image": pixels[0]}]
    with pytest.raises(ValueError, match="example 1 has an image of type uint8"):
        Checked(mixed, **either)[1]


def test_batches_carry_contexts_and_their_bytes_count(tmp_path):
    whole, table = _store(tmp_path)
    source = _checked(Npz(tmp_path))
    everything = batch_of(read_all(source))
    np.testing.assert_array_equal(
        everything.condition.context, table["contexts"][whole["context"]]
    )
    np.testing.assert_array_equal(
        everything.condition.mask, table["masks"][whole["context"]]
    )
    assert everything.image.dtype == np.float16
    bytes_of_one = 2 * 2 * 4 * 2 + TOKENS * WIDTH * 4 + TOKENS
    assert size_in_bytes(source) == 8 * bytes_of_one
    (stack,) = load(source, batch_size=2, seed=(0, 0), calls=[(0, 3)])
    assert batch_of(stack).condition.context.shape == (3, 2, TOKENS, WIDTH)


def test_data_with_other_contexts_are_other_data(tmp_path):
    _store(tmp_path)
    source = Npz(tmp_path)
    before = sha256_of_sample(_checked(source))
    alone = sha256_of_sample(_checked(source, context_shape=None))
    _, table = _store(tmp_path)
    _store(tmp_path, contexts=table["contexts"] + 1)
    assert sha256_of_sample(_checked(Npz(tmp_path))) != before
    # Half or single, the same latents are the same data, as they always were.
    single = Arrays(_latents(8).astype(np.float32), Npz(tmp_path).labels)
    assert sha256_of_sample(_checked(single, context_shape=None)) == alone


def test_a_mirrored_copy_is_held_out_with_its_image(tmp_path):
    names = [f"{i}.jpg" for i in range(100)]
    both = [name for x in names for name in (x, mirrored(x))]
    array = np.array([name.encode() for name in both])
    np.savez(tmp_path / "00000.npz", latents=_latents(200), names=array)
    part = held_out_part(Npz(tmp_path), 0.3, "test")
    held_out = {part.name(i) for i in range(len(part))}
    originals = held_out & set(names)
    assert held_out == originals | {mirrored(name) for name in originals}
    assert 10 < len(originals) < 50


def test_a_store_is_mapped_and_takes_no_memory(tmp_path):
    shards = 6
    latents = np.zeros((500, 32, 32, 4), np.float16)  # 4 MB
    for k in range(shards):
        rows = np.zeros(len(latents), np.int32)
        np.savez(tmp_path / f"{k:05d}.npz", latents=latents, context=rows)
    np.savez(tmp_path / "contexts.npz", contexts=np.zeros((100, 77, 768), np.float32))
    tracemalloc.start()
    source = Npz(tmp_path)
    many = source.__getitems__(list(range(0, 3000, 300)))
    size = sum(values.nbytes for values in many.values())
    del many
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * size + 2**20 < 2**23
