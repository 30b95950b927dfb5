"""Another model's weights as the base: from eps to v."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import launch
import tiny
from vdiff_jax.distillation.role import BASE
from vdiff_jax.from_config.model import make_model
from vdiff_jax.stages import replay
from vdiff_jax.types import Condition
from vdiff_jax.workdir import layout
from vdiff_jax.workdir.layout import Project
from vdiff_jax.workdir.parameters import load_params

pytestmark = pytest.mark.slow

LEARNING_RATE = 1e-4


def _config(init_from="", output="v", computed_from=""):
    train = {"init_from": str(init_from), "learning_rate": LEARNING_RATE}
    return tiny.config(
        "train",
        model={
            "net": "tiny:make_net",
            "num_classes": 10,
            "output": output,
            "computed_from": computed_from,
        },
        train={**tiny.TINY["train"], **train},
    )


@pytest.fixture(scope="module")
def source(once):
    """The train folder of a model that predicts eps; for reading."""
    config = _config(output="eps")
    workdir = once("eps", lambda workdir: launch.launch(config, workdir))
    return layout.folder_of(workdir, BASE)


@pytest.mark.parametrize("target", ["v", "x"])
def test_converted_it_is_the_same_denoiser(source, target):
    theirs = make_model(_config(output="eps"))
    ours = make_model(_config(output=target, computed_from="eps"))
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
        ours.denoiser(params, Condition(label))(z_t, logsnr_t),
        theirs.denoiser(params, Condition(label))(z_t, logsnr_t),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("computed_from", ["", "eps"])
def test_a_finetuned_model_comes_from_its_source(source, tmp_path, computed_from):
    launch.launch(_config(source, computed_from=computed_from), tmp_path)
    base = json.loads((layout.folder_of(tmp_path, BASE) / "result.json").read_text())
    theirs = json.loads((source / "result.json").read_text())
    assert base["output"] == ["eps", "v"]
    assert base["teacher_sha256"] == theirs["params_sha256"]
    assert base["params_sha256"] != theirs["params_sha256"]
    model = make_model(_config(output="v"))
    for ours, before in zip(
        jax.tree.leaves(load_params(model, layout.folder_of(tmp_path, BASE))),
        jax.tree.leaves(load_params(model, source)),
        strict=True,
    ):  # Adam moves a weight by its learning rate at most, in each of its 6 updates
        assert np.abs(ours - before).max() < 6.1 * LEARNING_RATE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_from": "nowhere/train"}, "No finished model"),
        ({"computed_from": "x"}, "predicts 'eps'"),
        ({"output": "both", "computed_from": "eps"}, "cannot be computed"),
    ],
)
def test_what_cannot_be_finetuned_is_refused(source, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        launch.launch(_config(**{"init_from": source, **options}), tmp_path)


def test_a_replay_goes_on_from_the_weights_that_the_run_went_on_from(
    source, tmp_path, monkeypatch
):
    """Once it was sent to a run of fresh weights."""
    config, states = _config(source), []
    launch.launch(config, tmp_path)
    (layout.folder_of(tmp_path, BASE) / "result.json").unlink()
    shutil.rmtree(layout.folder_of(tmp_path, BASE) / "checkpoints")
    monkeypatch.setattr(
        replay, "origins", lambda step, state, *others: states.append(state) or []
    )
    replay.run(Project(config, tmp_path), launch.chosen_stages(config), 1)
    trained = load_params(make_model(_config(output="eps")), source)
    jax.tree.map(np.testing.assert_array_equal, states[0].params, trained)
