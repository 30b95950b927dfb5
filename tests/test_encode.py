"""Data that an autoencoder has encoded once: what is stored, and what is refused."""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import tiny
from vdiff_jax import parallel
from vdiff_jax.datasets.folder import Folder
from vdiff_jax.datasets.images import Fit, Images
from vdiff_jax.datasets.npz import Npz
from vdiff_jax.datasets.prepare import encoding as encoding_module
from vdiff_jax.datasets.prepare import shards, work
from vdiff_jax.datasets.prepare.__main__ import main
from vdiff_jax.datasets.prepare.encoding import Encoder, Encoding
from vdiff_jax.datasets.prepare.task import Task
from vdiff_jax.datasets.prepare.work import prepare
from vdiff_jax.datasets.validation import Checked
from vdiff_jax.diffusion import from_pixels
from vdiff_jax.files import weights
from vdiff_jax.from_config.data import make_source
from vdiff_jax.interop.diffusers import names
from vdiff_jax.interop.diffusers.autoencoder import abstract_params, read_autoencoder
from vdiff_jax.interop.diffusers.folder import WEIGHTS
from vdiff_jax.interop.encoder import open_encoder
from vdiff_jax.nets.autoencoder import Autoencoder, Codebook

SIZE, TOKENS, WIDTH = 16, 3, 5
CONFIG = {
    "block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2, "scaling_factor": 0.5,
}  # fmt: skip
KINDS = {
    "AutoencoderKL": {"latent_channels": 4, "mid_block_add_attention": False},
    "VQModel": {
        "latent_channels": 3, "num_vq_embeddings": 8, "mid_block_add_attention": False,
    },
}  # fmt: skip


def _autoencoder(folder, kind="AutoencoderKL", seed=0):
    """A folder of diffusers with random weights."""
    codebook = Codebook(8, 3) if kind == "VQModel" else None
    net = Autoencoder(
        channels=(8, 8),
        num_blocks=1,
        z_channels=KINDS[kind]["latent_channels"],
        codebook=codebook,
        mid_attention=False,
        groups=4,
    )
    leaves, tree = jax.tree.flatten(abstract_params(net))
    rng = np.random.default_rng(seed)
    leaves = [rng.normal(0.0, 0.2, leaf.shape).astype(np.float32) for leaf in leaves]
    params = jax.tree.unflatten(tree, leaves)
    weights.write(folder / WEIGHTS, names.to_torch(params), {"format": "pt"})
    content = {"_class_name": kind, **CONFIG, **KINDS[kind]}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """40 images of two classes."""
    return _photos(tmp_path_factory.mktemp("data") / "photos", 20)


