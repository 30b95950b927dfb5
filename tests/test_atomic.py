"""A file or a folder is there whole, or as it was before."""

import pytest

from vdiff_jax.files.atomic import replacing, write_bytes, write_json


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
