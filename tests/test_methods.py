"""Whatever holds for progressive students holds for those of the other methods."""

import hashlib
import json
import shutil

import numpy as np
import PIL.Image
import pytest

import launch
import tiny
import vdiff_jax
from vdiff_jax.distillation.role import student
from vdiff_jax.from_config import trainer
from vdiff_jax.from_config.step import compiled_train_step
from vdiff_jax.training import checkpoints

pytestmark = pytest.mark.slow

METHODS = ("moment_matching", "consistency")
COUNTS = (8, 4, 2, 1)
DISTILL = {
    **tiny.TINY["distill"], "updates": "4, 2: 6", "teacher_steps": (8, 16),
    "ema_decay": 0.5, "warmup_steps": 0, "learning_rate": 0.01,
}  # fmt: skip
FILE = """
import tiny
from tests.test_methods import DISTILL

def get_config(stage="all"):
    return tiny.{kind}(stage, distill=DISTILL)
"""


@pytest.fixture
def command(tmp_path_factory, capsys):
    """`command("distill", workdir, "distill.method=...")`: exit status and stderr.

    Of the small network, or of the U-Net with kind="config"; with kind="plain" as
    `small_project` was made.
    """
    folder = tmp_path_factory.mktemp("files")
    for kind in ("small", "config"):
        (folder / f"{kind}.py").write_text(FILE.format(kind=kind))
    plain = FILE.format(kind="small").replace(", distill=DISTILL", "")
    (folder / "plain.py").write_text(plain)

    def run(stage, workdir, *fields, kind="small", flags=()):
        capsys.readouterr()
        status = launch.main(
            [
                "launch.py", f"--config={folder / kind}.py:{stage}",
                f"--workdir={workdir}", *(f"--config.{field}" for field in fields),
                *flags,
            ]
        )  # fmt: skip
        run.out, error = capsys.readouterr()
        return status, error

    return run


def _small(stage, **distill):
    return tiny.small(stage, distill={**DISTILL, **distill})


def _result(folder):
    return json.loads((folder / "result.json").read_text())


def _ledger(workdir, method):
    return json.loads((workdir / f"distill_{method}" / "ladder.json").read_text())


def _hashes(folder):
    """The bytes of every file below a folder but its lock."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def _states(workdir):
    """The fingerprints of all arrays in the last checkpoint of every student."""
    states = {}
    for path in sorted(workdir.glob("distill_*/*")):
        if path.is_dir():
            last = checkpoints.latest_step(path / "checkpoints")
            info = path / "checkpoints" / str(last) / "info" / "metadata"
            name = f"{path.parent.name}/{path.name}"
            states[name] = json.loads(info.read_text())["fingerprint"]
    return states


class _Steps:
    """The compiled steps; one of their calls may fail, as a lost machine would."""

    def __init__(self, patch, fail_at=-1):
        make, self.calls, self.compiled = compiled_train_step, 0, []

        def made(*args, plain=False):
            step = make(*args, plain=plain)
            if plain:
                return step
            self.compiled.append(step)

            def counted(*args):
                self.calls += 1
                if self.calls == fail_at:
                    raise KeyboardInterrupt
                return step(*args)

            return counted

        patch.setattr(trainer, "compiled_train_step", made)


@pytest.fixture(scope="module")
def workdir(small_project, once):
    """The small project, with students of both methods; for reading.

    In `compiled.json`, how often the step of each method was compiled.
    """

    def make(folder):
        shutil.copytree(small_project, folder, dirs_exist_ok=True)
        counts = {}
        for method in METHODS:
            with pytest.MonkeyPatch.context() as patch:
                steps = _Steps(patch)
                launch.launch(_small("distill", method=method), folder)
            counts[method] = [step._cache_size() for step in steps.compiled]
        (folder / "compiled.json").write_text(json.dumps(counts))

    return once("methods", make)


@pytest.fixture
def copy(workdir, tmp_path):
    """The same, of one's own."""
    return shutil.copytree(workdir, tmp_path / "copy")


NOISY = {"method": "moment_matching", "noise_input": True, "students": (2, 1)}


