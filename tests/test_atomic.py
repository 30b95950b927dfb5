"""A file or a folder is there whole, or as it was before."""

import json
import math
import os
import pathlib
import re

import pytest

from disks import full_disk
from vdiff_jax.files.atomic import (
    replacing,
    to_json,
    write_bytes,
    write_json,
    write_text,
)


def test_a_full_disk_is_reported_with_the_files_name(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(OSError, match=re.escape(f"large: '{path}'")), full_disk():
        write_bytes(path, b"much too long")
    assert path.read_bytes() == b"old"


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "new" / "file"
    write_bytes(path, b"old")
    with replacing(path) as half:
        half.write_bytes(b"ne")
        assert path.read_bytes() == b"old"
        half.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert _names(path.parent) == ["file"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_after_an_error_everything_is_as_it_was(tmp_path, error):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(error), replacing(path) as half:  # noqa: PT012
        half.mkdir()
        (half / "new").touch()
        raise error
    assert _names(tmp_path) == ["folder"]
    assert _names(path) == ["old"]


def test_a_folder_takes_the_place_of_another_and_of_half_a_one(tmp_path):
    path = tmp_path / "folder"
    (tmp_path / ".folder.half").mkdir()  # of a process that was killed
    for name in ("old", "new"):
        with replacing(path) as half:
            half.mkdir()
            (half / name).touch()
    assert _names(path) == ["new"]
    assert _names(tmp_path) == ["folder"]


def test_what_is_no_json_replaces_nothing(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"x": 1})
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert path.read_text() == '{\n  "x": 1\n}\n'


def test_numbers_that_json_has_not_are_null_wherever_they_stand(tmp_path):
    value = {"a": math.nan, "b": [1.5, math.inf, {"c": (-math.inf, 2)}], "d": None}
    path = tmp_path / "x.json"
    write_json(path, value)

    def refuse(name):
        raise AssertionError(name)

    read = json.loads(path.read_text(), parse_constant=refuse)
    assert read == {"a": None, "b": [1.5, None, {"c": [None, 2]}], "d": None}
    assert to_json({"b": 1, "a": 2}, sort_keys=True) == '{"a": 2, "b": 1}'


def test_a_folder_is_never_half_removed(tmp_path, monkeypatch):
    """What was in its place goes away as a whole, and stays if that cannot be."""
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    rename = pathlib.Path.replace
    seen = []

    def replace(half, target):
        seen.append(path.exists())
        raise OSError("no place")

    monkeypatch.setattr(pathlib.Path, "replace", replace)
    with pytest.raises(OSError, match="no place"), replacing(path) as half:
        half.mkdir()
    assert seen == [False]
    assert _names(tmp_path) == ["folder"]
    assert _names(path) == ["old"]
    monkeypatch.setattr(pathlib.Path, "replace", rename)
    with replacing(path) as half:
        half.mkdir()
    assert _names(tmp_path) == ["folder"]
    assert _names(path) == []


def test_text_may_name_a_file_whose_name_is_no_text(tmp_path):
    """As under an 8-bit locale, where Python cannot know what the bytes mean."""
    name = b"l\xc3\xa4uf \xff"
    write_text(tmp_path / "page", f"of {os.fsdecode(name)}")
    assert (tmp_path / "page").read_bytes() == b"of " + name
