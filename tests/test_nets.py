import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vdiff_jax.nets import attention, conditioning, layers
from vdiff_jax.nets.attention import attend_on_cpu
from vdiff_jax.nets.convolution import convolve_on_cpu
from vdiff_jax.nets.dit import DiT
from vdiff_jax.nets.normalization import (
    Affine,
    GroupNorm,
    mean_by_product,
    mean_by_reshape,
    swish_of,
)
from vdiff_jax.nets.unet import Level, UNet
from vdiff_jax.types import Condition

LEVELS = (
    Level(features=8, num_blocks=1),
    Level(features=16, num_blocks=1, num_heads=2),
)


def _unet(**options):
    options = {"levels": LEVELS, "out_channels": 3, "emb_features": 16} | options
    return UNet(**options, groups=4)


def _dit(**options):
    sizes = {"patch": 2, "depth": 2, "features": 16, "num_heads": 2, "out_channels": 3}
    return DiT(**sizes | options)


# What holds for both networks is asked of both.
of_both = pytest.mark.parametrize("make", [_unet, _dit], ids=["unet", "dit"])


def _inputs(size=8, num_classes=0):
    z_t = jax.random.normal(jax.random.key(1), (2, size, size, 3))
    label = jnp.array([0, num_classes - 1]) if num_classes else None
    return z_t, jnp.array([-3.0, 5.0]), Condition(label)


