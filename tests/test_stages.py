"""The path of the digits, shrunk: train, distill, evaluate, sample, and trouble."""

import gc
import json
import os
import shutil
import subprocess
import sys

import flax.linen as nn
import numpy as np
import PIL.Image
import pytest

import launch
import tiny
from configs import folder
from vdiff_jax.datasets.identity import sha256_of_sample
from vdiff_jax.datasets.shuffle import batch_indices
from vdiff_jax.files.fingerprints import DamagedError
from vdiff_jax.from_config import trainer
from vdiff_jax.from_config.data import make_source
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.step import compiled_train_step
from vdiff_jax.stages import replay
from vdiff_jax.training import checkpoints, origin
from vdiff_jax.training.loop import NonFiniteError
from vdiff_jax.workdir import layout, parameters
from vdiff_jax.workdir.layout import Project

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(small_project):
    """What holds here holds whatever the network."""
    return small_project


def _result(folder):
    return json.loads((folder / "result.json").read_text())


def _metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


class _StopAt:
    """Makes the compiled step fail at one of its calls, as a lost machine would."""

    def __init__(self, monkeypatch, call):
        make = compiled_train_step
        self.calls, self.steps = 0, []

        def made(*args, plain=False):
            step = make(*args, plain=plain)
            if plain:
                return step
            self.steps.append(step)

            def counted(*args):
                self.calls += 1
                if self.calls == call:
                    raise KeyboardInterrupt
                return step(*args)

            return counted

        monkeypatch.setattr(trainer, "compiled_train_step", made)


def test_training_leaves_what_the_design_says(project):
    folder = project / "train"
    result = _result(folder)
    assert result["step"] == 6
    assert result["images_per_second"] > 0
    assert result["skipped"] == 0
    assert np.isfinite(result["held_out_loss"])
    assert len(result["params_sha256"]) == 64
    assert (folder / "checkpoints" / "6").is_dir()
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [
        "00000004.png",
        "00000006.png",
    ]
    losses = [line["loss"] for line in _metrics(folder) if "loss" in line]
    assert len(losses) == 3
    assert json.loads((project / "config.json").read_text())["config"]["seed"] == 0


def test_each_student_starts_from_the_one_before(project):
    teacher = _result(project / "train")
    for num_steps, updates in ((4, 4), (2, 4), (1, 6)):
        student = _result(project / "distill" / f"{num_steps:04d}")
        assert student["num_steps"] == num_steps
        assert student["step"] == updates
        assert student["teacher_sha256"] == teacher["params_sha256"]
        assert student["params_sha256"] != teacher["params_sha256"]
        teacher = student


def test_the_ledger_of_the_ladder_says_what_every_student_came_from(project):
    ledger = json.loads((project / "distill" / "ladder.json").read_text())
    assert [row["num_steps"] for row in ledger] == [4, 2, 1]
    teacher = _result(project / "train")
    for row in ledger:
        student = _result(project / "distill" / f"{row['num_steps']:04d}")
        assert row["teacher_sha256"] == teacher["params_sha256"]
        assert row["params_sha256"] == student["params_sha256"]
        assert row["images"] == 8 * row["updates"] == 8 * student["step"]
        assert row["loss"] == student["loss"]
        assert row["seconds"] > 0
        teacher = student


def test_a_checkpoint_says_all_that_its_state_comes_from(project):
    path = project / "distill" / "0002" / "checkpoints" / "4" / "info" / "metadata"
    info = json.loads(path.read_text())
    teacher = _result(project / "distill" / "0004")
    assert info["teacher"] == str(project / "distill" / "0004")
    assert info["teacher_step"] == teacher["step"]
    assert info["teacher_sha256"] == teacher["params_sha256"]
    assert info["config"]["distill"]["updates"] == "4, 1: 6"
    sha256 = info["data"].pop("sha256_of_sample")
    assert sha256 == sha256_of_sample(make_source(tiny.small("train"), "train"))
    assert info["data"] == {"examples": 1617, "epoch": 0, "position": 32}
    assert info["run"] == "distill 4 -> 2"


