"""Every source of examples, and every way in which one can be bad."""

import collections
import io
import itertools
import json
import os
import pathlib
import pickle
import struct
import tarfile

import lmdb
import numpy as np
import PIL.Image
import pytest

from vdiff_jax.datasets import catalog
from vdiff_jax.datasets import lmdb as lmdb_source
from vdiff_jax.datasets.cifar10 import cifar10
from vdiff_jax.datasets.digits import digits
from vdiff_jax.datasets.folder import Folder
from vdiff_jax.datasets.images import Fit, Images
from vdiff_jax.datasets.lmdb import Lmdb
from vdiff_jax.datasets.npz import Npz
from vdiff_jax.datasets.source import Arrays, Source, held_out_part, name_of
from vdiff_jax.datasets.validation import Checked


def _noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _save(path, pixels=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = _noise(8, 8, 3) if pixels is None else pixels
    PIL.Image.fromarray(pixels).save(path, **options)


def _classes(root, counts):
    """A folder of PNGs, each with its own picture; what is in it, by name."""
    pixels = {}
    for label, (name, count) in enumerate(counts.items()):
        for i in range(count):
            pixels[f"{name}/{i:03d}.png"] = _noise(8, 8, 3, seed=100 * label + i)
    for name, picture in pixels.items():
        _save(root / name, picture)
    return pixels


def _pictures(root, size=8, channels=3):
    return Images(Folder(root), Fit(size, channels))


def _checked(source, shape=(8, 8, 3), num_classes=0, latents=False, **options):
    shapes = {"float_shapes": [shape]} if latents else {"uint8_shape": shape}
    return Checked(source, num_classes=num_classes, **shapes, **options)


# Folders


def test_a_folder_has_a_class_for_each_sub_folder(tmp_path):
    pixels = _classes(tmp_path, {"cat": 2, "ant": 3})
    source = _pictures(tmp_path)
    assert isinstance(source, Source)
    assert source.classes == ("ant", "cat")
    np.testing.assert_array_equal(source.labels, [0, 0, 0, 1, 1])
    for i, name in enumerate(sorted(pixels)):
        assert source.name(i) == name
        assert source[i]["label"] == source.labels[i]
        np.testing.assert_array_equal(source[i]["image"], pixels[name])


def test_a_flat_folder_has_no_labels(tmp_path):
    for name in ("b.PNG", "a.jpeg", "c.webp", "d.JPG"):
        _save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden.png").write_text("not shown")
    source = _pictures(tmp_path)
    assert [source.name(i) for i in range(len(source))] == [
        "a.jpeg", "b.PNG", "c.webp", "d.JPG"
    ]  # fmt: skip
    assert source.labels is None
    assert set(source[0]) == {"image"}


def test_an_empty_folder_is_refused_with_what_is_in_it(tmp_path):
    with pytest.raises(ValueError, match=r"no images .* in .*; it is empty"):
        Folder(tmp_path)
    (tmp_path / "scan.tif").touch()
    with pytest.raises(ValueError, match=r"it has 1 files \(.tif\)"):
        Folder(tmp_path)
    with pytest.raises(ValueError, match=r"There is no folder .*nowhere"):
        Folder(tmp_path / "nowhere")


def test_pictures_beside_class_folders_are_refused_by_name(tmp_path):
    _classes(tmp_path, {"cat": 1})
    _save(tmp_path / "loose.png")
    with pytest.raises(ValueError, match=r"such as loose\.png"):
        Folder(tmp_path)


def test_names_that_differ_in_case_are_two_pictures(tmp_path):
    _save(tmp_path / "A.png", _noise(8, 8, 3, seed=1))
    _save(tmp_path / "a.png", _noise(8, 8, 3, seed=2))
    source = _pictures(tmp_path)
    assert [source.name(0), source.name(1)] == ["A.png", "a.png"]
    assert (source[0]["image"] != source[1]["image"]).any()


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    _classes(tmp_path / "there", {"ant": 2})
    _save(tmp_path / "here" / "bee" / "0.png")
    (tmp_path / "here" / "ant").symlink_to(tmp_path / "there" / "ant")
    (tmp_path / "here" / "bee" / "again").symlink_to(tmp_path / "here")
    source = _pictures(tmp_path / "here")
    names = [source.name(i) for i in range(len(source))]
    assert names == ["ant/000.png", "ant/001.png", "bee/0.png"]


def test_a_name_that_is_not_utf8_is_read(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    _save(pathlib.Path(path))
    assert _pictures(tmp_path)[0]["image"].shape == (8, 8, 3)


def test_a_picture_that_is_cut_off_is_refused_by_name(tmp_path):
    _classes(tmp_path, {"cat": 1})
    _save(tmp_path / "cat" / "half.jpg", _noise(64, 64, 3))
    whole = (tmp_path / "cat" / "half.jpg").read_bytes()
    (tmp_path / "cat" / "half.jpg").write_bytes(whole[:-200])
    source = _pictures(tmp_path)
    with pytest.raises(ValueError, match=r"cat/half\.jpg: cannot be read .*truncated"):
        source[1]


def test_a_broken_link_is_refused_by_name(tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"gone\.png: .*No such file"):
        _pictures(tmp_path)[0]


# Held-out fraction


def test_a_held_out_part_is_disjoint_whole_and_of_its_size(tmp_path):
    _classes(tmp_path, {"cat": 200, "ant": 100})
    source = _pictures(tmp_path)
    train, test = (held_out_part(source, 0.2, split) for split in ("train", "test"))
    names = [[part.name(i) for i in range(len(part))] for part in (train, test)]
    assert not set(names[0]) & set(names[1])
    assert len(set(names[0]) | set(names[1])) == 300
    assert 35 < len(test) < 85  # 60 on average, with a deviation of 7
    i = len(test) - 1
    assert test[i]["label"] == test.labels[i] == (names[1][i].startswith("cat"))
    assert test.classes == ("ant", "cat")
    many = test.__getitems__([0, i])
    np.testing.assert_array_equal(many[1]["image"], test[i]["image"])


def test_adding_files_moves_none_between_the_parts(tmp_path):
    def held_out():
        part = held_out_part(_pictures(tmp_path), 0.3, "test")
        return {part.name(i) for i in range(len(part))}

    old = _classes(tmp_path, {"cat": 60})
    before = held_out()
    _classes(tmp_path, {"ant": 60, "bee": 5})
    assert held_out() & old.keys() == before


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_a_fraction_that_is_none_is_refused(fraction):
    with pytest.raises(ValueError, match=r"must be in \(0, 1\)"):
        held_out_part(digits("train"), fraction, "test")
    with pytest.raises(ValueError, match="leaves none in test"):
        held_out_part(Arrays(_noise(2, 8, 8, 3)), 1e-6, "test")


# Arrays


def test_an_npz_is_mapped_and_not_read(tmp_path):
    images, labels = _noise(600, 32, 32, 3), np.arange(600) % 7
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    source = Npz(tmp_path / "a.npz")
    assert isinstance(source._shards[0].images, np.memmap)
    np.testing.assert_array_equal(source._shards[0].images, images)
    np.testing.assert_array_equal(source[5]["image"], images[5])
    many = source.__getitems__([3, 599, 3])
    np.testing.assert_array_equal(many["image"], images[[3, 599, 3]])
    np.testing.assert_array_equal(many["label"], labels[[3, 599, 3]])
    # What is sent to a worker is the path.
    assert len(pickle.dumps(source)) < 1000
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(source))[599]["image"], images[599]
    )


