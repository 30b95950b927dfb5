"""The evaluate stage: the same numbers again, however it was stopped and shared out."""

import csv
import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import launch
import tiny
from draws import Draws
from vdiff_jax.diffusion import from_pixels
from vdiff_jax.distillation import progressive
from vdiff_jax.distillation.methods import METHODS
from vdiff_jax.evaluation import classifier, figures
from vdiff_jax.evaluation.measurement import Measurement
from vdiff_jax.files.fingerprints import DamagedError
from vdiff_jax.from_config import model as from_config_model
from vdiff_jax.interop import model_file
from vdiff_jax.model import Model
from vdiff_jax.stages.evaluate import drawing, illustrations, page
from vdiff_jax.stages.evaluate.models import Models, of_finished
from vdiff_jax.stages.evaluate.records import Records
from vdiff_jax.workdir.layout import Project
from vdiff_jax.workdir.trained import Trained, role_in

pytestmark = pytest.mark.slow

CANDIDATES = [
    ("base", "ddim", 8, 8), ("distilled", "ddim", 1, 1), ("distilled", "ddim", 2, 2),
    ("base", "ddim", 1, 1), ("base", "ddim", 2, 2), ("base", "ancestral", 2, 2),
    ("base", "dpmpp_2m", 2, 2),
]  # fmt: skip


def _rows(workdir):
    return json.loads((workdir / "evaluate" / "ladder.json").read_text())


def _numbers(workdir):
    """What must not change: everything but the times, and who drew it."""
    varies = ("seconds_per_image", "batch_size", "device")
    return [{k: v for k, v in row.items() if k not in varies} for row in _rows(workdir)]


@pytest.fixture(scope="module")
def project(small_project):
    """What holds here holds whatever the network."""
    return small_project


@pytest.fixture(scope="module", autouse=True)
def _short():
    """A classifier of a few updates is enough here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "NUM_UPDATES", 5)
        patch.setattr(drawing, "TUNING_IMAGES", 16)
        patch.setattr(drawing, "BATCHES_IN_A_PART", 1)
        yield


@pytest.fixture(scope="module")
def measured(project, once):
    """The project after evaluation; for reading."""

    def make(workdir):
        shutil.copytree(project, workdir, dirs_exist_ok=True)
        launch.launch(tiny.small("evaluate"), workdir)

    return once("measured", make)


@pytest.fixture
def workdir(measured, tmp_path):
    """An evaluated project of one's own."""
    return shutil.copytree(measured, tmp_path / "project")


def test_every_model_and_sampler_is_measured_by_every_metric(measured):
    rows = _rows(measured)
    names = list(dict.fromkeys(row["metric"] for row in rows))
    assert names[0] == "frechet_classifier"
    assert {"kernel_distance_classifier", "coverage_pixels", "score_classifier"} <= set(
        names
    )
    assert len(names) == 8 + 6
    assert not any("fid" in name or name == "kid" for name in names)
    found = [
        (row["model"], row["sampler"], row["steps"], row["evaluations"]) for row in rows
    ]
    assert found == [candidate for candidate in CANDIDATES for _ in names]
    for row in rows:
        assert row["num_images"] == 24
        assert row["value"] == pytest.approx(np.mean(row["values"]))
        assert row["spread"] == pytest.approx(np.std(row["values"], ddof=1))
        assert len(row["values"]) == 2
        assert row["warning"] is not None
        assert row["seconds_per_image"] > 0
        assert (row["variance"] in drawing.VARIANCES) == (row["sampler"] == "ancestral")
        if "frechet" in row["metric"]:
            assert row["value"] > 0
            assert row["spread"] > 0  # every seed has its own noise
            assert row["residual"] < 1e-9


def test_one_step_is_worth_as_much_by_any_sampler_and_noise_is_shared(measured):
    pictures = measured / "evaluate" / "pictures"
    two, one_by_one = (
        np.load(next(pictures.glob(f"base-{sampler}-0002-????????????????.npy")))
        for sampler in ("dpmpp_2m", "ddim")
    )
    # Its first step has no memory and its last needs none: it is DDIM.
    difference = two.astype(int) - one_by_one
    assert np.abs(difference).max() <= 1
    assert len(two) == 24


