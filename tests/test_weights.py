import hashlib
import os
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from vdiff_jax.files import weights

TENSORS = {
    "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "layer.count": np.array(7),
}


class Command:
    """What a hostile pickle holds: a call that is made when it is read."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.remove, (str(self.victim),)


def _torch_file(path, value, **options):
    torch.save(value, path, **options)
    return path


def _state_dict():
    return {name: torch.tensor(value) for name, value in TENSORS.items()}


def _same(found):
    assert found.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert isinstance(found[name], np.ndarray)
        np.testing.assert_array_equal(found[name], value, strict=True)


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("new_format", [True, False])
def test_torch_files_are_read_in_both_of_their_formats(tmp_path, suffix, new_format):
    options = {"_use_new_zipfile_serialization": new_format}
    _same(weights.read(_torch_file(tmp_path / f"w{suffix}", _state_dict(), **options)))
    _same(
        weights.read(
            _torch_file(
                tmp_path / f"n{suffix}",
                {"state_dict": _state_dict(), "epoch": 3},
                **options,
            )
        )
    )


def test_parameters_are_tensors(tmp_path):
    layer = torch.nn.Linear(3, 2)
    found = weights.read(_torch_file(tmp_path / "w.pt", dict(layer.named_parameters())))
    np.testing.assert_array_equal(found["bias"], layer.bias.detach().numpy())


def test_safetensors_are_read(tmp_path):
    safetensors.numpy.save_file(TENSORS, tmp_path / "w.safetensors")
    _same(weights.read(tmp_path / "w.safetensors"))


def test_bfloat16_becomes_float32(tmp_path):
    _torch_file(tmp_path / "w.pt", {"w": torch.tensor([1.5], dtype=torch.bfloat16)})
    value = np.array([1.5], dtype=jnp.bfloat16)
    safetensors.numpy.save_file({"w": value}, tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        found = weights.read(tmp_path / name)["w"]
        np.testing.assert_array_equal(found, np.float32([1.5]), strict=True)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_file_is_not_run(tmp_path, new_format):
    victim = tmp_path / "victim"
    victim.touch()
    path = _torch_file(
        tmp_path / "w.pt",
        {"w": Command(victim)},
        _use_new_zipfile_serialization=new_format,
    )
    with pytest.raises(ValueError, match=r"w\.pt is damaged, or holds more than"):
        weights.read(path)
    assert victim.exists()
    path.write_bytes(pickle.dumps(Command(victim)))
    with pytest.raises(ValueError, match=r"w\.pt is damaged, or holds more than"):
        weights.read(path)
    assert victim.exists()


@pytest.mark.parametrize("kept", [0, 5, 0.5, 0.95])
@pytest.mark.parametrize("name", ["w.pt", "legacy.pth", "w.safetensors"])
def test_a_file_that_was_cut_short_is_refused(tmp_path, name, kept):
    path = tmp_path / name
    if name == "w.safetensors":
        safetensors.numpy.save_file(TENSORS, path)
    else:
        new_format = name == "w.pt"
        _torch_file(path, _state_dict(), _use_new_zipfile_serialization=new_format)
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(ValueError, match=rf"{name} is damaged.*Fetch it again"):
        weights.read(path)


def test_a_type_that_is_not_read_is_refused_by_name(tmp_path):
    tensors = {"w": torch.zeros(3).to(torch.float8_e4m3fn)}
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w\.safetensors has tensors .*float8"):
        weights.read(tmp_path / "w.safetensors")


def test_what_is_no_state_dict_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"w\.pt holds a Tensor, not a state dict"):
        weights.read(_torch_file(tmp_path / "w.pt", torch.zeros(2)))
    with pytest.raises(ValueError, match=r"'epoch' in .*w\.pt is a int, not a tensor"):
        weights.read(_torch_file(tmp_path / "w.pt", _state_dict() | {"epoch": 3}))


def test_other_places_and_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"There is no file .*w\.pth"):
        weights.read(tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"There is no file .*w\.pth"):
        weights.sha256(tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pkl is of no known kind.*\.safetensors"):
        weights.read(tmp_path / "w.pkl")


def test_the_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    # NIST FIPS 180-2, App. B.1.
    assert weights.sha256(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    many = bytes(range(256)) * 5000  # more than one buffer
    (tmp_path / "many").write_bytes(many)
    assert weights.sha256(tmp_path / "many") == hashlib.sha256(many).hexdigest()
