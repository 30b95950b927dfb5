"""What is drawn and measured, for those who give a second command, or a wrong one."""

import functools
import json
import os
import pathlib
import re
import shutil
import signal
import time

import flax.linen as nn
import jax
import numpy as np
import PIL.Image
import pytest

import launch
import tiny
import vdiff_jax
from draws import Draws
from tests.faults.runs import Lab
from vdiff_jax.datasets.source import Arrays
from vdiff_jax.distillation.role import BASE, student
from vdiff_jax.evaluation import classifier, statistics_file
from vdiff_jax.evaluation.measurement import Measurement, from_json
from vdiff_jax.evaluation.metrics import FEWEST, left_out
from vdiff_jax.files.atomic import write_json
from vdiff_jax.files.fingerprints import DamagedError
from vdiff_jax.from_config import data as data_from_config
from vdiff_jax.from_config.check import check
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.starts import class_numbers
from vdiff_jax.interop import model_file
from vdiff_jax.stages.evaluate import bench, drawing, feature_sets, judge, references
from vdiff_jax.stages.evaluate import stage as evaluate_stage
from vdiff_jax.stages.sample import images as sample_stage
from vdiff_jax.stages.sample import output
from vdiff_jax.training import loop
from vdiff_jax.training.interrupts import InterruptedRunError
from vdiff_jax.workdir.classes import class_names
from vdiff_jax.workdir.trained import Trained


@pytest.fixture
def workdir(small_project, tmp_path):
    """A project of one's own."""
    return shutil.copytree(small_project, tmp_path / "project")


def _evaluation(batch_size=16, **evaluate):
    """A config whose evaluation takes a second."""
    short = {
        "num": 24, "steps": (1,), "reference_steps": 2, "repeats": 1, "samplers": (),
        "features": ("pixels",), "likelihood_num": 0,
    }  # fmt: skip
    sample = {"batch_size": batch_size}
    return tiny.small("evaluate", sample=sample, evaluate={**short, **evaluate})


def _no_drawing(patch):
    """Fails at the first image."""
    Draws(patch, fail_at=1)


def _contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _values(workdir):
    rows = json.loads((workdir / "evaluate" / "ladder.json").read_text())
    return {(row["model"], row["metric"]): row["values"] for row in rows}


@pytest.mark.slow
def test_a_second_evaluation_leaves_nothing_of_itself_in_the_first(
    workdir, monkeypatch
):
    """Once the first failed for ever, or showed images of the second."""
    out = workdir / "evaluate"
    launch.launch(_evaluation(), workdir)
    first, values = _contents(out), _values(workdir)
    for changes in ({"seed": 5}, {"num": 5}):
        before = _contents(out)
        with monkeypatch.context() as patch:
            Draws(patch, fail_at=2)
            with pytest.raises(KeyboardInterrupt):
                launch.launch(_evaluation(**changes), workdir)
        # Between the two, the first stands as it was.
        assert before.items() <= _contents(out).items()
        launch.launch(_evaluation(**changes), workdir)
        assert _values(workdir) != values
        # Of two evaluations there is only the last.
        assert len(list((out / "pictures").iterdir())) == 2
        launch.launch(_evaluation(), workdir)
        assert _values(workdir) == values
        again = _contents(out)
        for name in ("grid.png", *(name for name in first if "pictures" in name)):
            assert again[name] == first[name]


def test_images_that_are_gone_are_drawn_again_and_nothing_is_measured(
    workdir, monkeypatch
):
    launch.launch(_evaluation(), workdir)
    pictures = workdir / "evaluate" / "pictures"
    before, values = _contents(pictures), _values(workdir)
    assert len(before) == 2
    path = next(pictures.glob("base-*"))
    path.rename(pictures / "base-ddim-0002.npy")  # as version 0.1 wrote it
    (pictures / "mine.npy").touch()
    draws = Draws(monkeypatch)
    monkeypatch.setattr(bench.Bench, "_measure", None)
    launch.launch(_evaluation(), workdir)
    assert draws.calls == 1
    assert _contents(pictures) == {**before, "mine.npy": b""}
    assert _values(workdir) == values