def test_tables_figures_and_the_page_are_there(measured):
    out = measured / "evaluate"
    with (out / "ladder.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(_rows(measured))
    assert float(table[0]["value"]) == _rows(measured)[0]["value"]
    for name in ("ladder.png", "grid.png"):
        with PIL.Image.open(out / name) as picture:
            assert picture.size[0] > 300
    facts = json.loads((out / "reference.json").read_text())
    assert [fact["features"] for fact in facts] == ["classifier", "pixels"]
    assert facts[0]["num_images"] == 1617
    assert facts[0]["floor"]["frechet_classifier"] > 0
    page = (out / "report.html").read_text()
    for what in ("Spatial Fréchet distance", "probability flow", "distilled, 1 step"):
        assert what in page
    assert not (out / "parts").exists()


def test_the_likelihood_is_of_the_base_model_on_held_out_pictures(measured):
    rows = json.loads((measured / "evaluate" / "likelihood.json").read_text())
    assert len(rows) == 3
    for row in rows:
        assert row["model"] == "base"
        assert row["split"] == "test"
        assert row["num_images"] == 8
        assert 0 < row["bits_per_dim"] < 20
        assert row["standard_error"] > 0


def test_what_was_measured_is_not_measured_again(workdir, monkeypatch):
    draws = Draws(monkeypatch)
    before = _numbers(workdir)
    launch.launch(tiny.small("evaluate"), workdir)
    assert draws.calls == 0
    assert _numbers(workdir) == before


def test_only_what_changed_is_measured_again(workdir, monkeypatch):
    before = _rows(workdir)
    draws = Draws(monkeypatch)
    path = workdir / "evaluate" / "ladder.json"
    rows = [{**row, "key": "other"} if row["steps"] == 8 else row for row in before]
    path.write_text(json.dumps(rows))
    launch.launch(tiny.small("evaluate"), workdir)
    assert draws.calls == 2 * 2  # seeds, and parts of each
    assert [row["values"] for row in _rows(workdir)] == [
        row["values"] for row in before
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"sample": {"clip": "none"}},
        {"sample": {"clip": "both:1.2"}},
        {"evaluate": {"seed": 5}},
        {"evaluate": {"num": 25}},
        {"evaluate": {"features": ("pixels",)}},
    ],
    ids=str,
)
def test_other_numbers_are_not_taken_for_these(workdir, monkeypatch, changes):
    Draws(monkeypatch, fail_at=1)
    with pytest.raises(KeyboardInterrupt):
        launch.launch(tiny.small("evaluate", **changes), workdir)


def test_another_model_is_measured_again(workdir, monkeypatch):
    Draws(monkeypatch, fail_at=1)
    monkeypatch.setattr(Trained, "sha256", "other")
    with pytest.raises(KeyboardInterrupt):
        launch.launch(tiny.small("evaluate"), workdir)


def test_a_base_model_without_students_is_measured_alone(workdir, capsys):
    shutil.rmtree(workdir / "distill")
    (workdir / "evaluate" / "report.html").unlink()
    launch.launch(tiny.small("evaluate"), workdir)
    assert {row["model"] for row in _rows(workdir)} == {"base"}
    assert "no finished student of 2 steps" in capsys.readouterr().out
    assert "base, DDIM" in (workdir / "evaluate" / "report.html").read_text()


def test_a_student_that_is_missing_is_named_once(tmp_path, capsys):
    config = tiny.small("evaluate", evaluate={"w": (0.0, 1.0)})
    assert of_finished(config, Models(Project(config, tmp_path))) == []
    lines = capsys.readouterr().out.splitlines()
    assert sum("student of 2 steps" in line for line in lines) == 1


@pytest.fixture(scope="module")
def exported(project, once):
    """The base and both students in files; for reading."""

    def make(workdir):
        shutil.copytree(project, workdir, dirs_exist_ok=True)
        for model, steps in (("base", 8), ("distilled", 1), ("distilled", 2)):
            spec = {"model": model, "steps": steps}
            launch.launch(tiny.small("export", export=spec), workdir)

    return sorted(
        (once("exported_for_evaluation", make) / "export").rglob("*.safetensors")
    )


def test_files_of_export_are_measured_as_their_workdir_is(measured, exported, tmp_path):
    files = {"files": tuple(map(str, exported))}
    launch.launch(tiny.small("evaluate", evaluate=files), tmp_path)
    ours, theirs = _numbers(tmp_path), _numbers(measured)
    for row in (*ours, *theirs):
        del row["key"]
    assert ours == theirs
    assert (tmp_path / "evaluate" / "likelihood.json").exists()
    assert "distilled, 1 step" in (tmp_path / "evaluate" / "report.html").read_text()