def test_compressed_archives_other_names_and_npy_are_read_too(tmp_path):
    images, labels = _noise(600, 32, 32, 3), np.arange(600) % 7
    np.savez_compressed(tmp_path / "a.npz", images, labels)  # arr_0 and arr_1
    np.save(tmp_path / "b.npy", images)
    np.save(tmp_path / "b_labels.npy", labels)
    np.save(tmp_path / "c.npy", np.asfortranarray(images))
    np.savez(tmp_path / "d.npz", images=np.asfortranarray(images))
    for name in ("a.npz", "b.npy", "c.npy", "d.npz"):
        example = Npz(tmp_path / name)[11]
        np.testing.assert_array_equal(example["image"], images[11])
        assert example.get("label", 4) == 4


@pytest.mark.parametrize(
    ("dtype", "read"),
    [("float16", "float16"), ("float32", "float32"), ("float64", "float32")],
)
def test_latents_come_as_float32_or_as_the_half_that_they_are(tmp_path, dtype, read):
    latents = np.random.default_rng(0).normal(size=(6, 4, 4, 8))
    np.savez(tmp_path / "z.npz", latents=latents.astype(dtype))
    source = _checked(Npz(tmp_path / "z.npz"), (4, 4, 8), latents=True)
    assert source[2]["image"].dtype == read
    np.testing.assert_allclose(source[2]["image"], latents[2], rtol=2e-3)