def test_only_the_last_finished_student_is_read_again(project, tmp_path, monkeypatch):
    workdir = tmp_path / "copy"
    shutil.copytree(project, workdir)
    shutil.rmtree(workdir / "distill" / "0001")
    read = []
    restore = checkpoints.restore_ema
    monkeypatch.setattr(
        checkpoints,
        "restore_ema",
        lambda folder, *rest: [read.append(folder), restore(folder, *rest)][1],
    )
    launch.launch(tiny.small("distill"), workdir)
    assert read == [workdir / "distill" / "0002" / "checkpoints"]
    found = _result(workdir / "distill" / "0001")["params_sha256"]
    assert found == _result(project / "distill" / "0001")["params_sha256"]


# Of a damaged checkpoint Orbax leaves the errors of other arrays unseen.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_teacher_is_made_again_from_the_checkpoint_before(project, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(project, workdir)
    shutil.rmtree(workdir / "distill" / "0001")
    student = workdir / "distill" / "0002"
    for file in (student / "checkpoints" / "4" / "ema_params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(DamagedError, match="counts as unfinished"):
        launch.launch(tiny.small("distill"), workdir)
    gc.collect()
    assert (student / "damaged" / "4").is_dir()
    assert not (student / "result.json").exists()
    launch.launch(tiny.small("distill"), workdir)
    for place in ("distill/0002", "distill/0001"):
        found, expected = _result(workdir / place), _result(project / place)
        assert found["params_sha256"] == expected["params_sha256"]


def test_a_teacher_that_is_not_what_its_result_says_is_not_taken(project, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(project, workdir)
    shutil.rmtree(workdir / "distill")
    path = workdir / "train" / "result.json"
    path.write_text(json.dumps({**_result(workdir / "train"), "params_sha256": "0"}))
    with pytest.raises(DamagedError, match=r"and result\.json has 0"):
        launch.launch(tiny.small("distill"), workdir)


def test_a_run_does_not_go_on_with_another_teacher_or_other_data(project):
    data = {"examples": 7, "sha256_of_sample": "c"}
    info = {"teacher_sha256": "a", "data": data}
    origin._check_origin(info, info, project)
    origin._check_origin({**info, "data": {"examples": 7}}, info, project)  # of 0.1
    more, others = {**data, "examples": 8}, {**data, "sha256_of_sample": "d"}
    for other, message in (
        ({**info, "teacher_sha256": "b"}, "another teacher_sha256: a there, b now"),
        ({**info, "data": more}, "number of examples: 7 there, 8 now"),
        ({**info, "data": others}, "another data set: c there, d now"),
    ):
        with pytest.raises(ValueError, match=message):
            origin._check_origin(info, other, project)


def test_neither_saving_by_the_clock_nor_a_profile_changes_a_run(project, tmp_path):
    by_the_clock = {
        "checkpoint_every_steps": 0, "checkpoint_every_minutes": 1e-9,
        "keep_checkpoints": 9,
    }  # fmt: skip
    launch.launch(tiny.small("train", train=by_the_clock), tmp_path, profile=2)
    assert list((tmp_path / "train" / "profile").rglob("*.xplane.pb"))
    assert checkpoints.steps(tmp_path / "train" / "checkpoints") == [4, 6]
    found, expected = _result(tmp_path / "train"), _result(project / "train")
    assert found["params_sha256"] == expected["params_sha256"]


def test_a_second_run_in_a_workdir_is_refused_by_name(project, tmp_path):
    workdir = shutil.copytree(project, tmp_path / "copy")
    with layout.lock(workdir):
        with pytest.raises(
            ValueError, match=rf"Another run is at work in .*pid {os.getpid()}"
        ):
            launch.launch(tiny.small("train"), workdir)
        launch.launch(tiny.small("sample"), workdir)  # pictures can be drawn meanwhile
    launch.launch(tiny.small("train"), workdir)


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="Nothing can be written in"):
        launch.launch(tiny.small("train"), tmp_path / "file" / "run")


def test_a_finished_project_does_nothing_again(project, tmp_path, monkeypatch):
    _StopAt(monkeypatch, 1)
    workdir = shutil.copytree(project, tmp_path / "copy")
    launch.launch(tiny.small("train"), workdir)
    launch.launch(tiny.small("distill"), workdir)
    before = _result(project / "distill" / "0001")
    assert _result(workdir / "distill" / "0001") == before


def test_an_interrupted_project_ends_as_one_never_stopped(
    project, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        _StopAt(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            launch.launch(tiny.small("train"), tmp_path)
    assert checkpoints.latest_step(tmp_path / "train" / "checkpoints") in (2, 4)
    launch.launch(tiny.small("train"), tmp_path)
    with monkeypatch.context() as patch:
        _StopAt(patch, 4)  # the second call of the second student
        with pytest.raises(KeyboardInterrupt):
            launch.launch(tiny.small("distill"), tmp_path)
    assert checkpoints.latest_step(tmp_path / "distill" / "0002" / "checkpoints") == 2
    launch.launch(tiny.small("distill"), tmp_path)

    for place in ("train", "distill/0004", "distill/0002", "distill/0001"):
        found, expected = _result(tmp_path / place), _result(project / place)
        assert found["params_sha256"] == expected["params_sha256"]
        assert found["held_out_loss"] == expected["held_out_loss"]
        steps = [line["step"] for line in _metrics(tmp_path / place)]
        assert steps == [line["step"] for line in _metrics(project / place)]


def test_a_run_fed_from_the_host_ends_as_one_whose_data_are_on_the_device(
    project, tmp_path, monkeypatch
):
    data = {"on_device": "never", "held_out": 16, "workers": 1}
    config = tiny.small("train", data=data)
    with monkeypatch.context() as patch:
        _StopAt(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            launch.launch(config, tmp_path)
    launch.launch(config, tmp_path)
    found, expected = _result(tmp_path / "train"), _result(project / "train")
    assert found["params_sha256"] == expected["params_sha256"]
    assert found["held_out_loss"] == expected["held_out_loss"]


def test_the_whole_ladder_compiles_its_step_once(project, tmp_path, monkeypatch):
    spy = _StopAt(monkeypatch, -1)
    config = tiny.small("distill", distill={"teacher": str(project / "train")})
    launch.launch(config, tmp_path)
    (step,) = spy.steps
    assert spy.calls == 7
    assert step._cache_size() == 1


def test_the_template_for_a_folder_needs_its_three_fields_only(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(60):
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20, 30, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(path)
    config = folder.get_config("train")
    config.update(
        {
            "data": {"path": str(tmp_path / "pictures"), "image_size": 8},
            "model": {"num_classes": 2},
        }
    )
    config.update(  # and less of everything
        {
            "model": {"num_classes": 2, "net": "tiny:make_net"},
            "train": {"steps": 2, "batch_size": 8, "sample_steps": 2},
            "data": {"held_out": 8, "workers": 1},
        }
    )
    launch.launch(config, tmp_path / "workdir")
    result = _result(tmp_path / "workdir" / "train")
    assert result["step"] == 2
    assert np.isfinite(result["held_out_loss"])
    picture = tmp_path / "pictures" / "a" / "0.jpg"
    picture.write_bytes(picture.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"a/0\.jpg: cannot be read .*prepare"):
        launch.launch(config, tmp_path / "other")


def test_latents_are_trained_on_and_sampled_at_their_own_scale(tmp_path):
    # Latents of standard deviation 5 in five channels; the model sees 0.2 times them.
    rng = np.random.default_rng(0)
    latents = rng.normal(0.0, 5.0, (200, 8, 8, 5)).astype(np.float32)
    np.savez(tmp_path / "all.npz", latents=latents)
    data = {
        "source": "npz", "path": str(tmp_path / "all.npz"), "train_split": "",
        "held_out_fraction": 0.1, "latent_scale": 0.2, "channels": 5, "held_out": 8,
    }  # fmt: skip
    sample = {"num": 30, "batch_size": 30, "steps": 2}
    workdir = tmp_path / "workdir"
    for stage in ("train", "sample"):
        launch.launch(tiny.small(stage, data=data, sample=sample), workdir)
    # An untrained network predicts v = 0, so that x_hat = alpha z: of two DDIM steps
    # remains cos(pi / 4)^2 of the noise, here 5 * 0.5.
    drawn = np.load(workdir / "sample" / "latents.npz")["latents"]
    assert drawn.shape == (30, 8, 8, 5)
    assert 1.5 < drawn.std() < 3.5
    with PIL.Image.open(workdir / "sample_grid.png") as grid:
        assert grid.mode == "RGB"
    with pytest.raises(ValueError, match="compares images, and these data are latents"):
        launch.launch(tiny.small("evaluate", data=data, sample=sample), workdir)
    clipped = tiny.small("train", data=data, sample={**sample, "clip": "x"})
    with pytest.raises(ValueError, match=r"set sample\.clip='auto'"):
        launch.launch(clipped, tmp_path / "other")


class _OwnNet(nn.Module):
    out_channels: int

    @nn.compact
    def __call__(self, z_t, logsnr_t, label=None, *, train=False):
        del label, train
        return nn.Dense(self.out_channels)(z_t * logsnr_t[:, None, None, None])


def make_own_net(out_channels, num_classes):
    assert num_classes == 0
    return _OwnNet(out_channels)


def test_a_network_of_the_users_own_trains(tmp_path):
    config = tiny.small("train", model={"net": "test_stages:make_own_net"})
    launch.launch(config, tmp_path)
    assert _result(tmp_path / "train")["parameters"] == 2


def test_a_workdir_of_another_config_is_refused_by_field(project, tmp_path):
    workdir = shutil.copytree(project, tmp_path / "copy")
    before = (workdir / "config.json").read_text()
    changed = {"weight_decay": 0.5, "log_every_steps": 1}
    with pytest.raises(
        ValueError, match=r"train.weight_decay: 0.0 there, 0.5 now"
    ) as e:
        launch.launch(tiny.small("train", train=changed), workdir)
    assert "log_every_steps" not in str(e.value)
    assert "train.init_from=" in str(e.value)  # the way that there is
    asked = frozenset({"seed", "data.image_size"})
    other = tiny.small("train", seed=3, data={"image_size": 16})
    with pytest.raises(ValueError, match=r"data.image_size: 8 there, 16 now; seed: 0"):
        launch.launch(other, workdir, asked=asked)
    assert (workdir / "config.json").read_text() == before


def test_a_missing_teacher_is_never_replaced(tmp_path):
    with pytest.raises(ValueError, match="No finished teacher"):
        launch.launch(tiny.small("distill"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_teacher_of_another_architecture_is_refused(project, tmp_path):
    config = tiny.small(
        "distill",
        model={"net": "tiny:make_wider_net"},
        distill={"teacher": str(project / "train")},
    )
    with pytest.raises(ValueError, match="of another architecture"):
        launch.launch(config, tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_by_name(tmp_path):
    config = tiny.small("train", train={"learning_rate": 1e30})
    with pytest.raises(NonFiniteError, match=r"train: loss is (nan|inf) at step 2"):
        launch.launch(config, tmp_path)
    assert not (tmp_path / "train" / "result.json").exists()
    said = json.loads((tmp_path / "train" / "nonfinite" / "00000002.json").read_text())
    assert said["step"] == 2
    assert said["examples"] == batch_indices(1, batch_size=8, length=1617, seed=(0, 0))


def test_a_step_that_went_wrong_can_be_replayed(tmp_path, capsys):
    config = tiny.small(
        "train",
        train={"learning_rate": 1e30},
        model={"net": "test_stages:make_own_net"},
    )
    with pytest.raises(NonFiniteError):
        launch.launch(config, tmp_path)
    capsys.readouterr()
    replay.run(Project(config, tmp_path), launch.chosen_stages(config), 2)
    said = capsys.readouterr().out
    assert said.startswith("train, step 2:\n")
    # The first update made parameters of 1e30, which a product makes infinite.
    assert "numbers are not finite; from float32" in said
    assert "vdiff_jax/losses.py" in said
    assert (tmp_path / "train" / "nonfinite" / "00000002.txt").read_text() in said
    with pytest.raises(ValueError, match="train has steps 1 to 6"):
        replay.run(Project(config, tmp_path), launch.chosen_stages(config), 7)


def test_a_step_of_the_student_under_way_can_be_replayed(tmp_path, capsys):
    own = {"net": "test_stages:make_own_net"}
    for stage in ("train", "distill"):
        launch.launch(tiny.small(stage, model=own), tmp_path)
    (tmp_path / "distill" / "0001" / "result.json").unlink()
    config = tiny.small("distill", model=own)
    replay.run(Project(config, tmp_path), launch.chosen_stages(config), 3)
    assert "distill 2 -> 1, step 3:\nLoss and gradient" in capsys.readouterr().out


def test_updates_that_are_not_finite_can_be_skipped_and_are_counted(tmp_path):
    config = tiny.small("train", train={"learning_rate": 1e30, "on_nonfinite": "skip"})
    launch.launch(config, tmp_path)
    result = _result(tmp_path / "train")
    assert result["step"] == 6
    assert result["skipped"] == 5
    assert _metrics(tmp_path / "train")[0]["skipped"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config=configs/digits.py:trian"],
            "no stage 'trian'; the nearest is train",
        ),
        (["--config=configs/digits.py", "--config.train.stepz=1"], "stepz"),
        (["--config=configs/digits.py", "--config.train.steps=x"], "train.steps"),
        (["--config=configs/none.py"], "no config file or workdir configs/none.py"),
        (["--config=configs/digits.py", "--workdri=x"], "workdri"),
        ([], "No config is named"),
    ],
)
def test_the_command_turns_a_mistake_into_one_line_and_status_2(arguments, message):
    done = subprocess.run(
        [sys.executable, "launch.py", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_command_dry_runs_with_overrides(tmp_path):
    done = subprocess.run(
        [
            sys.executable, "launch.py", "--config=configs/cifar10.py:train",
            "--config.model.output=x", "--config.train.batch_size=64", "--dry_run",
            f"--workdir={tmp_path}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert said["parameters"] == 60_004_099
    assert said["config"]["train"]["batch_size"] == 64
    assert said["run"] == [
        {
            "stage": "train",
            "folder": f"{tmp_path}/train",
            "updates": 800_000,
            "status": "new",
        }
    ]


def test_hosts_that_meet_a_damaged_teacher_set_the_same_checkpoint_aside(
    small_project, tmp_path, monkeypatch
):
    """The slower one looks when the newest is already that before it."""
    workdir = shutil.copytree(small_project, tmp_path / "copy")
    run = workdir / "train"
    project = Project(tiny.small("train"), workdir)
    before = checkpoints.steps(run / "checkpoints")

    def damaged_on_both(*arguments):
        checkpoints.set_aside(run / "checkpoints", before[-1])  # the other is faster
        raise DamagedError("Damaged.")

    monkeypatch.setattr(parameters, "_params", damaged_on_both)
    with pytest.raises(DamagedError, match="counts as unfinished"):
        parameters.own_params(project, make_model(project.config), run)
    assert checkpoints.steps(run / "checkpoints") == before[:-1] != []