def _noisy(stage, **changes):
    return tiny.config(stage, distill={**DISTILL, **NOISY}, **changes)


@pytest.fixture(scope="module")
def noisy(project, once):
    """A project with a U-Net, and its students that take noise; for reading."""

    def make(folder):
        shutil.copytree(project, folder, dirs_exist_ok=True)
        launch.launch(_noisy("distill"), folder)

    return once("noisy", make)


# One run.


def test_all_phases_are_one_step_compiled_once(workdir):
    counts = json.loads((workdir / "compiled.json").read_text())
    assert counts == {"moment_matching": [1], "consistency": [1]}


@pytest.mark.parametrize("method", METHODS)
def test_results_name_where_a_student_comes_from(workdir, method):
    base = _result(workdir / "train")
    start = workdir / "train"
    for num_steps in COUNTS:
        folder = workdir / f"distill_{method}" / f"{num_steps:04d}"
        result = _result(folder)
        assert result["method"] == method
        assert result["sampler"] == "ddim"
        assert result["num_steps"] == num_steps
        assert result["step"] == (6 if num_steps == 2 else 4)
        assert result["teacher"] == str(workdir / "train")
        assert result["teacher_sha256"] == base["params_sha256"]
        assert result["start"] == str(start)
        start = folder


@pytest.mark.parametrize("method", METHODS)
def test_the_ledger_has_all_that_a_loss_measures(workdir, method):
    rows = _ledger(workdir, method)
    assert [row["num_steps"] for row in rows] == [*COUNTS]
    for row in rows:
        result = _result(workdir / f"distill_{method}" / f"{row['num_steps']:04d}")
        names = [name for name in result if name.endswith(("loss", "gap"))]
        if method == "moment_matching":
            assert {"gap", "held_out_gap", "auxiliary_loss"} <= {*names}
        assert {name: row[name] for name in names} == {
            name: result[name] for name in names
        }
        assert row["start"] == result["start"]


def _stopped_and_resumed(config, base, workdir, call):
    shutil.copytree(base, workdir, ignore=shutil.ignore_patterns("distill_*"))
    with pytest.MonkeyPatch.context() as patch:
        steps = _Steps(patch, fail_at=call)
        with pytest.raises(KeyboardInterrupt):
            launch.launch(config, workdir)
        assert steps.calls == call
    launch.launch(config, workdir)


@pytest.mark.parametrize("method", METHODS)
def test_stopped_in_the_second_student_it_ends_as_one_never_stopped(
    workdir, tmp_path, method
):
    folder = tmp_path / "stopped"
    _stopped_and_resumed(_small("distill", method=method), workdir, folder, call=4)
    expected = {k: v for k, v in _states(workdir).items() if method in k}
    assert len(expected) == 4
    assert _states(folder) == expected
    names = " ".join(expected[f"distill_{method}/0001"])
    assert ("auxiliary" in names) == (method == "moment_matching")
    for num_steps in COUNTS:
        place = f"distill_{method}/{num_steps:04d}"
        ours, theirs = _result(folder / place), _result(workdir / place)
        for name in ours.keys() - {"seconds", "images_per_second", "teacher", "start"}:
            assert ours[name] == theirs[name], name
    assert [row["num_steps"] for row in _ledger(folder, method)] == [*COUNTS]


@pytest.mark.long
def test_stopped_with_noise_it_ends_as_one_never_stopped(noisy, tmp_path):
    _stopped_and_resumed(_noisy("distill"), noisy, tmp_path / "stopped", call=4)
    states = _states(tmp_path / "stopped")
    assert len(states) == 2
    assert states == _states(noisy)


def test_a_dry_run_lists_the_students_of_the_method(command, copy, tmp_path):
    shutil.rmtree(copy / "distill_moment_matching" / "0001")
    fields = ("distill.method=moment_matching", "distill.students=8,1")
    status, error = command("distill", copy, *fields, flags=("--dry_run",))
    assert status == 0, error
    folder = copy / "distill_moment_matching"
    assert json.loads(command.out)["run"] == [
        {
            "stage": "distill",
            "method": "moment_matching",
            "num_steps": num_steps,
            "folder": str(folder / f"{num_steps:04d}"),
            "updates": 4,
            "status": status,
        }
        for num_steps, status in ((8, "finished"), (1, "new"))
    ]