@pytest.mark.slow
def test_a_part_of_another_batch_size_is_not_taken_for_one_of_this(
    workdir, monkeypatch
):
    monkeypatch.setattr(drawing, "BATCHES_IN_A_PART", 1)
    launch.launch(_evaluation(batch_size=8), workdir)
    values = _values(workdir)
    shutil.rmtree(workdir / "evaluate")
    with monkeypatch.context() as patch:
        Draws(patch, fail_at=2)  # of 16 and 8
        with pytest.raises(KeyboardInterrupt):
            launch.launch(_evaluation(batch_size=16), workdir)
    assert len(list((workdir / "evaluate" / "parts").rglob("*.npz"))) == 1
    draws = Draws(monkeypatch)
    launch.launch(_evaluation(batch_size=8), workdir)
    assert draws.calls == 2 * 3
    assert _values(workdir) == values


def test_what_an_interrupted_evaluation_keeps_is_features_and_few_images(
    workdir, monkeypatch
):
    monkeypatch.setattr(drawing, "BATCHES_IN_A_PART", 1)
    monkeypatch.setattr(bench, "KEPT_IMAGES", 18)
    launch.launch(_evaluation(), workdir)
    out = workdir / "evaluate"
    pictures, values = _contents(out / "pictures"), _values(workdir)
    shutil.rmtree(out)

    def interrupt(at):
        with monkeypatch.context() as patch:
            Draws(patch, fail_at=at)
            with pytest.raises(KeyboardInterrupt):
                launch.launch(_evaluation(), workdir)
        return sorted((out / "parts").rglob("*.npz"))

    (path,) = interrupt(2)  # of 16 and 8
    with np.load(path) as part:
        assert {*part.files} == {"seconds", "first_images", "pixels-pooled"}
        assert len(part["pixels-pooled"]) == len(part["first_images"]) == 16
    # Of what is measured nothing but the rows is needed.
    assert interrupt(2) == []
    (path,) = interrupt(2)
    draws = Draws(monkeypatch)
    launch.launch(_evaluation(), workdir)
    assert draws.calls == 1
    assert _values(workdir) == values
    assert _contents(out / "pictures") == pictures
    assert [len(np.load(path)) for path in (out / "pictures").iterdir()] == [18, 18]


def test_a_part_of_an_earlier_version_is_not_drawn_again(workdir, monkeypatch):
    """It has images, and no features of them."""
    monkeypatch.setattr(drawing, "BATCHES_IN_A_PART", 1)
    launch.launch(_evaluation(), workdir)
    out = workdir / "evaluate"
    pictures, values = _contents(out / "pictures"), _values(workdir)
    (path,) = (out / "pictures").glob("base-*")
    images, key = np.load(path), path.stem.rpartition("-")[2]
    shutil.rmtree(out)
    (out / "parts" / key).mkdir(parents=True)
    for first, part in ((0, images[:16]), (16, images[16:])):
        name = f"0-{first:08d}.npz"
        np.savez(out / "parts" / key / name, images=part, seconds=np.array([0.5]))
    draws = Draws(monkeypatch)
    launch.launch(_evaluation(), workdir)
    assert draws.calls == 2  # of the student
    assert _values(workdir) == values
    assert _contents(out / "pictures") == pictures


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("ladder.json", "remove it, and all is measured again"),
        ("pictures/base-*.npy", "remove it, and it is drawn again"),
    ],
)
def test_a_damaged_file_of_an_earlier_evaluation_is_named(workdir, name, remedy):
    launch.launch(_evaluation(), workdir)
    (path,) = (workdir / "evaluate").glob(name)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DamagedError, match=f"{path.name} cannot be read .*{remedy}"):
        launch.launch(_evaluation(), workdir)
    path.unlink()
    launch.launch(_evaluation(), workdir)


def _classifier(folder):
    """The classifier of 20 of the digits, trained or read."""
    config = tiny.small("evaluate")
    return feature_sets.trained_classifier(
        config, lambda split: references.Real(config, split, 20), folder, "classifier"
    )


