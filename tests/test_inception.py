import importlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch

from vdiff_jax import parallel
from vdiff_jax.evaluation.inception import weights
from vdiff_jax.evaluation.inception.network import InceptionV3

PEER = "torch-fidelity==0.4.0"


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """Imports modules of torch-fidelity, which is fetched for these tests alone.

    Its dependencies are left out, and so is the package's `__init__`, which imports
    torchvision: the modules of Inception need only torch.
    """
    folder = tmp_path_factory.mktemp("peer")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--retries", "1"]
    command += ["--target", str(folder), PEER]
    fetched = subprocess.run(command, capture_output=True, text=True, check=False)
    if fetched.returncode:
        pytest.skip(f"{PEER} cannot be installed: {fetched.stderr.splitlines()[-1:]}")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = [str(folder / "torch_fidelity")]
    sys.modules["torch_fidelity"] = package
    yield lambda name: importlib.import_module(f"torch_fidelity.{name}")
    for name in [name for name in sys.modules if name.startswith("torch_fidelity")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def random_file(peer, tmp_path_factory):
    """A state dict as the peer names it, of weights that keep activations near one."""
    draw = torch.Generator().manual_seed(0)

    def random(name, tensor):
        kind = name.rsplit(".", 1)[-1]
        if kind == "num_batches_tracked":
            return torch.tensor(3)
        if kind == "running_var":
            return 0.5 + torch.rand(tensor.shape, generator=draw)
        normal = torch.randn(tensor.shape, generator=draw)
        if ".bn.weight" in name:
            return 1.0 + 0.2 * normal
        if kind == "weight":
            return normal * (2.0 / tensor[0].numel()) ** 0.5
        return 0.2 * normal

    class Random(peer("feature_extractor_inceptionv3").FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):
            own = self.state_dict()
            super().load_state_dict({name: random(name, x) for name, x in own.items()})

    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save({}, path)
    net = Random("random", ["2048"], feature_extractor_weights_path=path)
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def images():
    """Three unlike pictures, not square: noise, dim noise, and slopes."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (3, 24, 40, 3), dtype=np.uint8)
    images[1] //= 4
    images[2] = np.add.outer(7 * np.arange(24), 2 * np.arange(40))[..., None]
    images[2, ..., 1] //= 2
    return images


def _tensors(path):
    return {name: x.numpy() for name, x in torch.load(path, weights_only=True).items()}


@pytest.mark.slow
def test_features_are_those_of_torch_fidelity(peer, random_file, images):
    net = peer("feature_extractor_inceptionv3").FeatureExtractorInceptionV3(
        "theirs",
        ["2048", "logits_unbiased"],
        feature_extractor_weights_path=random_file,
    )
    seen = []
    net.Mixed_6d.branch1x1.register_forward_hook(lambda *call: seen.append(call[-1]))
    pool3, logits = net(torch.tensor(images).permute(0, 3, 1, 2))
    spatial = seen[0].permute(0, 2, 3, 1)[..., :7].flatten(start_dim=1)

    ours = weights.load(random_file).extract(images)
    for found, expected in zip(ours, (pool3, spatial, logits), strict=True):
        expected = expected.numpy()
        assert 0.5 < expected.std() < 10.0
        assert expected.std(axis=0).mean() > 0.1  # the pictures differ
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "size", [(1, 1), (2, 3), (32, 32), (33, 20), (299, 299), (300, 298), (640, 480)]
)
def test_resizing_is_that_of_torch_fidelity(peer, size):
    theirs = peer("interpolate_compat_tensorflow")
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    expected = theirs.interpolate_bilinear_2d_like_tensorflow1x(
        torch.tensor(images).permute(0, 3, 1, 2).float(),
        size=(299, 299),
        align_corners=False,
    )
    found = weights.resize(jnp.asarray(images), 299)
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), rtol=0, atol=1e-4)


def test_a_ramp_is_read_at_the_corners_of_pixels():
    ramp = np.broadcast_to(np.arange(10, dtype=np.uint8)[:, None, None], (1, 10, 4, 3))
    found = jax.jit(weights.resize, static_argnums=1)(ramp, 40)
    expected = np.minimum(np.arange(40) / 4, 9.0)
    np.testing.assert_allclose(
        found, np.broadcast_to(expected[:, None, None], (1, 40, 40, 3)), atol=1e-5
    )


@pytest.mark.slow
def test_the_devices_share_a_batch_and_grey_is_three_equal_channels(
    random_file, images
):
    params = weights.load(random_file).params
    grey = np.concatenate([images, images[::-1]])[..., :1]
    mesh = parallel.make_mesh()
    places = parallel.replicated(mesh), parallel.split(mesh)
    both = jax.jit(weights.apply, in_shardings=places)(params, grey)
    assert len(both.pool3.sharding.device_set) == 2
    one = jax.jit(weights.apply)(params, grey[:1].repeat(3, axis=-1))
    for found, expected in zip(both, one, strict=True):
        np.testing.assert_allclose(found[:1], expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(found[-1:], expected, rtol=0, atol=1e-4)


def test_safetensors_and_unused_tensors_give_the_same_parameters(random_file, tmp_path):
    tensors = torch.load(random_file, weights_only=True)
    del tensors["fc.bias"]
    tensors["AuxLogits.fc.weight"] = torch.zeros(2)
    safetensors.torch.save_file(tensors, tmp_path / "random.safetensors")
    ours = weights.load(tmp_path / "random.safetensors")
    expected = weights.load(random_file)
    jax.tree.map(np.testing.assert_array_equal, ours.params, expected.params)
    assert ours.sha256 != expected.sha256


def test_the_released_file_is_known_by_its_digest(random_file):
    found = weights.load(random_file)
    assert len(found.sha256) == 64
    assert not found.known
    assert found._replace(sha256="6726825d" + 56 * "0").known


def test_other_networks_are_refused(random_file, tmp_path):
    tensors = _tensors(random_file)

    def refused(changed, words):
        with pytest.raises(ValueError, match=words):
            weights.from_torch(changed)

    less = {name: x for name, x in tensors.items() if "branch_pool.conv" not in name}
    refused(less, "9 tensors are missing, such as Mixed_5b.branch_pool.conv.weight, .*")
    refused(tensors | {"head.bias": np.zeros(3)}, "1 tensors are unknown, .* head.bias")
    imagenet = tensors | {"fc.weight": np.zeros((1000, 2048), np.float32)}
    refused(imagenet, r"fc.weight has shape \(1000, 2048\), not \(1008, 2048\)")
    norm = "Mixed_7c.branch1x1.bn.running_mean"
    refused(tensors | {norm: np.zeros(1)}, rf"{norm} has shape \(1,\), not \(320,\)")
    torch.save({"w": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other.pt is not the Inception .*: .*Fetch"):
        weights.load(tmp_path / "other.pt")


def test_every_product_is_asked_for_in_float32():
    net_input = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    variables = jax.eval_shape(InceptionV3().init, jax.random.key(0), net_input)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
    program = jax.jit(weights.apply).lower(variables["params"], images).as_text()
    products = [
        line
        for line in program.splitlines()
        if "stablehlo.convolution" in line or "stablehlo.dot_general" in line
    ]
    assert len(products) == 94 + 1
    assert all(line.count("HIGHEST") == 2 for line in products)


def test_pictures_have_one_or_three_channels():
    with pytest.raises(ValueError, match=r"1 or 3 channels, got 4\. Drop"):
        weights.apply({}, np.zeros((1, 8, 8, 4), np.uint8))
