"""Mistakes and odd places that only real runs show: each answer is a test.

docs/reliability.md has the table of what was tried. Those that need no run are in the
other files of this name.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import PIL.Image
import pytest
import safetensors.numpy

import launch
import vdiff_jax
from vdiff_jax.files import weights
from vdiff_jax.files.fingerprints import params_sha256
from vdiff_jax.training import checkpoints, step
from vdiff_jax.workdir import layout, record

# Of a damaged checkpoint Orbax leaves the errors of other arrays unseen.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ODD = "lr[1e-3] a*b? {c,d} läuf"
FILE = """
import tiny

def get_config(stage="all"):
    return tiny.small(stage)
"""


@pytest.fixture
def command(tmp_path, capsys):
    """`command("file:train", workdir, "--config...")`: exit status and stderr."""
    file = tmp_path / "small.py"
    file.write_text(FILE)

    def run(config, workdir, *more):
        config = config.replace("file", str(file), 1)
        capsys.readouterr()
        status = launch.main(
            ["launch.py", f"--config={config}", f"--workdir={workdir}", *more]
        )
        return status, capsys.readouterr().err

    return run


def _result(folder):
    return json.loads((folder / "result.json").read_text())


def _hashes(folder):
    """The bytes of every file below a folder."""
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _cut(folder):
    """Damages the EMA of the newest checkpoint in a run's folder."""
    newest = (
        folder / "checkpoints" / str(checkpoints.latest_step(folder / "checkpoints"))
    )
    for file in (newest / "ema_params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:-7])


# Saved is seen.


def test_a_folder_of_any_name_is_trained_in_killed_and_resumed(
    command, small_project, tmp_path, monkeypatch
):
    workdir = tmp_path / ODD
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", _stopping_after(checkpoints.save, 2))
        assert command("file:train", workdir)[0] == 130
    assert not (workdir / "train" / "result.json").exists()
    for stages in ("train", "distill", "sample", "export"):
        assert command(f"file:{stages}", workdir)[0] == 0, stages
    for place in ("train", "distill/0004", "distill/0001"):
        expected = _result(small_project / place)["params_sha256"]
        assert _result(workdir / place)["params_sha256"] == expected
    assert vdiff_jax.load(workdir).sample(2).shape == (2, 8, 8, 1)
    assert not list(tmp_path.parent.glob("vdiff_jax-*"))


def _stopping_after(function, calls):
    """The function, which is interrupted once it was called so often."""
    done = []

    def stopping(*args):
        function(*args)
        done.append(args)
        if len(done) == calls:
            raise KeyboardInterrupt

    return stopping


def test_what_was_saved_in_an_odd_folder_is_read_by_orbax_alone(
    command, small_project, tmp_path
):
    workdir = shutil.copytree(small_project, tmp_path / ODD)
    formats = "--config.export.formats=('orbax',)"
    assert command("file:export", workdir, formats)[0] == 0
    plain = tmp_path / "plain"
    shutil.copytree(workdir / "export" / "distilled-4step" / "orbax", plain)
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(plain / "params")
    read = vdiff_jax.load(small_project / "distill" / "0004").params
    jax.tree.map(np.testing.assert_array_equal, params, read)


def test_a_folder_that_is_not_ascii_is_trained_in_under_an_8_bit_locale(tmp_path):
    """TensorStore takes a path for UTF-8, whatever the locale says."""
    (tmp_path / "small.py").write_text(FILE)
    tests = pathlib.Path(__file__).parent
    done = subprocess.run(
        [
            sys.executable, tests.parent / "launch.py",
            f"--config={tmp_path}/small.py:train", f"--workdir={tmp_path}/läuf",
        ],
        env={
            **os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
            "PYTHONPATH": f"{tests}:{tests.parent}",
        },
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["läuf", "small.py"]
    sha256 = _result(tmp_path / "läuf" / "train")["params_sha256"]
    loaded = vdiff_jax.load(tmp_path / "läuf" / "train")
    assert params_sha256(loaded.params) == sha256


def test_a_checkpoint_without_its_arrays_does_not_count_as_saved(
    command, tmp_path, monkeypatch
):
    """Whatever the cause; here Orbax is given the odd path itself."""
    monkeypatch.setattr(checkpoints, "plain", contextlib.nullcontext)
    status, error = command("file:train", tmp_path / ODD)
    assert status == 1
    assert "cannot be read again, so that it does not count as saved" in error
    assert not (tmp_path / ODD / "train" / "result.json").exists()


def test_an_imported_model_without_its_arrays_does_not_count_as_saved(
    command, small_project, tmp_path, monkeypatch
):
    base = shutil.copytree(small_project, tmp_path / "base")
    assert command("file:export", base, "--config.export.model=base")[0] == 0
    file = base / "export" / "base-4step" / "safetensors" / "model.safetensors"
    source = f"--config.source.path={file}"
    monkeypatch.setattr(checkpoints, "plain", contextlib.nullcontext)
    status, error = command("file:import", tmp_path / ODD, source)
    assert (status, "does not count as saved" in error) == (1, True)
    assert not (tmp_path / ODD / "train" / "result.json").exists()


def test_an_export_that_cannot_be_opened_again_replaces_nothing(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    tensors = {"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)}
    weights.write(path, tensors, {})
    save, before = safetensors.numpy.save, path.read_bytes()
    monkeypatch.setattr(
        safetensors.numpy,
        "save",
        lambda tensors, about: save({"a": tensors["a"]}, about),
    )
    with pytest.raises(OSError, match="does not have all tensors"):
        weights.write(path, {**tensors, "a": np.zeros(2, np.float32)}, {})
    assert path.read_bytes() == before


def test_an_ema_that_is_not_finite_is_neither_saved_nor_a_result(
    command, tmp_path, monkeypatch
):
    """The loss is of the parameters, and stays finite."""
    average = step.update_ema
    monkeypatch.setattr(
        step,
        "update_ema",
        lambda ema, params, decay: jax.tree.map(
            lambda x: x * np.float32(3e38) * 10.0, average(ema, params, decay)
        ),
    )
    status, error = command("file:train", tmp_path / "run")
    assert status == 1
    assert "of the EMA is not finite at step 2" in error
    assert checkpoints.steps(tmp_path / "run" / "train" / "checkpoints") == []
    assert not (tmp_path / "run" / "train" / "result.json").exists()


# Readers change nothing.


@pytest.fixture
def theirs(small_project, tmp_path):
    """A workdir of somebody else's."""
    return shutil.copytree(small_project, tmp_path / "theirs")


def _read_all(command, theirs, tmp_path):
    """The answers of everybody who reads another workdir."""
    base, student = theirs / "train", theirs / "distill" / "0001"
    return {
        "teacher": command(
            "file:distill", tmp_path / "of_teacher", f"--config.distill.teacher={base}"
        ),
        "init_from": command(
            "file:train", tmp_path / "of_init", f"--config.train.init_from={base}"
        ),
        "load": _loaded(student),
        **{
            stage: command(f"file:{stage}", theirs, f"--out={tmp_path}/out")
            for stage in ("sample", "evaluate", "export")
        },
    }


def _loaded(folder):
    try:
        vdiff_jax.load(folder)
    except Exception as error:
        return type(error).__name__, str(error)
    return 0, ""


def test_no_reader_changes_a_workdir(command, theirs, tmp_path):
    before = _hashes(theirs)
    answers = _read_all(command, theirs, tmp_path)
    assert {name: status for name, (status, _) in answers.items() if status} == {}
    assert _hashes(theirs) == before
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["evaluate", "export", "lock", "sample", "sample_grid.png"]


def test_no_reader_repairs_a_damaged_workdir(command, theirs, tmp_path):
    for folder in ("train", "distill/0004", "distill/0002", "distill/0001"):
        _cut(theirs / folder)
    before = _hashes(theirs)
    for name, (status, error) in _read_all(command, theirs, tmp_path).items():
        assert status in (1, "DamagedError"), name
        assert "is damaged" in error
        assert "start its stage in" in error
    assert _hashes(theirs) == before


def test_the_owner_sets_aside_what_a_reader_named(command, theirs, small_project):
    _cut(theirs / "distill" / "0001")
    status, error = command("file:distill", theirs)
    assert (status, "counts as unfinished" in error) == (1, True)
    assert (theirs / "distill" / "0001" / "damaged" / "result.json").exists()
    assert command("file:distill", theirs)[0] == 0
    expected = _result(small_project / "distill" / "0001")["params_sha256"]
    assert _result(theirs / "distill" / "0001")["params_sha256"] == expected


@contextlib.contextmanager
def _as_nobody():
    """Without the rights of root, which may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_may_not_be_read_is_not_taken_for_damaged(theirs, tmp_path):
    folder = theirs / "train"
    assert _loaded(folder) == (0, "")  # now all modules are there
    own = [tmp_path, *tmp_path.parents]
    for parent in own[: own.index(pathlib.Path(tempfile.gettempdir()))]:
        parent.chmod(0o755)
    arrays = next((folder / "checkpoints" / "6" / "ema_params").rglob("d/*"))
    arrays.chmod(0)
    before = _listing(theirs)
    with _as_nobody():
        name, error = _loaded(folder)
    assert (name, f"Permission denied: {arrays}" in error) == ("UnreadableError", True)
    assert _listing(theirs) == before


@pytest.mark.parametrize(
    ("error_class", "options", "reason"),
    [
        ("builtins.ValueError", {}, "UNAVAILABLE: Error reading: connection reset"),
        ("builtins.ConnectionResetError", {}, "Connection reset by peer"),
        (
            "botocore.exceptions.EndpointConnectionError",
            {"endpoint_url": "http://store"},
            "Could not connect to the endpoint",
        ),
    ],
)
def test_the_owner_takes_nothing_for_damaged_that_it_could_not_look_at(
    command, theirs, monkeypatch, error_class, options, reason
):
    """TensorStore's errors are ValueErrors with a code in front; a client's its own."""
    module, _, name = error_class.rpartition(".")
    make = getattr(pytest.importorskip(module), name)
    (theirs / "train" / "result.json").unlink()
    before = _listing(theirs / "train")

    def restore(*args, **kwargs):
        raise make(**options) if options else make(f"{reason} [tensorstore_s")

    monkeypatch.setattr(ocp.Checkpointer, "restore", restore)
    status, error = command("file:train", theirs)
    assert (status, f"cannot be read: {reason}" in error) == (1, True)
    assert _listing(theirs / "train") == before


def _listing(folder):
    return {path: path.stat().st_size for path in folder.rglob("*")}


# Things are known by what they are.


def test_a_teacher_is_the_same_however_its_path_is_spelled(
    command, theirs, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    teacher = "--config.distill.teacher="
    assert command("file:distill", "own", f"{teacher}theirs/train")[0] == 0
    for spelled in ("./theirs/train", f"{theirs}/train", "theirs/../theirs/train"):
        assert command("file:distill", "own", teacher + spelled)[0] == 0, spelled
    monkeypatch.chdir("/")
    own = tmp_path / "own"
    assert command("file:distill", own)[0] == 0
    shutil.rmtree(own / "distill" / "0004")
    assert command("file:distill", own)[0] == 0  # it remembers where the teacher is
    theirs.rename(tmp_path / "moved")
    assert command("file:distill", own, f"{teacher}{tmp_path}/moved/train")[0] == 0


def test_another_teacher_in_the_same_place_is_refused(command, theirs, tmp_path):
    own, teacher = tmp_path / "own", f"--config.distill.teacher={theirs}/train"
    assert command("file:distill", own, teacher)[0] == 0
    shutil.rmtree(theirs)
    assert command("file:train", theirs, "--config.train.weight_decay=0.5")[0] == 0
    status, error = command("file:distill", own, teacher)
    assert status == 2
    assert "began with another teacher than" in error


def test_a_run_goes_on_with_the_data_it_began_with(command, tmp_path, monkeypatch):
    """As many images in another folder, or others under the same names, are others."""
    _images(tmp_path / "a", seed=0)
    _images(tmp_path / "b", seed=1)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    source = ("--config.data.source=folder", "--config.data.train_split=",
              "--config.data.held_out=0")  # fmt: skip
    path, workdir = "--config.data.path=", tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", _stopping_after(checkpoints.save, 2))
        assert command("file:train", workdir, *source, f"{path}{tmp_path}/a")[0] == 130
    status, error = command("file:train", workdir, f"{path}{tmp_path}/b")
    assert (status, "begun with another data set" in error) == (2, True)
    assert command("file:train", workdir, f"{path}{tmp_path}/copy")[0] == 0


def _images(folder, seed):
    folder.mkdir()
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 8, 8), np.uint8)
    for i, image in enumerate(pixels):
        PIL.Image.fromarray(image).save(folder / f"{i}.png")


def test_a_commit_is_only_that_of_our_own_repository(tmp_path, monkeypatch):
    """An installed package may lie in somebody else's."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=b"]
    installed = tmp_path / "site-packages" / "record.py"
    installed.parent.mkdir()
    installed.touch()
    (tmp_path / "theirs.py").touch()
    for words in (["init", "-q"], ["add", "theirs.py"], ["commit", "-qm", "theirs"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(record, "__file__", str(installed))
    assert record._commit() is None
    monkeypatch.setattr(record, "__file__", str(tmp_path / "theirs.py"))
    assert len(record._commit()) == 40


def test_a_workdir_that_is_made_anew_under_a_run_ends_it(
    command, tmp_path, monkeypatch
):
    """Its lock was on the file that is gone, so a second run has started beside it."""
    workdir = tmp_path / "run"
    save = checkpoints.save

    def save_elsewhere(*args):
        if not (tmp_path / "second").exists():
            workdir.rename(tmp_path / "second")
            shutil.copytree(tmp_path / "second", workdir)
        save(*args)

    monkeypatch.setattr(checkpoints, "save", save_elsewhere)
    status, error = command("file:train", workdir)
    assert (status, "was removed while in use" in error) == (1, True)
    assert not (workdir / "train" / "result.json").exists()


def test_a_lock_tells_that_its_workdir_was_made_anew(tmp_path):
    with layout.lock(tmp_path / "run") as check_still_there:
        check_still_there()
        shutil.rmtree(tmp_path / "run")
        with layout.lock(tmp_path / "run"):
            pass
        with pytest.raises(FileNotFoundError, match="removed while in use"):
            check_still_there()


# A workdir knows what its model is.


OVERRIDES = (
    "--config.model.num_classes=10", "--config.model.net=tiny:make_wider_net",
    "--config.diffusion.logsnr_max=15.0", "--config.seed=7", "--config.train.steps=8",
    "--config.train.batch_size=16", "--config.distill.start_steps=4",
    "--config.data.flip=true",
)  # fmt: skip


@pytest.fixture
def overridden(command, once, tmp_path):
    """A workdir whose base model was trained with eight overrides."""

    def train(folder):
        assert command("file:train", folder, *OVERRIDES)[0] == 0

    return shutil.copytree(once("overridden", train), tmp_path / "run")


def test_later_stages_need_not_be_told_again(command, overridden):
    before = _result(overridden / "train")
    for stages in ("distill", "sample", "evaluate", "export", "train"):
        status, error = command(f"file:{stages}", overridden)
        assert status == 0, error
    assert _result(overridden / "train") == before
    students = sorted(path.name for path in (overridden / "distill").glob("0*"))
    assert students == ["0001", "0002"]
    recorded = json.loads((overridden / "config.json").read_text())["config"]
    assert recorded["model"]["num_classes"] == 10
    assert recorded["distill"]["start_steps"] == 4
    loaded = vdiff_jax.load(overridden)
    assert loaded.trained.model.num_classes == 10
    assert float(loaded.schedule(jnp.float32(0))) == pytest.approx(15.0)


def test_a_config_file_that_is_gone_is_not_missed(command, overridden, tmp_path):
    (tmp_path / "small.py").unlink()
    for stage in ("distill", "sample", "export"):
        assert launch.main(["launch.py", f"--config={overridden}:{stage}"]) == 0


def test_a_config_file_that_has_changed_does_not_change_the_model(
    command, overridden, tmp_path
):
    text = FILE.replace("(stage)", '(stage, model={"num_classes": 3}, seed=9)')
    (tmp_path / "small.py").write_text(text)
    status, error = command("file:distill", overridden)
    assert status == 0
    assert "model.num_classes=10 (not 3)" in error
    assert _result(overridden / "distill" / "0001")["step"]


@pytest.mark.parametrize("stage", ["train", "distill", "sample", "evaluate", "export"])
def test_what_cannot_be_different_is_refused_by_name(command, overridden, stage):
    asked = ("--config.model.num_classes=3", "--config.diffusion.logsnr_max=9.0")
    status, error = command(f"file:{stage}", overridden, *asked)
    assert status == 2
    assert "model.num_classes: 10 there, 3 now" in error
    assert "diffusion.logsnr_max: 15.0 there, 9.0 now" in error


def test_a_run_is_made_longer_with_another_rate_and_says_so(command, overridden):
    before = _result(overridden / "train")
    asked = ("--config.train.steps=12", "--config.train.learning_rate=1e-4")
    assert command("file:train", overridden, *asked)[0] == 0
    after = _result(overridden / "train")
    assert (before["step"], after["step"]) == (8, 12)
    assert json.loads((overridden / "train" / "result.8.json").read_text()) == before
    changes = {
        (each["name"], each["after"]): each["updates_before"]
        for each in after["changes"]
    }
    assert changes == {
        ("steps", 12): {"train": 8}, ("learning_rate", 1e-4): {"train": 8},
    }  # fmt: skip
    recorded = json.loads((overridden / "config.json").read_text())
    assert recorded["changes"] == after["changes"]
    assert command("file:train", overridden)[0] == 0  # and nothing more
    assert _result(overridden / "train") == after


def test_a_longer_run_is_the_same_as_one_of_that_length(command, tmp_path):
    """As far as its learning rate does not depend on the length."""
    options = ("--config.train.decay=constant", "--config.train.sample_every_steps=0")
    short, long = tmp_path / "short", tmp_path / "long"
    assert command("file:train", long, *options, "--config.train.steps=10")[0] == 0
    assert command("file:train", short, *options)[0] == 0
    assert command("file:train", short, "--config.train.steps=10")[0] == 0
    expected = _result(long / "train")["params_sha256"]
    assert _result(short / "train")["params_sha256"] == expected


def test_students_go_on_by_one_and_with_other_updates(command, overridden):
    first = ("--config.distill.end_steps=2", "--config.distill.updates=4")
    assert command("file:distill", overridden, *first)[0] == 0
    before = _result(overridden / "distill" / "0002")
    more = ("--config.distill.end_steps=1", "--config.distill.updates=4, 1: 9")
    assert command("file:distill", overridden, *more)[0] == 0
    assert _result(overridden / "distill" / "0002") == before
    assert _result(overridden / "distill" / "0001")["step"] == 9
    ledger = json.loads((overridden / "distill" / "ladder.json").read_text())
    names = [[each["name"] for each in row.get("changes", [])] for row in ledger]
    assert names == [[], ["end_steps", "updates"]]


@pytest.mark.parametrize(
    ("stage", "asked", "way"),
    [
        ("train", "train.steps=20", "stays as it is"),
        ("train", "train.weight_decay=0.5", "train.init_from="),
        ("distill", "distill.updates=9", "of the students begun (2, 1)"),
        ("distill", "distill.weight=snr", "distill.teacher="),
    ],
)
def test_where_a_run_cannot_change_the_way_is_told(
    command, overridden, stage, asked, way
):
    assert command("file:distill", overridden)[0] == 0
    before = _hashes(overridden)
    status, error = command(f"file:{stage}", overridden, f"--config.{asked}")
    assert (status, way in error) == (2, True), error
    after = _hashes(overridden)
    assert {**after, pathlib.Path("lock"): ""} == {**before, pathlib.Path("lock"): ""}


def test_an_imported_model_learns_from_the_data_of_the_next_config(
    command, small_project, tmp_path
):
    """It came without data: those of the config that imported it were never read."""
    base = shutil.copytree(small_project, tmp_path / "base")
    assert command("file:export", base, "--config.export.model=base")[0] == 0
    file = base / "export" / "base-4step" / "safetensors" / "model.safetensors"
    other = ("--config.data.source=npz", "--config.data.flip=true")
    workdir = tmp_path / "run"
    source = f"--config.source.path={file}"
    assert command("file:import", workdir, source, *other)[0] == 0
    digits = ("--config.data.source=digits", "--config.data.flip=false")
    assert command("file:distill", workdir, *digits)[0] == 0
    assert (workdir / "distill" / "0001" / "result.json").exists()


def test_a_run_killed_inside_its_first_save_takes_another_length(
    command, small_project, tmp_path
):
    """It has no checkpoint, but the folder of one that was begun."""
    workdir = tmp_path / "run"
    (workdir / "train" / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir(parents=True)
    shutil.copy(small_project / "config.json", workdir)
    assert command("file:train", workdir, "--config.train.steps=2")[0] == 0
