"""Import and export as stages of the command."""

import json
import pathlib
import shutil
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import launch
import tiny
import vdiff_jax
from vdiff_jax.distillation import progressive
from vdiff_jax.distillation.methods import METHODS
from vdiff_jax.distillation.role import BASE, student
from vdiff_jax.evaluation.measurement import Measurement
from vdiff_jax.files.fingerprints import params_sha256
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.interop import model_file
from vdiff_jax.interop.diffusers import model_card
from vdiff_jax.stages import export
from vdiff_jax.stages.evaluate.models import Models
from vdiff_jax.workdir import imported, layout
from vdiff_jax.workdir.layout import Project
from vdiff_jax.workdir.parameters import load_params
from vdiff_jax.workdir.trained import find, in_file

pytestmark = pytest.mark.slow

PRETRAINED = pathlib.Path(__file__).parents[1] / "data" / "pretrained"
FORMATS = ("orbax", "safetensors", "diffusers", "stablehlo")


@pytest.fixture
def another_method(monkeypatch):
    monkeypatch.setitem(METHODS, "moment_matching", progressive.METHOD)


def _result(folder):
    return json.loads((folder / "result.json").read_text())


def _export(**options):
    export = {"formats": ("safetensors",), "steps": 1, **options}
    return tiny.config("export", export=export)


@pytest.fixture(scope="module")
def exported(project, once):
    """The project, and its student of one step in all formats that take it.

    For reading.
    """

    def make(workdir):
        shutil.copytree(project, workdir, dirs_exist_ok=True)
        formats = tuple(name for name in FORMATS if name != "diffusers")
        launch.launch(_export(formats=formats), workdir)
        launch.launch(_export(model="base", steps=8), workdir)

    return once("exported", make)


def test_a_file_draws_the_pictures_of_the_student_it_is_of(exported, tmp_path):
    file = exported / "export" / "distilled-1step" / "safetensors" / "model.safetensors"
    sample = {**tiny.TINY["sample"], "steps": 1}
    theirs = shutil.copytree(exported, tmp_path / "theirs")
    launch.launch(tiny.config("sample", sample=sample), theirs)
    # In its own number of steps, whatever the config says.
    config = tiny.config(
        "sample", sample={**tiny.TINY["sample"], "from_file": str(file)}
    )
    config.model.unet.channels = 16  # and it is its own network
    ours = tmp_path / "ours"
    launch.launch(config, ours)
    for i in range(5):
        name = f"sample/{i:06d}.png"
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()


def test_a_file_says_what_it_is(exported):
    file = exported / "export" / "distilled-1step" / "safetensors" / "model.safetensors"
    params, about = model_file.read(file), model_file.read_about(file)
    assert about.kind == "distilled"
    assert about.num_steps == 1
    result = _result(layout.folder_of(exported, student(1)))
    assert about.facts["params_sha256"] == result["params_sha256"]
    assert params_sha256(params) == result["params_sha256"]