@pytest.mark.parametrize(("num_steps", "form"), [(4, "difference"), (1, "fully")])
def test_an_update_that_went_wrong_can_be_replayed(
    command, workdir, tmp_path, num_steps, form
):
    """Through the condition in the step, on both of its ways."""
    fields = (
        "distill.method=moment_matching", f"distill.students={num_steps},",
        "distill.learning_rate=1e30", "model.net=test_stages:make_own_net",
    )  # fmt: skip
    assert command("train", tmp_path, fields[-1])[0] == 0
    status, error = command("distill", tmp_path, *fields)
    assert (status, "at step 2" in error) == (1, True), error
    status, error = command("distill", tmp_path, *fields, flags=("--replay=2",))
    assert status == 0, error
    lines = command.out.splitlines()
    (named,) = (i for i, x in enumerate(lines) if f"student of {num_steps} step" in x)
    assert "numbers are not finite; from float32" in lines[named + 1]
    assert "vdiff_jax/" in command.out
    assert "cond in" not in command.out


# What is made of the students.


def _pictures(folder):
    paths = sorted((folder / "sample").glob("0*.png"))
    return np.stack([np.asarray(PIL.Image.open(path)) for path in paths])[..., None]


@pytest.mark.parametrize("method", METHODS)
def test_students_are_drawn_by_the_sampler_they_were_taught(command, copy, method):
    status, error = command("sample", copy, f"distill.method={method}")
    assert status == 0, error
    made_by = json.loads((copy / "sample" / "sample.json").read_text())
    assert made_by["model"]["method"] == method
    assert made_by["sampler"] == "ddim"
    model = vdiff_jax.load(copy / f"distill_{method}" / "0002")
    assert model.trained.role == student(2, method)
    np.testing.assert_array_equal(model.sample(5), _pictures(copy))
    with pytest.raises(ValueError, match=r"sample\.sampler='heun' is not what the "):
        model.sample(1, sampler="heun")


@pytest.mark.parametrize("sampler", ["ancestral", "heun", "stochastic"])
def test_another_sampler_than_students_are_taught_is_refused(command, copy, sampler):
    before = _hashes(copy)
    status, error = command(
        "sample", copy, f"sample.sampler={sampler}", "sample.model=distilled",
        "distill.method=moment_matching",
    )  # fmt: skip
    assert status == 2
    (line,) = [line for line in error.splitlines() if line.startswith("launch.py")]
    assert f"sample.sampler={sampler!r}" in line
    assert _hashes(copy) == before


def test_a_workdir_knows_which_students_were_asked_for(command, copy, small_project):
    """And fields of one method are none of the other's."""
    shutil.rmtree(copy)
    shutil.copytree(small_project, copy)
    own = ("distill.students=4,2", "distill.updates=2", "distill.learning_rate=0.02")
    first = ("distill.method=moment_matching", *own)

    def drawn(*fields):
        status, error = command("sample", copy, *fields, kind="plain")
        assert status == 0, error
        made_by = json.loads((copy / "sample" / "sample.json").read_text())
        return made_by["model"]["method"]

    assert drawn() == "progressive"
    assert command("distill", copy, *first, kind="plain")[0] == 0
    assert drawn() == "moment_matching"
    assert drawn("distill.method=progressive") == "progressive"
    assert drawn() == "moment_matching"
    before = _result(copy / "distill" / "0001")
    # What was asked for the students of the one is not asked for those of the other.
    again = ("distill.method=progressive", "distill.method=moment_matching")
    status, error = command("distill", copy, again[0], kind="plain")
    assert status == 0, error
    assert _result(copy / "distill" / "0001") == before
    assert drawn() == "progressive"
    status, error = command("distill", copy, again[1], kind="plain")
    assert status == 0, error
    assert len(_ledger(copy, "moment_matching")) == 2


def test_a_config_of_another_method_than_the_first_has_its_students(
    copy, small_project
):
    """Without a word on the command line."""
    launch.launch(_small("sample", method="moment_matching"), copy)
    made_by = json.loads((copy / "sample" / "sample.json").read_text())
    assert made_by["model"]["method"] == "moment_matching"