def test_a_classifier_that_is_not_what_was_written_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "NUM_UPDATES", 1)
    trained = functools.partial(_classifier, tmp_path)

    first = trained()
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    jax.tree.map(np.testing.assert_array_equal, trained().params, first.params)
    path.write_bytes(content[:-100])
    with pytest.raises(DamagedError, match=r"msgpack cannot be read .*remove it"):
        trained()
    at = content.index(b"kernel") + 200
    path.write_bytes(content[:at] + bytes([content[at] ^ 64]) + content[at + 1 :])
    with pytest.raises(DamagedError, match="has changed since it was written"):
        trained()


def test_photographs_go_on_with_a_classifier_of_version_0_1(tmp_path, monkeypatch):
    """It is of the reference alone, and has the network and the updates of digits."""
    monkeypatch.setattr(classifier, "NUM_UPDATES", 1)
    monkeypatch.setattr(classifier, "MOST_UPDATES", 2)
    trained = functools.partial(_classifier, tmp_path)

    with monkeypatch.context() as patch:
        patch.setattr(references.Real, "whole", property(lambda real: real))
        before = trained()
    monkeypatch.setattr(classifier, "SMALL_PIXELS", 7)
    again = trained()
    assert again.sha256 == before.sha256
    (path,) = tmp_path.iterdir()
    path.unlink()
    assert trained().sha256 != before.sha256
    (other,) = tmp_path.iterdir()
    assert other.name != path.name


def test_metrics_of_too_few_images_are_left_out_by_name(workdir, capsys):
    """Once a line on neighbours came after everything was drawn."""
    launch.launch(_evaluation(num=5), workdir)
    assert {metric for _, metric in _values(workdir)} == {
        "frechet_pixels", "kernel_distance_pixels",
    }  # fmt: skip
    assert (
        "evaluate: left out: precision, recall, density and coverage (at least 6),"
        " score (at least 10): too few images with evaluate.num=5 and 1,617 real images"
        " of the train split (evaluate.reference_num=50000)." in capsys.readouterr().err
    )
    shutil.rmtree(workdir / "evaluate")
    launch.launch(_evaluation(reference_num=8), workdir)
    assert "coverage_pixels" in {metric for _, metric in _values(workdir)}
    assert (
        "left out of the real-vs-real distances: precision, recall, density and"
        " coverage (at least 6), score (at least 10): too few images in each half of 8"
        " real images" in capsys.readouterr().err
    )


def test_every_metric_says_of_how_many_images_it_is_defined():
    assert not left_out(10, 10)
    assert left_out(9, 100) == {"score": 10}
    assert left_out(100, 5).keys() == {"precision", "recall", "density", "coverage"}
    assert left_out(1, 1) == FEWEST


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ({"num": 1}, r"evaluate\.num=1 must be at least 2"),
        (
            {"reference_num": 3},
            r"3 real images of the train split \(evaluate\.reference_num=3\): .* 4",
        ),
        ({"batch_size": 9}, r"sample\.batch_size=9 does not divide"),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_refused_before_anything_is_drawn(
    workdir, monkeypatch, evaluate, message
):
    _no_drawing(monkeypatch)
    with pytest.raises(ValueError, match=message):
        launch.launch(_evaluation(**evaluate), workdir)


def test_the_judge_and_the_likelihood_are_refused_first(workdir, monkeypatch):
    _no_drawing(monkeypatch)
    monkeypatch.setattr(references.Reference, "__init__", None)
    make_images = references.make_images

    def no_test_split(config, split):
        if split == "test":
            raise ValueError("There is no split test.")
        return make_images(config, split)

    monkeypatch.setattr(references, "make_images", no_test_split)
    with pytest.raises(ValueError, match="There is no split test"):
        launch.launch(_evaluation(likelihood_num=8), workdir)

    def no_classes(config, real, folder, kind):
        raise feature_sets.NotToBeHadError(feature_sets.NO_CLASSES)

    monkeypatch.setattr(judge, "trained_classifier", no_classes)
    # As in a workdir whose model has classes, of data that have one class only.
    monkeypatch.setattr(launch, "check", lambda config: None)
    with pytest.raises(ValueError, match=r"evaluate\.judge=True: .*no classes"):
        launch.launch(_evaluation(judge=True), workdir)


def _statistics(change):
    mu, sigma = np.zeros(2048), np.eye(2048)
    change(mu, sigma)
    return {"mu": mu, "sigma": sigma}