def _photos(root, count, classes=("ant", "bee"), side=(20, 18)):
    rng = np.random.default_rng(0)
    for name in (f"{c}/{k:03d}.png" for c in classes for k in range(count)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (*side, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(root / name)
    return root


class _Halved:
    """Needs neither JAX nor weights: means of 2 x 2 pixels, in [0, 1]."""

    image_channels = encoded_channels = 3

    def __init__(self, sha256="0" * 64):
        self.about = {
            "path": "/somewhere", "sha256": sha256, "scale": 1.0, "shift": 0.0,
            "channels": 3, "factor": 2,
        }  # fmt: skip

    def encode(self, images):
        n, height, width, _ = images.shape
        parts = images.reshape(n, height // 2, 2, width // 2, 2, 3) / np.float32(255)
        return lambda: parts.mean(axis=(2, 4))


def _task(path, out, encoder=None, sizes=(SIZE,), workers=0, splits=("",), **options):
    encoding = Encoding(encoder or _Halved(), **options)
    return Task(
        path, out, sizes, "npz", workers=workers, splits=splits, encoding=encoding
    )


def _pixels(photos, size=SIZE):
    source = Images(Folder(photos), Fit(size, 3))
    images = np.stack([source[i]["image"] for i in range(len(source))])
    return images, [source.name(i) for i in range(len(source))], source.labels


def _everything(folder):
    source = Npz(folder)
    many = source.__getitems__(range(len(source)))
    return {**many, "name": [source.name(i) for i in range(len(source))]}


def _halves(images):
    return _Halved().encode(images)()


def _run(monkeypatch, capsys, *arguments):
    """Runs the command in this process, with the devices that there are."""
    monkeypatch.setattr(parallel, "use_cores", lambda sizes: None)
    status = main([*map(str, arguments), "--workers=0"])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.parametrize(
    ("kind", "dtype", "channels"),
    [("AutoencoderKL", "float32", 8), ("VQModel", "float16", 3)],
)
def test_what_is_stored_is_each_image_encoded_by_itself(
    tmp_path, monkeypatch, capsys, photos, kind, dtype, channels
):
    folder = _autoencoder(tmp_path / "vae", kind)
    status, said, _ = _run(
        monkeypatch, capsys, photos, "--out", tmp_path / "out", "--size", SIZE,
        "--encode", folder, f"--dtype={dtype}", "--mirror",
    )  # fmt: skip
    assert status == 0
    assert "80 latents at 8 of images at 16, 2 classes, 0 unreadable" in said
    imported = read_autoencoder(folder)
    encode = jax.jit(
        lambda params, x: imported.net.apply(
            {"params": params}, x, method=imported.net.encode
        )
    )
    images, image_names, labels = _pixels(photos)
    stored = _everything(tmp_path / "out" / "8")
    assert stored["image"].dtype == dtype
    assert stored["image"].shape == (80, 8, 8, channels)
    tolerance = {"float32": 1e-5, "float16": 2e-3}[dtype]
    for i, image in enumerate(images):
        for k, copy in enumerate((image, image[:, ::-1])):
            alone = encode(imported.params, from_pixels(jnp.asarray(copy[None])))[0]
            np.testing.assert_allclose(
                stored["image"][2 * i + k], alone, rtol=tolerance, atol=tolerance
            )
    assert stored["name"][::2] == image_names
    assert stored["name"][1::2] == [f"{name}#mirrored" for name in image_names]
    np.testing.assert_array_equal(stored["label"], np.repeat(labels, 2))
    record = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert record["autoencoder"] == {
        "path": str(folder.resolve()),
        "sha256": imported.sha256,
        "scale": 0.5,
        "shift": 0.0,
        "channels": channels // 2 if kind == "AutoencoderKL" else 3,
        "factor": 2,
    }
    assert (record["dtype"], record["mirror"]) == (dtype, True)
    assert record["splits"][""]["pictures"] == 80
    # Nothing but what a reader needs is left.
    assert sorted(_bytes(tmp_path / "out")) == ["8/00000.npz", "prepared.json"]


def test_half_precision_is_what_is_stored_unless_it_is_asked_otherwise(
    tmp_path, monkeypatch, capsys, photos
):
    folder = _autoencoder(tmp_path / "vae")
    arguments = [photos, "--size=16", "--encode", folder, "--out"]
    for out, more in (("half", ()), ("single", ["--dtype=float32"])):
        assert _run(monkeypatch, capsys, *arguments, tmp_path / out, *more)[0] == 0
    half, single = (
        _everything(tmp_path / x / "8")["image"] for x in ("half", "single")
    )
    assert half.shape == (40, 8, 8, 8)
    np.testing.assert_array_equal(half, single.astype(np.float16))
    record = json.loads((tmp_path / "half" / "prepared.json").read_text())
    assert (record["dtype"], record["mirror"]) == ("float16", False)


def test_images_of_any_number_are_encoded_in_calls_of_one_shape(tmp_path, monkeypatch):
    folder = _autoencoder(tmp_path / "vae")
    monkeypatch.setattr("vdiff_jax.interop.encoder.PIXELS_AT_ONCE", 3 * 16 * 16)
    monkeypatch.setattr(parallel, "use_cores", lambda sizes: None)
    encoder = open_encoder(folder, scale=0.0, batch_size=32)
    assert isinstance(encoder, Encoder)
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    whole = encoder.encode(images)()
    assert whole.shape == (8, 8, 8, encoder.encoded_channels)
    for count in (1, 3, 7):
        np.testing.assert_allclose(
            encoder.encode(images[:count])(), whole[:count], rtol=1e-5, atol=1e-6
        )
    assert encoder._encode._cache_size() == 1


ON_DEVICES = """
import pathlib, sys
import numpy as np
from vdiff_jax.interop.encoder import open_encoder
import jax
encoder = open_encoder(pathlib.Path(sys.argv[1]), scale=0.0, batch_size=32)
assert jax.device_count() == int(sys.argv[2])
images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
np.save(sys.argv[3], encoder.encode(images)())
"""


@pytest.mark.slow
def test_devices_give_the_same_latents_as_one(tmp_path):
    folder = _autoencoder(tmp_path / "vae")
    latents = []
    for count in (1, 8):
        flag = f"--xla_force_host_platform_device_count={count}"
        out = tmp_path / f"{count}.npy"
        subprocess.run(
            [sys.executable, "-c", ON_DEVICES, folder, str(count), out],
            env={**os.environ, "XLA_FLAGS": flag},
            check=True,
        )
        latents.append(np.load(out))
    assert latents[0].shape == (40, 8, 8, 8)
    np.testing.assert_allclose(*latents, rtol=1e-5, atol=1e-5)


def test_sizes_splits_and_unreadable_files_are_as_those_of_images(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(work, "CHUNK", 2)
    for split in ("train", "test"):
        _photos(tmp_path / "photos" / split, 2 + (split == "train"))
    (tmp_path / "photos" / "train" / "ant" / "001.png").write_bytes(b"no image")
    task = _task(
        tmp_path / "photos",
        tmp_path / "out",
        sizes=(16, 8),
        splits=("train", "test"),
        mirror=True,
        dtype="float32",
    )
    about = prepare(task)
    assert list(about["splits"]["train"]["unreadable"]) == ["ant/001.png"]
    counts = {split: facts["pictures"] for split, facts in about["splits"].items()}
    assert counts == {"train": 10, "test": 8}
    images, image_names, labels = _pixels(tmp_path / "photos" / "test")
    (tmp_path / "photos" / "train" / "ant" / "001.png").unlink()
    for split, count in counts.items():
        for size in (16, 8):
            images, image_names, labels = _pixels(tmp_path / "photos" / split, size)
            stored = _everything(task.out / split / str(size // 2))
            assert len(stored["image"]) == count
            np.testing.assert_array_equal(stored["image"][::2], _halves(images))
            np.testing.assert_array_equal(
                stored["image"][1::2], _halves(images[:, :, ::-1])
            )
            assert stored["name"][::2] == image_names
            np.testing.assert_array_equal(stored["label"][1::2], labels)
            assert Npz(task.out / split / str(size // 2)).classes == ("ant", "bee")


def test_strict_ends_at_an_unreadable_file_and_then_goes_on(tmp_path):
    photos = _photos(tmp_path / "photos", 2)
    whole = (photos / "ant" / "001.png").read_bytes()
    (photos / "ant" / "001.png").write_bytes(b"no image")
    task = dataclasses.replace(_task(photos, tmp_path / "out"), strict=True)
    with pytest.raises(ValueError, match=r"ant/001\.png .*Without --strict"):
        prepare(task)
    (photos / "ant" / "001.png").write_bytes(whole)
    prepare(task)
    assert len(Npz(tmp_path / "out" / "8")) == 4


def test_shards_are_bounded_and_read_as_one_file(tmp_path, photos):
    bytes_of_one = 8 * 8 * 3 * 4
    whole = _task(photos, tmp_path / "whole", dtype="float32")
    parts = _task(
        photos, tmp_path / "parts", dtype="float32", shard_bytes=7 * bytes_of_one + 1
    )
    for task in (whole, parts):
        prepare(task)
    folder = tmp_path / "parts" / "8"
    assert sorted(x.name for x in folder.iterdir()) == [
        f"{k:05d}.npz" for k in range(6)
    ]
    assert [len(Npz(folder / f"{k:05d}.npz")) for k in range(6)] == [7] * 5 + [5]
    one, many = (_everything(tmp_path / x / "8") for x in ("whole", "parts"))
    assert one.pop("name") == many.pop("name")
    for name, values in one.items():
        np.testing.assert_array_equal(values, many[name])


class _Killed(BaseException):
    pass


def _bytes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _contexts(path, rows=6, **changes):
    rng = np.random.default_rng(3)
    arrays = {
        "contexts": rng.normal(size=(rows, TOKENS, WIDTH)).astype(np.float32),
        "masks": rng.integers(0, 2, (rows, TOKENS)).astype(bool),
        "null_context": rng.normal(size=(TOKENS, WIDTH)).astype(np.float32),
        **changes,
    }
    np.savez(path, **{name: x for name, x in arrays.items() if x is not None})
    return arrays


@pytest.mark.parametrize(
    ("module", "function", "calls"),
    # Each of the writes of progress, of files of latents, and of what ends a shard.
    [
        (work, "write_json", 6),
        (shards, "write_npz", 5),
        (shards, "write_contexts", 2),
        (pathlib.Path, "unlink", 5),
        (encoding_module, "_stored", 6),
        (work, "_tidy", 1),
    ],
)
@pytest.mark.parametrize("after", [False, True])
def test_killed_anywhere_the_same_command_gives_the_same_bytes(
    tmp_path, monkeypatch, module, function, calls, after
):
    monkeypatch.setattr(work, "CHUNK", 2)
    photos = _photos(tmp_path / "photos", 3)
    (photos / "ant" / "001.png").write_bytes(b"no image")
    _contexts(tmp_path / "c.npz", index=np.array([0, 1, 2, 2, 5, 0]))
    options = {
        "sizes": (16, 8), "mirror": True, "contexts": tmp_path / "c.npz",
        "shard_bytes": 3 * 8 * 8 * 3 * 2,
    }  # fmt: skip
    whole = _task(photos, tmp_path / "whole", **options)
    prepare(whole)
    expected = _bytes(whole.out)
    assert len(expected) == 8  # 4 and 1 shards, 2 files of contexts, the record
    original = getattr(module, function)
    for moment in range(calls):
        task = _task(photos, tmp_path / "out" / str(moment), **options)
        task.out.parent.mkdir(exist_ok=True)
        count = 0

        def killed(*arguments, moment=moment, **options):
            nonlocal count
            count += 1
            if count == moment + 1 and not after:
                raise _Killed
            result = original(*arguments, **options)
            if count == moment + 1:
                raise _Killed
            return result

        with monkeypatch.context() as patch:
            patch.setattr(module, function, killed)
            with pytest.raises(_Killed):
                prepare(task)
        assert not task.out.exists()
        prepare(task)
        assert _bytes(task.out) == expected


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_to_the_same_bytes(tmp_path):
    photos = _photos(tmp_path / "photos", 200, side=(100, 100))
    folder = _autoencoder(tmp_path / "vae")
    line = [sys.executable, "-m", "vdiff_jax.datasets.prepare", photos, "--size=64"]
    line += ["--workers=1", "--encode", folder, "--mirror", "--out"]
    line = list(map(str, line))
    out = tmp_path / "out"
    child = subprocess.Popen(
        [*line, out], stderr=subprocess.DEVNULL, start_new_session=True
    )
    progress = tmp_path / "out.partial" / "progress.json"
    while not (progress.exists() and json.loads(progress.read_text())["inputs"] >= 64):
        assert child.poll() is None
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert 0 < json.loads(progress.read_text())["inputs"] < 400
    assert not out.exists()
    again = subprocess.run([*line, out], capture_output=True, text=True, check=True)
    assert "800 latents at 32 of images at 64, 2 classes" in again.stdout
    assert "400 images, " in again.stderr
    assert "images/s" in again.stderr
    subprocess.run([*line, tmp_path / "whole"], capture_output=True, check=True)
    assert _bytes(out) == _bytes(tmp_path / "whole")


def test_nothing_of_another_autoencoder_is_continued_or_taken(tmp_path, photos):
    _contexts(tmp_path / "a.npz", 40)
    _contexts(tmp_path / "b.npz", 40, null_context=None)
    task = _task(photos, tmp_path / "out", contexts=tmp_path / "a.npz")
    prepare(task)
    before = {path: path.stat() for path in task.out.rglob("*")}
    prepare(task)
    # Known by their content, wherever they lie.
    moved = _Halved()
    moved.about["path"] = "/elsewhere"
    shutil.copy(tmp_path / "a.npz", tmp_path / "copy.npz")
    prepare(_task(photos, task.out, moved, contexts=tmp_path / "copy.npz"))
    assert {path: path.stat() for path in task.out.rglob("*")} == before
    rescaled = _Halved()
    rescaled.about["scale"] = 2.0
    for encoder, changes in (
        (_Halved("1" * 64), {}),
        (rescaled, {}),
        (None, {"dtype": "float32"}),
        (None, {"mirror": True}),
        (None, {"contexts": None}),
        (None, {"contexts": tmp_path / "b.npz"}),
    ):
        options = {"contexts": tmp_path / "a.npz", **changes}
        with pytest.raises(
            ValueError, match="was not made from these files in this wa"
        ):
            prepare(_task(photos, task.out, encoder, **options))
    with pytest.raises(ValueError, match="was not made from these files in this way"):
        prepare(dataclasses.replace(task, encoding=None))
    images = dataclasses.replace(task, out=tmp_path / "images", encoding=None)
    prepare(images)
    with pytest.raises(ValueError, match="was not made from these files in this way"):
        prepare(dataclasses.replace(task, out=images.out))


def test_work_begun_with_another_autoencoder_is_refused(tmp_path, monkeypatch, photos):
    with monkeypatch.context() as patch:
        patch.setattr(work, "_tidy", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(_task(photos, tmp_path / "out"))
    with pytest.raises(
        ValueError, match="was begun from other files or in another way"
    ):
        prepare(_task(photos, tmp_path / "out", _Halved("1" * 64)))
    prepare(_task(photos, tmp_path / "out"))


# Contexts


def _by_index(photos, path):
    return _contexts(path, 40, null_mask=np.array([True, False, False]))


def _by_name(photos, path):
    rng = np.random.default_rng(5)
    keys = np.array([*_pixels(photos)[1], "not/there.png"])[rng.permutation(41)]
    arrays = _contexts(path, 41, names=keys)
    order = [keys.tolist().index(name) for name in _pixels(photos)[1]]
    for name in ("contexts", "masks"):
        arrays[name] = arrays[name][order]
    return arrays


def _by_bytes_and_index(photos, path):
    keys = np.array([name.encode() for name in _pixels(photos)[1]])[::-1]
    rows = np.arange(40) % 4 + 1
    arrays = _contexts(path, 6, names=keys, index=rows)
    for name in ("contexts", "masks"):
        arrays[name] = arrays[name][rows[::-1]]
    return arrays


@pytest.mark.parametrize("form", [_by_index, _by_name, _by_bytes_and_index])
def test_each_image_has_its_context_and_so_has_its_copy(tmp_path, photos, form):
    given = form(photos, tmp_path / "c.npz")
    task = _task(
        photos,
        tmp_path / "out",
        mirror=True,
        contexts=tmp_path / "c.npz",
        shard_bytes=9 * 8 * 8 * 3 * 2,
    )
    prepare(task)
    stored = _everything(task.out / "8")
    for copy in (0, 1):
        np.testing.assert_array_equal(stored["context"][copy::2], given["contexts"])
        np.testing.assert_array_equal(stored["mask"][copy::2], given["masks"])
    null, mask = Npz(task.out / "8").null_context
    np.testing.assert_array_equal(null, given["null_context"])
    np.testing.assert_array_equal(mask, given.get("null_mask", np.ones(TOKENS, bool)))
    with np.load(task.out / "8" / "00001.npz") as shard:
        assert shard["context"].dtype == np.int32
        assert shard["context"].shape == (9,)
    with np.load(task.out / "8" / "contexts.npz") as table:
        # Only the contexts that images have, each once.
        used = 4 if form is _by_bytes_and_index else 40
        assert table["contexts"].shape == (used, TOKENS, WIDTH)
        assert table["masks"].dtype == bool
    record = json.loads((task.out / "prepared.json").read_text())
    assert record["contexts"] == {
        "path": str(tmp_path / "c.npz"),
        "sha256": hashlib.sha256((tmp_path / "c.npz").read_bytes()).hexdigest(),
    }


@pytest.mark.parametrize("by_name", [False, True])
def test_contexts_of_splits_and_of_unreadable_files_stay_in_their_places(
    tmp_path, by_name
):
    for split in ("train", "test"):
        _photos(tmp_path / "photos" / split, 2)
    (tmp_path / "photos" / "train" / "ant" / "000.png").write_bytes(b"no image")
    listed = [
        f"{split}/{c}/{k:03d}.png"
        for split in ("test", "train") for c in ("ant", "bee") for k in range(2)
    ]  # fmt: skip
    keys = np.array(listed) if by_name else None
    given = _contexts(tmp_path / "c.npz", 8, names=keys, masks=None, null_context=None)
    task = _task(
        tmp_path / "photos",
        tmp_path / "out",
        splits=("train", "test"),
        contexts=tmp_path / "c.npz",
    )
    prepare(task)
    for split, rows in (("test", [0, 1, 2, 3]), ("train", [5, 6, 7])):
        stored = _everything(task.out / split / "8")
        np.testing.assert_array_equal(stored["context"], given["contexts"][rows])
        assert stored["mask"].all()
        assert Npz(task.out / split / "8").null_context is None


def _with_nan(at):
    contexts = np.zeros((40, TOKENS, WIDTH), np.float32)
    contexts[at, 1, 2] = np.nan
    return contexts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": np.array([f"ant/{k:03d}.png" for k in range(40)])},
         r"has no context for bee/000\.png"),
        ({"names": np.array(["a.png"] * 40)}, r"names has a\.png twice"),
        ({"names": np.array(["a.png"] * 3)}, r"names must be 40 texts"),
        ({"names": np.arange(40)}, r"names must be 40 texts, .* are int64"),
        ({"names": np.array(["a.png"] * 40, object)}, r"cannot be read .*pickle"),
        ({"contexts": np.zeros((39, TOKENS, WIDTH)), "masks": None},
         r"has no names, and so must have .* 40 images .* but has 39"),
        ({"index": np.arange(39)}, r"has no names, .* but has 39"),
        ({"index": np.arange(40) + 1}, r"index has rows 1 to 40, .* 40 contexts"),
        ({"index": np.arange(40) - 1}, r"index has rows -1 to 38"),
        ({"index": np.arange(40.0)}, r"index must be integers .* is float64"),
        ({"contexts": None}, r"needs an array contexts"),
        ({"contexts": np.zeros((40, WIDTH))}, r"contexts must be floats of shape"),
        ({"contexts": np.zeros((40, 3, 5), int)}, r"contexts must be floats"),
        ({"contexts": _with_nan(23)}, r"the context of bee/003\.png is not finite"),
        ({"contexts": np.full((40, 3, 5), 1e200)}, r"of ant/000\.png is not finite"),
        ({"masks": np.ones((40, 4), bool)}, r"masks must be bool of shape \(40, 3\)"),
        ({"null_context": np.zeros((3, 4))}, r"null_context must be floats .*\(3, 5\)"),
        ({"null_context": np.full((3, 5), np.inf)}, r"null_context is not finite"),
        ({"null_context": None, "null_mask": np.ones(3, bool)}, r"no null_context"),
    ],
    ids=str,
)  # fmt: skip
def test_contexts_that_do_not_fit_are_refused_by_name(
    tmp_path, photos, changes, message
):
    _contexts(tmp_path / "c.npz", 40, **changes)
    with pytest.raises(ValueError, match=rf"c\.npz.*{message}"):
        prepare(_task(photos, tmp_path / "out", contexts=tmp_path / "c.npz"))
    assert not list(tmp_path.glob("out*"))


def test_a_context_of_no_image_may_be_anything(tmp_path, photos):
    contexts = np.concatenate([_with_nan(3), np.ones((1, TOKENS, WIDTH), np.float32)])
    index = np.where(np.arange(40) == 3, 40, np.arange(40))
    _contexts(tmp_path / "c.npz", contexts=contexts, masks=None, index=index)
    prepare(_task(photos, tmp_path / "out", contexts=tmp_path / "c.npz"))
    assert (_everything(tmp_path / "out" / "8")["context"][3] == 1.0).all()


# What is refused


class _Large(_Halved):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def encode(self, images):
        latents = _halves(images)
        latents[1::3, 0, 0, 0] = self.value
        return lambda: latents


def test_latents_beyond_half_precision_are_reported_by_name(tmp_path, photos):
    with pytest.raises(
        ValueError, match=r"ant/001\.png .* -?7e\+04, beyond float16: use --dtype floa"
    ):
        prepare(_task(photos, tmp_path / "a", _Large(-7e4)))
    with pytest.raises(ValueError, match=r"^ant/000\.png#mirrored is encoded to"):
        prepare(_task(photos, tmp_path / "b", _Large(7e4), mirror=True))
    prepare(_task(photos, tmp_path / "c", _Large(7e4), dtype="float32"))
    assert _everything(tmp_path / "c" / "8")["image"][1, 0, 0, 0] == 7e4
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match=r"ant/001\.png .* not finite: take it aw"):
            prepare(_task(photos, tmp_path / "d", _Large(value), dtype="float32"))
    assert not list(tmp_path.glob("[abd]"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size=15"], r"--size=15 does not divide by 2, .*/vae must: use 16"),
        (["--size=16", "--size=1"], r"--size=1 does not divide by 2, .* use 2"),
        (
            ["--size=16", "--channels=1"],
            r"--channels=1, but .*/vae takes .* 3 channels",
        ),
        (
            ["--size=16", "--format=lmdb"],
            r"--format=lmdb holds images; .*leave --format",
        ),
        (["--size=16", "--dtype=int8"], r"--dtype: invalid choice: 'int8'"),
        (
            ["--size=16", "--latent_scale=2"],
            r"latent_scale=2.0, but scaling_factor=0.5",
        ),
        (["--size=16", "--context=no.npz"], r"There is no file no\.npz"),
    ],
)
def test_what_does_not_fit_the_autoencoder_is_refused_before_anything_starts(
    tmp_path, monkeypatch, capsys, photos, arguments, message
):
    folder = _autoencoder(tmp_path / "vae")
    status, _, said = _run(
        monkeypatch, capsys, photos, "--out", tmp_path / "out", "--encode", folder,
        *arguments,
    )  # fmt: skip
    assert status == 2
    assert len(said.splitlines()) == 1
    assert re.search(message, said)
    assert not list(tmp_path.glob("out*"))


def test_a_pickle_is_refused_with_the_line_that_converts_it(
    tmp_path, monkeypatch, capsys, photos
):
    folder = _autoencoder(tmp_path / "vae")
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    arguments = [photos, "--out", tmp_path / "out", "--size=16", "--encode", folder]
    status, _, said = _run(monkeypatch, capsys, *arguments)
    assert status == 2
    assert "pickles (diffusion_pytorch_model.bin) are not read" in said
    assert "weights_only=True" in said


def test_a_scale_that_the_folder_lacks_is_a_flag(tmp_path, monkeypatch, capsys, photos):
    folder = _autoencoder(tmp_path / "vae")
    content = json.loads((folder / "config.json").read_text())
    del content["scaling_factor"]
    (folder / "config.json").write_text(json.dumps(content))
    arguments = [photos, "--out", tmp_path / "out", "--size=16", "--encode", folder]
    status, _, said = _run(monkeypatch, capsys, *arguments)
    assert status == 2
    assert "set data.latent_scale to the scale" in said
    assert _run(monkeypatch, capsys, *arguments, "--latent_scale=0.25")[0] == 0
    record = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert record["autoencoder"]["scale"] == 0.25


@pytest.mark.parametrize(
    "flag", ["--mirror", "--dtype=float16", "--context=c.npz", "--latent_scale=1"]
)
def test_what_is_for_latents_is_refused_without_an_autoencoder(
    tmp_path, capsys, photos, flag
):
    assert main([str(photos), f"--out={tmp_path / 'out'}", "--size=8", flag]) == 2
    name = flag.partition("=")[0]
    assert f"{name} is for latents: name an --encode" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


WITHOUT_JAX = """
import sys
from vdiff_jax.datasets.prepare import __main__, writers  # all that workers import
status = __main__.main(sys.argv[1:])
assert "jax" not in sys.modules
sys.exit(status)
"""


def test_without_an_autoencoder_jax_is_not_imported(tmp_path, photos):
    arguments = [str(photos), f"--out={tmp_path / 'out'}", "--size=8", "--workers=0"]
    program = [sys.executable, "-c", WITHOUT_JAX, *arguments]
    subprocess.run(program, check=True, capture_output=True)


# Memory, and the way to the step


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    peaks = []
    for count in (64, 256):
        photos = _photos(tmp_path / str(count), count, side=(64, 64))
        rows = np.zeros(2 * count, np.int32)
        _contexts(tmp_path / f"{count}.npz", index=rows)
        task = _task(
            photos,
            tmp_path / f"out{count}",
            sizes=(64,),
            dtype="float32",
            contexts=tmp_path / f"{count}.npz",
            shard_bytes=2**20,
        )
        tracemalloc.start()
        prepare(task)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    one = 32 * 32 * 3 * 4
    grown, stored = peaks[1] - peaks[0], (512 - 128) * one
    print(f"peaks {peaks}, {stored} bytes more stored")
    assert grown < stored / 20


@pytest.mark.slow
def test_a_prepared_store_is_what_a_config_trains_on(
    tmp_path, monkeypatch, capsys, photos
):
    import launch

    folder = _autoencoder(tmp_path / "vae")
    _contexts(tmp_path / "c.npz", 40)
    arguments = ["--size=16", "--encode", folder, "--context", tmp_path / "c.npz"]
    out = tmp_path / "out"
    assert _run(monkeypatch, capsys, photos, "--out", out, *arguments)[0] == 0
    data = {
        "source": "npz", "path": str(out), "train_split": "", "image_size": 8,
        "held_out_fraction": 0.2, "latent_scale": 0.5, "channels": 4, "held_out": 4,
    }  # fmt: skip
    config = tiny.small("train", data=data)
    source = make_source(config, "train")
    assert isinstance(source, Checked)
    assert source[0]["image"].shape == (8, 8, 8)
    assert source[0].keys() == {"image", "label"}  # no part of the model reads contexts
    launch.launch(config, tmp_path / "workdir")
    result = json.loads((tmp_path / "workdir" / "train" / "result.json").read_text())
    assert np.isfinite(result["held_out_loss"])