def test_arrays_that_are_no_examples_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(ValueError, match=r"There is no file .*a\.npz"):
        Npz(path)
    np.savez(path, pictures=_noise(3, 8, 8, 3))
    with pytest.raises(ValueError, match=r"it has \{'pictures': \(3, 8, 8, 3\)\}"):
        Npz(path)
    np.savez(path, images=_noise(3, 8, 8))
    with pytest.raises(ValueError, match=r"it has \{'images': \(3, 8, 8\)\}"):
        Npz(path)
    np.savez(path, images=_noise(3, 8, 8, 3), labels=np.zeros(4, int))
    with pytest.raises(ValueError, match=r"one integer for each of the 3 examples"):
        Npz(path)
    np.savez(path, images=_noise(3, 8, 8, 3), labels=np.zeros(3))
    with pytest.raises(ValueError, match=r"labels must be one integer .* float64"):
        Npz(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"a\.npz cannot be read as arrays"):
        Npz(path)


class _Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize(
    ("count", "reason"),  # read whole, and mapped
    [(3, "allow_pickle=False"), (2_000_000, "holds Python objects")],
)
def test_an_npz_of_objects_is_refused_and_never_run(
    tmp_path, monkeypatch, count, reason
):
    monkeypatch.chdir(tmp_path)
    objects = np.empty((count, 1, 1, 1), object)
    objects[0, 0, 0, 0] = _Trap()
    np.savez("a.npz", images=objects)
    with pytest.raises(ValueError, match=rf"a\.npz cannot be read .*{reason}"):
        Npz(pathlib.Path("a.npz"))
    np.save("b.npy", objects)
    with pytest.raises(ValueError, match=r"b\.npy cannot be read .*object"):
        Npz(pathlib.Path("b.npy"))
    assert not (tmp_path / "sprung").exists()


# LMDB


def _lmdb(path, **values):
    with lmdb.open(str(path), map_size=2**24) as env, env.begin(write=True) as txn:
        for key, value in values.items():
            txn.put(key.replace("_", "-").encode(), value)


def _png(pixels):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_an_lmdb_of_another_tool_is_read(tmp_path):
    pixels = _noise(2, 8, 8, 3)
    pngs = {f"8_{i:05d}": _png(picture) for i, picture in enumerate(pixels)}
    _lmdb(tmp_path / "a", length=b"2", **pngs)
    source = Images(Lmdb(tmp_path / "a", 8), Fit(8, 3))
    assert len(source) == 2
    assert source.classes is source.labels is None
    copy = pickle.loads(pickle.dumps(source))
    for i in (0, 1):
        np.testing.assert_array_equal(source[i]["image"], pixels[i])
        np.testing.assert_array_equal(copy[i]["image"], pixels[i])


@pytest.mark.parametrize(
    "keys", list(itertools.permutations(["sizes", "classes", "names"]))
)
def test_the_facts_of_an_lmdb_are_read_in_any_order(tmp_path, monkeypatch, keys):
    values = {"sizes": [8], "classes": ['a, "names": [', "b"], "names": ["x/0", "y/1"]}
    pngs = {f"8_{i:05d}": _png(_noise(8, 8, 3)) for i in range(2)}
    meta = json.dumps({key: values[key] for key in keys}).encode()
    labels = np.array([1, 0], "<i4").tobytes()
    _lmdb(tmp_path / "a", length=b"2", labels=labels, meta=meta, **pngs)
    for glance in (2**20, 60):
        monkeypatch.setattr(lmdb_source, "_GLANCE_BYTES", glance)
        source = Lmdb(tmp_path / "a", 8)
        assert source.classes == tuple(values["classes"])
        assert [source.name(i) for i in (0, 1)] == values["names"]


def test_the_names_in_an_lmdb_are_read_when_one_is_asked_for(tmp_path):
    names = [f"{i:0500d}" for i in range(5000)]  # 2.5 MB
    meta = json.dumps({"sizes": [8], "classes": [], "names": names}).encode()
    _lmdb(tmp_path / "a", length=b"5000", meta=meta, **{"8_00000": b"png"})
    source = Lmdb(tmp_path / "a", 8)
    assert "_names" not in vars(source)
    assert source.name(4999) == names[-1]
    assert len(pickle.dumps(source)) < 1000


