"""A large folder is listed once, and again after any change of it."""

import concurrent.futures
import multiprocessing
import os
import pathlib
import pickle
import shutil
import time

import numpy as np
import pytest

from vdiff_jax.datasets import array_files, folder, kept_listings
from vdiff_jax.datasets.folder import Folder

SECOND = 10**9


@pytest.fixture
def listed(monkeypatch, tmp_path):
    """The folders that are listed anew, while all is kept that can be."""
    calls = []

    def list_folder(root, trail):
        calls.append(root)
        return listing(root, trail)

    listing = folder.list_folder
    monkeypatch.setattr(folder, "list_folder", list_folder)
    monkeypatch.setattr(kept_listings, "LEAST_IMAGES", 1)
    monkeypatch.setattr(kept_listings, "SETTLED_NS", 0)
    monkeypatch.setattr(array_files, "MAPPED_FROM_BYTES", 150)  # the names
    monkeypatch.setenv("VDIFF_JAX_CACHE", str(tmp_path / "cache"))
    return calls


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "images"
    for name in ("ant/1.png", "ant/2.png", "bee/3.jpg", "bee/deep/4.png", "bee/a.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    time.sleep(0.02)  # the file system's clock has ticked
    return root


def _content(source):
    """All that a folder tells."""
    reads = [source.read(i) for i in range(len(source))]
    names = [source.name(i) for i in range(len(source))]
    labels = None if source.labels is None else source.labels.tolist()
    return reads, names, labels, source.classes, source.unread


def _anew(root, monkeypatch):
    """The same without anything that was kept."""
    with monkeypatch.context() as patch:
        patch.setattr(kept_listings, "_path", lambda root: None)
        return _content(Folder(root))


def test_a_folder_that_is_the_same_is_not_listed_again(root, listed, monkeypatch):
    expected = _anew(root, monkeypatch)
    assert [_content(Folder(root)) for _ in range(3)] == [expected] * 3
    assert listed == [root] * 2  # without what is kept, and with it
    assert len(expected[0]) == 4
    assert "1 that end in .txt (bee/a.txt)" in expected[-1][0]


def _labels(root, text='{"labels": [["ant/1.png", 2]]}'):
    (root / "dataset.json").write_text(text)


CHANGES = {
    "added": lambda root: (root / "ant" / "0.png").write_bytes(b"new"),
    "added below": lambda root: (root / "bee" / "deep" / "0.png").write_bytes(b"new"),
    "removed": lambda root: (root / "ant" / "1.png").unlink(),
    "renamed": lambda root: (root / "ant" / "1.png").rename(root / "ant" / "0.png"),
    "of another class": lambda root: (root / "ant" / "1.png").rename(
        root / "bee/1.png"
    ),
    "a class renamed": lambda root: (root / "ant").rename(root / "cow"),
    "a new class": lambda root: shutil.copytree(root / "ant", root / "cow"),
    "a class removed": lambda root: shutil.rmtree(root / "ant"),
    "labels": lambda root: _labels(root, '{"labels": null}'),
    "other files": lambda root: (root / "bee" / "b.csv").write_text("x"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change, root, listed, monkeypatch):
    before = _content(Folder(root))
    CHANGES[change](root)
    after = _content(Folder(root))
    assert after == _anew(root, monkeypatch) != before


def test_a_change_is_seen_whose_times_are_set_back(root, listed, monkeypatch):
    before, stat = _content(Folder(root)), (root / "ant").stat()
    (root / "ant" / "0.png").write_bytes(b"new")
    os.utime(root / "ant", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert _content(Folder(root)) == _anew(root, monkeypatch) != before


def test_labels_that_change_in_their_place_are_seen(root, listed):
    text = '{"labels": [["ant/1.png", %d], ["ant/2.png", 0], ["bee/3.jpg", 0],'
    text += ' ["bee/deep/4.png", 0]]}'
    _labels(root, text % 1)
    time.sleep(0.02)
    assert Folder(root).labels.tolist() == [1, 0, 0, 0]
    assert Folder(root).classes == ("0", "1")
    assert len(listed) == 1
    _labels(root, text % 2)
    assert Folder(root).labels.tolist() == [2, 0, 0, 0]


def test_a_folder_changed_a_moment_ago_is_not_kept(root, listed, monkeypatch):
    monkeypatch.setattr(kept_listings, "SETTLED_NS", 100 * SECOND)
    for _ in range(2):
        Folder(root)
    assert len(listed) == 2
    monkeypatch.setattr(kept_listings, "SETTLED_NS", 0)
    for _ in range(2):
        Folder(root)
    assert len(listed) == 3


def test_a_small_folder_is_not_kept(root, listed, monkeypatch, tmp_path):
    monkeypatch.setattr(kept_listings, "LEAST_IMAGES", 5)
    Folder(root)
    assert not (tmp_path / "cache").exists()


def test_what_a_program_mounts_is_not_kept(root, listed, monkeypatch, tmp_path):
    device = root.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(kept_listings, "MOUNTS", mounts)
    for kind, count in (("fuse.store", 2), ("ext4", 3)):
        mounts.write_text(f"29 1 {number} / /x rw,relatime - {kind} store rw\n")
        for _ in range(2):
            Folder(root)
        assert len(listed) == count


def test_a_link_that_may_become_one_to_a_folder_is_not_kept(root, listed):
    (root / "ant" / "more").symlink_to(root.parent / "elsewhere")
    time.sleep(0.02)
    assert len(Folder(root)) == 4
    (root.parent / "elsewhere").mkdir()
    (root.parent / "elsewhere" / "5.png").write_bytes(b"5")
    assert len(Folder(root)) == 5


def test_a_folder_behind_a_link_is_looked_at(root, listed):
    (root / "cow").symlink_to(root.parent / "herd")
    (root.parent / "herd").mkdir()
    (root.parent / "herd" / "5.png").write_bytes(b"5")
    time.sleep(0.02)
    assert [len(Folder(root)) for _ in range(2)] == [5, 5]
    assert len(listed) == 1
    (root.parent / "herd" / "6.png").write_bytes(b"6")
    assert len(Folder(root)) == 6


def _damages(content):
    yield b""
    yield b"no archive"
    yield content[: len(content) // 2]
    at = content.index(b"ant/1.png")
    yield content[:at] + b"emu" + content[at + 3 :]


def test_what_is_damaged_is_listed_anew(root, listed, monkeypatch, tmp_path):
    expected = _anew(root, monkeypatch)
    Folder(root)
    (path,) = (tmp_path / "cache").rglob("*.npz")
    for damaged in _damages(path.read_bytes()):
        path.write_bytes(damaged)
        assert [_content(Folder(root)) for _ in range(2)] == [expected] * 2
    assert len(listed) == 2 + 4  # and it is whole again after each


def test_nothing_is_kept_where_nothing_can_be_written(root, listed, monkeypatch):
    expected = _anew(root, monkeypatch)
    monkeypatch.setenv("VDIFF_JAX_CACHE", "/proc/none")
    assert [_content(Folder(root)) for _ in range(2)] == [expected] * 2
    monkeypatch.delenv("VDIFF_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "~nobody_of_this_name/x")
    assert _content(Folder(root)) == expected
    assert len(listed) == 4


def _open_often(root):
    kept_listings.LEAST_IMAGES, kept_listings.SETTLED_NS = 1, 0
    for _ in range(20):
        (pathlib.Path(root) / "ant" / f"{os.getpid()}.png").write_bytes(b"more")
        names = [Folder(pathlib.Path(root)).name(i) for i in range(4)]
        assert "ant/1.png" in names
    return True


def test_processes_may_list_one_folder_at_once(root, listed, tmp_path):
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
        assert all(pool.map(_open_often, [root] * 2))
    assert len(Folder(root)) == 6
    assert {path.suffix for path in (tmp_path / "cache").rglob("*.*")} == {".npz"}


def test_other_processes_map_the_names(root, listed):
    source = Folder(root)
    expected, pickled = _content(source), pickle.dumps(source)
    assert b"ant/1.png" not in pickled
    assert _content(pickle.loads(pickled)) == expected
    # With another listing in its place, they get the names that this one has.
    (root / "ant" / "0.png").write_bytes(b"new")
    assert len(Folder(root)) == 5
    with pytest.raises(ValueError, match="not the listing"):
        pickle.loads(pickled)
    again = pickle.loads(pickle.dumps(source))
    assert _content(again) == expected
    np.testing.assert_array_equal(again.labels, [0, 0, 1, 1])
