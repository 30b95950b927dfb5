"""The diffusion transformer, by itself; against diffusers in test_diffusers_dit.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from vdiff_jax.from_config.model import make_model
from vdiff_jax.nets import dit
from vdiff_jax.nets.dit import DiT
from vdiff_jax.types import Condition

SMALL = {"patch": 2, "depth": 2, "features": 16, "num_heads": 2, "out_channels": 3}
# Depth, features, heads and millions of parameters of the published sizes.
PUBLISHED = {
    "S": (12, 384, 6, 33),
    "B": (12, 768, 12, 130),
    "L": (24, 1024, 16, 458),
    "XL": (28, 1152, 16, 675),
}


def _abstract(net, image, num_classes=0):
    label = jnp.zeros(1, jnp.int32) if num_classes else None
    inputs = (jnp.zeros((1, *image)), jnp.zeros(1), Condition(label))
    return jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]


def _random(net, image=(8, 8, 3)):
    """Parameters of which none is zero."""
    rng = np.random.default_rng(0)
    return {
        "params": jax.tree.map(
            lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32),
            _abstract(net, image, net.num_classes),
        )
    }


def _inputs(batch=3, num_classes=0):
    z_t = jax.random.normal(jax.random.key(1), (batch, 8, 8, 3))
    label = jnp.arange(batch) % num_classes if num_classes else None
    return z_t, jnp.linspace(-5.0, 5.0, batch), Condition(label)


@pytest.mark.parametrize(
    ("size", "patch", "exact"),
    [
        ("S", 2, 32_963_360),
        ("S", 4, 32_945_024),
        ("S", 8, 33_148_160),
        ("B", 2, 130_512_416),
        ("B", 4, 130_475_648),
        ("B", 8, 130_881_536),
        ("L", 2, 458_102_816),
        ("L", 4, 458_053_760),
        ("L", 8, 458_594_816),
        ("XL", 2, 675_129_632),
        ("XL", 4, 675_074_432),
        ("XL", 8, 675_683_072),
    ],
)
def test_the_published_networks_have_their_sizes(size, patch, exact):
    """Their counts include the fixed embedding of places, which is none of ours."""
    depth, features, heads, millions = PUBLISHED[size]
    net = DiT(
        patch=patch,
        depth=depth,
        features=features,
        num_heads=heads,
        out_channels=8,
        num_classes=1000,
    )
    leaves = jax.tree.leaves(_abstract(net, (32, 32, 4), 1000))
    count = sum(leaf.size for leaf in leaves)
    patches, outer = (32 // patch) ** 2, 4 * patch**2
    # Patches in; time, class; blocks; modulation of the output, and the output.
    by_hand = (outer + 1) * features + (256 + features + 2) * features
    by_hand += 1001 * features + depth * (18 * features**2 + 15 * features)
    by_hand += 2 * features**2 + 2 * features + 2 * outer * (features + 1)
    assert count == by_hand == exact - patches * features
    assert abs(exact / 1e6 - millions) < 1


def test_a_place_is_marked_by_waves_of_its_column_then_of_its_row():
    found = dit.positions(3, 4, 8)
    assert found.shape == (12, 8)
    assert found.dtype == np.float64
    column, row = 3, 1
    expected = [
        wave(place * frequency)
        for place in (column, row)
        for wave in (np.sin, np.cos)
        for frequency in (1.0, 0.01)
    ]
    np.testing.assert_allclose(found[row * 4 + column], expected, rtol=1e-12)


def test_without_places_tokens_could_be_exchanged(monkeypatch):
    """The rest of the network treats all of them alike."""
    net = DiT(**SMALL)
    params, (z_t, logsnr, _) = _random(net), _inputs()
    swapped = jnp.concatenate([z_t[:, 4:], z_t[:, :4]], axis=1)

    def difference():
        ours, theirs = (net.apply(params, z, logsnr) for z in (z_t, swapped))
        return jnp.abs(jnp.concatenate([ours[:, 4:], ours[:, :4]], 1) - theirs).max()

    assert difference() > 0.1
    monkeypatch.setattr(dit, "positions", lambda *shape: np.zeros((16, 16)))
    assert difference() < 1e-4


def test_an_example_without_its_class_has_a_vector_of_its_own():
    net = DiT(**SMALL, num_classes=3)
    params, (z_t, logsnr, _) = _random(net), _inputs()
    table = params["params"]["class_emb"]["kernel"]
    assert table.shape == (4, 16)

    def predicted(label, params=params):
        return net.apply(params, z_t, logsnr, Condition(jnp.full(3, label)))

    changed = jax.tree.map(lambda leaf: leaf, params)
    changed["params"]["class_emb"]["kernel"] = table.at[3].add(1.0)
    assert jnp.abs(predicted(-1, changed) - predicted(-1)).max() > 1e-2
    np.testing.assert_array_equal(predicted(2, changed), predicted(2))


def test_at_first_every_block_is_the_identity():
    net = DiT(**SMALL)
    z_t, logsnr, condition = _inputs()
    params = net.init(jax.random.key(0), z_t, logsnr, condition)
    _, state = net.apply(params, z_t, logsnr, condition, capture_intermediates=True)
    blocks = state["intermediates"]
    places = dit.positions(4, 4, 16)[None]
    first = blocks["patch_in"]["__call__"][0].reshape(3, 16, 16) + places
    for l in range(2):
        np.testing.assert_allclose(
            blocks[f"block_{l}"]["__call__"][0], first, atol=1e-6
        )
    assert jnp.abs(first).max() > 0.1


@pytest.mark.slow
def test_computing_the_blocks_again_gives_the_same_gradient():
    net = DiT(**SMALL, num_classes=3, dropout=0.2)
    params, inputs = _random(net), _inputs(num_classes=3)

    def gradient(net):
        rngs = {"dropout": jax.random.key(0)}

        def loss(params):
            return net.apply(params, *inputs, train=True, rngs=rngs).std()

        return jax.jit(jax.grad(loss))(params)

    kept, again = gradient(net), gradient(net.clone(remat=True))
    assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(kept)) > 1e-3
    for ours, theirs in zip(*map(jax.tree.leaves, (again, kept)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_guidance_weight_begins_without_effect_and_then_matters():
    net = DiT(**SMALL, num_classes=3, w_features=8)
    z_t, logsnr, (label, *_) = _inputs(num_classes=3)
    plain = DiT(**SMALL, num_classes=3)
    params = _random(plain)
    kernel = jnp.zeros((8, dit.TIME_FEATURES))

    def predicted(w, kernel):
        whole = {"params": {**params["params"], "w_proj": {"kernel": kernel}}}
        return net.apply(whole, z_t, logsnr, Condition(label, w=jnp.full(3, w)))

    without = plain.apply(params, z_t, logsnr, Condition(label))
    np.testing.assert_array_equal(predicted(2.0, kernel), without)
    assert jnp.abs(predicted(2.0, kernel + 0.1) - without).max() > 1e-3
    fresh = net.init(jax.random.key(0), z_t, logsnr, Condition(label, w=jnp.ones(3)))
    assert not jnp.any(fresh["params"]["w_proj"]["kernel"])


@pytest.mark.parametrize(
    ("options", "condition", "extra", "message"),
    [
        ({}, Condition(jnp.zeros(3, int)), {}, "num_classes=0 got label"),
        ({"num_classes": 2}, Condition(), {}, "num_classes=2 got label=None"),
        ({}, Condition(w=jnp.zeros(3)), {}, "w_features=0 got w="),
        ({}, Condition(context=jnp.zeros((3, 1, 2))), {}, "not conditioned on a con"),
        ({}, Condition(), {"noise": jnp.zeros((3, 8, 8, 3))}, "does not take noise"),
        ({"patch": 3}, Condition(), {}, "patch=3 does not divide"),
        ({"num_heads": 3}, Condition(), {}, "features=16 must divide by num_heads=3"),
        ({"features": 18}, Condition(), {}, "features=18 must .* by 4"),
    ],
)
def test_what_the_network_is_not_made_for_is_refused(
    options, condition, extra, message
):
    net = DiT(**SMALL | options)
    z_t, logsnr, _ = _inputs()
    with pytest.raises(ValueError, match=message):
        net.init(jax.random.key(0), z_t, logsnr, condition, **extra)


def test_a_config_makes_the_network_that_it_describes():
    config = tiny.config("train")
    config.update(
        {
            "model": {
                "net": "dit",
                "dit": {"patch": 4, "depth": 3, "features": 24, "num_heads": 3},
                "num_classes": 10,
                "timesteps": "linear_beta",
                "dtype": "bfloat16",
            },
            "train": {"dropout": 0.1},
            "parallel": {"remat": True},
            "guide": {"steps": 1, "w_features": 32, "w_scale": 50.0},
        }
    )
    channels = config.data.channels
    net = make_model(config, guided=True).net
    assert isinstance(net, DiT)
    expected = DiT(
        patch=4,
        depth=3,
        features=24,
        num_heads=3,
        out_channels=channels,
        num_classes=10,
        w_features=32,
        w_scale=50.0,
        dropout=0.1,
        timesteps=net.timesteps,
        dtype=jnp.dtype("bfloat16"),
        remat=True,
    )
    for field in dataclasses.fields(DiT):
        assert getattr(net, field.name) == getattr(expected, field.name), field.name
    assert len(net.timesteps) == 1000
    config.model.update({"output": "both", "dit": {"epsilon": 1e-5}})
    both = make_model(config).net
    assert (both.out_channels, both.w_features) == (2 * channels, 0)
    assert both.epsilon == 1e-5
