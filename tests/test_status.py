"""`--status`: how far every stage is, for who only looks."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest

import launch
from vdiff_jax.command.parse import parse
from vdiff_jax.files.holders import holder_of
from vdiff_jax.files.locks import lock
from vdiff_jax.stages.status import command, page
from vdiff_jax.stages.status.look import look
from vdiff_jax.training.lines import last_lines

HOUR = 3600.0


def _text(workdir, *flags):
    return page.text(look(parse(["launch.py", f"--config={workdir}", *flags])))


def _row(text, name):
    """The state and the numbers of a row, and the lines below it in one."""
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(f"{name}  "))
    below = []
    for line in lines[at + 1 :]:
        if not line.startswith("    "):
            break
        below.append(line.strip())
    ends = (20, 30, 52, 61, 70, 80)
    columns = [lines[at][a:b].strip() for a, b in zip((0, *ends), ends, strict=False)]
    return columns, " ".join(below)


@pytest.fixture
def workdir(small_project, tmp_path):
    """A workdir of its own with a base model and its students of 4, 2 and 1 steps."""
    return pathlib.Path(shutil.copytree(small_project, tmp_path / "workdir"))


def _unfinished(workdir, place):
    """A run that has ended as if it had been killed after its last checkpoint but one.

    Its checkpoints are of steps 2 and 4, of 4 updates; or of 4 and 6, of 6.
    """
    folder = workdir / place
    (folder / "result.json").unlink()
    last = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(last)
    return folder


def _made_old(folder):
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (time.time() - HOUR, time.time() - HOUR))


def _all(folder):
    return {
        path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in [folder, *folder.rglob("*")]
    }


def test_finished_runs_have_their_results(small_project):
    before = _all(small_project)
    text = _text(small_project)
    assert _all(small_project) == before
    assert "nobody is at work" in text
    for name, place in (
        ("train", "train"), ("distill 4", "distill/0004"),
        ("distill 2", "distill/0002"), ("distill 1", "distill/0001"),
    ):  # fmt: skip
        result = json.loads((small_project / place / "result.json").read_text())
        (_, state, updates, _, loss, held_out), below = _row(text, name)
        assert (state, int(updates)) == ("finished", result["step"])
        assert float(loss) == pytest.approx(result["loss"], rel=1e-3)
        assert float(held_out) == pytest.approx(result["held_out_loss"], rel=1e-3)
        assert not below
    assert _row(text, "evaluate")[0][1] == "not begun"
    assert max(map(len, text.splitlines())) <= 80


def test_a_run_that_nobody_holds_is_stopped_at_its_checkpoint(workdir):
    _unfinished(workdir, "distill/0001")
    text = _text(workdir)
    row, below = _row(text, "distill 1")
    assert row[1:3] == ["stopped", "4 / 6"]
    assert "checkpoint of step 4" in below
    shutil.rmtree(workdir / "distill" / "0001")
    row, below = _row(_text(workdir), "distill 1")
    assert row[1:3] == ["not begun", "0 / 6"]
    assert not below


def _log(folder, lines):
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_under_way_tells_its_speed_and_the_time_left(workdir):
    text = (workdir / "config.json").read_text()
    record = json.loads(text)
    record["config"]["distill"]["updates"] = "100000"
    (workdir / "config.json").write_text(json.dumps(record))
    shutil.rmtree(workdir / "distill" / "0001")
    folder = _unfinished(workdir, "distill/0002")
    with lock(workdir / "lock"):
        now = time.time()
        # Every second two updates of 8 images, and a pause before these.
        speeds = {"updates_per_second": 5.0, "images_per_second": 40.0}
        _log(
            folder,
            [
                {"step": 60, "time": now - 9 * HOUR, "loss": 9.0, **speeds},
                {"step": 80, "time": now + 1, "loss": 8.0, **speeds},
                {"step": 90, "held_out_loss": 0.25},
                {"step": 100, "time": now + 11, "loss": 0.5, **speeds},
            ],
        )
        text = _text(workdir)
    (_, state, updates, images, loss, held_out), below = _row(text, "distill 2")
    assert (state, updates) == ("running", "100 / 100,000")
    assert (images, loss, held_out) == ("16", "0.5", "0.25")
    # 99,900 / 2 s for this one, and 100,000 / 2 s more for the next.
    assert "13 h 52 min left, 1 d 3 h with the students after it" in below
    assert f"pid {os.getpid()}, since" in text
    assert _row(text, "distill 1")[0][1] == "not begun"


@pytest.mark.parametrize("times", [[{}, {}], [{"time": 4e9}, {"time": 4e9}]])
def test_lines_of_no_time_tell_the_speed_of_the_updates_alone(workdir, times):
    """Those of an earlier version have none, and a clock may stand still."""
    folder = _unfinished(workdir, "train")
    with lock(workdir / "lock"):
        speeds = {"updates_per_second": 0.5, "images_per_second": 4.0}
        steps = ({"step": 2, **times[0]}, {"step": 4, **times[1]})
        _log(folder, [{**step, "loss": 0.5, **speeds} for step in steps])
        (_, state, _, images, *_), below = _row(_text(workdir), "train")
    assert (state, images) == ("running", "4")
    assert below.startswith("4 s left;")


def test_a_process_of_another_host_is_judged_by_what_it_writes(workdir):
    folder = _unfinished(workdir, "distill/0001")
    (workdir / "lock").write_text("host elsewhere, pid 17\n")
    (folder / "metrics.jsonl").touch()
    text = _text(workdir)
    assert "at work: host elsewhere, pid 17" in text
    assert _row(text, "distill 1")[0][1] == "running"
    _made_old(workdir)
    text = _text(workdir)
    assert "cannot ask" in text.replace("\n", " ")
    row, below = _row(text, "distill 1")
    assert row[1] == "silent"
    assert "last written to 1 h ago" in below
    os.utime(workdir / "lock")  # taken since, by one that has not come so far
    assert _row(_text(workdir), "distill 1")[0][1] == "stopped"


def test_the_name_of_a_dead_process_in_a_lock_means_nothing(tmp_path):
    path = tmp_path / "lock"
    assert holder_of(path) is None
    with lock(path):
        held = holder_of(path)
        assert (held.pid, held.lives) == (os.getpid(), True)
        assert held.since == pytest.approx(time.time(), abs=60)
    assert holder_of(path).lives is False


def test_looking_keeps_nobody_out(workdir):
    """A lock that is asked for while somebody looks is had at once."""
    with lock(workdir / "lock") as held:
        _text(workdir)
        assert held.keeps_others_out()
    with lock(workdir / "lock"):
        pass


def test_an_evaluation_counts_its_candidates(workdir):
    row = {
        "model": "base", "sampler": "ddim", "steps": 8, "metric": "fd", "value": 1.0,
        "evaluations": 8,
    }  # fmt: skip
    parts = workdir / "evaluate" / "parts"
    (parts / "key").mkdir(parents=True)
    (parts / "ladder.json").write_text(json.dumps([row, {**row, "metric": "kid"}]))
    (parts / "key" / "0-00000000.npz").touch()
    (_, state, measured, *_), below = _row(_text(workdir), "evaluate")
    total = int(re.fullmatch(r"1 / (\d+) measured", measured)[1])
    assert state == "stopped"
    assert total > 1
    assert "1 part of the next drawn" in below
    with lock(workdir / "lock"):
        os.utime(parts)
        assert _row(_text(workdir), "evaluate")[0][1] == "running"
    assert _text(workdir, "--config.evaluate.steps=1") != _text(workdir)


def test_the_page_of_the_docs_is_of_these_columns(small_project):
    docs = pathlib.Path(launch.__file__).parent / "docs" / "workdir.md"
    header = next(line for line in _text(small_project).splitlines() if "held" in line)
    assert f"    {header}\n" in docs.read_text(encoding="utf-8")


def test_only_the_stages_that_are_named_are_shown(small_project):
    text = _text(f"{small_project}:train")
    assert "train" in text
    assert "distill" not in text
    assert "evaluate" not in text


@pytest.mark.parametrize("main", [launch.main, command.main])
@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--config=digits", "--workdir={}/nothing"], "There is no workdir"),
        (["--config={}/nothing"], "no config file or workdir"),
        (["--config=digits", "--workdir={}"], "holds runs of another config"),
        (["--config=digits:train", "--workdir={}"], "holds runs of another config"),
        (["--config={}:sample"], "--status is for train, guide, distill, evaluate"),
    ],
)
def test_what_cannot_be_watched_is_one_line_and_status_2(
    small_project, capsys, main, flags, line
):
    words = [flag.format(small_project) for flag in flags]
    assert main(["launch.py", *words, "--status"]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1


LOOK = """
import runpy, sys
sys.argv = ["launch.py", *sys.argv[1:]]
try:
    runpy.run_path("launch.py", run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {"matplotlib", "orbax", "tensorboardX", "tensorflow", "torch"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
from jax._src import xla_bridge
assert not xla_bridge._backends, "a device was started"
"""


def test_it_imports_little_and_starts_no_device(small_project):
    done = subprocess.run(
        [sys.executable, "-c", LOOK, f"--config={small_project}", "--status"],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(launch.__file__).parent,
    )
    assert done.returncode == 0, done.stderr
    assert "distill 4" in done.stdout


def test_the_last_lines_of_a_file_are_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_lines(path) == []
    lines = [{"step": step, "text": "x" * 1000} for step in range(1000)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1')
    last = last_lines(path)
    assert last == lines[-len(last) :]
    assert 100 < len(last) < 1000


def test_an_unreadable_result_is_one_line(workdir, capsys):
    (workdir / "train" / "result.json").write_text("{")
    assert launch.main(["launch.py", f"--config={workdir}", "--status"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