def test_another_file_is_measured_again(exported, project, tmp_path):
    role = role_in(model_file.read_about(exported[0]))
    other = tmp_path / "model.safetensors"
    about, params = (
        read(exported[0]) for read in (model_file.read_about, model_file.read)
    )
    params["Dense_0"]["bias"] = params["Dense_0"]["bias"] + 1.0
    model_file.write(other, params, about)
    config = tiny.small("evaluate")
    keys = set()
    for file in (exported[0], other):
        config.evaluate.files = (str(file),)
        trained = Models(Project(config, tmp_path)).trained(role)
        keys.add(trained.sha256)
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda files: files[1:], "has no base model"),
        (lambda files: [*files, files[1]], "are both of the student of 1 step"),
        (lambda files: [*files, "none.safetensors"], "no file none.safetensors"),
    ],
)
def test_files_that_cannot_be_compared_are_refused(exported, tmp_path, wrong, message):
    files = {"files": tuple(map(str, wrong(exported)))}
    with pytest.raises(ValueError, match=message):
        launch.launch(tiny.small("evaluate", evaluate=files), tmp_path)
    assert not (tmp_path / "evaluate").exists()


def test_files_of_different_networks_are_refused(exported, tmp_path):
    other = tmp_path / "other.safetensors"
    about = model_file.read_about(exported[1])
    about.fields["diffusion"]["schedule"] = "linear"
    model_file.write(other, model_file.read(exported[1]), about)
    files = {"files": (str(exported[0]), str(other))}
    with pytest.raises(ValueError, match="different networks"):
        launch.launch(tiny.small("evaluate", evaluate=files), tmp_path / "w")


def test_files_of_other_images_are_refused(exported, tmp_path):
    changes = {"evaluate": {"files": (str(exported[0]),)}, "data": {"image_size": 16}}
    with pytest.raises(ValueError, match=r"of data\.image_size=8"):
        launch.launch(tiny.small("evaluate", **changes), tmp_path)


def test_a_part_that_cannot_be_read_is_named(workdir):
    path = workdir / "evaluate" / "ladder.json"
    rows = _rows(workdir)
    path.write_text("[]")
    (workdir / "evaluate" / "parts" / rows[0]["key"]).mkdir(parents=True)
    part = workdir / "evaluate" / "parts" / rows[0]["key"] / "0-00000000.npz"
    part.write_bytes(b"half a file")
    with pytest.raises(DamagedError, match=r"0-00000000\.npz cannot be read"):
        launch.launch(tiny.small("evaluate"), workdir)


def test_a_stopped_evaluation_goes_on_with_the_same_numbers(
    measured, project, tmp_path, monkeypatch
):
    workdir = shutil.copytree(project, tmp_path / "project")
    with monkeypatch.context() as patch:
        draws = Draws(patch, fail_at=8)
        with pytest.raises(KeyboardInterrupt):
            launch.launch(tiny.small("evaluate"), workdir)
    assert draws.calls == 8
    with monkeypatch.context() as patch:
        draws = Draws(patch)
        launch.launch(tiny.small("evaluate"), workdir)
    whole = 4 * len(CANDIDATES) + len(drawing.VARIANCES)
    assert draws.calls == whole - 7
    assert _numbers(workdir) == _numbers(measured)


def test_the_batch_size_changes_no_number_beyond_rounding(measured, project, tmp_path):
    workdir = shutil.copytree(project, tmp_path / "project")
    sample = {"batch_size": 6}
    launch.launch(tiny.small("evaluate", sample=sample), workdir)
    for ours, theirs in zip(_rows(workdir), _rows(measured), strict=True):
        assert ours["key"] == theirs["key"]
        assert ours["value"] == pytest.approx(theirs["value"], rel=0.01, abs=0.05)


def test_statistics_of_other_pictures_are_refused(workdir):
    config = tiny.small("evaluate", evaluate={"reference_num": 1000})
    with pytest.raises(
        ValueError,
        match=r"computed from something else \(.*num_images: 1617 there, 1000",
    ):
        launch.launch(config, workdir)


def doubled():
    """Features of a user's: pixels, twice as bright. They follow a parameter."""
    params = {"factor": jnp.float32(2.0)}

    def features(params, images):
        return params["factor"] * from_pixels(images).reshape(len(images), -1)

    return params, features


def of_images_together():
    return {}, lambda params, images: from_pixels(images).mean(axis=0)


def of_a_tuple():
    return {}, lambda params, images: (from_pixels(images).mean(axis=(1, 2, 3)),)


def judge():
    return doubled()


def of_one():
    return jnp.zeros(3)