STATISTICS = [
    (lambda mu, sigma: mu.__setitem__(3, np.nan), "1 of the 2,048 numbers of mu are"),
    (lambda mu, sigma: sigma.__setitem__((0, 1), np.inf), "numbers of sigma are not"),
    (lambda mu, sigma: sigma.__setitem__((0, 1), 0.5), "sigma is not symmetric"),
    (lambda mu, sigma: sigma.__setitem__((2, 2), -1.0), "variances below 0"),
]


@pytest.mark.parametrize(("change", "message"), STATISTICS, ids=lambda p: str(p)[:20])
def test_statistics_that_are_none_are_refused_when_read(tmp_path, change, message):
    """Once they ended in an error of linear algebra, after everything was drawn."""
    path = tmp_path / "s.npz"
    np.savez(path, **_statistics(change))
    with pytest.raises(ValueError, match=rf"evaluate\.reference_stats='.*{message}"):
        statistics_file.published(path)


def test_statistics_are_read_before_anything_is_drawn(workdir, tmp_path, monkeypatch):
    np.savez(tmp_path / "s.npz", **_statistics(STATISTICS[0][0]))
    (tmp_path / "weights.pth").touch()
    monkeypatch.setattr(evaluate_stage.weights, "load", lambda path: None)
    monkeypatch.setattr(evaluate_stage, "run", None)
    files = {
        "inception_weights": str(tmp_path / "weights.pth"),
        "reference_stats": str(tmp_path / "s.npz"),
    }
    with pytest.raises(ValueError, match="numbers of mu are not finite"):
        launch.launch(_evaluation(**files), workdir, dry_run=True)


def test_readers_of_json_take_null_for_no_number(tmp_path):
    row = Measurement(
        model="base", sampler="ddim", steps=1, evaluations=1, metric="fid",
        value=np.nan, values=[1.0, np.nan],
    )  # fmt: skip
    write_json(tmp_path / "ladder.json", [row.to_json()])
    assert "NaN" not in (tmp_path / "ladder.json").read_text()
    (read,) = json.loads((tmp_path / "ladder.json").read_text())
    assert np.isnan(from_json(read).value)
    np.testing.assert_array_equal(from_json(read).values, [1.0, np.nan])


def _sample(workdir, **sample):
    config = tiny.small("sample", sample={"batch_size": 16, "steps": 2, **sample})
    launch.launch(config, workdir)
    return _names(workdir / "sample")


def _names(folder):
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    )


def _sheets(workdir):
    return sorted(path.name for path in workdir.glob("sample_*"))


def test_the_folder_of_samples_holds_those_of_one_command_and_what_made_them(workdir):
    """Once eleven images of another command stayed, and a sheet lay among them."""
    _sample(workdir, num=16, trajectory=True, interpolate=3)
    assert _sheets(workdir) == sorted(output.SHEETS)
    np.save(workdir / "noise.npy", np.zeros((5, 8, 8, 1)))
    names = _sample(workdir, num=5, noise=str(workdir / "noise.npy"))
    assert names == [*(f"{i:06d}.png" for i in range(5)), "sample.json"]
    assert _sheets(workdir) == ["sample_grid.png"]
    made_by = json.loads((workdir / "sample" / "sample.json").read_text())
    result = json.loads((workdir / "distill" / "0002" / "result.json").read_text())
    assert made_by["model"] == {
        "role": "distilled", "method": "progressive", "num_steps": 2,
        "folder": str(workdir / "distill" / "0002"),
        "params_sha256": result["params_sha256"],
    }  # fmt: skip
    assert made_by["sampler"] == "ddim"
    assert made_by["num_images"] == made_by["sample"]["num"] == 5
    assert made_by["sample"].keys() == set(tiny.small("sample").sample)
    assert made_by["version"].count(".") == 2
    assert made_by["sha256_of_files"].keys() == {"noise"}


OLD = ("000000.png", "000063.png", "grid.png", "trajectory.png", "interpolation.png",
       "latents.npz", "w_0.5/000001.png", "w_4/grid.png", ".DS_Store")  # fmt: skip


