"""Another model's weights as the base: from eps to v."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import launch
import tiny
from vdiff_jax.from_config.model import make_model
from vdiff_jax.workdir import layout as places
from vdiff_jax.workdir.trained import load_params

pytestmark = pytest.mark.slow

FINETUNE = {name: value for name, value in tiny.TINY["train"].items()}
FINETUNE.pop("sample_steps")
LEARNING_RATE = 1e-4


def _config(stage, source="", output="v", computed_from="", **changes):
    return tiny.config(
        stage,
        model={
            "net": "tiny:make_net",
            "num_classes": 10,
            "output": output,
            "computed_from": computed_from,
        },
        finetune={**FINETUNE, "source": str(source), "learning_rate": LEARNING_RATE},
        **changes,
    )


@pytest.fixture(scope="module")
def source(once):
    """The train folder of a model that predicts eps; for reading."""
    config = _config("train", output="eps")
    workdir = once("eps", lambda workdir: launch.launch(config, workdir))
    return places.train_folder(workdir)


@pytest.mark.parametrize("target", ["v", "x"])
def test_converted_it_is_the_same_denoiser(source, target):
    theirs = make_model(_config("train", output="eps"))
    ours = make_model(_config("train", output=target, computed_from="eps"))
    params = load_params(theirs, source)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a.shape, b.shape),
        ours.abstract_params(),
        theirs.abstract_params(),
    )
    z_t = jax.random.normal(jax.random.key(0), (5, 8, 8, 1))
    logsnr_t = jnp.linspace(-4.0, 4.0, 5)
    label = jnp.arange(5)
    for found, expected in zip(
        ours.denoiser(params, label)(z_t, logsnr_t),
        theirs.denoiser(params, label)(z_t, logsnr_t),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("computed_from", ["", "eps"])
def test_a_finetuned_model_comes_from_its_source(source, tmp_path, computed_from):
    launch.launch(_config("finetune", source, computed_from=computed_from), tmp_path)
    base = json.loads((places.train_folder(tmp_path) / "result.json").read_text())
    theirs = json.loads((source / "result.json").read_text())
    assert base["output"] == ["eps", "v"]
    assert base["teacher_sha256"] == theirs["params_sha256"]
    assert base["params_sha256"] != theirs["params_sha256"]
    model = make_model(_config("train", output="v"))
    for ours, before in zip(
        jax.tree.leaves(load_params(model, places.train_folder(tmp_path))),
        jax.tree.leaves(load_params(model, source)),
        strict=True,
    ):  # Adam moves a weight by its learning rate at most, in each of its 6 updates
        assert np.abs(ours - before).max() < 6.1 * LEARNING_RATE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": ""}, "needs finetune.source"),
        ({"source": "nowhere/train"}, "No finished model"),
        ({"computed_from": "x"}, "says 'eps'"),
        ({"output": "both", "computed_from": "eps"}, "cannot be computed"),
    ],
)
def test_what_cannot_be_finetuned_is_refused(source, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        launch.launch(_config("finetune", **{"source": source, **options}), tmp_path)