def test_distances_by_features_of_ones_own_have_their_name(workdir):
    features = ("pixels", "test_evaluate:doubled")
    launch.launch(tiny.small("evaluate", evaluate={"features": features}), workdir)
    rows = _rows(workdir)
    for candidate in {row["key"] for row in rows}:
        by_name = {row["metric"]: row for row in rows if row["key"] == candidate}
        ours, pixels = by_name["frechet_doubled"], by_name["frechet_pixels"]
        # Four times, as squares are; recall does not know of units.
        assert ours["value"] == pytest.approx(4 * pixels["value"], rel=1e-4)
        for metric in ("precision", "recall", "density", "coverage"):
            assert (
                by_name[f"{metric}_doubled"]["value"]
                == by_name[f"{metric}_pixels"]["value"]
            )
    assert "doubled features" in (workdir / "evaluate" / "report.html").read_text()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"features": ("test_evaluate:none",)}, "evaluate.features=.* neither built"),
        ({"features": ("test_evaluate:judge",)}, "a name of its own in the table"),
        (
            {"features": ("test_evaluate:doubled", "tiny:doubled")},
            "a name of its own in the table",
        ),
        ({"features": ("test_evaluate:of_a_tuple",)}, r"images are \[1, 2\]"),
        ({"features": ("test_evaluate:of_one",)}, "returns parameters and a function"),
        (
            {"features": ("test_evaluate:of_images_together",)},
            r"features of 2 images are \[8, 8, 1\]",
        ),
        ({"features": ("inception",)}, "no FID: fetch https://.*inception_weights"),
        ({"features": ("vgg",)}, r"evaluate\.features=\('vgg',\) must be a tuple of"),
        ({"samplers": ("euler",)}, r"evaluate\.samplers=\('euler',\) must be a tuple"),
        (
            {"reference_split": "val"},
            r"reference_split='val' must be one of train, test",
        ),
        ({"repeats": 0}, r"evaluate\.repeats=0 must be a whole number of at l"),
        ({"reference_stats": "x.npz"}, r"set evaluate\.inception_weights too"),
        ({"inception_weights": "none.pth"}, "none.pth"),
    ],
)
def test_what_cannot_be_measured_is_refused(workdir, spec, message):
    with pytest.raises(ValueError, match=message):
        launch.launch(tiny.small("evaluate", evaluate=spec), workdir)


def test_every_network_is_traced_once_for_its_shapes(workdir, monkeypatch):
    """Once it was five times for every candidate."""
    init, networks = Model.init, []

    def counted(self, key):
        networks.append(self.net)
        return init(self, key)

    monkeypatch.setattr(Model, "init", counted)
    monkeypatch.setattr(from_config_model, "_MODELS", {})
    (workdir / "evaluate" / "ladder.json").write_text("[]")
    launch.launch(tiny.small("evaluate"), workdir)
    assert len(networks) == 1


def test_the_page_has_the_losses_and_costs_of_students_of_every_method(
    workdir, monkeypatch
):
    """Once it looked for those of one method."""
    for method in ("stochastic", "encode"):
        distill = {**tiny.TINY["distill"], "method": method, "end_steps": 2}
        launch.launch(tiny.small("distill", distill=distill), workdir)
    contents = []
    monkeypatch.setattr(
        page.page, "render", lambda content: contents.append(content) or ""
    )
    launch.launch(tiny.small("evaluate", evaluate={"steps": (2,)}), workdir)
    (content,) = contents
    runs = [
        "base", "4 steps", "2 steps", "1 step", "4 steps, stochastic",
        "2 steps, stochastic", "4 steps, encode", "2 steps, encode",
    ]  # fmt: skip
    assert [loss.name for loss in content.losses] == runs
    assert [cost["run"] for cost in content.costs] == runs
    assert all(loss.training for loss in content.losses)
    assert [cost["images"] for cost in content.costs[4:]] == [32, 32, 32, 32]