def _perturbed(net, *inputs):
    """Parameters away from the zeros that hide mistakes."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        # Of a kernel [..., in, out] each output has a variance near one.
        inputs = np.prod(leaf.shape[:-1]) if path[-1].key == "kernel" else np.inf
        values = np.hypot(inputs**-0.5, 0.2) * rng.normal(size=leaf.shape)
        return (values + (path[-1].key == "scale")).astype(np.float32)

    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map_with_path(draw, shapes)


@pytest.mark.parametrize(
    ("mode", "golden"),
    [
        ("inv_cos", [0.99997110, 0.74998555, 0.5, 0.25001445, 0.00002890]),
        ("linear", [0.0, 0.45593452, 0.5, 0.54406548, 1.0]),
        ("sigmoid", [2.0611537e-9, 0.1464616, 0.5, 0.8535384, 1.0]),
    ],
)
def test_logsnr_inputs_have_their_golden_values(mode, golden):
    logsnr = jnp.array([-20.0, -1.762619, 0.0, 1.762619, 20.0])
    np.testing.assert_allclose(
        conditioning.logsnr_input(logsnr, mode), golden, rtol=1e-5, atol=1e-7
    )


def test_the_sinusoid_has_its_golden_values():
    found = conditioning.sinusoid(jnp.array([500.0]), 256)[0]
    np.testing.assert_allclose(found[:3], [-0.467772, 0.066711, -0.866419], atol=1e-4)
    np.testing.assert_allclose(
        found[128:131], [-0.883849, 0.997772, 0.499317], atol=1e-4
    )
    assert found[127] == pytest.approx(0.0499792, abs=1e-6)
    assert found[255] == pytest.approx(0.9987503, abs=1e-6)


def test_the_small_reference_network_has_its_published_size():
    net = UNet(
        levels=(
            Level(features=32, num_blocks=1),
            Level(features=64, num_blocks=1, num_heads=1),
        ),
        out_channels=3,
        emb_features=128,
    )
    params = jax.eval_shape(
        net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros(1)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 827_491


def test_parts_are_named_as_in_released_checkpoints():
    init = _unet(num_classes=2).init
    params = jax.eval_shape(init, jax.random.key(0), *_inputs(num_classes=2))
    names = set(params["params"])
    assert {
        "conv_in",
        "dense0",
        "dense1",
        "class_emb",
        "down_0.block_0",
        "down_0.downsample",
        "down_1.attn_0",
        "mid.block_1",
        "mid.attn_1",
        "mid.block_2",
        "up_1.block_1",
        "up_1.upsample",
        "up_0.block_0",
        "norm_out",
        "conv_out",
    } <= names
    assert set(params["params"]["up_0.block_0"]) == {
        "norm1",
        "conv1",
        "temb_proj",
        "norm2",
        "conv2",
        "nin_shortcut",
    }
    attention = params["params"]["down_1.attn_0"]
    assert set(attention) == {"norm", "q", "k", "v", "proj_out"}
    assert attention["q"]["kernel"].shape == (16, 2, 8)


@of_both
def test_the_output_is_zero_at_initialisation(make):
    inputs = _inputs()
    output, _ = jax.jit(make().init_with_output)(jax.random.key(0), *inputs)
    np.testing.assert_array_equal(output, jnp.zeros_like(inputs[0]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (_unet, {}),
        (_unet, {"num_classes": 3, "patch": 2, "out_channels": 6}),
        (_unet, {"levels": tuple(
            Level(features=8, num_blocks=1, resample_in_block=False) for _ in range(2)
        )}),
        (_dit, {"num_classes": 3, "out_channels": 6}),
    ],
)  # fmt: skip
def test_a_gradient_reaches_every_parameter(make, options):
    net = make(**options)
    inputs = _inputs(num_classes=net.num_classes)
    params = _perturbed(net, *inputs)

    def loss(params):
        return jnp.square(net.apply({"params": params}, *inputs)).mean()

    gradient = jax.jit(jax.grad(loss))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(gradient):
        # A constant added to all keys changes no softmax.
        if "['k']['bias']" not in jax.tree_util.keystr(path):
            assert jnp.abs(grad).max() > 1e-9, path


@of_both
def test_log_snr_and_class_matter(make):
    net = make(num_classes=3)
    z_t, logsnr, (label, *_) = _inputs(num_classes=3)
    params = {"params": _perturbed(net, z_t, logsnr, Condition(label))}
    apply = jax.jit(net.apply)
    plain = apply(params, z_t, logsnr, Condition(label))
    assert (
        jnp.abs(apply(params, z_t, logsnr + 1.0, Condition(label)) - plain).max() > 1e-3
    )
    assert (
        jnp.abs(apply(params, z_t, logsnr, Condition(2 - label)) - plain).max() > 1e-3
    )


@pytest.mark.slow
@of_both
def test_an_example_does_not_depend_on_its_batch(make):
    net = make()
    z_t, logsnr, _ = _inputs()
    params = {"params": _perturbed(net, z_t, logsnr)}
    apply = jax.jit(net.apply)
    both = apply(params, z_t, logsnr)
    one = apply(params, z_t[1:], logsnr[1:])
    np.testing.assert_allclose(both[1:], one, atol=1e-4)


@of_both
def test_dropout_is_on_only_in_training(make):
    net = make(dropout=0.5)
    z_t, logsnr, _ = _inputs()
    params = {"params": _perturbed(net, z_t, logsnr)}

    @jax.jit
    def run(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return net.apply(params, z_t, logsnr, train=True, rngs=rngs)

    apply = jax.jit(net.apply)
    still = apply(params, z_t, logsnr)
    np.testing.assert_array_equal(still, apply(params, z_t, logsnr))
    assert jnp.abs(run(0) - run(1)).max() > 1e-3


@of_both
def test_bfloat16_changes_only_the_rounding(make):
    z_t, logsnr, _ = _inputs()
    params = {"params": _perturbed(make(), z_t, logsnr)}
    full = jax.jit(make().apply)(params, z_t, logsnr)
    half = jax.jit(make(dtype=jnp.bfloat16).apply)(params, z_t, logsnr)
    assert half.dtype == jnp.float32
    assert 0 < jnp.abs(half - full).max() < 0.1 * jnp.abs(full).max()
    init = make(dtype=jnp.bfloat16).init
    fresh = jax.eval_shape(init, jax.random.key(0), z_t, logsnr)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}


def test_the_convolution_and_its_gradient_are_those_of_xla():
    x = jax.random.normal(jax.random.key(0), (2, 5, 7, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))

    def reference(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=numbers
        )

    (ours, pull), (theirs, pull_theirs) = (
        jax.vjp(convolve, x, kernel) for convolve in (convolve_on_cpu, reference)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    dy = jnp.sin(theirs)
    for found, expected in zip(pull(dy), pull_theirs(dy), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_both_means_of_groups_are_one():
    values = jax.random.normal(jax.random.key(0), (3, 12))
    np.testing.assert_allclose(
        mean_by_product(values, 4), mean_by_reshape(values, 4), rtol=1e-6, atol=1e-7
    )


def test_attention_and_its_gradient_are_those_of_jax():
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, dh = (3.0 * jax.random.normal(key, (2, 7, 2, 4)) for key in keys)
    (ours, pull), (theirs, pull_theirs) = (
        jax.vjp(attend, q, k, v) for attend in (attend_on_cpu, nn.dot_product_attention)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    for found, expected in zip(pull(dh), pull_theirs(dh), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "fused"),
    [
        ((9, 0), jnp.bfloat16, 32, True),
        ((9, 0), jnp.bfloat16, 256, True),
        ((8, 0), jnp.float16, 128, True),
        ((8, 0), jnp.bfloat16, 256, False),
        ((9, 0), jnp.bfloat16, 20, False),
        ((9, 0), jnp.float32, 32, False),
        ((7, 5), jnp.float16, 32, False),
        ((), jnp.bfloat16, 32, False),
    ],
)
def test_attention_is_fused_where_cudnn_can(
    monkeypatch, capability, dtype, width, fused
):
    monkeypatch.setattr(attention, "compute_capability", lambda: capability)
    q = jnp.zeros((2, 16, 4, width), dtype)
    assert attention.can_be_fused(q) == fused
    with attention.portable():
        assert not attention.can_be_fused(q)
    monkeypatch.setenv("XLA_FLAGS", f"--a=1 {attention.DETERMINISTIC}")
    assert not attention.can_be_fused(q)


def test_a_cpu_fuses_nothing():
    assert attention.compute_capability() == ()


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_norm_modulation_and_swish_are_those_of_flax_and_so_are_their_gradients(groups):
    keys = jax.random.split(jax.random.key(0), 6)
    x = 3.0 + 2.0 * jax.random.normal(keys[0], (2, 5, 3, 8))
    params = {
        "scale": jax.random.normal(keys[1], (8,)),
        "bias": jax.random.normal(keys[2], (8,)),
    }
    scale, shift = (jax.random.normal(key, (2, 8)) for key in keys[3:5])

    def ours(x, params, scale, shift):
        affine = GroupNorm(groups).apply({"params": params}, x)
        return swish_of(x, affine.then(scale, shift))

    def theirs(x, params, scale, shift):
        h = nn.GroupNorm(groups, epsilon=1e-6).apply({"params": params}, x)
        return nn.swish(h * (1 + scale[:, None, None]) + shift[:, None, None])

    (found, pull), (expected, pull_theirs) = (
        jax.vjp(function, x, params, scale, shift) for function in (ours, theirs)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    dh = jax.random.normal(keys[5], x.shape)
    for gradients in zip(
        *(jax.tree.leaves(each(dh)) for each in (pull, pull_theirs)), strict=True
    ):
        np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_a_swish_keeps_only_its_input():
    x = jnp.ones((2, 4, 4, 8), jnp.bfloat16)
    affine = Affine(jnp.ones((2, 8)), jnp.ones((2, 8)))
    _, pull = jax.vjp(swish_of, x, affine)
    kept = [leaf for leaf in jax.tree.leaves(pull) if leaf.ndim == 4]
    assert [(leaf.shape, leaf.dtype) for leaf in kept] == [(x.shape, x.dtype)]


def test_folding_pixels_into_channels_is_undone_and_keeps_neighbours():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    folded = layers.space_to_depth(x, 2)
    np.testing.assert_array_equal(folded[0, 1, 2].reshape(2, 2, 3), x[0, 2:4, 4:6])
    np.testing.assert_array_equal(layers.depth_to_space(folded, 2), x)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="does not divide by 2"):
        jax.eval_shape(_unet().init, jax.random.key(0), *_inputs(size=7))
    with pytest.raises(ValueError, match="patch=3 does not divide"):
        layers.space_to_depth(jnp.zeros((1, 4, 4, 1)), 3)
    with pytest.raises(ValueError, match="num_classes=3 got label=None"):
        _unet(num_classes=3).init(jax.random.key(0), *_inputs())
    with pytest.raises(ValueError, match="even"):
        conditioning.sinusoid(jnp.zeros(1), 7)
