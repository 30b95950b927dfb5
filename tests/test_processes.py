"""Runs of the command as processes: hurt in all ways, and on two hosts.

The short form of `make faults`, one fault of each kind and a few random kills; and two
processes joined by gloo over 127.0.0.1.
"""

import contextlib
import dataclasses
import json
import shutil

import numpy as np
import PIL.Image
import pytest

import store
from tests.faults.faults import FAULTS, SHORT
from tests.faults.runs import free_address, results
from vdiff_jax.files.place import path_of

pytestmark = pytest.mark.slow

SAMPLE = (
    "--config.sample.num=8",
    "--config.sample.batch_size=4",
    "--config.sample.steps=1",
)


# Those that start a run again and again, or wait for a lost host; and what the tests of
# damage and of signals see within a process too.
LONG = ("kills", "full_disk", "removed", "host_ends", "flipped", "sigint_twice")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if name in LONG else ())
        for name in SHORT
    ],
)
def test_a_run_survives(trial, name):
    outcomes = list(FAULTS[name](trial))
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    assert not failures
    assert sum(outcome.survived for outcome in outcomes) > 0


def test_the_logs_of_a_run_have_whole_lines_and_no_carriage_returns(trial):
    logs = [log.read_bytes() for log in trial.untouched.parent.glob("*.log")]
    assert len(logs) == 2
    for log in logs:
        assert b"images/s" in log
        assert b"\r" not in log


@contextlib.contextmanager
def _two_hosts(lab, workdir, stage, *flags):
    """A stage, under way on two hosts of one device."""
    one_device = dataclasses.replace(lab, devices=1)
    address = free_address()
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                one_device.run(
                    workdir,
                    stage,
                    f"--coordinator={address}",
                    "--num_processes=2",
                    f"--process_id={host}",
                    *flags,
                )
            )
            for host in (0, 1)
        ]


def _on_two_hosts(lab, workdir, stage, *flags):
    """Runs a stage on two hosts of one device; returns what each printed."""
    with _two_hosts(lab, workdir, stage, *flags) as hosts:
        statuses = [host.wait(240.0) for host in hosts]
        said = [host.said() for host in hosts]
    assert statuses == [0, 0], said
    return said


@pytest.fixture(scope="module")
def workdirs(trial, once):
    """The same stages on one host of two devices, and on two hosts of one."""

    def make(folder):
        one, two = shutil.copytree(trial.untouched, folder / "one"), folder / "two"
        for stage, flags in (("train", ()), ("distill", ()), ("sample", SAMPLE)):
            said = _on_two_hosts(trial.lab, two, stage, *flags)
            # Only the first host shows its progress.
            assert "images/s" in said[0]
            assert "images/s" not in said[1]
        trial.lab.finish(one, "sample", *SAMPLE)

    folder = once("hosts", make)
    return folder / "one", folder / "two"


@pytest.mark.long
def test_a_state_that_is_split_over_two_hosts_is_trained_to_its_end(trial, tmp_path):
    """Its fingerprint is made by both; once the first waited for ever."""
    _on_two_hosts(trial.lab, tmp_path / "run", "train", "--config.parallel.fsdp=2")
    found = json.loads((tmp_path / "run/train/result.json").read_text())
    expected = json.loads((trial.untouched / "train/result.json").read_text())
    assert found["step"] == expected["step"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)


def _metrics(workdir, place):
    lines = (workdir / place / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.long
@pytest.mark.parametrize("place", ["train", "distill/0004", "distill/0001"])
def test_two_hosts_have_the_losses_of_one(workdirs, place):
    one, two = (_metrics(workdir, place) for workdir in workdirs)
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for name in ("loss", "held_out_loss"):
        values = [[m[name] for m in metrics if name in m] for metrics in (one, two)]
        assert values[0]
        np.testing.assert_allclose(*values, rtol=1e-3)


@pytest.mark.long
def test_two_hosts_leave_the_files_of_one(workdirs):
    def files(workdir):
        found = {p.relative_to(workdir) for p in workdir.rglob("*") if p.is_file()}
        return {
            str(path)
            for path in found
            if "checkpoints" not in path.parts and "tensorboard" not in path.parts
        }

    one, two = map(files, workdirs)
    assert one == two
    ledgers = [json.loads((w / "distill/ladder.json").read_text()) for w in workdirs]
    for ledger in ledgers:
        assert [row["num_steps"] for row in ledger] == [4, 2, 1]


@pytest.mark.long
def test_two_hosts_draw_the_pictures_of_one(workdirs):
    one, two = (
        [
            np.asarray(PIL.Image.open(w / "sample" / f"{i:06d}.png"), int)
            for i in range(8)
        ]
        for w in workdirs
    )
    # Of two models that differ by the order of sums in 120 + 120 updates.
    assert np.abs(np.array(one) - np.array(two)).mean() < 2
    assert np.std(one) > 10


@pytest.mark.long
def test_two_hosts_of_one_workdir_in_a_store_are_killed_and_end_as_on_a_disk(
    trial, workdirs, monkeypatch
):
    pytest.importorskip("moto")
    with store.server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        workdir = f"s3://{store.BUCKET}/two"
        checkpoints = path_of(workdir) / "train" / "checkpoints"

        def saves():
            return checkpoints.is_dir() and (checkpoints / "40").is_dir()

        with _two_hosts(trial.lab, workdir, "train") as hosts:
            assert hosts[0].wait_for(saves)
            for host in hosts:
                host.kill()
        assert not (path_of(workdir) / "train" / "result.json").exists()
        _on_two_hosts(trial.lab, workdir, "train")
        assert results(path_of(workdir))["train"] == results(workdirs[1])["train"]
