"""Our models in one file."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from vdiff_jax.files import weights
from vdiff_jax.interop import model_file

ABOUT = model_file.About(
    {"model": {"output": "v"}, "guide": {"steps": 0}}, "distilled", 4, {"seed": 3}
)


def _params():
    rng = np.random.default_rng(0)
    return {
        "down_0.block_0": {"conv1": {"kernel": rng.normal(size=(3, 4)).astype("f4")}},
        "norm_out": {"scale": jnp.ones(3)},
    }


def test_a_model_comes_back_as_it_was(tmp_path):
    path = tmp_path / "model.safetensors"
    model_file.write(path, _params(), ABOUT)
    params, about = model_file.read(path), model_file.read_about(path)
    assert about == ABOUT
    kernel = params["down_0.block_0"]["conv1"]["kernel"]
    np.testing.assert_array_equal(
        kernel, _params()["down_0.block_0"]["conv1"]["kernel"]
    )
    assert path.stat().st_mode & 0o044  # others may read it, as any new file
    names = set(safetensors.numpy.load_file(path))
    assert names == {"down_0.block_0/conv1/kernel", "norm_out/scale"}


def test_half_of_the_digits_are_read_as_float32(tmp_path):
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    params = {"kernel": np.random.default_rng(0).normal(size=(64, 64)).astype("f4")}
    model_file.write(whole, params, ABOUT)
    model_file.write(half, params, ABOUT, "bfloat16")
    read = model_file.read(half)["kernel"]
    assert read.dtype == np.float32
    error = np.abs(read - params["kernel"]) / np.abs(params["kernel"])
    assert 2**-10 < error.max() <= 2**-8  # 8 binary digits, rounded to nearest
    assert half.stat().st_size == whole.stat().st_size - 2 * 64 * 64


def test_arrays_in_any_order_of_memory_are_written_as_they_are(tmp_path):
    x = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    views = {"a": x.T, "b": x[:, ::2], "c": np.broadcast_to(x[0], (2, 4)), "d": x[1:]}
    weights.write(tmp_path / "x.safetensors", views, {})
    for name, array in weights.read(tmp_path / "x.safetensors").items():
        np.testing.assert_array_equal(array, views[name])


def test_the_same_model_gives_the_same_bytes_in_another_process(tmp_path):
    model_file.write(tmp_path / "a.safetensors", _params(), ABOUT)
    program = f"""
import pathlib, sys
sys.path[:0] = {sys.path!r}
import test_model_file as here
from vdiff_jax.interop import model_file
params = dict(reversed(here._params().items()))
model_file.write(pathlib.Path({str(tmp_path / "b.safetensors")!r}), params, here.ABOUT)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    a, b = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "ab")
    assert a == b


def test_files_of_others_and_of_later_versions_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    weights.write(path, {"x": np.ones(3)}, {"format": "pt"})
    with pytest.raises(ValueError, match="not written by vdiff_jax"):
        model_file.read(path)
    said = json.dumps({"version": 99, **ABOUT._asdict()})
    weights.write(path, {"x": np.ones(3)}, {model_file.ENTRY: said})
    with pytest.raises(ValueError, match="version 99, and this package knows up to 1"):
        model_file.read(path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match="damaged"):
        model_file.read(path)


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.safetensors"
    weights.write(path, {"x": np.ones(3)}, {})
    before = path.read_bytes()
    with pytest.raises(OSError, match=r"x\.safetensors could not be written"):
        weights.write(path, {"x": np.array(["text"])}, {})
    assert path.read_bytes() == before
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="could not be written"):
        weights.write(tmp_path / "folder", {"x": np.ones(3)}, {})
    (tmp_path / "folder").rmdir()
    assert [found.name for found in tmp_path.iterdir()] == ["x.safetensors"]
