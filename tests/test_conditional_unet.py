"""The U-Net that attends to a context, or to its class."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny
from vdiff_jax import guidance
from vdiff_jax.from_config.check import check
from vdiff_jax.from_config.model import make_model
from vdiff_jax.nets.attention import attend, attend_by_jax, attend_on_cpu
from vdiff_jax.nets.context import FIXED
from vdiff_jax.nets.layers import Style
from vdiff_jax.nets.serialization import describe, fields_of
from vdiff_jax.nets.unet import Level, UNet
from vdiff_jax.training.step import make_optimizer
from vdiff_jax.types import Condition

TOKENS, WIDTH, CLASSES, BATCH = 3, 6, 4, 2
LEVELS = (
    Level(features=8, num_blocks=1),
    Level(features=8, num_blocks=1, num_heads=2, depth=1),
)
OF_TEXT = {"context_features": WIDTH, "context_tokens": TOKENS}
OF_CLASS = {"context_features": WIDTH, "num_classes": CLASSES}


def _net(levels=LEVELS, **options):
    fields = {"levels": levels, "out_channels": 3, "emb_features": 16, "groups": 4}
    return UNet(**fields, mid_heads=2, mid_depth=1, **options)


def _small_net(**options):
    """A network of one level and no middle, for gradients."""
    return _net(LEVELS[1:], style=Style(mid=False), **options)


def _random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _inputs():
    return _random(BATCH, 8, 8, 3), jnp.array([-1.0, 2.0])


def _params(net, condition):
    """Parameters of which none is zero, save in a mask."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), *_inputs(), condition)
    leaves, tree = jax.tree.flatten(shapes["params"])
    values = [_random(*x.shape, seed=i) / 2 for i, x in enumerate(leaves)]
    params = jax.tree.unflatten(tree, values)
    if "null_mask" in params:
        params["null_mask"] = jnp.array([1.0, 0.0, 1.0])
    return params


@pytest.fixture(scope="module")
def of_text():
    """A function of a condition, and the parameters in it."""
    net = _net(**OF_TEXT)
    params = _params(net, _text())
    run = jax.jit(lambda c: net.apply({"params": params}, *_inputs(), c))
    return run, params


@pytest.fixture(scope="module")
def of_class():
    net = _net(**OF_CLASS)
    params = _params(net, Condition(jnp.zeros(BATCH, jnp.int32)))
    run = jax.jit(lambda p, label: net.apply({"params": p}, *_inputs(), label))
    return run, params


def _text(mask=((1, 1, 0), (0, 1, 1)), seed=7):
    context = _random(BATCH, TOKENS, WIDTH, seed=seed)
    return Condition(context=context, mask=jnp.array(mask, bool))


