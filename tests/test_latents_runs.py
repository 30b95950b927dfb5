"""Runs of latents and of contexts: resumed, spread over devices, replayed, drawn."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

import launch
import tiny_latents
from vdiff_jax.datasets.npz import Npz
from vdiff_jax.distillation.role import BASE, GUIDED, student
from vdiff_jax.from_config import trainer
from vdiff_jax.from_config.step import compiled_train_step
from vdiff_jax.stages import replay
from vdiff_jax.training import checkpoints
from vdiff_jax.workdir.layout import Project
from vdiff_jax.workdir.trained import find

pytestmark = pytest.mark.slow
HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def data(once):
    """An autoencoder, and data of each kind; for reading."""
    return once("latents_data", tiny_latents.write)


# Over devices and hosts.


def _child(data, *arguments):
    return subprocess.Popen(
        [sys.executable, HERE / "latent_devices.py", data, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(HERE.parent)},
    )


def _told(child):
    out, errors = child.communicate(timeout=500)
    assert child.returncode == 0, errors[-3000:]
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def told(data):
    """What latent_devices.py prints on 1 device, on 8, and on two hosts of 4."""
    one, eight = _told(_child(data, 1)), _told(_child(data, 8))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    children = [_child(data, 4, address, host) for host in (0, 1)]
    hosts = [_told(child) for child in children]
    return {
        "alone": one,
        **eight,
        **{f"{name} on host {i}": x for i in (0, 1) for name, x in hosts[i].items()},
    }


WAYS = (
    "images", "images fsdp", "images accumulated", "images streamed",
    "images on host 0", "images on host 1", "moments", "u_net", "u_net fsdp",
    "texts", "texts fsdp", "texts accumulated", "texts streamed", "texts pmap",
    "texts on host 0", "texts on host 1", "guide", "guide fsdp", "progressive",
    "matching", "matching fsdp",
)  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_twenty_steps_have_the_same_losses_in_every_way(told, way):
    """Contexts are left out, moments drawn and images encoded and mirrored alike."""
    found, expected = told[way], told["alone"][way.split()[0]]
    assert len(expected["losses"]) == 20
    assert np.std(expected["losses"]) > 0
    np.testing.assert_allclose(found["losses"][0], expected["losses"][0], rtol=2e-6)
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=2e-4)
    np.testing.assert_allclose(found["norm"], expected["norm"], rtol=1e-5)
    assert (found["auxiliary_norm"] > 0) == way.startswith("matching")
    if "pmap" not in way:
        assert found["batches"] == expected["batches"]
    if "fsdp" in way:
        assert found["bytes_here"] == 0.5


@pytest.mark.long
@pytest.mark.parametrize("kind", ["images", "texts"])
def test_data_on_the_device_or_from_the_host_train_to_the_same_bits(told, kind):
    assert told[f"{kind} streamed"] == told[kind]


@pytest.mark.long
@pytest.mark.parametrize(
    "way", ["drawn", "drawn by 16", "drawn on host 0", "drawn on host 1"]
)
def test_an_image_of_a_context_is_the_same_in_every_way(told, way):
    expected = np.array(told["alone"]["drawn"])
    assert expected.std() > 20
    error = np.abs(np.array(told[way]) - expected)
    assert error.max() <= 1  # the rounding to a pixel
    assert (error > 0).mean() < 0.01


# Interrupted and resumed.

STUDENT = student(2)
MATCHING = {"method": "moment_matching"}


def _launch(stage, kind, folder, workdir, **changes):
    launch.launch(tiny_latents.config(stage, kind, folder, **changes), workdir)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    tiny_latents.use_small_net(monkeypatch)


@pytest.fixture(scope="module")
def untouched(data, once):
    """Runs that nothing happened to; for reading."""

    def make(folder):
        with pytest.MonkeyPatch.context() as patch:
            tiny_latents.use_small_net(patch)
            for kind in ("images", "moments"):
                _launch("train", kind, data, folder / kind)
            for stage in ("train", "guide", "distill"):
                _launch(stage, "texts", data, folder / "texts")
            _launch("distill", "texts", data, folder / "texts", distill=MATCHING)

    return once("latents_runs", make)


def _results(workdir):
    kept = ("params_sha256", "loss", "held_out_loss", "step")
    results = {}
    for path in sorted(workdir.rglob("result.json")):
        result = json.loads(path.read_text())
        results[str(path.relative_to(workdir))] = {name: result[name] for name in kept}
    return results


def _stopped_and_resumed(call, *arguments, **changes):
    """Launches; at one of its calls the step fails, as a lost machine would."""
    calls = []

    def made(*args, plain=False):
        step = compiled_train_step(*args, plain=plain)

        def counted(*args):
            calls.append(args)
            if len(calls) == call:
                raise KeyboardInterrupt
            return step(*args)

        return step if plain else counted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "compiled_train_step", made)
        with pytest.raises(KeyboardInterrupt):
            _launch(*arguments, **changes)
    _launch(*arguments, **changes)


@pytest.mark.parametrize("on_device", ["always", "never"])
@pytest.mark.parametrize("kind", ["images", "moments"])
def test_a_stopped_run_of_latents_ends_as_one_never_stopped(
    data, untouched, tmp_path, kind, on_device
):
    changes = {"data": {"on_device": on_device}}
    _stopped_and_resumed(3, "train", kind, data, tmp_path, **changes)
    assert checkpoints.steps(tmp_path / "train" / "checkpoints")
    assert _results(tmp_path) == _results(untouched / kind)


@pytest.mark.parametrize("on_device", ["always", "never"])
def test_stopped_runs_of_contexts_end_as_those_never_stopped(
    data, untouched, tmp_path, on_device
):
    changes = {"data": {"on_device": on_device}}
    for stage in ("train", "guide", "distill"):
        _stopped_and_resumed(2, stage, "texts", data, tmp_path, **changes)
    changes["distill"] = MATCHING
    _stopped_and_resumed(3, "distill", "texts", data, tmp_path, **changes)
    results = _results(tmp_path)
    assert len(results) == 6
    assert results == _results(untouched / "texts")


@pytest.mark.parametrize("role", [BASE, GUIDED, STUDENT], ids=str)
def test_weight_decay_leaves_the_null_context_as_the_data_have_it(
    data, untouched, role
):
    config = tiny_latents.config("sample", "texts", data)
    model = find(Project(config, untouched / "texts"), role)
    null = Npz(data / "texts" / "train.npz").null_context
    params = model.params()
    np.testing.assert_array_equal(params["null_context"], null.context)
    np.testing.assert_array_equal(params["null_mask"], null.mask)


# Replayed.


@pytest.mark.parametrize("kind", tiny_latents.KINDS)
def test_a_step_can_be_replayed(data, untouched, tmp_path, kind, capsys):
    workdir = shutil.copytree(untouched / kind, tmp_path / "copy")
    config = tiny_latents.config("train", kind, data)
    replay.run(Project(config, workdir), launch.chosen_stages(config), 3)
    assert "train, step 3:\nLoss and gradient are finite" in capsys.readouterr().out


def test_a_step_of_a_guided_student_can_be_replayed(data, untouched, tmp_path, capsys):
    workdir = shutil.copytree(untouched / "texts", tmp_path / "copy")
    (workdir / "distill_moment_matching" / "0001" / "result.json").unlink()
    config = tiny_latents.config("distill", "texts", data, distill=MATCHING)
    replay.run(Project(config, workdir), launch.chosen_stages(config), 3)
    assert "step 3:\nLoss and gradient are finite" in capsys.readouterr().out