def test_students_of_two_methods_are_measured_and_shown_side_by_side(
    workdir, monkeypatch
):
    monkeypatch.setitem(METHODS, "moment_matching", progressive.METHOD)
    before = _rows(workdir)
    other = shutil.copytree(workdir / "distill", workdir / "distill_moment_matching")
    line = {"step": 6, "loss": 0.5, "gap": -0.25, "learning_rate": 1e-3}
    (other / "0001" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    contents, grids, draws = [], {}, Draws(monkeypatch)
    monkeypatch.setattr(
        page.page, "render", lambda content: contents.append(content) or ""
    )
    monkeypatch.setattr(
        figures,
        "comparison_grid",
        lambda path, rows, labels: grids.update({path.name: labels}),
    )
    launch.launch(tiny.small("evaluate"), workdir)
    # Two students of two seeds in two parts; they are of the same parameters.
    assert draws.calls == 2 * 2 * 2
    rows = [row for row in _rows(workdir) if row["method"] != "moment_matching"]
    assert rows == before
    values = {
        method: [row["values"] for row in _rows(workdir) if row["method"] == method]
        for method in ("progressive", "moment_matching")
    }
    assert values["progressive"] == values["moment_matching"]
    names = [path.name for path in (workdir / "evaluate" / "pictures").iterdir()]
    assert len(names) == len({row["key"] for row in _rows(workdir)})

    (content,), two = contents, ("progressive", "moment matching")
    assert grids == {
        "grid.png": [
            *(f"{name}, {n}" for n in (1, 2) for name in (*two, "base")), "base, 8"
        ]
    }  # fmt: skip
    assert [one.name for one in content.series][:3] == [*two, "base, DDIM"]
    assert [frame.label for frame in content.series[0].frames] == [
        "base, DDIM, 8 steps", "progressive, 2 steps", "progressive, 1 step"
    ]  # fmt: skip
    assert [frame.steps for frame in content.series[1].frames] == [2, 1]
    assert [name.partition(": ")[2] for name, _ in content.summary[:-1]] == [
        "base, 8 steps",
        *(f"{name}, {n}" for name in two for n in ("2 steps", "1 step")),
    ]  # fmt: skip
    assert [one.label for one in content.trajectories] == [
        "base, 8 steps", *(f"{name}, 2 steps" for name in two)
    ]  # fmt: skip
    labels = [strip.label for strip in content.interpolations]
    assert labels[0] == "progressive, 1 step: noise 0 to 1"
    assert labels[illustrations.ROWS] == "moment matching, 1 step: noise 0 to 1"
    assert len({*labels}) == 2 * illustrations.ROWS
    losses = {(loss.name, loss.metric): loss.training for loss in content.losses}
    assert [name for name, metric in losses if metric == "loss"] == [
        "base", "4 steps", "2 steps", "1 step",
        *(f"{n}, moment matching" for n in ("4 steps", "2 steps", "1 step")),
    ]  # fmt: skip
    assert losses.pop(("1 step, moment matching", "gap")) == [(6, -0.25)]
    # Nothing of the loop is taken for a metric of a loss.
    assert {metric for _, metric in losses} == {"loss"}


def test_fresh_noise_is_in_the_steps_of_students_that_may_have_it_alone(
    workdir, monkeypatch
):
    method = dataclasses.replace(progressive.METHOD, any_eta=True)
    monkeypatch.setitem(METHODS, "moment_matching", method)
    shutil.copytree(workdir / "distill", workdir / "distill_moment_matching")
    launch.launch(tiny.small("evaluate"), workdir)
    before = {(*_of(row), row["metric"]): row for row in _rows(workdir)}
    contents, draws = [], Draws(monkeypatch)
    monkeypatch.setattr(
        page.page, "render", lambda content: contents.append(content) or ""
    )
    launch.launch(tiny.small("evaluate", sample={"eta": 0.8}), workdir)
    assert draws.calls == 2 * 2 * 2
    etas = set()
    for row in _rows(workdir):
        former = before[*_of(row), row["metric"]]
        if row["method"] != "moment_matching":
            assert row == former
            continue
        etas.add(row["eta"])
        if "frechet" in row["metric"]:  # the last step of a sampler has no noise
            is_the_same = row["values"] == former["values"]
            assert is_the_same == (row["steps"] == 1), row["metric"]
    assert etas == {0.8}
    (content,) = contents
    assert dict(content.provenance)["sampling"].endswith(
        "; moment-matching students with noise in each step, eta = 0.8"
    )


def _of(row):
    return row["model"], row["method"], row["sampler"], row["steps"]


def test_the_slider_moves_along_the_method_of_the_most_students(monkeypatch, tmp_path):
    images = np.zeros((4, 8, 8, 1), np.uint8)
    monkeypatch.setattr(Records, "images_of", lambda self, row: images)
    rows = [
        Measurement(
            model="distilled" if method else "base", method=method, sampler="ddim",
            steps=steps, evaluations=steps, metric="fid", value=1.0, num_images=4,
        )
        for method, steps in (
            (None, 8), ("progressive", 1), ("stochastic", 1), ("stochastic", 2),
        )
    ]  # fmt: skip
    series = page._series(Records(tmp_path), rows)
    assert [one.name for one in series] == ["stochastic", "progressive", "base, DDIM"]
    assert [frame.steps for frame in series[0].frames] == [8, 2, 1]
