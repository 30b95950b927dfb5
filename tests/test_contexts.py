"""Contexts: which image is drawn for which, and what stands in their place."""

import json

import numpy as np
import pytest

import launch
import tiny
import vdiff_jax
from vdiff_jax.datasets.digits import digits
from vdiff_jax.evaluation import classifier
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.starts import make_condition_of
from vdiff_jax.generation.conditions import of_arrays, of_source

TOKENS, WIDTH = 3, 8
TABLE = np.random.default_rng(0).normal(size=(11, WIDTH)).astype(np.float32)


def _context(labels):
    """Of each class its own vector after one that all share; the last is padding."""
    context = np.zeros((len(labels), TOKENS, WIDTH), np.float32)
    context[:, 0], context[:, 1] = TABLE[10], TABLE[labels]
    mask = np.arange(TOKENS) < 2
    return context, np.tile(mask, (len(labels), 1))


def _write(folder, num=60, **more):
    for split in ("train", "test"):
        source = digits(split)
        images, labels = source.images[:num], source.labels[:num]
        context, mask = _context(labels)
        arrays = {"images": images, "labels": labels, "context": context, "mask": mask}
        np.savez(folder / f"{split}.npz", **arrays, **more)
    return folder


def _config(stage, folder, **changes):
    config = tiny.config(stage)
    config.data.update({"source": "npz", "path": str(folder)})
    config.model.unet.update({"context_features": WIDTH, "context_tokens": TOKENS})
    config.model.unet.attention_resolutions = (8,)
    config.train.label_dropout = 0.1
    config.evaluate.update({"judge": True, "likelihood_num": 0, "steps": (1,)})
    config.evaluate.features = ("pixels",)
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    null = {"null_context": _context([0])[0][0], "null_mask": np.array([1, 0, 0], bool)}
    return _write(tmp_path_factory.mktemp("captions"), **null)


class Captioned:
    """Examples with nothing but their conditions, in the order of their classes."""

    def __init__(self, num):
        rng = np.random.default_rng(1)
        self.context = rng.normal(size=(num, TOKENS, WIDTH)).astype(np.float32)
        self.mask = rng.random((num, TOKENS)) < 0.5
        self.labels = np.arange(num, dtype=np.int32) * 10 // num

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {name: part[0] for name, part in self.__getitems__([index]).items()}

    def __getitems__(self, indices):
        rows = np.asarray(indices)
        return {
            "image": np.zeros((len(rows), 1, 1, 1), np.uint8),
            "label": self.labels[rows],
            "context": self.context[rows],
            "mask": self.mask[rows],
        }


def test_given_contexts_are_taken_in_turn():
    context, mask = _context(np.arange(10))
    index = np.array([3, 10, 25])
    condition = of_arrays(context, mask)(index)
    np.testing.assert_array_equal(condition.context, context[[3, 0, 5]])
    np.testing.assert_array_equal(condition.mask, mask[[3, 0, 5]])
    assert of_arrays(context, None)(index).mask is None


def test_the_first_images_have_conditions_of_all_the_data():
    source = Captioned(1000)
    condition_of = of_source(source)
    whole = condition_of(np.arange(1000))
    # Each example once, with its own parts.
    order = whole.label.argsort(kind="stable")
    np.testing.assert_array_equal(whole.label[order], source.labels)
    rows = [
        (source.context == context).all(axis=(1, 2)).nonzero()[0][0]
        for context in whole.context
    ]
    assert sorted(rows) == list(range(1000))
    np.testing.assert_array_equal(whole.label, source.labels[rows])
    np.testing.assert_array_equal(whole.mask, source.mask[rows])
    # Of ten classes in order the first 200 examples are of two.
    assert np.bincount(whole.label[:200], minlength=10).min() > 5
    # However the images are parted, and after the last example from the first.
    np.testing.assert_array_equal(
        condition_of(np.array([5, 1003])).context, whole.context[[5, 3]]
    )


@pytest.fixture(scope="module")
def workdir(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("contexts") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "NUM_UPDATES", 5)  # the judge need not be good
        launch.launch(_config("train,sample,evaluate", data), workdir)
    return workdir


@pytest.mark.slow
def test_a_model_of_contexts_goes_through_the_stages(workdir, data):
    rows = json.loads((workdir / "evaluate" / "ladder.json").read_text())
    assert {row["metric"] for row in rows} >= {"frechet_pixels", "accuracy_judge"}
    assert len(list((workdir / "sample").glob("*.png"))) == 5
    model = vdiff_jax.load(workdir / "train")
    null = model.params["null_context"], model.params["null_mask"]
    # The EMA of what does not change is it, to rounding.
    np.testing.assert_allclose(null[0], _context([0])[0][0], rtol=1e-5)
    np.testing.assert_array_equal(null[1], [1.0, 0.0, 0.0])


@pytest.mark.slow
def test_images_depend_on_their_contexts_and_not_on_padding(workdir):
    model = vdiff_jax.load(workdir / "train")
    # After six updates the output is near zero; its weights are not asked for here.
    rng = np.random.default_rng(0)
    kernel = model.params["conv_out"]["kernel"]
    model.params["conv_out"]["kernel"] = kernel + rng.normal(size=kernel.shape)
    contexts = [_context(np.array([c, c]))[0] for c in (1, 2)]
    mask = np.tile(np.arange(TOKENS) < 2, (2, 1))
    padded = contexts[0].copy()
    padded[:, 2] = 7.0
    one, two, same = (
        model.sample(2, steps=2, context=context, mask=mask).astype(int)
        for context in (*contexts, padded)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - two).max() > 0


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"context": np.zeros((2, 2, WIDTH))}, r"has context \(2, 2, 8\)"),
        (
            {"context": np.zeros((2, 3, WIDTH)), "mask": np.ones((2, 2), bool)},
            r"has mask \(2, 2\) for context",
        ),
        ({"context": np.full((2, 3, WIDTH), np.nan)}, "not finite"),
        ({"contexts": np.zeros((2, 3, WIDTH))}, "cannot be read"),
    ],
)
def test_a_file_of_other_contexts_is_refused(data, tmp_path, arrays, message):
    np.savez(tmp_path / "file.npz", **arrays)
    config = _config("sample", data)
    config.sample.context = str(tmp_path / "file.npz")
    with pytest.raises(ValueError, match=message):
        make_condition_of(config, make_model(config), "test")


def test_contexts_are_for_models_that_have_them(tmp_path):
    config = tiny.config("sample")
    config.sample.context = str(tmp_path / "file.npz")
    with pytest.raises(ValueError, match="not conditioned on a context"):
        make_condition_of(config, make_model(config), "test")


def test_a_context_is_left_out_only_where_something_takes_its_place(tmp_path):
    config = _config("train", _write(tmp_path))
    with pytest.raises(ValueError, match="the data have no null context"):
        launch.launch(config, tmp_path / "workdir")