def test_the_folder_of_an_earlier_version_is_replaced(workdir):
    for name in OLD:
        path = workdir / "sample" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert _sample(workdir, num=1) == ["000000.png", "sample.json"]


@pytest.mark.parametrize("name", ["notes.txt", "best.png", "w_4/mine/000000.png"])
def test_files_of_the_users_among_samples_are_never_removed(workdir, monkeypatch, name):
    _sample(workdir, num=2)
    path = workdir / "sample" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    monkeypatch.setattr(sample_stage, "draw", None)
    with pytest.raises(ValueError, match=rf"did not write \({name}\), .*move them"):
        _sample(workdir, num=1)
    assert path.read_text() == "mine"
    assert "000001.png" in _names(workdir / "sample")


@pytest.mark.parametrize("at", ["draw", "write"])
def test_a_command_that_is_stopped_leaves_the_samples_of_the_one_before(
    workdir, monkeypatch, at
):
    _sample(workdir, num=2)
    before = _contents(workdir)
    save_image = output.save_image

    def stopped(path, image):
        if path.name == "000002.png":
            raise KeyboardInterrupt
        save_image(path, image)

    def stopped_at_once(*args, **kwargs):
        raise KeyboardInterrupt

    if at == "draw":
        monkeypatch.setattr(sample_stage, "draw", stopped_at_once)
    else:
        monkeypatch.setattr(output, "save_image", stopped)
    with pytest.raises(KeyboardInterrupt):
        _sample(workdir, num=4)
    after = _contents(workdir)
    # The config of the last command is recorded before it begins.
    assert {**after, "config.json": b""} == {**before, "config.json": b""}


def test_two_commands_do_not_draw_into_one_folder(workdir):
    with (
        output.alone(workdir),
        pytest.raises(ValueError, match=r"Another command draws images in .*wait for"),
    ):
        _sample(workdir, num=1)
    # As long as a training is at work in it, images can be drawn.
    with launch.lock(workdir):
        assert _sample(workdir, num=1) == ["000000.png", "sample.json"]


def test_no_two_guidance_weights_share_a_folder(tmp_path):
    images = np.zeros((1, 8, 8, 1), np.uint8)
    drawn = {w: [images] for w in (0.5, 1.0, 1.0000001)}
    output.write(tmp_path, drawn, {}, num=1, keep=1)
    names = ["sample.json", "w_0.5", "w_1", "w_1.0000001"]
    assert sorted(path.name for path in (tmp_path / "sample").iterdir()) == names


NAMES = ["Cat", "golden_retriever", "tree frog"]


def _class_numbers(*labels, names=NAMES):
    model = make_model(tiny.small("sample", model={"num_classes": 3}))
    return class_numbers("sample.labels", labels, names, model).tolist()


def test_a_class_is_known_by_its_number_or_its_name():
    assert _class_numbers("Cat", 1, "2", "cat", "golden retriever", "tree-frog") == [
        0, 1, 2, 0, 1, 2,
    ]  # fmt: skip
    # What is written is nearer than what is like it.
    assert _class_numbers("Cat", "cat", names=["cat", "Cat", "dog"]) == [1, 0]
    with pytest.raises(ValueError, match=r"no class 'cats'; the nearest are Cat\."):
        _class_numbers("cats")
    with pytest.raises(ValueError, match=r"'xyz'; there are Cat, golden_retriever, "):
        _class_numbers("xyz")
    with pytest.raises(ValueError, match="names of this model's classes are not known"):
        _class_numbers("cat", names=[])
    with pytest.raises(ValueError, match="class 3 must be from 0 to 2"):
        _class_numbers("3")


@pytest.fixture(scope="session")
def conditional(once):
    """A workdir with a base model and a student of three classes with names."""

    def make(workdir):
        launch.launch(_conditional("train"), workdir)
        path = workdir / "train" / "result.json"
        write_json(path, {**json.loads(path.read_text()), "classes": NAMES})
        launch.launch(_conditional("distill"), workdir)

    return once("conditional", make)


def _conditional(stage, **sample):
    """Of noise of three classes; a network that heeds its class."""
    source = f"{__name__}:{_noise.__name__}"
    config = tiny.small(
        stage,
        model={"net": f"{__name__}:make_net", "num_classes": 3},
        data={"source": source},
        distill={**tiny.TINY["distill"], "start_steps": 2},
        sample={**tiny.TINY["sample"], "steps": 1, "num": 2, **sample},
    )
    return config


