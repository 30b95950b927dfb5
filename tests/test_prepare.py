import dataclasses
import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import time
import zipfile

import numpy as np
import PIL.Image
import pytest

from vdiff_jax.datasets.folder import Folder
from vdiff_jax.datasets.images import Fit, Images
from vdiff_jax.datasets.lmdb import Lmdb
from vdiff_jax.datasets.npz import Npz
from vdiff_jax.datasets.prepare import archives, pool, writers
from vdiff_jax.datasets.prepare import work as command
from vdiff_jax.datasets.prepare.__main__ import main
from vdiff_jax.datasets.prepare.task import Task
from vdiff_jax.datasets.prepare.work import prepare


def _noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _photos(root, classes=("ant", "bee"), count=3, side=(20, 14)):
    """JPEG files in class folders."""
    for i, name in enumerate(f"{c}/{k:03d}.jpg" for c in classes for k in range(count)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(_noise(*side, 3, seed=i)).save(root / name)
    return root


def _task(path, out, **options):
    return Task(path, out, **{"sizes": (8,), "format": "lmdb"} | options)


def _open(task, size=8, split=""):
    if task.format == "npz":
        return Npz(task.out / split / f"{size}.npz")
    return Images(Lmdb(task.out / split, size), Fit(size, task.channels))


def _everything(source):
    examples = [source[i] for i in range(len(source))]
    images = np.stack([example["image"] for example in examples])
    return images, [int(example.get("label", -1)) for example in examples]


def _same(source, other):
    for ours, theirs in zip(_everything(source), _everything(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [source.name(i) for i in range(len(source))] == [
        other.name(i) for i in range(len(other))
    ]
    assert source.classes == other.classes


@pytest.mark.parametrize("format", writers.FORMATS)
@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_prepared_is_what_the_folder_gives(tmp_path, format, workers):
    photos = _photos(tmp_path / "photos", count=40)
    task = _task(photos, tmp_path / "out", sizes=(8, 12), format=format)
    about = prepare(dataclasses.replace(task, workers=workers))
    assert about["splits"][""]["pictures"] == 80
    for size in (8, 12):
        _same(_open(task, size), Images(Folder(photos), Fit(size, 3)))
    # Nothing but what a reader needs is left, and under no other name.
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    expected = ["12.npz", "8.npz"] if format == "npz" else ["data.mdb"]
    assert left == [*expected, "prepared.json"]
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("resize", ["area", "bilinear", "lanczos"])
def test_pictures_are_resized_as_asked_and_may_be_grey(tmp_path, resize):
    photos = _photos(tmp_path / "photos", side=(64, 48))
    task = _task(photos, tmp_path / "out", resize=resize, channels=1, format="npz")
    prepare(task)
    assert _open(task)[0]["image"].shape == (8, 8, 1)
    _same(_open(task), Images(Folder(photos), Fit(8, 1, resize)))


def _archives(photos, around=""):
    """The same photos as a zip, a tar and compressed tars."""
    files = [path for path in sorted(photos.rglob("*")) if path.is_file()][::-1]
    with zipfile.ZipFile(photos.with_suffix(".zip"), "w") as archive:
        for path in files:
            archive.write(path, f"{around}{path.relative_to(photos).as_posix()}")
        archive.writestr("__MACOSX/._ant.jpg", b"not a picture")
    yield photos.with_suffix(".zip")
    for mode in ("", "gz", "bz2", "xz"):
        path = photos.with_suffix(f".tar.{mode}" if mode else ".tar")
        with tarfile.open(path, f"w:{mode}") as archive:
            for file in files:
                name = f"{around}{file.relative_to(photos).as_posix()}"
                archive.add(file, name)
        yield path


@pytest.mark.parametrize("around", ["", "photos/"])
def test_archives_give_what_their_folder_gives(tmp_path, around):
    photos = _photos(tmp_path / "photos")
    for i, archive in enumerate(_archives(photos, around)):
        task = _task(archive, tmp_path / f"out{i}", format="npz")
        prepare(task)
        _same(_open(task), Images(Folder(photos), Fit(8, 3)))


def test_splits_are_prepared_side_by_side(tmp_path):
    for split in ("train", "test"):
        _photos(tmp_path / "photos" / split, count=2 + (split == "train"))
    for path in (tmp_path / "photos", *_archives(tmp_path / "photos", "cars/")):
        task = _task(path, tmp_path / f"out{path.suffix}", splits=("train", "test"))
        prepare(task)
        for split, count in (("train", 6), ("test", 4)):
            assert len(_open(task, split=split)) == count
            folder = Folder(tmp_path / "photos" / split)
            _same(_open(task, split=split), Images(folder, Fit(8, 3)))


def test_splits_may_be_named_with_the_folder_around_them(tmp_path):
    for split in ("train", "test"):
        _photos(tmp_path / "photos" / split)
    splits = ("cars/train", "cars/test")
    archive = next(_archives(tmp_path / "photos", "cars/"))
    task = _task(archive, tmp_path / "out", splits=splits)
    assert prepare(task)["splits"]["cars/test"]["pictures"] == 6


def test_splits_of_other_classes_are_refused(tmp_path):
    _photos(tmp_path / "photos" / "train")
    _photos(tmp_path / "photos" / "test", classes=("ant", "cow"))
    splits = ("train", "test")
    with pytest.raises(ValueError, match=r"different classes: .*cow"):
        prepare(_task(tmp_path / "photos", tmp_path / "out", splits=splits))
    with pytest.raises(ValueError, match="no images in a folder 'valid'"):
        prepare(_task(tmp_path / "photos", tmp_path / "out", splits=("valid",)))


def _spoil(photos):
    whole = (photos / "ant" / "001.jpg").read_bytes()
    (photos / "ant" / "001.jpg").write_bytes(whole[:-100])
    (photos / "bee" / "002.jpg").write_bytes(b"")


@pytest.mark.parametrize("format", writers.FORMATS)
def test_files_that_cannot_be_read_are_left_out_and_named(tmp_path, capsys, format):
    photos = _photos(tmp_path / "photos")
    expected = Images(Folder(photos), Fit(8, 3))
    kept = [0, 2, 3, 4]
    images, labels = (np.asarray(each)[kept] for each in _everything(expected))
    _spoil(photos)
    out = tmp_path / "out"
    arguments = [str(photos), f"--out={out}", "--size=8", f"--format={format}"]
    assert main([*arguments, "--workers=0"]) == 0
    said = capsys.readouterr().out
    assert "4 images at 8, 2 classes, 2 unreadable files left out" in said
    assert "ant/001.jpg cannot be read as JPEG, PNG or WebP (image file is trun" in said
    assert "bee/002.jpg cannot be read as JPEG, PNG or WebP (it is empty)" in said
    there = json.loads((out / "prepared.json").read_text())["splits"][""]
    assert sorted(there["unreadable"]) == ["ant/001.jpg", "bee/002.jpg"]
    found = _everything(_open(_task(photos, out, format=format)))
    np.testing.assert_array_equal(found[0], images)
    np.testing.assert_array_equal(found[1], labels)


def test_a_class_keeps_its_number_if_none_of_its_files_is_left(tmp_path):
    photos = _photos(tmp_path / "photos", classes=("ant", "bee", "cow"), count=1)
    (photos / "bee" / "001.jpg").write_bytes(b"")
    (photos / "bee" / "000.jpg").write_bytes(b"")
    task = _task(photos, tmp_path / "out", format="npz")
    prepare(task)
    assert _everything(_open(task))[1] == [0, 2]
    assert _open(task).classes == ("ant", "bee", "cow")


def test_strict_ends_at_a_file_that_cannot_be_read(tmp_path, capsys):
    photos = _photos(tmp_path / "photos")
    _spoil(photos)
    arguments = [str(photos), f"--out={tmp_path / 'out'}", "--size=8", "--workers=0"]
    assert main([*arguments, "--strict"]) == 2
    said = capsys.readouterr().err
    assert "prepare: ant/001.jpg in" in said
    assert "Without --strict it is left out" in said
    assert not (tmp_path / "out").exists()
    # Mended, the same command ends well.
    _photos(tmp_path / "photos")
    assert main([*arguments, "--strict"]) == 0


def test_a_folder_of_nothing_readable_makes_no_output(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"None of the 1 files .*a\.png: cannot be"):
        prepare(_task(tmp_path / "photos", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/evil.png"])
def test_an_archive_with_unsafe_names_is_refused(tmp_path, kind, name):
    photos = _photos(tmp_path / "photos")
    path = tmp_path / f"photos.{kind}"
    picture = photos / "ant" / "000.jpg"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(picture, "ant/000.jpg")
            archive.writestr(zipfile.ZipInfo(name), picture.read_bytes())
    else:
        with tarfile.open(path, "w") as archive:
            member = tarfile.TarInfo(name)
            member.size = picture.stat().st_size
            with picture.open("rb") as file:
                archive.addfile(member, file)
    with pytest.raises(ValueError, match=rf"photos\.{kind} has a member .*evil\.png'"):
        prepare(_task(path, tmp_path / "out"))
    assert sorted(tmp_path.rglob("evil*")) == []
    assert not (tmp_path / "out.partial").exists()


def test_names_of_an_archive_that_differ_in_case_are_two_pictures(tmp_path):
    photos = _photos(tmp_path / "photos", classes=("ant",), count=2)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(photos / "ant" / "000.jpg", "A.jpg")
        archive.write(photos / "ant" / "001.jpg", "a.jpg")
    task = _task(tmp_path / "a.zip", tmp_path / "out", format="npz")
    prepare(task)
    source, expected = _open(task), Images(Folder(photos), Fit(8, 3))
    assert [source.name(i) for i in (0, 1)] == ["A.jpg", "a.jpg"]
    np.testing.assert_array_equal(_everything(source)[0], _everything(expected)[0])


def test_damaged_archives_and_members_are_named(tmp_path):
    photos = _photos(tmp_path / "photos")
    (tmp_path / "a.zip").write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match=r"a\.zip is not a folder, a zip or a tar"):
        prepare(_task(tmp_path / "a.zip", tmp_path / "out"))
    archives = {path.suffix: path for path in _archives(photos)}
    # One byte of one picture: the zip's own checksum finds it.
    data = bytearray(archives[".zip"].read_bytes())
    at = data.index((photos / "bee" / "001.jpg").read_bytes())
    data[at + 100] ^= 1
    archives[".zip"].write_bytes(data)
    about = prepare(_task(archives[".zip"], tmp_path / "out"))
    assert list(about["splits"][""]["unreadable"]) == ["bee/001.jpg"]


@pytest.mark.parametrize("suffix", [".tar", ".gz", ".bz2", ".xz", ".zip"])
def test_an_archive_that_is_cut_off_is_refused_by_name(tmp_path, suffix):
    photos = _photos(tmp_path / "photos")
    archives = {path.suffix: path for path in _archives(photos)}
    path = archives[suffix]
    # Of a tar, within a member: 512 bytes are its header.
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(
        ValueError, match=rf"photos.*{suffix} is (damaged or cut|not a)"
    ):
        prepare(_task(path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_damaged_member_of_a_compressed_zip_is_left_out_by_name(tmp_path):
    photos = _photos(tmp_path / "photos", count=2)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(photos.rglob("*.jpg")):
            archive.write(path, path.relative_to(photos).as_posix())
        start = archive.getinfo("bee/000.jpg").header_offset
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[start + 41] = 0xFF  # the first byte of its compressed data: no such block
    (tmp_path / "a.zip").write_bytes(data)
    about = prepare(_task(tmp_path / "a.zip", tmp_path / "out"))
    unreadable = about["splits"][""]["unreadable"]
    assert list(unreadable) == ["bee/000.jpg"]
    assert "is damaged in the archive" in unreadable["bee/000.jpg"]


def test_looking_at_a_finished_compressed_tar_again_leaves_nothing(tmp_path):
    archives = {path.suffix: path for path in _archives(_photos(tmp_path / "photos"))}
    task = _task(archives[".gz"], tmp_path / "out")
    assert prepare(task) == prepare(task)
    assert not (tmp_path / "out.partial").exists()


def test_a_map_that_is_full_grows(tmp_path):
    writer = writers.LmdbWriter(tmp_path, (8,), map_size=2**16)
    pictures = [(_noise(2**12, seed=i).tobytes(),) for i in range(200)]
    for first in range(0, 200, 20):
        writer.write(first, pictures[first : first + 20])
    writer.finish([str(i) for i in range(200)], None, ())
    writer.close()
    source = Lmdb(tmp_path, 8)
    assert len(source) == 200
    for i, (picture,) in enumerate(pictures):
        assert source.read(i) == (picture, None)


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("format", writers.FORMATS)
@pytest.mark.parametrize("moment", range(7))
def test_whatever_interrupts_it_the_same_command_goes_on(
    tmp_path, monkeypatch, format, moment
):
    monkeypatch.setattr(command, "CHUNK", 2)
    photos = _photos(tmp_path / "photos")
    _spoil(photos)
    whole = _task(photos, tmp_path / "whole", format=format)
    prepare(whole)
    task = _task(photos, tmp_path / "out", format=format)
    write_json, calls = command.write_json, []

    def interrupted(path, value):
        calls.append(path)
        if len(calls) == moment + 1:
            raise _Killed
        write_json(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(command, "write_json", interrupted)
        if moment < 6:  # there are six writes: task, three chunks, finished, prepared
            with pytest.raises(_Killed):
                prepare(task)
            assert not task.out.exists()
        else:
            prepare(task)
            assert len(calls) == 6
    convert, converted = writers.convert, []

    def counted(files, *arguments):
        converted.extend(files)
        return convert(files, *arguments)

    monkeypatch.setattr(pool, "convert", counted)
    prepare(task)
    _same(_open(task), _open(whole))
    # What was done is not done again: 6 files, in chunks of 2.
    assert len(converted) == {0: 6, 1: 6, 2: 4, 3: 2}.get(moment, 0)
    assert sorted(path.name for path in task.out.rglob("*")) == sorted(
        path.name for path in whole.out.rglob("*")
    )


def test_a_process_that_is_killed_loses_nothing_that_was_written(tmp_path):
    photos = _photos(tmp_path / "photos", count=300, side=(200, 200))
    out = tmp_path / "out"
    line = [sys.executable, "-m", "vdiff_jax.datasets.prepare", str(photos)]
    line += [f"--out={out}", "--size=64", "--workers=1"]
    progress = tmp_path / "out.partial" / "progress.json"
    child = subprocess.Popen(line, stderr=subprocess.DEVNULL, start_new_session=True)
    while not (progress.exists() and json.loads(progress.read_text())["inputs"] >= 64):
        assert child.poll() is None
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    done = json.loads(progress.read_text())["inputs"]
    assert 0 < done < 600
    assert not out.exists()
    again = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "600 images at 64, 2 classes, 0 unreadable" in again.stdout
    task = _task(photos, out, sizes=(64,))
    _same(_open(task, 64), Images(Folder(photos), Fit(64, 3)))


@pytest.mark.parametrize(
    ("method", "workers"), [("read", 0), ("read", 2), ("identity", 0)]
)
def test_an_input_that_goes_away_makes_no_output_until_it_is_back(
    tmp_path, monkeypatch, capsys, method, workers
):
    monkeypatch.setattr(command, "CHUNK", 2)
    photos = _photos(tmp_path / "photos")
    _spoil(photos)
    whole = prepare(_task(photos, tmp_path / "whole"))
    read = getattr(archives._FolderInput, method)

    def gone(self, name):
        if name.startswith("bee"):
            raise OSError(errno.EIO, "Input/output error", name)
        return read(self, name)

    line = [str(photos), f"--out={tmp_path / 'out'}", "--size=8"]
    line += [f"--workers={workers}"]
    with monkeypatch.context() as patch:
        patch.setattr(archives._FolderInput, method, gone)
        assert main(line) == 1
    said = capsys.readouterr().err
    assert "bee/00" in said
    assert "the same command goes on when that is mended" in said
    assert not (tmp_path / "out").exists()
    assert main(line) == 0
    about = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert about["splits"] == whole["splits"]
    _same(
        _open(_task(photos, tmp_path / "out")), _open(_task(photos, tmp_path / "whole"))
    )


def test_a_finished_output_is_not_said_to_be_of_others_as_its_input_goes_away(
    tmp_path, monkeypatch, capsys
):
    photos = _photos(tmp_path / "photos")
    line = [str(photos), f"--out={tmp_path / 'out'}", "--size=8", "--workers=0"]
    assert main(line) == 0

    def gone(self, name):
        raise OSError(errno.ESTALE, "Stale file handle", name)

    monkeypatch.setattr(archives._FolderInput, "identity", gone)
    os.utime(photos / "ant" / "000.jpg")  # so that content is looked at
    assert main(line) == 1
    assert "Stale file handle" in capsys.readouterr().err


@pytest.mark.parametrize("moment", range(4))
def test_what_is_killed_while_it_tidies_is_not_taken_for_another_task(
    tmp_path, monkeypatch, moment
):
    photos = _photos(tmp_path / "photos")
    task = _task(photos, tmp_path / "out", format="npz")
    unlink, removed = pathlib.Path.unlink, []

    def killed(path, **options):
        if "out.partial" in path.parts and not path.name.startswith("."):
            if len(removed) == moment:
                raise _Killed
            removed.append(path.name)
        unlink(path, **options)

    replace = os.replace

    def unpublished(path, target):
        if target == task.out:
            raise _Killed
        replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "unlink", killed)
        patch.setattr(os, "replace", unpublished)
        with pytest.raises(_Killed):
            prepare(task)
    assert len(removed) == min(moment, 3)  # pixels, progress and the task
    with pytest.raises(ValueError, match="begun from other files or in another way"):
        prepare(dataclasses.replace(task, resize="lanczos"))
    prepare(task)
    _same(_open(task), Images(Folder(photos), Fit(8, 3)))


@pytest.mark.parametrize("format", writers.FORMATS)
def test_a_full_disk_is_said_and_what_was_written_is_kept(tmp_path, format):
    photos = _photos(tmp_path / "photos", count=60)
    line = [sys.executable, "-m", "vdiff_jax.datasets.prepare", str(photos)]
    line += [f"--out={tmp_path / 'out'}", "--size=64", "--workers=0"]
    line += [f"--format={format}"]
    # No file may grow beyond 256 KiB, as on a disk that is full.
    code = (
        "import resource, runpy, sys; sys.argv = sys.argv[1:];"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18));"
        "runpy.run_module('vdiff_jax.datasets.prepare', run_name='__main__')"
    )
    full = subprocess.run(
        [sys.executable, "-c", code, *line[2:]], capture_output=True, text=True
    )
    assert full.returncode == 1
    said = full.stderr.splitlines()[-1]
    assert said.startswith("prepare: ")
    assert "the same command goes on when that is mended" in said
    assert "Traceback" not in full.stderr
    assert not (tmp_path / "out").exists()
    subprocess.run(line, check=True, capture_output=True)
    task = _task(photos, tmp_path / "out", sizes=(64,), format=format)
    _same(_open(task, 64), Images(Folder(photos), Fit(64, 3)))


def test_nothing_of_another_task_is_overwritten_or_continued(tmp_path, monkeypatch):
    photos = _photos(tmp_path / "photos")
    task = _task(photos, tmp_path / "out")
    prepare(task)
    before = {path: path.stat() for path in task.out.rglob("*")}
    prepare(task)  # done already
    assert {path: path.stat() for path in task.out.rglob("*")} == before
    for change in ({"sizes": (16,)}, {"format": "npz"}, {"resize": "lanczos"}):
        with pytest.raises(ValueError, match="out is there already, and was not made"):
            prepare(dataclasses.replace(task, **change))
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="mine is there already, and was not made"):
        prepare(_task(photos, tmp_path / "mine"))
    with monkeypatch.context() as patch:
        patch.setattr(command, "_prepare_split", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(_task(photos, tmp_path / "begun"))
    _photos(tmp_path / "photos", classes=("ant",), count=4)  # one more
    with pytest.raises(ValueError, match=r"begun\.partial was begun from other files"):
        prepare(_task(photos, tmp_path / "begun"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--out=out", "--size=8"], "nowhere is not a folder"),
        ([".", "--out=../out", "--size=8"], "no images"),
        ([".", "--out=out", "--size=0"], "must be at least 1, got 0"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    tmp_path, monkeypatch, capsys, arguments, message
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert list(tmp_path.rglob("*")) == [tmp_path / "here"]