def test_orbax_alone_reads_what_was_exported(exported):
    folder = exported / "export" / "distilled-1step" / "orbax"
    program = f"""
import orbax.checkpoint as ocp
with ocp.StandardCheckpointer() as checkpointer:
    tree = checkpointer.restore({str(folder / "params")!r})
import sys
assert "vdiff_jax" not in sys.modules
print(sorted(tree)[0], float(abs(tree["conv_in"]["kernel"]).sum()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        text=True,
        cwd="/",
    )
    params = find(Project(_export(), exported), student(1)).params()
    name, total = done.stdout.split()
    assert name in params
    assert float(total) == pytest.approx(
        float(jnp.abs(params["conv_in"]["kernel"]).sum()), rel=1e-5
    )


def test_nothing_is_written_if_one_of_the_formats_cannot_be(exported, tmp_path):
    workdir = shutil.copytree(exported, tmp_path / "copy")
    config = _export(steps=2, formats=("safetensors", "diffusers"))
    with pytest.raises(ValueError, match=r"model\.unet\.patch=2"):
        launch.launch(config, workdir)
    assert not (workdir / "export" / "distilled-2step").exists()


def test_an_exported_base_is_imported_as_the_same_teacher(exported, tmp_path):
    file = exported / "export" / "base-8step" / "safetensors" / "model.safetensors"
    source = {"path": str(file)}
    launch.launch(tiny.config("import", source=source), tmp_path)
    assert (
        _result(tmp_path / "train")["params_sha256"]
        == _result(exported / "train")["params_sha256"]
    )
    config = tiny.config("distill")
    config.model.unet.channels = 16  # the network is that of the workdir
    launch.launch(config, tmp_path)
    for num_steps in (4, 2, 1):
        ours, theirs = (
            _result(layout.folder_of(workdir, student(num_steps)))["params_sha256"]
            for workdir in (tmp_path, exported)
        )
        assert ours == theirs
    launch.launch(tiny.config("import", source=source), tmp_path)  # is done


def test_a_workdir_with_another_model_is_not_written_over(exported, tmp_path):
    file = exported / "export" / "base-8step" / "safetensors" / "model.safetensors"
    other = file.parents[2] / "distilled-1step" / "safetensors" / "model.safetensors"
    for path in (file, other):
        source = {"path": str(path)}
        config = tiny.config("import", source=source)
        if path == file:
            launch.launch(config, tmp_path)
    with pytest.raises(ValueError, match="holds another model"):
        launch.launch(config, tmp_path)


def test_a_student_of_one_step_has_no_students(exported, tmp_path):
    place = exported / "export" / "distilled-1step" / "safetensors"
    source = {"path": str(place / "model.safetensors")}
    launch.launch(tiny.config("import", source=source), tmp_path)
    with pytest.raises(ValueError, match="start_steps=1 does not arrive"):
        launch.launch(tiny.config("distill"), tmp_path)


class _Edm(nn.Module):
    """D(y, s) of a unit Gaussian at 0, times a number that can be learned."""

    @nn.compact
    def __call__(self, y, s, label=None, *, train=False):
        factor = self.param("factor", nn.initializers.ones, ())
        return factor * y / (1.0 + s[:, None, None, None] ** 2)


def make_edm(out_channels, num_classes):
    return _Edm()


def make_pair(out_channels, num_classes):
    params = {"factor": jnp.ones(())}
    return (
        lambda params, y, s: params["factor"] * y / (1.0 + s[:, None, None, None] ** 2),
        params,
    )


@pytest.mark.parametrize("make", ["make_edm", "make_pair"])
def test_a_function_of_the_users_is_a_teacher(make, tmp_path):
    own = {"net": f"test_interop:{make}", "convention": "edm", "output": "x"}
    launch.launch(tiny.config("import", model=own), tmp_path)
    if make == "make_pair":
        launch.launch(tiny.config("distill"), tmp_path)  # of the workdir's network
        assert _result(layout.folder_of(tmp_path, student(1)))["step"] == 6
    # The mean of a unit Gaussian at 0, given z_t, is alpha_t z_t.
    config = tiny.config("sample", model=own)
    model = make_model(config)
    params = load_params(model, layout.folder_of(tmp_path, BASE))
    z_t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    logsnr_t = jnp.array([-2.0, 1.0])
    alpha_t = jnp.sqrt(jax.nn.sigmoid(logsnr_t))[:, None, None, None]
    found = model.denoiser(params)(z_t, logsnr_t).x
    np.testing.assert_allclose(found, alpha_t * z_t, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            _export(formats=("onnx",)),
            r"export\.formats=\('onnx',\) must be a tuple of at l",
        ),
        (_export(formats=()), r"export\.formats=\(\) must be a tuple of at least one"),
        (_export(w=(1.0,)), "no model takes a guidance weight"),
        (_export(formats=("diffusers",)), r"model\.unet\.patch=2"),
        (_export(steps=3), "No finished model|No finished distilled"),
        (tiny.config("import"), "source.path='' is empty: name .* set model.net"),
        (tiny.config("import", source={"path": "nowhere"}), "there is no such file"),
        (
            tiny.config("sample", sample={"from_file": "none.safetensors"}),
            "There is no file",
        ),
    ],
    ids=range(8),
)
def test_what_cannot_be_done_is_refused(exported, tmp_path, config, message):
    workdir = tmp_path
    if config.stage == "export":
        workdir = shutil.copytree(exported, tmp_path / "copy")
    if config.export.steps == 3:
        config.export.model = "distilled"
    with pytest.raises(ValueError, match=message):
        launch.launch(config, workdir)


def test_guidance_of_a_model_that_always_knew_its_class_is_refused(tmp_path):
    own = {"net": "test_interop:make_edm", "convention": "edm", "output": "x"}
    config = tiny.config("import", model=own)
    config.model.num_classes = 10
    config.train.label_dropout = 0.0
    launch.launch(config, tmp_path)
    config = tiny.config("sample", sample={**tiny.TINY["sample"], "w": (1.0,)})
    with pytest.raises(ValueError, match="cannot be guided"):
        launch.launch(config, tmp_path)


def test_a_convention_of_the_u_net_is_refused(tmp_path):
    config = tiny.config("train", model={"convention": "edm"})
    with pytest.raises(ValueError, match=r"convention='edm' is of a network of your"):
        launch.launch(config, tmp_path)


def test_what_an_imported_model_fixes_and_what_finetuning_it_may_change(tmp_path):
    fields = {
        "model": {"output": "eps", "num_classes": 10},
        "diffusion": {"schedule": "linear_beta"},
        "data": {"channels": 1, "image_size": 8},
        "train": {"label_dropout": 0.0},
        "distill": {"start_steps": 4},
    }
    (tmp_path / "imported.json").write_text(json.dumps(fields))
    there = imported.resolved(tiny.config("sample"), tmp_path)
    assert there.train.label_dropout == 0.0
    assert there.distill.start_steps == 4
    data = tiny.config("sample", data={**tiny.TINY["data"], "channels": 3})
    with pytest.raises(ValueError, match=r"data.channels=3, but the imported model"):
        imported.resolved(data, tmp_path)
    config = tiny.config("train")
    config.train.init_from = str(tmp_path / "train")
    here = imported.resolved(config, tmp_path / "other")
    assert here.model.num_classes == 10
    assert here.model.output == "v"
    assert here.diffusion.schedule == "linear_beta"
    assert here.train.label_dropout == 0.1
    assert here.distill.start_steps == 8


def test_a_student_for_all_strengths_is_no_base_model(tmp_path):
    path = tmp_path / "guided.safetensors"
    about = model_file.About({"guide": {"steps": 1}}, "guided", 0, {})
    model_file.write(path, {"x": np.ones(1)}, about)
    source = {"path": str(path)}
    with pytest.raises(ValueError, match="takes a guidance weight"):
        launch.launch(tiny.config("import", source=source), tmp_path / "other")


def test_the_card_gives_the_numbers_of_the_strength_that_is_folded_in(tmp_path):
    rows = [
        {"model": "distilled", "sampler": "ddim", "steps": 4, "metric": "frechet",
         "value": value, "num_images": 9, "w": w}
        for w, value in ((0.0, 11.5), (1.0, 22.5))
    ]  # fmt: skip
    rows.append({**rows[1], "value": 33.5, "eta": 0.8})  # the folder draws without
    unet = {"patch": 1, "multipliers": (1,), "emb_channels": 32}
    config = tiny.config("export", model={"num_classes": 3, "unet": unet})
    config.guide.steps = 1
    config.export.update({"steps": 4, "w": (1.0,)})
    made = make_model(config, guided=True)
    facts = {"measured": rows, "method": "progressive"}
    about = model_file.About({}, "distilled", 4, facts)
    params = made.init(jax.random.key(0))
    sampler = make_sampler(config, made, "ddim")
    export._write_diffusers(tmp_path, config, sampler, params, 1.0, about)
    card = (tmp_path / "README.md").read_text()
    assert "22.5" in card
    assert "11.5" not in card
    assert "33.5" not in card
    assert "w = 1, guidance scale 2 is folded in" in card
    assert "few steps by progressive\ndistillation (Salimans & Ho, ICLR 2022)" in card
    assert "class_labels=[0, 1, 2, 0]" in card


@pytest.mark.usefixtures("another_method")
def test_an_export_has_the_folder_and_the_rows_of_its_method(tmp_path):
    names = {
        method: export._folder_name(student(4, method), 4)
        for method in ("progressive", "stochastic", "moment_matching")
    }
    assert names == {
        "progressive": "distilled-4step",
        "stochastic": "distilled-4step-stochastic",
        "moment_matching": "distilled-4step-moment_matching",
    }
    assert export._folder_name(BASE, 4) == "base-4step"
    rows = [
        Measurement(
            model="distilled", method=method, sampler=METHODS[method].sampler, steps=4,
            evaluations=4, metric="fid", value=value,
        ).to_json()
        for method, value in zip(names, (1.0, 2.0, 3.0), strict=True)
    ]  # fmt: skip
    del rows[0]["method"], rows[1]["method"]  # as in version 0.1
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate" / "ladder.json").write_text(json.dumps(rows))
    project = Project(_export(), tmp_path)
    for method, value in zip(names, (1.0, 2.0, 3.0), strict=True):
        (row,) = export._measured(project, student(4, method), 4)
        assert row["value"] == value


def test_a_student_that_is_drawn_with_fresh_noise_takes_that_along(
    small_project, tmp_path, capsys
):
    folder = layout.students_folder(tmp_path, "moment_matching") / "0002"
    shutil.copytree(small_project / "distill" / "0002", folder)
    shutil.copy(small_project / "config.json", tmp_path)
    config = tiny.small("export", distill={"method": "moment_matching"})
    config.export.update({"formats": ("safetensors", "stablehlo"), "steps": 2})
    config.sample.eta = 0.5
    row = Measurement(
        model="distilled", method="moment_matching", sampler="ddim", steps=2,
        evaluations=2, metric="fid", value=1.0, eta=0.5,
    ).to_json()  # fmt: skip
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate" / "ladder.json").write_text(json.dumps([row]))
    launch.launch(config, tmp_path)
    assert "stablehlo draws without fresh noise" in capsys.readouterr().err
    out = tmp_path / "export" / "distilled-2step-moment_matching"
    file = out / "safetensors" / "model.safetensors"
    (measured,) = model_file.read_about(file).facts["measured"]
    assert measured["eta"] == 0.5
    model = vdiff_jax.load(file)
    images = model.sample(4)
    np.testing.assert_array_equal(images, model.sample(4, eta=0.5))
    assert (images != model.sample(4, eta=0.0)).any()
    command = tiny.small("sample")
    assert in_file(command, file)[0].sample.eta == 0.5
    assert in_file(command, file, {"sample.eta"})[0].sample.eta == 0.0


@pytest.mark.parametrize(("asked", "eta"), [(set(), 0.8), ({"sample.eta"}, 0.0)])
def test_files_are_evaluated_with_the_noise_that_they_name(asked, eta, tmp_path):
    names = ("cifar10_small-base", "cifar10_small-4step")
    files = tuple(str(PRETRAINED / f"{name}.safetensors") for name in names)
    config = tiny.small("evaluate", evaluate={"files": files})
    models = Models(Project(config, tmp_path, asked=frozenset(asked)))
    assert models.eta(student(4, "moment_matching")) == eta
    assert models.eta(BASE) == 0.0


@pytest.mark.usefixtures("another_method")
def test_the_card_names_the_method():
    model = make_model(_export())
    card = model_card.diffusers(model, "distilled", "moment_matching", 4, None, [])
    assert "few steps by moment-matching\ndistillation with vdiff_jax." in card
    assert "Salimans" not in card


@pytest.mark.usefixtures("another_method")
def test_what_draws_by_ddim_is_not_made_of_students_of_other_samplers():
    """With sample.sampler=auto it once was."""
    role = student(4, "stochastic")
    with pytest.raises(ValueError, match="was taught the sampler stochastic"):
        export._check_drawn_by_ddim(role, ("safetensors", "stablehlo"))
    export._check_drawn_by_ddim(role, ("safetensors", "orbax"))
    for other in (student(4), student(4, "moment_matching"), BASE):
        export._check_drawn_by_ddim(other, ("diffusers", "stablehlo"))