def _noise(split):
    del split
    images = np.random.default_rng(0).integers(0, 255, (24, 8, 8, 1), np.uint8)
    return Arrays(images, np.arange(24, dtype=np.int32) % 3)


class Net(nn.Module):
    """The network of `tiny`, with an image for each class added."""

    num_classes: int

    @nn.compact
    def __call__(self, z_t, logsnr_t, label=None, *, train=False):
        normal = nn.initializers.normal()
        images = self.param("images", normal, (self.num_classes, 8, 8, 1))
        out = tiny.Net(1)(z_t, logsnr_t, train=train)
        return out if label is None else out + 9.0 * images[label]


def make_net(out_channels, num_classes):
    del out_channels
    return Net(num_classes)


def _images(workdir):
    return [path.read_bytes() for path in sorted((workdir / "sample").glob("*.png"))]


@pytest.mark.slow
def test_the_workdir_knows_the_names_of_its_classes(conditional, tmp_path):
    workdir = shutil.copytree(conditional, tmp_path / "project")
    drawn = {}
    for label in ("golden retriever", 1, "2"):
        launch.launch(_conditional("sample", labels=(label,)), workdir)
        drawn[label] = _images(workdir)
    assert drawn["golden retriever"] == drawn[1] != drawn["2"]
    before = _contents(workdir)
    with pytest.raises(ValueError, match=r"there is no class 'retriever'; the nearest"):
        launch.launch(_conditional("sample", labels=("retriever",)), workdir)
    assert _contents(workdir) == before
    model = vdiff_jax.load(workdir)
    np.testing.assert_array_equal(
        model.sample(2, labels=["tree frog", 0]), model.sample(2, labels=[2, 0])
    )
    with pytest.raises(ValueError, match=r"sample\.labels: there is no class 'dog'"):
        model.sample(2, labels=["dog"])
    image = tmp_path / "image.npy"
    np.save(image, np.full((1, 8, 8, 1), 90, np.uint8))
    encoded = {"model": "base", "image": str(image), "encode_steps": 2}
    for label in ("cat", 0):
        launch.launch(_conditional("sample", image_labels=(label,), **encoded), workdir)
        drawn[label] = _images(workdir)
    assert drawn["cat"] == drawn[0]
    with pytest.raises(ValueError, match=r"sample\.image_labels: there is no class"):
        launch.launch(_conditional("sample", image_labels=("dog",), **encoded), workdir)


@pytest.mark.slow
def test_a_student_in_another_workdir_has_the_names_of_its_teacher(
    conditional, tmp_path
):
    config = _conditional("distill")
    config.distill.teacher = str(conditional / "distill" / "0001")
    folder = tmp_path / "distill" / "0001"
    folder.mkdir(parents=True)
    write_json(folder / "result.json", {"teacher": config.distill.teacher})
    (tmp_path / "config.json").write_bytes((conditional / "config.json").read_bytes())
    model = make_model(config)
    assert class_names(Trained(student(1), folder, model)) == tuple(NAMES)
    base = tmp_path / "train"
    base.mkdir()
    facts = {"teacher": str(conditional / "train")}  # of train.init_from
    write_json(base / "result.json", facts)
    assert class_names(Trained(BASE, base, model)) == ()


def test_a_file_has_the_names_of_its_classes(tmp_path):
    path = tmp_path / "model.safetensors"
    params = {"w": np.zeros(1, np.float32)}
    model = make_model(tiny.small("sample"))
    for facts, names in (({}, ()), ({"classes": NAMES}, tuple(NAMES))):
        model_file.write(path, params, model_file.About({}, "base", 0, facts))
        assert class_names(Trained(BASE, path, model)) == names


def test_the_names_of_the_classes_come_from_the_data(tmp_path):
    for name in ("cat", "dog"):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        PIL.Image.new("L", (8, 8)).save(folder / "0.png")
    data = {"source": "folder", "path": str(tmp_path), "test_split": "train"}

    def names(num_classes, **data):
        config = tiny.small("train", model={"num_classes": num_classes}, data=data)
        return data_from_config.class_names(config)

    assert names(2, **data) == ("cat", "dog")
    assert names(0, **data) == ()
    assert names(10, source="digits") == ()
    assert names(10, source="cifar10")[3] == "cat"


