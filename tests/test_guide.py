"""The guide stage: a student that is its teacher at first, and guided at the end."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import launch
import tiny
import vdiff_jax
from vdiff_jax import diffusion, losses
from vdiff_jax.distillation.role import BASE, GUIDED, student
from vdiff_jax.from_config import trainer
from vdiff_jax.from_config.losses import distill_loss, guide_loss, train_loss
from vdiff_jax.from_config.model import make_model, make_student
from vdiff_jax.from_config.moved import flat
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.from_config.step import compiled_train_step
from vdiff_jax.generation.sampler import Sampler
from vdiff_jax.guidance import PLAIN
from vdiff_jax.interop import model_file
from vdiff_jax.model import with_weights_of
from vdiff_jax.stages import guide
from vdiff_jax.stages.sample import starts
from vdiff_jax.training.step import Given, Networks
from vdiff_jax.types import Batch, Condition
from vdiff_jax.workdir import layout
from vdiff_jax.workdir.layout import Project
from vdiff_jax.workdir.parameters import load_params
from vdiff_jax.workdir.trained import find, in_file

pytestmark = pytest.mark.slow

MODEL = {**tiny.TINY["model"], "num_classes": 10}
GUIDE = {
    "steps": 4, "batch_size": 8, "steps_per_call": 2, "checkpoint_every_steps": 2,
    "log_every_steps": 2, "eval_every_steps": 4, "sample_every_steps": 4,
    "sample_steps": 2, "warmup_steps": 0, "learning_rate": 0.01, "w_features": 8,
    "ema_decay": 0.0,
}  # fmt: skip
DISTILL = {**tiny.TINY["distill"], "warmup_steps": 0, "learning_rate": 0.01}


def _config(stage, **changes):
    return tiny.config(
        stage, **{"model": MODEL, "guide": GUIDE, "distill": DISTILL, **changes}
    )


@pytest.fixture(scope="module")
def workdir(once):
    """A base model, its guided student, and two ladders of it; for reading.

    In `compiled.json`, how often the step of each of these four was compiled.
    """
    make, steps = compiled_train_step, []

    def watched(*args, plain=False):
        step = make(*args, plain=plain)
        if not plain:
            steps.append(step)
        return step

    def train(workdir):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "compiled_train_step", watched)
            stochastic = {**DISTILL, "method": "stochastic"}
            counts = []
            for config in (
                *(_config(stage) for stage in ("train", "guide", "distill")),
                _config("distill", distill=stochastic),
            ):
                # Of other tests, beside whose programs this one's might be let go.
                jax.clear_caches()
                launch.launch(config, workdir)
                counts.append(steps[-1]._cache_size())
        (workdir / "compiled.json").write_text(json.dumps(counts))

    return once("guided", train)


def test_every_stage_is_one_step_compiled_once(workdir):
    assert json.loads((workdir / "compiled.json").read_text()) == [1, 1, 1, 1]


def _result(folder):
    return json.loads((folder / "result.json").read_text())


def test_the_student_begins_as_the_conditional_teacher_at_every_w(workdir):
    config = _config("guide")
    teacher, student = make_model(config), make_model(config, guided=True)
    params = load_params(teacher, layout.folder_of(workdir, BASE))
    own = with_weights_of(student, params, seed=3)
    z_t = jax.random.normal(jax.random.key(0), (6, 8, 8, 1))
    logsnr_t, label = jnp.linspace(-9.0, 9.0, 6), jnp.arange(6)
    expected = jax.jit(
        lambda: teacher.denoiser(params, Condition(label))(z_t, logsnr_t)
    )()
    for w in (0.0, 1.0, 3.7):
        strength = jnp.full(6, w)
        found = jax.jit(
            lambda w: student.denoiser(own, Condition(label, w=w))(z_t, logsnr_t)
        )(strength)  # fmt: skip
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_the_stage_starts_where_its_teacher_ended(workdir):
    _, run = guide.under_way(Project(_config("guide"), workdir))
    teacher = load_params(make_model(_config("train")), layout.folder_of(workdir, BASE))
    start = flatten_dict(run.start().main)
    for path, leaf in flatten_dict(teacher).items():
        np.testing.assert_array_equal(start[path], leaf)


def test_a_teacher_of_another_network_is_refused():
    student = make_student(_config("guide"))
    with pytest.raises(ValueError, match=r"no place for .*weights \['other/kernel'\]"):
        with_weights_of(student, {"other": {"kernel": jnp.ones(1)}}, seed=3)


def test_the_guided_student_is_the_first_teacher_of_the_ladder(workdir):
    result = _result(layout.folder_of(workdir, student(4)))
    assert result["teacher"] == str(layout.folder_of(workdir, GUIDED))
    assert result["method"] == "progressive"
    guided, base = (
        _result(layout.folder_of(workdir, GUIDED)),
        _result(workdir / "train"),
    )
    assert guided["w_range"] == [0.0, 4.0]
    assert guided["teacher_sha256"] == base["params_sha256"]


def test_both_ladders_are_in_one_workdir_and_differ(workdir):
    one, other = (
        _result(layout.folder_of(workdir, student(1, ladder)))
        for ladder in ("progressive", "stochastic")
    )
    assert one["params_sha256"] != other["params_sha256"]
    assert other["method"] == "stochastic"


@pytest.mark.parametrize("ladder", ["progressive", "stochastic"])
def test_students_take_the_strength_and_learn_from_it(workdir, ladder):
    config = _config("sample")
    z_t = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    said = []
    for role in (GUIDED, student(1, ladder)):
        trained = find(Project(config, workdir), role)
        model, params = trained.model, trained.params()
        said += [
            np.asarray(
                model.denoiser(params, Condition(jnp.arange(4), w=jnp.full(4, w)))(
                    z_t, jnp.zeros(4)
                ).v
            )
            for w in (0.0, 4.0)
        ]
    for i, one in enumerate(said):
        assert all(np.abs(one - other).max() > 1e-6 for other in said[:i])


def test_an_interrupted_guide_stage_ends_as_one_never_stopped(workdir, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "copy")
    folder = layout.folder_of(copy, GUIDED)
    (folder / "result.json").unlink()
    shutil.rmtree(layout.checkpoint_folder(folder) / "4")
    launch.launch(_config("guide"), copy)
    assert (
        _result(folder)["params_sha256"]
        == _result(layout.folder_of(workdir, GUIDED))["params_sha256"]
    )


def test_sampling_over_strengths_draws_a_row_for_each(workdir, tmp_path, capsys):
    copy = shutil.copytree(workdir, tmp_path / "copy")
    sample = {**tiny.TINY["sample"], "w": (0.0, 4.0)}
    launch.launch(_config("sample", sample=sample), copy)
    out = copy / "sample"
    assert len(list((out / "w_0").iterdir())) == 5
    assert len(list((out / "w_4").iterdir())) == 5
    assert sorted(path.name for path in out.iterdir()) == ["sample.json", "w_0", "w_4"]
    assert (copy / "sample_grid.png").exists()


def test_pictures_are_encoded_as_the_class_that_they_show(
    workdir, tmp_path, monkeypatch
):
    np.save(tmp_path / "one.npy", np.full((1, 8, 8, 1), 90, np.uint8))
    spec = {"image": str(tmp_path / "one.npy"), "image_labels": (3, 8)}
    config = _config("sample", sample={**tiny.TINY["sample"], **spec})
    sampler, seen = make_sampler(config, make_model(config)), []
    monkeypatch.setattr(
        Sampler,
        "encode",
        lambda self, params, images, given, n: seen.append(given.label),
    )
    start_of = starts.from_images(
        Project(config, workdir),
        sampler,
        lambda index: sampler.start(jnp.asarray(index), np.int32(0)),
    )
    start_of(np.arange(4))
    np.testing.assert_array_equal(seen, [[3, 8, 3, 8]])


def test_files_of_base_and_student_say_whether_they_take_a_strength(workdir, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "copy")
    for kind, w_range in (("base", None), ("guided", (0.0, 4.0))):
        export = {"model": kind, "steps": 2, "formats": ("safetensors",)}
        launch.launch(_config("export", export=export), copy)
        file = copy / "export" / f"{kind}-2step" / "safetensors" / "model.safetensors"
        other = tiny.config("sample")  # which knows of no guidance
        _, found = in_file(other, file)
        assert found.model.w_range == w_range
        found.params()


def test_files_of_the_stochastic_ladder_are_for_its_sampler_alone(workdir, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "copy")
    stochastic = {**tiny.TINY["sample"], "sampler": "stochastic"}
    export = {"steps": 2, "formats": ("safetensors",)}
    launch.launch(_config("export", export=export, sample=stochastic), copy)
    place = copy / "export" / "distilled-2step-stochastic" / "safetensors"
    params = model_file.read(place / "model.safetensors")
    trained = find(Project(_config("sample"), copy), student(2, "stochastic"))
    jax.tree.map(np.testing.assert_array_equal, params, trained.params())
    in_file(_config("sample", sample=stochastic), place / "model.safetensors")
    model = vdiff_jax.load(place / "model.safetensors")
    assert model.trained.role == student(2, "stochastic")
    assert model.sample(2).shape == (2, 8, 8, 1)
    ddim = {**stochastic, "sampler": "ddim"}
    with pytest.raises(ValueError, match="sampler='ddim' is not what the stochastic"):
        in_file(_config("sample", sample=ddim), place / "model.safetensors")
    own, _ = in_file(_config("sample"), place / "model.safetensors")  # auto
    assert own.sample.sampler == "stochastic"
    export["formats"] = ("stablehlo",)
    with pytest.raises(ValueError, match="cannot be exported as stablehlo"):
        launch.launch(_config("export", export=export, sample=stochastic), copy)


def test_a_strength_outside_of_the_range_is_warned_of(workdir, tmp_path, capsys):
    copy = shutil.copytree(workdir, tmp_path / "copy")
    sample = {**tiny.TINY["sample"], "w": (7.0,)}
    launch.launch(_config("sample", sample=sample), copy)
    told = capsys.readouterr().err
    assert "w = 7, guidance scale 8 is outside" in told
    assert "w from 0 to 4" in told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sample": {"w": (-0.5,)}},
            r"sample\.w=\(-0\.5,\) must be a tuple of guidance",
        ),
        (
            {"model": {"num_classes": 0}, "sample": {"w": (1.0,)}},
            "model.num_classes: 10 there, 0 now",
        ),
        ({"guide": {"w_scale": 7.0}}, r"guide\.w_scale: 1000\.0 there, 7\.0 now"),
        ({"sample": {"labels": (3, 10)}}, "must be from 0 to 9"),
        ({"sample": {"guidance_interval": (0.5, 0.2)}}, "guidance_interval"),
        ({"sample": {"clip": "dynamic:2"}}, "sample.clip='dynamic:2' must be"),
        ({"sample": {"sampler": "stochastic", "steps": 64}}, "student of 64 steps was"),
    ],
)
def test_what_cannot_be_sampled_is_refused(workdir, tmp_path, changes, message):
    config = _config("sample")
    for section, fields in changes.items():
        config[section].update(fields)
    if "64" in message:  # a deterministic student alone
        workdir = shutil.copytree(workdir, tmp_path / "copy")
        fake = layout.folder_of(workdir, student(64))
        fake.mkdir(parents=True)
        (fake / "result.json").write_text("{}")
    with pytest.raises(ValueError, match=message):
        launch.launch(config, workdir, asked=frozenset(dict(flat(changes))))


def test_a_teacher_that_always_knew_the_class_is_refused(workdir, tmp_path):
    train = {**tiny.TINY["train"], "label_dropout": 0.0}
    shutil.copytree(workdir / "train", tmp_path / "train")
    said = json.loads((workdir / "config.json").read_text())
    said["config"]["train"]["label_dropout"] = 0.0
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"train\.label_dropout=0\.1"):
        launch.launch(_config("guide", train=train), tmp_path)
    sample = {**tiny.TINY["sample"], "w": (1.0,)}
    with pytest.raises(ValueError, match="cannot be guided"):
        launch.launch(_config("sample", train=train, sample=sample), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"num_classes": 0}}, "model.num_classes: 10 there, 0 now"),
        ({"guide": {"w_range": (3.0, 1.0)}}, "not above the second"),
        ({"guide": {"steps": 0}}, "turns the guide stage off"),
        ({"guide": {"rescale": 1.5}}, "guide.rescale"),
    ],
)
def test_what_cannot_be_guided_is_refused(workdir, tmp_path, changes, message):
    shutil.copytree(workdir / "train", tmp_path / "train")
    shutil.copy(workdir / "config.json", tmp_path)
    config = _config("guide")
    for section, fields in changes.items():
        config[section].update(fields)
    with pytest.raises(ValueError, match=message):
        launch.launch(config, tmp_path, asked=frozenset(dict(flat(changes))))
    assert not (tmp_path / "guide").exists()


def _asked(loss, model):
    """What a loss asks its denoisers for: a dictionary for each of them, in turn."""
    asked = []

    def denoiser(self, params, condition, **options):
        asked.append({**condition._asdict(), **options})
        return _nothing

    draws = losses.draw(jax.random.key(0), 400)
    batch = Batch(np.zeros((400, 8, 8, 1), np.uint8), Condition(np.full(400, 7)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "denoiser", denoiser)
        given = Given({}, {}, jnp.int32(2), jnp.zeros(()))
        loss(Networks({}), batch, draws, given)
    return asked


def test_student_and_teacher_are_told_the_same_strength_of_the_range():
    guide = {**GUIDE, "w_range": (1.0, 3.0), "rescale": 0.7}
    config = _config("guide", guide=guide)
    model = make_student(config)
    for loss, rescale in (
        (guide_loss(config, make_model(config), model), 0.7),
        (distill_loss(config, model, model), 0.0),
    ):
        student, teacher, *ema = _asked(loss, model)
        for other in (teacher, *ema):
            np.testing.assert_array_equal(student["w"], other["w"])
        np.testing.assert_array_equal(student["label"], np.full(400, 7))
        np.testing.assert_array_equal(teacher["label"], np.full(400, 7))
        found = np.quantile(student["w"], [0.0, 0.5, 1.0])
        np.testing.assert_allclose(found, [1.0, 2.0, 3.0], atol=0.2)
        assert student["w"].min() >= 1.0
        assert student["w"].max() <= 3.0
        assert teacher.get("guidance", PLAIN).rescale == rescale


def test_some_classes_are_left_out_in_training_and_none_in_measuring():
    config = _config("train", train={**tiny.TINY["train"], "label_dropout": 0.2})
    model = make_model(config)
    (in_training,), (in_measuring,) = (
        _asked(train_loss(config, model, train=train), model) for train in (True, False)
    )
    assert set(np.unique(in_training["label"])) == {-1, 7}
    left_out = np.mean(np.asarray(in_training["label"]) == -1)
    assert left_out == pytest.approx(0.2, abs=0.06)
    assert set(np.unique(in_measuring["label"])) == {7}


def _nothing(z_t, logsnr_t):
    return diffusion.predict(z_t, z_t, logsnr_t, "v")
