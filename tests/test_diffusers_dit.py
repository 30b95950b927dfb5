"""Diffusion transformers of diffusers, in and out, against diffusers."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

from dit_nets import random_net, save
from vdiff_jax import schedules
from vdiff_jax.interop.diffusers import dit_names, read
from vdiff_jax.interop.diffusers.read import read_folder
from vdiff_jax.nets.dit import DiT
from vdiff_jax.types import Condition

pytestmark = [
    pytest.mark.diffusers,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
LINEAR = tuple(schedules.logsnr_of_betas(schedules.linear_betas()).tolist())
KINDS = {
    "by default": {},
    "as the paper's code": {"norm_eps": 1e-6},
    "of patches of 4": {"patch_size": 4, "num_attention_heads": 3, "num_layers": 3},
    "of pixels": {"patch_size": 1, "in_channels": 1, "sample_size": 6},
    "with a variance": {"out_channels": 8},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(random_net(), tmp_path_factory.mktemp("dit"))


def _ours(source, images, step, label):
    """The output of our network for images at a step of the chain."""
    model, dtype = source.fields["model"], images.dtype
    net = DiT(
        **model["dit"],
        out_channels=source.fields["data"]["channels"],
        num_classes=model["num_classes"],
        timesteps=LINEAR,
        dtype=dtype,
    )
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), source.params)
    inputs = (jnp.asarray(images), jnp.full(len(images), LINEAR[step], dtype))
    output = jax.jit(net.apply)({"params": params}, *inputs, Condition(label))
    return np.asarray(output)


def _theirs(net, images, step, label):
    label = np.where(label < 0, net.config.num_embeds_ada_norm, label)
    with torch.no_grad():
        output = net(
            torch.from_numpy(images.transpose(0, 3, 1, 2)),
            torch.full([len(images)], step),
            class_labels=torch.tensor(label),
        )
    channels = images.shape[-1]
    return output.sample.numpy().transpose(0, 2, 3, 1)[..., :channels]


def _images(net):
    size, channels = net.config.sample_size, net.config.in_channels
    return np.random.default_rng(0).normal(size=(3, size, size, channels))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_imported_transformer_is_the_same_function(kind, tmp_path):
    net = random_net(**KINDS[kind])
    source = read_folder(save(net, tmp_path))
    images, label = _images(net), np.array([3, 7, -1])
    for step in (0, 1, 500, 999):
        single = images.astype(np.float32)
        ours, theirs = (
            function(of, single, step, label)
            for function, of in ((_ours, source), (_theirs, net))
        )
        assert np.abs(ours - theirs).max() < 5e-5 * np.abs(theirs).max()
    with jax.enable_x64(True):
        ours = _ours(source, images, 0, label)
    theirs = _theirs(net.double(), images, 0, label)
    assert np.abs(ours - theirs).max() < 1e-10


@pytest.mark.parametrize("kind", ["by default", "of patches of 4"])
def test_every_tensor_comes_back_bit_for_bit(kind, tmp_path):
    net = random_net(**KINDS[kind])
    source = read_folder(save(net, tmp_path))
    dit = source.fields["model"]["dit"]
    back = dit_names.to_torch(source.params, dit["patch"], dit["depth"])
    theirs = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    assert back.keys() == theirs.keys()
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, theirs[name])
        assert tensor.flags.c_contiguous


def test_the_fields_describe_the_network_and_its_chain(folder):
    scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    fields = read_folder(folder).fields
    assert fields["model"] == {
        "net": "dit",
        "dit": {
            "patch": 2, "depth": 2, "features": 16, "num_heads": 2, "epsilon": 1e-5
        },
        "timesteps": "linear_beta",
        "output": "eps",
        "num_classes": 10,
    }  # fmt: skip
    assert fields["data"] == {"channels": 4, "image_size": 8}
    assert fields["diffusion"]["num_train_steps"] == scheduler["num_train_timesteps"]


def test_a_variance_is_left_out_with_a_line_that_says_so(tmp_path, capsys):
    net = random_net(out_channels=8)
    read_folder(save(net, tmp_path))
    assert "the last 4 of 8 channels" in capsys.readouterr().out


def test_the_folder_of_the_transformer_alone_will_do(folder):
    ours, whole = (
        jax.tree.leaves(read_folder(place).params)
        for place in (folder / "transformer", folder)
    )
    for leaf, other in zip(ours, whole, strict=True):
        np.testing.assert_array_equal(leaf, other)


def _changed(folder, tmp_path, changes, name="transformer/config.json"):
    """A copy of a folder with other fields in one of its files."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    fields = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps({**fields, **changes}))
    return copy


def test_a_folder_of_the_older_class_is_read(folder, tmp_path):
    """As the released ones, it has fields of other transformers, and no norm_eps."""
    of_others = {"cross_attention_dim": None, "num_vector_embeds": None}
    of_others |= {"only_cross_attention": False, "use_linear_projection": False}
    changes = {"_class_name": "Transformer2DModel", **of_others}
    copy = _changed(folder, tmp_path, changes)
    path = copy / "transformer" / "config.json"
    fields = json.loads(path.read_text())
    del fields["norm_eps"]
    path.write_text(json.dumps(fields))
    assert read_folder(copy).fields == read_folder(folder).fields


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_type": "layer_norm"}, "norm_type='layer_norm'"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine=True"),
        ({"attention_bias": False}, "attention_bias=False"),
        ({"activation_fn": "geglu"}, "activation_fn='geglu'"),
        ({"cross_attention_dim": 8}, "cross_attention_dim=8"),
        ({"num_embeds_ada_norm": None}, "num_embeds_ada_norm=None"),
        ({"sample_size": [8, 16]}, r"sample_size=\[8, 16\]"),
        ({"patch_size": 3}, "patch_size=3 .* does not divide"),
        ({"out_channels": 5}, "out_channels=5"),
        ({"new_field": 1}, "new_field"),
        ({"_class_name": "PixArtTransformer2DModel"}, "PixArtTransformer2DModel"),
        ({"num_layers": 3}, r"19 tensors are missing \(.*\), and 0 are"),
        ({"num_layers": 1}, "0 tensors are missing, and 19 are not used"),
        ({"attention_head_dim": 4}, "has shape"),
        ({"num_attention_heads": 3, "attention_head_dim": 6}, "must divide by"),
    ],
    ids=str,
)
def test_what_cannot_be_imported_is_refused_by_name(folder, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_folder(_changed(folder, tmp_path, changes))


def test_blocks_with_embeddings_of_their_own_are_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "transformer" / read.WEIGHTS
    tensors = safetensors.numpy.load_file(path)
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"
    tensors[name] = tensors[name] + 1e-6
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(ValueError, match=rf"{name} in .* differs from"):
        read_folder(copy)