def _exported(command, workdir, kind, **options):
    fields = (f"export.formats={options.pop('formats')}", "export.steps=2")
    more = tuple(f"{name}={value}" for name, value in options.items())
    return command("export", workdir, *fields, *more, kind=kind)


@pytest.mark.parametrize("kind", ["small", "config"])
def test_an_exported_student_draws_the_same_images(
    command, workdir, noisy, tmp_path, kind
):
    """With noise beside z_t (the U-Net), and without."""
    source = workdir if kind == "small" else noisy
    copy = shutil.copytree(source, tmp_path / "copy")
    method = {"distill.method": "moment_matching"}
    formats = "('safetensors','orbax')"
    status, error = _exported(command, copy, kind, formats=formats, **method)
    assert status == 0, error
    folder = copy / "export" / "distilled-2step-moment_matching"
    assert (folder / "orbax" / "about.json").exists()
    file = folder / "safetensors" / "model.safetensors"
    own = vdiff_jax.load(copy / "distill_moment_matching" / "0002")
    loaded = vdiff_jax.load(file)
    assert loaded.trained.role == own.trained.role == student(2, "moment_matching")
    assert loaded.trained.model.takes_noise == (kind == "config")
    expected = own.sample(5)
    assert expected.std() > 1
    np.testing.assert_array_equal(loaded.sample(5), expected)
    out = tmp_path / "drawn"
    status, error = command(
        "sample", out, f"sample.from_file={file}", "sample.model=distilled", kind=kind
    )
    assert status == 0, error
    np.testing.assert_array_equal(_pictures(out), expected)


def test_a_student_with_noise_is_no_base_model(command, noisy, tmp_path):
    copy = shutil.copytree(noisy, tmp_path / "copy")
    status, error = _exported(
        command, copy, "config", formats="('safetensors',)",
        **{"distill.method": "moment_matching"},
    )  # fmt: skip
    assert status == 0, error
    (file,) = (copy / "export").rglob("model.safetensors")
    workdir = tmp_path / "imported"
    status, error = command("import", workdir, f"source.path={file}", kind="config")
    assert (status, "takes noise beside z_t: it can be sampled" in error) == (2, True)
    assert not (workdir / "config.json").exists()


@pytest.mark.parametrize("name", ["stablehlo", "diffusers"])
def test_a_format_without_a_place_for_noise_is_refused(command, noisy, tmp_path, name):
    copy = shutil.copytree(noisy, tmp_path / "copy")
    before = _hashes(copy)
    status, error = _exported(
        command, copy, "config", formats=f"('safetensors','{name}')",
        **{"distill.method": "moment_matching"},
    )  # fmt: skip
    assert status == 2
    (line,) = [line for line in error.splitlines() if line.startswith("launch.py")]
    assert name in line
    assert "takes noise beside z_t" in line
    assert _hashes(copy) == before


@pytest.mark.long
def test_students_with_noise_are_evaluated(noisy, tmp_path):
    copy = shutil.copytree(noisy, tmp_path / "copy")
    launch.launch(_noisy("evaluate"), copy)
    rows = json.loads((copy / "evaluate" / "ladder.json").read_text())
    methods = {row.get("method") for row in rows if row["model"] == "distilled"}
    assert "moment_matching" in methods


# More students, and others.


@pytest.mark.parametrize("method", METHODS)
def test_students_go_on_by_one(command, small_project, tmp_path, method):
    copy = shutil.copytree(small_project, tmp_path / "copy")
    asked = (f"distill.method={method}", "distill.students=8,4")
    assert command("distill", copy, *asked)[0] == 0
    folder = copy / f"distill_{method}"
    before = {n: _result(folder / n) for n in ("0008", "0004")}
    status, error = command("distill", copy, "distill.students=8,4,2")
    assert status == 0, error
    assert {n: _result(folder / n) for n in before} == before
    added = _result(folder / "0002")
    assert added["start"] == str(folder / "0004")
    assert [each["name"] for each in added["changes"]] == ["students"]
    assert len(_ledger(copy, method)) == 3


