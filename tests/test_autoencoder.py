"""Autoencoders: what they compute, and in parts."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdiff_jax import parallel
from vdiff_jax.interop.diffusers.autoencoder import abstract_params
from vdiff_jax.nets.autoencoder import Autoencoder, Codebook, in_parts, nearest_code

SMALL = Autoencoder(
    channels=(8, 8), num_blocks=1, z_channels=2, image_channels=1, groups=4
)
WITH_CODES = SMALL.clone(codebook=Codebook(num=6, width=3))


def _params(net, seed=0):
    """Parameters in which nothing is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32),
        abstract_params(net),
    )


def _images(net, num=2, size=8, dtype=np.float32):
    shape = (num, size, size, net.image_channels)
    return np.random.default_rng(1).uniform(-1.0, 1.0, shape).astype(dtype)


def _call(net, params, method, x):
    apply = jax.jit(lambda params, x: net.apply({"params": params}, x, method=method))
    return np.asarray(apply(params, jnp.asarray(x)))


def test_log_variances_are_clipped():
    params = _params(SMALL)
    bias = params["quant_conv"]["bias"]
    params["quant_conv"]["bias"] = np.array([1e3, -1e3, 1e3, -1e3], bias.dtype)
    moments = _call(SMALL, params, SMALL.encode, _images(SMALL))
    mean, log_variance = np.split(moments, 2, axis=-1)
    assert (np.abs(mean) > 500).all()
    np.testing.assert_array_equal(log_variance[..., 0], 20.0)
    np.testing.assert_array_equal(log_variance[..., 1], -30.0)


@pytest.mark.parametrize(
    ("net", "halves", "count"),
    [
        (
            Autoencoder(
                channels=(128, 256, 512), z_channels=3, codebook=Codebook(8192, 3)
            ),
            (22_337_411, 32_960_771),
            55_322_782,
        ),
        (Autoencoder(channels=(128, 256, 512, 512)), (34_163_592, 49_490_179), None),
    ],
    ids=["the first stage of latent diffusion on ImageNet", "of Stable Diffusion"],
)
def test_published_autoencoders_have_their_numbers_of_parameters(net, halves, count):
    params = abstract_params(net)

    def size(part):
        return sum(leaf.size for leaf in jax.tree.leaves(part))

    assert (size(params["encoder"]), size(params["decoder"])) == halves
    assert size(params) == (count or 83_653_863)
    if net.codebook:
        assert size(params["quantize"]) == 24_576


@pytest.mark.parametrize(
    ("net", "encoded"), [(SMALL, 4), (WITH_CODES, 3)], ids=["Gaussians", "codes"]
)
def test_images_shrink_by_the_factor_and_come_back(net, encoded):
    net = net.clone(channels=(8, 8, 8))
    params, images = abstract_params(net), _images(net, size=16)
    assert net.factor == 4

    def shape_of(method, shape):
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        return jax.eval_shape(
            lambda params, x: net.apply({"params": params}, x, method=method), params, x
        ).shape

    assert shape_of(net.encode, images.shape) == (2, 4, 4, encoded)
    assert shape_of(net.decode, (2, 4, 4, net.latent_channels)) == images.shape


def test_a_call_decodes_the_means_of_what_it_encodes():
    params, images = _params(SMALL), _images(SMALL)
    means = _call(SMALL, params, SMALL.encode, images)[..., : SMALL.latent_channels]
    decoded = _call(SMALL, params, SMALL.decode, means)
    both = _call(SMALL, params, SMALL.__call__, images)
    np.testing.assert_allclose(both, decoded, rtol=1e-5, atol=1e-5)


def test_decoding_takes_the_nearest_code():
    params = _params(WITH_CODES)
    codes = jnp.asarray(params["quantize"]["embedding"])
    number = np.random.default_rng(0).integers(len(codes), size=(2, 4, 4))
    gaps = np.linalg.norm(codes[:, None] - codes[None], axis=-1)
    nearest = gaps[gaps > 0].min()
    away = np.random.default_rng(1).normal(size=(2, 4, 4, codes.shape[1]))
    away *= 0.49 * nearest / np.linalg.norm(away, axis=-1, keepdims=True)
    latents = (codes[number] + away).astype(jnp.float32)
    np.testing.assert_array_equal(nearest_code(latents, codes), number)
    decoded = _call(WITH_CODES, params, WITH_CODES.decode, latents)
    exact = _call(WITH_CODES, params, WITH_CODES.decode, codes[number])
    np.testing.assert_array_equal(decoded, exact)