def test_an_lmdb_of_another_layout_or_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"There is no LMDB at .*nothing"):
        Lmdb(tmp_path / "nothing", 8)
    (tmp_path / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(ValueError, match="cannot be read as an LMDB"):
        Lmdb(tmp_path, 8)
    _lmdb(tmp_path / "a", images=b"")
    with pytest.raises(ValueError, match="another layout: its key 'length' is None"):
        Lmdb(tmp_path / "a", 8)
    _lmdb(tmp_path / "b", length=b"1", **{"64_00000": b""}, meta=b'{"sizes": [64]}')
    with pytest.raises(ValueError, match=r"of sizes \[64\], and data.image_size is 8"):
        Lmdb(tmp_path / "b", 8)
    _lmdb(tmp_path / "c", length=b"1", **{"8_00000": b""}, labels=b"12345678")
    with pytest.raises(ValueError, match="1 images and 2 labels"):
        Lmdb(tmp_path / "c", 8)


def test_an_lmdb_that_is_cut_off_is_refused_before_it_kills_the_process(tmp_path):
    _lmdb(tmp_path / "a", length=b"1", **{"8_00000": _noise(2**20).tobytes()})
    file = tmp_path / "a" / "data.mdb"
    file.write_bytes(file.read_bytes()[: 2**19])
    with pytest.raises(ValueError, match=r"data\.mdb is cut off: it has 524,288 of 1,"):
        Lmdb(tmp_path / "a", 8)


def test_a_picture_that_an_lmdb_lacks_is_named(tmp_path):
    _lmdb(tmp_path / "a", length=b"2", **{"8_00000": _png(_noise(8, 8, 3))})
    source = Images(Lmdb(tmp_path / "a", 8), Fit(8, 3))
    with pytest.raises(ValueError, match=r"example 1: .*a has no key '8-00001'"):
        source[1]


# CIFAR-10's archive


class _Python2Pickler(pickle._Pickler):
    """Writes what Python 2 and its NumPy wrote: byte strings, and old module names."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    def save_global(self, value, name=None):
        if value is np.zeros(1).__reduce__()[0]:
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
            self.memoize(value)
        else:
            super().save_global(value, name)

    dispatch[bytes] = save_bytes


def _python2(value):
    file = io.BytesIO()
    pickler = _Python2Pickler(file, protocol=2)
    pickler.dispatch_table = collections.ChainMap()
    pickler.dispatch[type(np.zeros(1).__reduce__()[0])] = _Python2Pickler.save_global
    pickler.save(value)
    file.seek(0)
    return pickle.PROTO + bytes([2]) + file.getvalue() + pickle.STOP


def _cifar10(root, count=3):
    planes = _noise(6, count, 3, 32, 32)
    labels = _noise(6, count, seed=1) % 10
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name, data, label in zip(names, planes, labels, strict=True):
        batch = {b"data": data.reshape(count, -1), b"labels": label.tolist()}
        (folder / name).write_bytes(_python2({b"batch_label": name.encode(), **batch}))
    return planes.transpose(0, 1, 3, 4, 2), labels


def test_cifar10_is_read_from_its_folder_and_from_its_archive(tmp_path):
    images, labels = _cifar10(tmp_path / "in")
    batches = tmp_path / "in" / "cifar-10-batches-py"
    assert b"cnumpy.core.multiarray" in (batches / "test_batch").read_bytes()
    archive = tmp_path / "out" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(batches, "cifar-10-batches-py")
    for path in (tmp_path / "in", batches, tmp_path / "out", archive):
        train, test = cifar10(path, "train"), cifar10(path, "test")
        np.testing.assert_array_equal(train.images, images[:5].reshape(-1, 32, 32, 3))
        np.testing.assert_array_equal(train.labels, labels[:5].ravel())
        np.testing.assert_array_equal(test.images, images[5])
        np.testing.assert_array_equal(test.labels, labels[5])


def test_a_pickle_that_asks_for_anything_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _cifar10(tmp_path)
    trap = tmp_path / "cifar-10-batches-py" / "test_batch"
    trap.write_bytes(pickle.dumps(_Trap()))
    with pytest.raises(ValueError, match=r"test_batch .*it asks for posix\.mkdir"):
        cifar10(tmp_path, "test")
    assert not (tmp_path / "sprung").exists()


def test_an_archive_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no cifar-10-python\.tar\.gz .*data\.path"):
        cifar10(tmp_path, "train")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"\x1f\x8b half")
    with pytest.raises(ValueError, match="damaged or incomplete"):
        cifar10(tmp_path, "train")
    _cifar10(tmp_path / "in")
    (tmp_path / "in" / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"\x80\x02")
    with pytest.raises(ValueError, match="data_batch_3 is not a batch of CIFAR-10"):
        cifar10(tmp_path / "in", "train")


# What every source is held to


def test_examples_of_the_wrong_kind_are_refused_by_name():
    pictures = _noise(5, 8, 8, 3)
    with pytest.raises(ValueError, match=r"example 0 has shape \(8, 8, 4\)"):
        _checked(Arrays(_noise(5, 8, 8, 4)))
    with pytest.raises(ValueError, match="example 0 has an image of type float32"):
        _checked(Arrays(pictures.astype(np.float32)))
    with pytest.raises(ValueError, match="example 0 has an image of type uint8"):
        _checked(Arrays(pictures), latents=True)
    with pytest.raises(ValueError, match="The data set is empty"):
        _checked(Arrays(pictures[:0]))
    with pytest.raises(ValueError, match="has an image of type object"):
        _checked([{"picture": pictures[0]}])


def test_labels_out_of_range_are_refused_by_name():
    pictures, labels = _noise(5, 8, 8, 3), np.array([0, 1, 2, 1, 0], np.int32)
    assert _checked(Arrays(pictures, labels), num_classes=3)[2]["label"] == 2
    assert _checked(Arrays(pictures, labels), num_classes=0)[2]["label"] == 2
    with pytest.raises(ValueError, match=r"example 2 has label 2, but .* 0 to 1"):
        _checked(Arrays(pictures, labels), num_classes=2)
    with pytest.raises(ValueError, match="example 4 has label -1"):
        _checked(Arrays(pictures, labels - [0, 0, 0, 0, 1]), num_classes=3)
    with pytest.raises(ValueError, match=r"has no label, but model\.num_classes is 3"):
        _checked(Arrays(pictures), num_classes=3)
    # Of a list nothing is known before it is read.
    examples = [{"image": pictures[i], "label": labels[i]} for i in range(5)]
    source = _checked(examples, num_classes=2)
    with pytest.raises(ValueError, match="example 2 has label 2"):
        source.__getitems__([1, 2])


def test_a_bad_example_among_good_ones_is_found_when_it_is_read(tmp_path):
    good = {"image": _noise(8, 8, 3), "label": 0}
    source = _checked([good, {"image": _noise(8, 9, 3), "label": 0}])
    with pytest.raises(ValueError, match=r"example 1 has shape \(8, 9, 3\)"):
        source.__getitems__([0, 1])


def test_a_model_must_have_the_classes_of_the_data(tmp_path):
    _classes(tmp_path, {"cat": 1, "ant": 1})
    with pytest.raises(ValueError, match=r"has 2 classes, but model\.num_classes is 3"):
        _checked(_pictures(tmp_path), num_classes=3)
    assert _checked(_pictures(tmp_path), num_classes=2)[1]["label"] == 1


# By name


def _open(kind, path, split_name="train", image_shape=(8, 8, 3), **options):
    return catalog.open_source(
        kind,
        **{
            "path": path,
            "name": "",
            "split_name": split_name,
            "split": "train",
            "image_shape": image_shape,
            "resize": "area",
            **options,
        },
    )


def test_splits_are_folders_and_files_below_the_path(tmp_path):
    _classes(tmp_path / "train", {"cat": 2})
    assert len(_open("folder", tmp_path)) == 2
    assert len(_open("folder", tmp_path, "")) == 2
    assert len(_open("folder", tmp_path / "train", "")) == 2
    np.savez(tmp_path / "train.npz", images=_noise(5, 8, 8, 3))
    np.savez(tmp_path / "test.npz", images=_noise(4, 8, 8, 3))
    np.savez(tmp_path / "train" / "16.npz", images=_noise(3, 16, 16, 3))
    assert len(_open("npz", tmp_path)) == 5
    assert len(_open("npz", tmp_path, "test")) == 4
    assert len(_open("npz", tmp_path / "test.npz", "")) == 4
    assert len(_open("npz", tmp_path / "train", "", image_shape=(16, 16, 3))) == 3
    with pytest.raises(ValueError, match=r"There is none of .*valid\.npz"):
        _open("npz", tmp_path, "valid")


def test_all_sources_have_names(tmp_path):
    _classes(tmp_path, {"cat": 1})
    assert name_of(_pictures(tmp_path), 0) == "cat/000.png"
    assert name_of(digits("train"), 3) == "example 3"


def test_arrays_lie_in_the_folder_where_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("8.npz", images=_noise(3, 8, 8, 3))
    here = pathlib.Path(".")
    assert len(_open("npz", here, "")) == 3
    with pytest.raises(ValueError, match=r"none of .*16\.npz: set data\.path"):
        _open("npz", here, "", image_shape=(16, 16, 3))
