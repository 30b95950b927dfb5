"""Workdirs and data in an object store: all that holds on a disk, on a real server."""

import contextlib
import errno
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import PIL.Image
import pytest

import launch
import store
import tiny
import tiny_digits
import vdiff_jax
from disks import full_disk
from vdiff_jax.datasets.catalog import open_source
from vdiff_jax.datasets.prepare import pool
from vdiff_jax.datasets.prepare.__main__ import main as prepare
from vdiff_jax.datasets.tfds import TfdsFiles
from vdiff_jax.files import lease, locks
from vdiff_jax.files import place as places
from vdiff_jax.files.atomic import replacing, write_json
from vdiff_jax.files.holders import holder_of
from vdiff_jax.files.place import StorePath, check_reachable, in_order, path_of
from vdiff_jax.generation.grids import save_image
from vdiff_jax.training import checkpoints, lines
from vdiff_jax.workdir.layout import lock

pytestmark = [
    pytest.mark.slow,
    # Of the clients' own.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ROOT = pathlib.Path(__file__).parents[1]
LENGTH = 16
IMAGES = {
    "name": "", "split_name": "", "split": "train", "image_shape": (8, 8, 3),
    "resize": "area",
}  # fmt: skip


@pytest.fixture(scope="module")
def client():
    """The environment of a client, which this process has too."""
    pytest.importorskip("moto")
    with store.server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        _forget_clients()
        yield environment
    _forget_clients()


@pytest.fixture
def url(client, request):
    """A place in the store of this test's own."""
    del client
    return f"s3://{store.BUCKET}/{request.node.name.partition('[')[0]}"


@pytest.fixture(scope="module")
def remote(client):
    """A workdir in the store with the models of `small_project`."""
    del client
    workdir = path_of(f"s3://{store.BUCKET}/remote/run")
    for stage in ("train", "distill"):
        launch.launch(tiny.small(stage), workdir)
    return workdir


@pytest.fixture
def short_lease(monkeypatch):
    monkeypatch.setattr(lease, "SECONDS", 2.0)


def _forget_clients():
    places._filesystem.cache_clear()
    importlib.import_module("s3fs").S3FileSystem.clear_instance_cache()


def _sha256(workdir, place="train"):
    return json.loads((workdir / place / "result.json").read_text())["params_sha256"]


def _logged(workdir, place="train"):
    texts = (workdir / place / "metrics.jsonl").read_text().splitlines()
    return [(line["step"], line.get("loss")) for line in map(json.loads, texts)]


def _names(workdir):
    """The files of a workdir, without those whose names are of a moment."""
    files = [path for path in workdir.rglob("*") if path.is_file()]
    names = {path.relative_to(workdir).as_posix() for path in files}
    passing = ("tensorboard", "/checkpoints/", "lock")
    return {name for name in names if not any(word in name for word in passing)}


def test_models_in_a_store_are_those_on_a_disk(remote, small_project):
    for place in ("train", "distill/0004", "distill/0002", "distill/0001"):
        assert _sha256(remote, place) == _sha256(small_project, place)
        assert _logged(remote, place) == _logged(small_project, place)
    assert _names(remote) == _names(small_project)
    events = [path.name for path in (remote / "train" / "tensorboard").iterdir()]
    assert events
    assert len(events) == len(set(events))


def test_load_draws_from_a_store_what_it_draws_from_a_disk(remote, small_project):
    for below in ("", "train", "distill/0002"):
        there = vdiff_jax.load(str(remote / below) if below else str(remote))
        here = vdiff_jax.load(small_project / below)
        np.testing.assert_array_equal(there.sample(2), here.sample(2))


def test_models_are_sampled_measured_and_exported_into_a_store(remote):
    for stage in ("sample", "export"):
        launch.launch(tiny.small(stage), remote)
    config = tiny.small("evaluate")
    config.evaluate.update({"num": 16, "reference_steps": 2, "repeats": 1})
    config.evaluate.update({"likelihood_num": 0, "features": ("pixels",)})
    launch.launch(config, remote)
    names = _names(remote)
    assert {"sample/000000.png", "sample/sample.json", "sample_grid.png"} <= names
    assert {"evaluate/ladder.json", "evaluate/report.html"} <= names
    rows = json.loads((remote / "evaluate" / "ladder.json").read_text())
    assert {row["model"] for row in rows} == {"base", "distilled"}
    (weights,) = [name for name in names if name.endswith(".safetensors")]
    loaded = vdiff_jax.load(str(remote / weights))
    student = vdiff_jax.load(str(remote / "distill" / "0004"))
    np.testing.assert_array_equal(loaded.sample(2), student.sample(2))


def test_a_workdir_in_a_store_is_a_config(remote, capsys):
    command = ["launch.py", "--config", f"{remote}:sample", "--dry_run"]
    assert launch.main(command) == 0
    assert json.loads(capsys.readouterr().out)["config"]["sample"]["num"] == 5


def test_status_of_the_models_is_that_on_a_disk(remote, small_project, capsys):
    rows = []
    for workdir in (remote, small_project):
        assert launch.main(["launch.py", "--status", "--config", str(workdir)]) == 0
        lines = capsys.readouterr().out.splitlines()
        rows.append([line[:52] for line in lines if line[:5] in ("train", "disti")])
    assert rows[0] == rows[1]
    assert len(rows[0]) == 4
    assert all("finished" in row for row in rows[0])


def _long():
    config = tiny.small("train")
    config.train.update(
        {"steps": LENGTH, "eval_every_steps": 0, "sample_every_steps": 0}
    )
    return config


def _start(url):
    """Starts the run of `_long` in a process of its own."""
    program = (
        "import jax; jax.config.update('jax_num_cpu_devices', 2);"
        "jax.config.update('jax_disable_most_optimizations', True);"
        "import launch, test_object_store as here;"
        "from vdiff_jax.files.place import path_of;"
        f"launch.launch(here._long(), path_of({url!r}))"
    )
    folders = [ROOT, ROOT / "tests", os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    return subprocess.Popen([sys.executable, "-c", program], env=environment, cwd=ROOT)


def _under_way(folder):
    """The steps of checkpoints that have begun and are not whole."""
    begun = {int(path.name) for path in folder.iterdir() if path.name.isdigit()}
    return begun - set(checkpoints.steps(folder))


def test_a_run_killed_inside_a_save_goes_on_to_the_same_bits(url, tmp_path):
    workdir, here = path_of(url), tmp_path / "run"
    launch.launch(_long(), here)
    folder = workdir / "train" / "checkpoints"
    child = _start(url)
    try:
        while not any(step > 4 for step in _under_way(folder)):
            assert child.poll() is None, "it was done before it was killed"
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
    assert _under_way(folder)
    assert not (workdir / "train" / "result.json").exists()
    began = time.monotonic()
    launch.launch(_long(), workdir)  # the lock of a dead run of this machine is free
    assert time.monotonic() - began < lease.SECONDS
    assert _sha256(workdir) == _sha256(here)
    assert _logged(workdir) == _logged(here)
    assert not _under_way(folder)


def test_a_damaged_checkpoint_is_set_aside(url, small_project):
    workdir = path_of(url)
    launch.launch(tiny.small("train"), workdir)
    folder = workdir / "train" / "checkpoints"
    newest = max(checkpoints.steps(folder))
    files = (folder / str(newest) / "ema_params").rglob("*")
    data = max((path for path in files if "/d/" in str(path)), key=_size)
    data.write_bytes(data.read_bytes()[: _size(data) // 2])
    (workdir / "train" / "result.json").unlink()
    launch.launch(tiny.small("train"), workdir)
    assert (workdir / "train" / "damaged" / str(newest)).is_dir()
    assert _sha256(workdir) == _sha256(small_project)


def _size(path):
    return len(path.read_bytes())


def test_a_lock_that_is_held_names_its_holder(url, short_lease):
    with lock(path_of(url)) as check:
        seen = holder_of(path_of(url) / "lock")
        assert (seen.pid, seen.lives) == (os.getpid(), True)
        time.sleep(1.5 * lease.SECONDS)  # renewed meanwhile
        with (
            pytest.raises(ValueError, match=f"host .*, pid {os.getpid()}"),
            lock(path_of(url)),
        ):
            pass
        check()
    assert holder_of(path_of(url) / "lock") is None
    with lock(path_of(url)):  # released
        pass


def _left_by_a_dead_run(url, **content):
    path = path_of(url) / "lock"
    held = {"host": "gone", "pid": 7, "machine": "gone", "token": "x", **content}
    held |= {"seconds": lease.SECONDS, "since": time.time()}
    path.write_text(json.dumps(held))
    return path


def test_a_dead_run_loses_its_lock(url, short_lease, capsys):
    _left_by_a_dead_run(url)
    began = time.monotonic()
    with lock(path_of(url)):
        assert time.monotonic() - began >= lease.SECONDS
    assert "host gone, pid 7" in capsys.readouterr().err


def test_a_dead_run_of_this_machine_loses_its_lock_at_once(url):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    _left_by_a_dead_run(url, host="here", pid=child.pid, machine=lease._machine())
    assert holder_of(path_of(url) / "lock").lives is False
    began = time.monotonic()
    with lock(path_of(url)):
        assert time.monotonic() - began < 5


def test_of_two_that_take_a_dead_runs_lock_one_gets_it(url, short_lease):
    path, got = _left_by_a_dead_run(url), []
    leave = threading.Barrier(2)

    def take():
        with contextlib.suppress(locks.HeldError), locks.lock(path):
            got.append(threading.get_ident())
            with contextlib.suppress(threading.BrokenBarrierError):
                leave.wait(3 * lease.SECONDS)

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1


def test_a_run_that_lost_its_lock_writes_no_more(url, short_lease):
    workdir = path_of(url)
    with lock(workdir) as check:
        write_json(workdir / "before.json", 1)
        _left_by_a_dead_run(url, host="another")
        time.sleep(lease.SECONDS)
        with pytest.raises(OSError, match=r"lost its lease.*host another"):
            write_json(workdir / "after.json", 2)
        with pytest.raises(OSError, match="lost its lease"):
            check()
    assert not (workdir / "after.json").exists()
    assert "another" in (workdir / "lock").read_text()  # and takes nothing away


def test_a_result_is_whole_or_not_there(url):
    folder = path_of(url)
    write_json(folder / "a.json", "old")
    with contextlib.suppress(KeyError), replacing(folder / "a.json") as half:
        half.write_text("half")
        raise KeyError
    assert json.loads((folder / "a.json").read_text()) == "old"
    with replacing(folder / "sample") as half:
        half.mkdir()
        (half / "0.png").write_text("image")
        (half / "sample.json").write_text("{}")
    with replacing(folder / "sample") as half:
        half.mkdir()
        (half / "1.png").write_text("image")
    assert [path.name for path in (folder / "sample").iterdir()] == ["1.png"]


def test_a_full_disk_of_this_machine_is_reported_by_name(url, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = path_of(url) / "grid.png"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with pytest.raises(OSError, match=f"large: '{tmp_path}/.*/grid.png'"), full_disk():
        save_image(path, pixels)
    assert not path.exists()
    assert not list(tmp_path.iterdir())


def test_what_marks_a_result_comes_last():
    root = pathlib.Path("r")
    names = ["a.json", "x/1/commit_success.txt", "x/commit_success.txt", "x/1/d", "z"]
    ordered = in_order([root / name for name in names], root)
    assert [path.relative_to(root).as_posix() for path in ordered] == [
        "z", "x/1/d", "x/1/commit_success.txt", "x/commit_success.txt", "a.json",
    ]  # fmt: skip


def test_lines_beyond_a_step_are_dropped(url):
    path = path_of(url) / "metrics.jsonl"
    first = lines.of(path)
    for step in (1, 2, 3):
        first.append(json.dumps({"step": step}) + "\n")
    first.flush()
    second = lines.of(path)
    second.drop_later(2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    second.append(json.dumps({"step": 3, "again": True}) + "\n")
    second.flush()
    assert path.read_text().endswith('{"step": 2}\n{"step": 3, "again": true}\n')
    lines.of(path).drop_later(0)
    assert path.read_text() == ""


def test_a_place_in_a_store_is_a_path(url):
    path = path_of(f"{url}/")
    assert isinstance(path, StorePath)
    assert [str(path), str(path / "a" / "b.c")] == [url, f"{url}/a/b.c"]
    assert ((path / "a" / "b.c").parent.name, (path / "b.c").suffix) == ("a", ".c")
    assert path_of(path) == path.resolve() == path.absolute() == path
    assert path_of("runs/x") == pathlib.Path("runs/x")
    assert not path.exists()
    (path / "a" / "b.c").write_text("é\n")
    assert (path / "a").is_dir()
    assert (path / "a" / "b.c").is_file()
    assert (path / "a" / "b.c").read_text() == "é\n"
    assert list(path.glob("*/b.*")) == list(path.rglob("*")) == [path / "a" / "b.c"]
    (path / "a").rename(path / "new" / "a")
    assert list(path.rglob("*")) == [path / "new" / "a" / "b.c"]
    for wrong in ("s3://", "s3://bucket/a b", "gs://bucket/../x", "s3://bucket/a[1]"):
        with pytest.raises(ValueError, match="no place in an object store"):
            path_of(wrong)


@pytest.fixture
def photos(tmp_path):
    """A folder of images of two classes."""
    draws = np.random.default_rng(0)
    for name in ("cat/0.png", "cat/1.png", "dog/0.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = draws.integers(0, 256, (12, 12, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(path)
    return tmp_path / "photos"


def test_data_are_prepared_into_a_store_and_read_from_it(
    url, photos, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("VDIFF_JAX_CACHE", str(tmp_path / "cache"))
    shape = ["--size", "8", "--format", "npz", "--workers", "0"]
    for out in (f"{url}/pets", str(tmp_path / "pets")):
        assert prepare([str(photos), "--out", out, *shape]) == 0
    assert prepare([str(photos), "--out", f"{url}/pets", *shape]) == 0  # done already
    assert (path_of(url) / "pets" / "prepared.json").is_file()
    assert prepare([str(photos), "--out", f"{url}/lmdb", "--size", "8"]) == 2
    assert "add --format npz" in capsys.readouterr().err
    path_of(f"{url}/photos").upload(photos)
    for kind, there, here in (
        ("npz", path_of(url) / "pets", tmp_path / "pets"),
        ("folder", path_of(url) / "photos", photos),
    ):
        remote = open_source(kind, path=there, **IMAGES)
        local = open_source(kind, path=here, **IMAGES)
        assert remote.classes == local.classes == ("cat", "dog")
        for i in range(3):
            np.testing.assert_array_equal(remote[i]["image"], local[i]["image"])
            assert remote[i]["label"] == local[i]["label"]
    with pytest.raises(ValueError, match=r"LMDB is read from a disk"):
        open_source("lmdb", path=path_of(url), **IMAGES)
    with pytest.raises(ValueError, match=r"data\.path='s3://none/x' cannot be used"):
        open_source("npz", path=path_of("s3://none/x"), **IMAGES)


def test_a_data_set_of_tfds_is_read_from_a_store(url, tmp_path, monkeypatch):
    monkeypatch.setenv("VDIFF_JAX_CACHE", str(tmp_path / "cache"))
    tiny_digits.prepare(tmp_path / "tfds")
    path_of(url).upload(tmp_path / "tfds")
    there = TfdsFiles("tiny_digits", "test", path_of(url))
    here = TfdsFiles("tiny_digits", "test", tmp_path / "tfds")
    assert len(there) == len(here)
    assert there.read(7) == here.read(7)


def _line(capsys):
    """The one line of an error."""
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def _train(workdir):
    return launch.main(["launch.py", "--config", "digits:train", "--workdir", workdir])


@pytest.mark.usefixtures("client")
def test_a_bucket_that_is_not_there(capsys):
    assert _train("s3://no-such-bucket/run") == 2
    line = _line(capsys)
    assert "--workdir='s3://no-such-bucket/run'" in line
    assert "make the bucket" in line


@pytest.fixture
def other_client(client, monkeypatch):
    """Lets a test change the environment of the clients."""
    del client
    _forget_clients()
    yield monkeypatch
    monkeypatch.undo()
    _forget_clients()


def test_no_credentials(other_client, capsys, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        other_client.delenv(name)
    other_client.setenv("HOME", str(tmp_path))
    assert _train("s3://bucket/run") == 2
    line = _line(capsys)
    assert "credentials" in line
    assert "set AWS_ACCESS_KEY_ID" in line


def test_a_package_that_is_missing(other_client, capsys):
    other_client.setitem(sys.modules, "s3fs", None)
    assert _train("s3://bucket/run") == 2
    assert "pip install 'vdiff_jax[s3]'" in _line(capsys)


def test_a_store_that_does_not_answer(other_client, capsys):
    other_client.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert _train("s3://bucket/run") == 2
    assert "AWS_ENDPOINT_URL" in _line(capsys)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (403, "may list, read and write"),
        # Asked for again and again, for half a minute.
        pytest.param(503, "slow down", marks=pytest.mark.long),
    ],
)
def test_a_store_that_refuses(client, other_client, capsys, status, says):
    with store.front(client["AWS_ENDPOINT_URL"], lambda _: status) as address:
        other_client.setenv("AWS_ENDPOINT_URL", address)
        assert _train("s3://bucket/run") == 2
    assert says in _line(capsys)


@pytest.mark.long
def test_a_store_that_refuses_at_times_changes_no_bit(
    client, other_client, url, small_project
):
    refusals = []

    def refused(number):
        if number % 7 != 3:
            return 0
        refusals.append(number)
        return 503

    with store.front(client["AWS_ENDPOINT_URL"], refused) as address:
        other_client.setenv("AWS_ENDPOINT_URL", address)
        launch.launch(tiny.small("train"), path_of(url))
        assert _sha256(path_of(url)) == _sha256(small_project)
    assert len(refusals) > 10


def test_a_place_on_this_machine_is_not_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    check_reachable(pathlib.Path("nowhere"), "--workdir")


def test_an_upload_that_fails_is_all_that_is_done_again(
    url, photos, tmp_path, monkeypatch
):
    monkeypatch.setenv("VDIFF_JAX_CACHE", str(tmp_path / "cache"))
    line = [str(photos), "--out", f"{url}/pets", "--format", "npz", "--workers", "0"]
    line += ["--size", "8", "16"]
    ask, uploads = StorePath._ask, []

    def fail(self, name, *arguments, **options):
        uploads.extend(arguments[:1] if name == "put_file" else ())
        if len(uploads) == 2:
            raise OSError(errno.EIO, "Please slow down", str(self))
        return ask(self, name, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StorePath, "_ask", fail)
        assert prepare(line) == 1
    assert len(uploads) == 2
    monkeypatch.setattr(pool, "convert", lambda *_: 1 / 0)
    assert prepare([*line[:-1], "12"]) == 2  # another task
    assert prepare(line) == 0
    names = sorted(path.name for path in path_of(f"{url}/pets").rglob("*"))
    assert names == ["16.npz", "8.npz", "prepared.json"]
    assert not list((tmp_path / "cache").rglob("pets.partial"))
    source = open_source("npz", path=path_of(url) / "pets", **IMAGES)
    assert [source[i]["label"] for i in range(3)] == [0, 0, 1]