def test_codes_are_compared_in_full_precision_whatever_the_network_computes_in():
    # Bfloat16 has no number between the two.
    codes = jnp.array([[1.0, 0.0, 0.0], [1.001, 0.0, 0.0]])
    net = WITH_CODES.clone(codebook=Codebook(2, 3), dtype=jnp.bfloat16)
    params = _params(net)
    params["quantize"]["embedding"] = np.asarray(codes)
    params["post_quant_conv"]["kernel"] *= 1e4
    latents = jnp.broadcast_to(codes[:, None, None], (2, 4, 4, 3))
    np.testing.assert_array_equal(nearest_code(latents, codes)[:, 0, 0], [0, 1])
    first, second = _call(net, params, net.decode, latents)
    assert np.abs(first - second).max() > 1e-3
    # What a CPU does in any case, a GPU does where it is told to.
    program = jax.jit(nearest_code).lower(latents, codes).as_text()
    assert re.search(r"dot_general.*precision = \[HIGHEST, HIGHEST\]", program)


def test_gradients_pass_through_the_codes_to_the_latents():
    params = _params(WITH_CODES)
    codes = params["quantize"]["embedding"]

    def loss(latents):
        x = WITH_CODES.apply({"params": params}, latents, method="decode")
        return jnp.square(x).sum()

    exact = np.broadcast_to(codes[:1, None, None], (1, 4, 4, codes.shape[1]))
    gradient = jax.jit(jax.grad(loss))
    assert np.abs(gradient(exact)).max() > 0
    near = exact + np.float32(1e-3)
    np.testing.assert_allclose(gradient(near), gradient(exact), rtol=1e-6)


@pytest.mark.parametrize("net", [SMALL, WITH_CODES], ids=["Gaussians", "codes"])
def test_bfloat16_is_near_float32(net):
    params, images = _params(net), _images(net)
    latents = np.random.default_rng(2).normal(size=(2, 4, 4, net.latent_channels))
    coarse = net.clone(dtype=jnp.bfloat16)
    for method, x in (("encode", images), ("decode", latents.astype(np.float32))):
        exact = _call(net, params, getattr(net, method), x)
        rounded = _call(coarse, params, getattr(coarse, method), x)
        assert rounded.dtype == np.float32
        error = np.sqrt(np.mean((rounded - exact) ** 2) / np.mean(exact**2))
        assert 1e-4 < error < 2e-2


@pytest.mark.parametrize(
    ("method", "shape", "message"),
    [
        ("encode", (1, 7, 8, 1), "image of 7 x 8 does not divide by 2"),
        ("encode", (1, 8, 8, 3), r"image of 3 channels .* takes 1"),
        ("decode", (1, 4, 4, 4), r"latent of 4 channels .* takes 2"),
    ],
)
def test_other_shapes_are_refused(method, shape, message):
    with pytest.raises(ValueError, match=message):
        SMALL.apply({"params": _params(SMALL)}, jnp.zeros(shape), method=method)


def _decode_in_parts(at_once, net=SMALL):
    params = _params(net)

    def decode(latents):
        return net.apply({"params": params}, latents, method="decode")

    return jax.jit(lambda latents: in_parts(decode, latents, at_once)), decode


@pytest.mark.parametrize("at_once", [1, 2, 4, 5, 6, 9])
def test_parts_give_the_numbers_of_images_one_by_one(at_once):
    in_some, decode = _decode_in_parts(at_once)
    latents = np.random.default_rng(0).normal(size=(6, 4, 4, 2)).astype(np.float32)
    one = jax.jit(decode)
    alone = np.concatenate([one(latents[i : i + 1]) for i in range(6)])
    np.testing.assert_allclose(in_some(latents), alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("at_once", "largest"), [(1, 1), (3, 3), (5, 4), (20, 12)])
def test_no_more_than_so_many_are_computed_at_a_time(at_once, largest):
    sizes = []

    def double(x):
        sizes.append(len(x))
        return 2.0 * x

    x = np.arange(24.0, dtype=np.float32).reshape(12, 2)
    np.testing.assert_array_equal(in_parts(double, jnp.asarray(x), at_once), 2.0 * x)
    assert set(sizes) == {largest}
    with pytest.raises(ValueError, match="at_once=0"):
        in_parts(double, jnp.asarray(x), 0)


def _temporaries(function, batch):
    latents = jax.ShapeDtypeStruct((batch, 8, 8, 2), jnp.float32)
    compiled = jax.jit(function).lower(latents).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_the_memory_of_parts_does_not_grow_with_the_batch(optimized):
    in_some, decode = _decode_in_parts(2)
    few, many = (_temporaries(in_some, batch) for batch in (4, 32))
    # Up to the alignment of small buffers: one more image would be 16 kB.
    assert many < few + 1000
    assert _temporaries(decode, 32) > 8 * many


def test_parts_keep_every_device_busy():
    mesh = parallel.make_mesh()
    rows = parallel.split(mesh)
    in_some, _ = _decode_in_parts(2)
    latents = np.random.default_rng(0).normal(size=(8, 4, 4, 2)).astype(np.float32)
    split = jax.device_put(latents, rows)
    np.testing.assert_allclose(in_some(split), in_some(latents), rtol=1e-6, atol=1e-6)
    assert in_some(split).sharding.is_equivalent_to(rows, 4)
    program = in_some.lower(split).compile().as_text()
    assert not re.search("all-gather|all-to-all|collective-permute|all-reduce", program)