def _attention(q, k, v, mask):
    """The definition, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    logits = np.einsum("bqhc,bkhc->bhqk", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits) * np.asarray(mask)[:, None, None]
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhqk,bkhc->bqhc", weights, v)


@pytest.mark.parametrize("function", [attend, attend_on_cpu, attend_by_jax])
def test_masked_attention_is_its_definition(function):
    q = _random(BATCH, 7, 2, 4)
    k, v = (_random(BATCH, TOKENS, 2, 4, seed=seed) for seed in (1, 2))
    for mask in (((1, 1, 1), (1, 1, 1)), ((1, 0, 1), (0, 1, 0))):
        expected = _attention(q, k, v, mask)
        np.testing.assert_allclose(
            function(q, k, v, jnp.array(mask, bool)), expected, atol=1e-6
        )
    if function is not attend_by_jax:  # without a mask, all keys count
        expected = _attention(q, k, v, np.ones((BATCH, TOKENS)))
        np.testing.assert_allclose(function(q, k, v), expected, atol=1e-6)


@pytest.mark.parametrize("function", [attend_on_cpu, attend_by_jax])
def test_the_gradient_of_masked_attention_is_finite_and_none_of_what_is_masked(
    function,
):
    q = _random(BATCH, 7, 2, 4)
    k, v = (_random(BATCH, TOKENS, 2, 4, seed=seed) for seed in (1, 2))
    mask = jnp.array(((1, 0, 1), (0, 1, 0)), bool)

    def loss(q, k, v):
        return jnp.square(function(q, k, v, mask)).sum()

    for grad in jax.grad(loss, argnums=(0, 1, 2))(q, k, v):
        assert np.isfinite(grad).all()
        if grad.shape == k.shape:
            assert (np.asarray(grad)[~np.asarray(mask)] == 0).all()


def test_a_masked_vector_has_no_influence_and_another_has(of_text):
    run, _ = of_text
    condition = _text()
    other = condition.context.at[0, 2].set(100.0)
    np.testing.assert_array_equal(
        run(condition), run(condition._replace(context=other))
    )
    other = condition.context.at[0, 1].set(100.0)
    assert not np.allclose(run(condition)[0], run(condition._replace(context=other))[0])


def test_without_a_mask_all_vectors_count(of_text):
    run, _ = of_text
    ones = jnp.ones((BATCH, TOKENS), bool)
    condition = _text()
    np.testing.assert_array_equal(
        run(condition._replace(mask=None)), run(condition._replace(mask=ones))
    )


def test_a_context_that_is_left_out_is_the_null_context(of_text):
    run, params = of_text
    left_out = run(_text(mask=((0, 0, 0), (0, 1, 1))))
    null = _text(mask=((1, 0, 1), (0, 1, 1)))
    null = null._replace(context=null.context.at[0].set(params["null_context"]))
    np.testing.assert_array_equal(left_out, run(null))
    other = run(_text(mask=((0, 0, 0), (0, 1, 1)), seed=8))
    np.testing.assert_array_equal(left_out[0], other[0])
    assert not np.allclose(left_out[1], other[1])


def test_what_guidance_leaves_out_is_the_null_context(of_text):
    run, params = of_text
    condition = _text()
    context = jnp.broadcast_to(params["null_context"], condition.context.shape)
    mask = jnp.broadcast_to(jnp.array([True, False, True]), condition.mask.shape)
    np.testing.assert_array_equal(
        run(guidance.null(condition)), run(Condition(context=context, mask=mask))
    )


def test_the_class_is_a_row_of_the_table_and_the_last_row_is_no_class(of_class):
    run, params = of_class
    table = params["class_context"]
    assert table.shape == (CLASSES + 1, WIDTH)
    label = jnp.array([1, -1])
    rows = table.at[0].set(table[1]).at[3].set(table[CLASSES])
    swapped = {**params, "class_context": rows}
    output = run(params, Condition(label))
    np.testing.assert_array_equal(output, run(swapped, Condition(jnp.array([0, 3]))))
    other = {**params, "class_context": table.at[CLASSES].add(1.0)}
    changed = run(other, Condition(label))
    np.testing.assert_array_equal(output[0], changed[0])
    assert not np.allclose(output[1], changed[1])
    assert "class_emb" not in params


def test_with_one_vector_what_is_asked_of_it_does_not_matter(of_class):
    """Its softmax is 1: queries, keys and the norm of the queries have no effect."""
    run, params = of_class
    condition = Condition(jnp.array([1, 2]))

    def others(path, leaf):
        name = jax.tree_util.keystr(path)
        unused = "attn2']['q" in name or "attn2']['k" in name or "norm2" in name
        return leaf + 1.0 if unused and "transformer" in name else leaf

    changed = jax.tree_util.tree_map_with_path(others, params)
    np.testing.assert_allclose(
        run(params, condition), run(changed, condition), atol=2e-5
    )


def test_the_null_context_is_never_trained():
    net = _small_net(**OF_TEXT)
    condition = _text(mask=((0, 0, 0), (0, 1, 1)))
    params = _params(net, condition)

    def loss(params):
        return jnp.square(net.apply({"params": params}, *_inputs(), condition)).sum()

    grads = jax.jit(jax.grad(loss))(params)
    optimizer = make_optimizer(grad_clip=1.0, weight_decay=0.1)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    for name in FIXED:
        assert (grads[name] == 0).all()
        assert (updates[name] == 0).all()
    others = {k: v for k, v in updates.items() if k not in FIXED}
    assert all((x != 0).any() for x in jax.tree.leaves(others))


def test_weight_decay_is_that_of_optax_with_the_same_state():
    params = {"layer": {"kernel": _random(3, 4), "bias": _random(4)}}
    grads = jax.tree.map(lambda x: 0.1 * x**2, params)
    ours = make_optimizer(grad_clip=1.0, weight_decay=0.1)
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b1=0.9, b2=0.999),
        optax.add_decayed_weights(0.1),
    )
    states = [optimizer.init(params) for optimizer in (ours, theirs)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    updates = [
        optimizer.update(grads, state, params)
        for optimizer, state in zip((ours, theirs), states, strict=True)
    ]
    jax.tree.map(np.testing.assert_array_equal, *updates)


@pytest.mark.parametrize("options", [OF_TEXT, OF_CLASS])
def test_a_new_network_predicts_nothing_and_a_new_transformer_changes_nothing(options):
    net = _small_net(**options)
    condition = _text() if net.context_tokens else Condition(jnp.array([0, 1]))
    output, variables = jax.jit(net.init_with_output)(
        jax.random.key(0), *_inputs(), condition
    )
    params = variables["params"]
    assert (params["down_0.transformer_0"]["proj_out"]["kernel"] == 0).all()
    assert (output == 0).all()
    if net.context_tokens:
        assert (params["null_context"] == 0).all()
        assert (params["null_mask"] == 1).all()


@pytest.mark.slow
def test_a_network_with_all_options_computes_the_same_with_remat():
    options = {**OF_TEXT, "num_classes": 3, "w_features": 8, "patch": 2}
    net = _small_net(**options, noise_input=True)
    condition = _text()._replace(label=jnp.array([0, -1]), w=jnp.array([0.0, 2.0]))
    noise = _random(BATCH, 8, 8, 3, seed=5)
    shapes = jax.eval_shape(
        net.init, jax.random.key(0), *_inputs(), condition, noise=noise
    )
    leaves, tree = jax.tree.flatten(shapes["params"])
    values = [_random(*x.shape, seed=i) / 2 for i, x in enumerate(leaves)]
    params = jax.tree.unflatten(tree, values)

    def gradient(net):
        def loss(params):
            output = net.apply({"params": params}, *_inputs(), condition, noise=noise)
            return jnp.square(output).mean()

        return jax.jit(jax.value_and_grad(loss))(params)

    value, grads = gradient(net)
    again, regrads = gradient(net.clone(remat=True))
    np.testing.assert_allclose(value, again, rtol=1e-6)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grads))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), grads, regrads
    )
    low, high = (
        jax.jit(net.clone(dtype=dtype).apply)(
            {"params": params}, *_inputs(), condition, noise=noise
        )
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert low.dtype == jnp.float32
    assert 0 < np.abs(low - high).max() < 0.1 * np.abs(high).max()


@pytest.mark.parametrize(
    ("options", "condition", "message"),
    [
        (OF_TEXT, Condition(), "got a context of None"),
        (OF_TEXT, Condition(context=jnp.zeros((BATCH, 4, WIDTH))), r"of \(4, 6\)"),
        (OF_CLASS, Condition(), "num_classes=4 got label=None"),
        (
            OF_CLASS,
            Condition(jnp.zeros(BATCH, jnp.int32), jnp.zeros((BATCH, 1, WIDTH))),
            r"context_tokens=0 and context_features=6 got a context of \(1, 6\)",
        ),
        ({}, Condition(), "is a transformer, and the network has no context"),
    ],
)
def test_a_condition_that_does_not_fit_is_refused(options, condition, message):
    net = _net(**options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net.init, jax.random.key(0), *_inputs(), condition)


def test_a_layout_is_the_network():
    levels = (LEVELS[0], dataclasses.replace(LEVELS[1], depth=2))
    net = _net(**OF_TEXT).clone(levels=levels)
    fields = fields_of(describe(net))
    assert net == UNet(**fields, out_channels=3)


def _config(**unet):
    config = tiny.config("train")
    config.model.unet.update({"patch": 1, "multipliers": (1, 2), **unet})
    config.data.update({"image_size": 16})
    return config


def test_a_config_makes_a_transformer_wherever_it_has_attention():
    plain = {"attention_resolutions": (8,), "head_dim": 4}
    config = _config(**plain, context_features=WIDTH, context_tokens=TOKENS)
    check(config)
    model = make_model(config)
    assert isinstance(model.net, UNet)
    assert model.context_shape == (TOKENS, WIDTH)
    assert [(x.num_heads, x.depth) for x in model.net.levels] == [(0, 0), (4, 1)]
    assert (model.net.mid_heads, model.net.mid_depth) == (4, 1)
    names = set(model.abstract_params())
    assert {"mid.transformer_1", "up_1.transformer_1", "null_context"} <= names
    assert not any(".attn_" in name for name in names)
    config.model.update({"num_classes": 3})
    config.model.unet.context_tokens = 0
    check(config)
    model = make_model(config)
    assert model.context_shape is None
    assert model.abstract_params()["class_context"].shape == (4, WIDTH)


def test_a_context_is_a_condition_that_guidance_can_leave_out():
    config = _config(context_features=WIDTH, context_tokens=TOKENS)
    config.update({"stage": "guide", "guide": {"steps": 1}})
    check(config)
    config.model.unet.update({"context_features": 0, "context_tokens": 0})
    with pytest.raises(ValueError, match="needs a model that is conditioned"):
        check(config)


@pytest.mark.parametrize(
    ("path", "value"),
    [("sample.w", (1.0,)), ("evaluate.w", (1.0,)), ("evaluate.judge", True)],
)
def test_a_context_is_as_good_as_a_class_for_guidance_and_the_judge(path, value):
    config = _config(context_features=WIDTH, context_tokens=TOKENS)
    section, field = path.split(".")
    config[section][field] = value
    check(config)
    config.model.unet.update({"context_features": 0, "context_tokens": 0})
    with pytest.raises(ValueError, match=f"{path}=.*a class or a context"):
        check(config)


def test_a_config_without_a_context_makes_the_same_network_as_before():
    net = make_model(_config(attention_resolutions=(8,), head_dim=4)).net
    assert net.levels[1].depth == net.mid_depth == net.context_features == 0
    assert "depth" not in describe(net)
    assert "context" not in describe(net)


@pytest.mark.parametrize(
    ("unet", "message"),
    [
        ({"context_tokens": 3}, "set model.unet.context_features"),
        ({"context_features": 3}, "set model.unet.context_tokens, or model.num_class"),
    ],
)
def test_half_a_context_is_refused(unet, message):
    with pytest.raises(ValueError, match=message):
        check(_config(**unet))