@pytest.mark.parametrize(
    "field",
    [
        "start=teacher", "weight=snr", "noise_input=True", "updates=9",
        "teacher_step=heun", "ema_decay=0.9",
    ],
)  # fmt: skip
def test_begun_students_stay_as_they_are(command, copy, field):
    before = _hashes(copy)
    # The U-Net of `noise_input` is not what this is about.
    asked = ("distill.method=moment_matching", f"distill.{field}")
    status, error = command("distill", copy, *asked)
    assert status == 2
    (line,) = [line for line in error.splitlines() if line.startswith("launch.py")]
    assert f"distill_moment_matching.{field.partition('=')[0]}: " in line or (
        "noise_input" in field
    )
    assert _hashes(copy) == before


# Mistakes.

MM = "distill.method=moment_matching"
CONSISTENCY = "distill.method=consistency"


@pytest.mark.parametrize(
    ("stage", "fields", "message"),
    [
        ("distill", ("distill.method=moment_match",), "distill.method='moment_match'"),
        ("distill", (CONSISTENCY, "distill.students=3,"), "3 does not divide them"),
        (
            "distill",
            (CONSISTENCY, "distill.teacher_steps=(8,12)"),
            "distill.teacher_steps=(8, 12) must be multiples",
        ),
        ("distill", (MM, "distill.start_steps=8"), "distill.start_steps=8 is not for"),
        ("distill", (MM, "distill.end_steps=2"), "distill.end_steps=2 is not for"),
        ("distill", (CONSISTENCY, "distill.end_steps=2"), "distill.end_steps=2 is not"),
        (
            "distill",
            ("distill.method=progressive", "distill.students=4,2"),
            "distill.students=(4, 2) is not for distill.method='progressive'",
        ),
        ("distill", ("distill.start=teacher",), "distill.start='teacher' is not for"),
        ("distill", (MM, "distill.students=2,4"), "must be numbers of steps that fall"),
        (
            "distill",
            (MM, "distill.start=progressive", "distill.students=16,"),
            "distill.start='progressive', but no student in",
        ),
        (
            "distill",
            ("distill.noise_input=True",),
            "distill.noise_input=True is not for distill.method='progressive'",
        ),
        (
            "distill",
            (CONSISTENCY, "distill.noise_input=True"),
            "distill.noise_input=True is not for distill.method='consistency'",
        ),
        (
            "distill",
            (MM, "distill.noise_input=True"),
            "distill.noise_input=True needs the built-in network",
        ),
        ("distill", (MM, "distill.teacher={student}"), "is a student of 2 steps"),
        (
            "distill",
            (CONSISTENCY, "distill.teacher={student}"),
            "is a student of 2 steps, and distill.method='consistency' is taught by",
        ),
        ("distill", (MM, "guide.steps=4"), "guide.steps=4 needs a model that is cond"),
        ("sample", (MM, "sample.w=(1.0,)"), "sample.w=(1.0,) needs a model"),
        ("export", (MM, "export.w=(1.0,)"), "export.w=(1.0,), but without guide"),
    ],
    ids=str,
)
@pytest.mark.parametrize("flags", [(), ("--dry_run",)], ids=["run", "dry_run"])
def test_mistakes_are_one_line_and_nothing_is_written(
    command, small_project, tmp_path, stage, fields, message, flags
):
    copy = shutil.copytree(small_project, tmp_path / "copy")
    before = _hashes(copy)
    place = copy / "distill" / "0002"
    words = [field.format(student=place) for field in fields]
    status, error = command(stage, copy, *words, flags=flags)
    assert status == 2, error
    (line,) = [line for line in error.splitlines() if not line.startswith("config: ")]
    assert message in line
    assert _hashes(copy) == before


@pytest.mark.parametrize("stage", ["train,distill", "all"])
def test_a_start_that_is_missing_is_missed_before_the_first_stage(
    command, tmp_path, stage
):
    """Once the whole training came before."""
    fields = (MM, "distill.start=progressive")
    status, error = command(stage, tmp_path / "new", *fields)
    assert (status, "no student in" in error) == (2, True), error
    assert not (tmp_path / "new" / "train").exists()