@pytest.mark.parametrize("labels", [("",), (-1,), (1.5,), (True,)])
def test_what_is_neither_a_number_nor_a_name_is_refused(labels):
    config = tiny.small("sample", model={"num_classes": 3}, sample={"labels": labels})
    with pytest.raises(ValueError, match=r"must be a tuple of classes, each a whole n"):
        check(config)


@pytest.mark.slow
def test_a_run_says_what_it_does_in_its_first_minute(tmp_path, monkeypatch, capsys):
    """On a slow machine the first call of updates takes a minute."""
    for seconds, spoken_of in ((0.0, True), (1e6, False)):
        monkeypatch.setattr(loop, "SECONDS_OF_SILENCE", seconds)
        launch.launch(tiny.small("train"), tmp_path / str(seconds))
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "train: compiling 2 updates to a call"
        assert re.fullmatch(
            r"train: compiled in [\d.]+ s; 2 updates are under way", lines[1]
        )
        took = [line for line in lines if "the first call, of 2 updates, took" in line]
        assert len(took) == spoken_of


@pytest.mark.slow
def test_a_log_of_a_training_is_made_of_whole_lines(tmp_path, capsys):
    launch.launch(tiny.small("train"), tmp_path)
    captured = capsys.readouterr()
    assert "\r" not in captured.out + captured.err
    assert re.fullmatch(
        r"train: 48 / 48 images, [\d.,]+ images/s, in 00:\d\d, loss .*",
        captured.err.strip(),
    )


@pytest.mark.slow
def test_a_signal_before_the_first_update_ends_the_run_there(tmp_path, monkeypatch):
    """Once the run was compiled first, and made its updates."""
    begin = loop.begin

    def signalled(tools, run):
        os.kill(os.getpid(), signal.SIGTERM)
        return begin(tools, run)

    monkeypatch.setattr(loop, "begin", signalled)
    monkeypatch.setattr(loop._Loop, "run", None)
    with pytest.raises(InterruptedRunError, match="SIGTERM before its first") as ended:
        launch.launch(tiny.small("train"), tmp_path)
    assert ended.value.exit_status == 143


@pytest.mark.slow
def test_a_signal_after_the_last_question_does_not_go_by(tmp_path, monkeypatch):
    """Once it was noted by a run that had ended, and the next stage began."""
    ask, calls = loop._Loop.ask, []

    def signalled(self):
        vote = ask(self)
        calls.append(vote)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return vote

    monkeypatch.setattr(loop._Loop, "ask", signalled)
    with pytest.raises(KeyboardInterrupt):
        launch.launch(tiny.small("train"), tmp_path)
    assert (tmp_path / "train" / "result.json").exists()


def _catches_signals(child):
    """True once the command has taken SIGTERM over, which is bit 14 of its mask."""
    status = pathlib.Path(f"/proc/{child.process.pid}/status").read_text()
    caught = re.search(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "number", "delay"),
    [
        ("train", signal.SIGINT, 0.5),
        ("train", signal.SIGTERM, 1.5),
        ("train", signal.SIGINT, 3.0),
        ("sample", signal.SIGINT, 0.0),
        ("evaluate", signal.SIGTERM, 0.2),
    ],
    ids=str,
)
def test_no_signal_is_lost_in_the_first_seconds(tmp_path, stage, number, delay):
    lab = Lab(tmp_path)
    with lab.run(tmp_path / "workdir", stage, "--config.train.steps=100000") as child:
        child.wait_for(lambda: _catches_signals(child))
        time.sleep(delay)
        child.kill(number)
        assert child.wait() == 128 + number
    *_, line = child.said().splitlines()
    name = signal.Signals(number).name
    assert re.match(rf"launch\.py: .*by {name}", line)
    # So soon no run has begun, which would have taken the signal.
    assert delay > 1.0 or f"interrupted by {name}" in line
    assert "Traceback" not in child.said()
    assert not list(tmp_path.rglob("*.half"))
