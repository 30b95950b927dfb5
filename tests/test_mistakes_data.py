"""What users ran into with their data, each with its right answer."""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
import zlib

import lmdb
import numpy as np
import PIL.Image
import pytest

from configs import digits
from vdiff_jax.datasets import catalog
from vdiff_jax.datasets.folder import Folder
from vdiff_jax.datasets.identity import sha256_of_sample
from vdiff_jax.datasets.images import Fit, Images, decode
from vdiff_jax.datasets.keyed_lmdb import KeyedLmdb
from vdiff_jax.datasets.lmdb import Lmdb, open_lmdb
from vdiff_jax.datasets.npz import Npz
from vdiff_jax.datasets.prepare import pool
from vdiff_jax.datasets.prepare import work as command
from vdiff_jax.datasets.prepare.__main__ import main
from vdiff_jax.datasets.prepare.task import Task
from vdiff_jax.datasets.prepare.work import prepare
from vdiff_jax.datasets.source import Arrays
from vdiff_jax.datasets.validation import Checked
from vdiff_jax.files.locks import HeldError, lock
from vdiff_jax.from_config.data import make_source


def _noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _file(pixels, kind="PNG", **options):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


# Pixels decide, not metadata

PIXELS = _noise(8, 12, 3)


def _png_chunk(kind, data, checksum=None):
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def _png_with(*chunks, pixels=PIXELS, last=False):
    """A PNG with more chunks, before its pixels or after them."""
    whole = _file(pixels)
    at = whole.index(b"IEND" if last else b"IDAT") - 4
    return whole[:at] + b"".join(chunks) + whole[at:]


def _jpeg_with(*segments):
    whole = _file(PIXELS, "JPEG", quality=95)
    parts = [
        bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body
        for marker, body in segments
    ]
    return whole[:2] + b"".join(parts) + whole[2:]


def _webp_with(**chunks):
    """A lossless WebP with more chunks behind its pixels."""
    whole = _file(PIXELS, "WEBP", lossless=True)
    height, width = PIXELS.shape[:2]
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    flags = 0x08 * ("EXIF" in chunks) | 0x04 * ("XMP" in chunks)
    parts = b"WEBPVP8X" + struct.pack("<I", 10) + bytes([flags, 0, 0, 0]) + size
    parts += whole[12:]
    for kind, body in chunks.items():
        parts += kind.encode().ljust(4) + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(parts)) + parts


def _tiff(*entries, count=None, tail=b""):
    """EXIF of (tag, type, count, four bytes) entries; it may claim more of them."""
    number = len(entries) if count is None else count
    body = b"".join(struct.pack("<HHL", *entry[:3]) + entry[3] for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", number) + body + tail


SIXTH = (0x0112, 3, 1, b"\x06\0\0\0")  # orientation 6: turned by a right angle
# XResolution, of type SRATIONAL: its value lies behind the directory, at byte 38.
_RATIONAL = (0x011A, 10, 1, struct.pack("<L", 38))
MINUS_ONE_OVER_ZERO = _tiff(
    _RATIONAL, SIXTH, tail=b"\0\0\0\0" + struct.pack("<ll", -1, 0)
)
CUT_OFF = _tiff(SIXTH, count=9)
XMP = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta <<< tiff:Orientation="6" \xff'
LARGE = zlib.compress(bytes(2**21))

TURNED = {
    "jpeg, a rational -1/0": _jpeg_with((0xE1, b"Exif\0\0" + MINUS_ONE_OVER_ZERO)),
    "jpeg, EXIF cut off": _jpeg_with((0xE1, b"Exif\0\0" + CUT_OFF)),
    "jpeg, broken XMP": _jpeg_with((0xE1, XMP)),
    "jpeg, a short JFIF segment": _jpeg_with(
        (0xE0, b"JFIF\0\1"), (0xE1, b"Exif\0\0" + _tiff(SIXTH))
    ),
    "png, a rational -1/0": _png_with(_png_chunk(b"eXIf", MINUS_ONE_OVER_ZERO)),
    "png, EXIF cut off": _png_with(_png_chunk(b"eXIf", CUT_OFF)),
    "png, a wrong checksum of EXIF": _png_with(_png_chunk(b"eXIf", _tiff(SIXTH), 1)),
    "png, EXIF beside a large ICC profile": _png_with(
        _png_chunk(b"iCCP", b"p\0\0" + LARGE), _png_chunk(b"eXIf", _tiff(SIXTH))
    ),
    "png, XMP beside EXIF that is none": _png_with(
        _png_chunk(b"eXIf", b"no TIFF at all"),
        _png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    ),
    "webp, a rational -1/0": _webp_with(EXIF=MINUS_ONE_OVER_ZERO),
    "webp, EXIF cut off": _webp_with(EXIF=CUT_OFF),
}
UPRIGHT = {
    "jpeg, EXIF that is no TIFF": _jpeg_with((0xE1, b"Exif\0\0no TIFF at all")),
    "jpeg, EXIF of nothing": _jpeg_with((0xE1, b"Exif\0\0")),
    "jpeg, an MPO index that is none": _jpeg_with((0xE2, b"MPF\0no TIFF at all")),
    "jpeg, an MPO index of no directory": _jpeg_with((0xE2, b"MPF\0II*\0\xff\xff\0\0")),
    "jpeg, a broken Photoshop block": _jpeg_with(
        (0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\1\0")
    ),
    "jpeg, a short Adobe segment": _jpeg_with((0xEE, b"Adobe\0")),
    "jpeg, a broken ICC profile": _jpeg_with((0xE2, b"ICC_PROFILE\0")),
    "png, EXIF that is no TIFF": _png_with(_png_chunk(b"eXIf", b"no TIFF at all")),
    "png, EXIF of nothing": _png_with(_png_chunk(b"eXIf", b"")),
    "png, an ICC profile of 2 MiB": _png_with(_png_chunk(b"iCCP", b"p\0\0" + LARGE)),
    "png, an ICC profile of no method": _png_with(
        _png_chunk(b"iCCP", b"p\0\7" + LARGE)
    ),
    "png, an empty ICC profile": _png_with(_png_chunk(b"iCCP", b"")),
    "png, zTXt of 2 MiB": _png_with(_png_chunk(b"zTXt", b"k\0\0" + LARGE)),
    "png, zTXt of no method": _png_with(_png_chunk(b"zTXt", b"k\0\7" + LARGE)),
    "png, iTXt of 2 MiB": _png_with(_png_chunk(b"iTXt", b"k\0\1\0\0\0" + LARGE)),
    "png, iTXt that is no UTF-8": _png_with(_png_chunk(b"iTXt", b"k\0\0\0\0\0\xff")),
    "png, zTXt behind the pixels": _png_with(
        _png_chunk(b"zTXt", b"k\0\0" + LARGE), last=True
    ),
    "png, much text": _png_with(*65 * [_png_chunk(b"tEXt", b"k\0" + bytes(2**20))]),
    "png, a wrong checksum of text": _png_with(_png_chunk(b"tEXt", b"k\0v", 1)),
    "png, a short density": _png_with(_png_chunk(b"pHYs", b"\0")),
    "png, short gamma": _png_with(_png_chunk(b"gAMA", b"\0")),
    "png, short chromaticities": _png_with(_png_chunk(b"cHRM", b"\0")),
    "png, a short intent": _png_with(_png_chunk(b"sRGB", b"")),
    "png, a short animation": _png_with(_png_chunk(b"acTL", b"\0")),
    "png, frames out of order": _png_with(_png_chunk(b"fcTL", bytes([9] * 26))),
    "png, short transparency": _png_with(_png_chunk(b"tRNS", b"\0")),
    "webp, EXIF that is no TIFF": _webp_with(EXIF=b"no TIFF at all"),
    "webp, EXIF behind the end": _webp_with(EXIF=bytes(100))[:-50],
    "webp, broken XMP": _webp_with(XMP=b"<<\xff\xff"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*TURNED, *UPRIGHT])
def test_pixels_are_read_whatever_the_metadata(name):
    file = (TURNED | UPRIGHT)[name]
    decoded = np.asarray(decode(file)).astype(int)
    expected = np.rot90(PIXELS, 3) if name in TURNED else PIXELS
    assert decoded.shape == expected.shape
    if name.startswith("jpeg"):
        plain = np.asarray(decode(_file(PIXELS, "JPEG", quality=95)))
        expected = np.rot90(plain, 3) if name in TURNED else plain
    np.testing.assert_array_equal(decoded, expected)


def test_transparency_and_palettes_are_no_metadata():
    indices = (_noise(6, 6) % 2).astype(np.uint8)
    image = PIL.Image.fromarray(indices, "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    file = io.BytesIO()
    image.save(file, "PNG", transparency=1)
    whole = file.getvalue()
    at = whole.index(b"IDAT") - 4
    bad = whole[:at] + _png_chunk(b"pHYs", b"\0") + whole[at:]
    colours = np.array([[10, 20, 30], [255, 255, 255]])
    np.testing.assert_array_equal(np.asarray(decode(bad)), colours[indices])


def test_metadata_are_passed_over_where_warnings_are_errors():
    for name in ("jpeg, EXIF cut off", "png, EXIF cut off"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert decode(TURNED[name]).size == (8, 12)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pixels_that_are_cut_off_behind_bad_metadata_are_refused(kind, keep):
    pixels = _noise(64, 64, 3)
    whole = {
        "JPEG": lambda: _file(pixels, "JPEG", exif=b"Exif\0\0" + CUT_OFF),
        "PNG": lambda: _png_with(_png_chunk(b"pHYs", b"\0"), pixels=pixels),
        "WEBP": lambda: _file(pixels, "WEBP", exif=CUT_OFF),
    }[kind]()
    scan = {"JPEG": b"\xff\xda", "PNG": b"IDAT", "WEBP": b"VP8 "}[kind]
    start = whole.index(scan) + 8
    end = whole.index(b"EXIF", start) if kind == "WEBP" else len(whole) - 12
    with pytest.raises(ValueError, match="cannot be read as JPEG, PNG or WebP"):
        decode(whole[: start + int(keep * (end - start))])


def test_a_bomb_behind_bad_metadata_is_still_one():
    bomb = io.BytesIO()
    PIL.Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    whole = bomb.getvalue()
    at = whole.index(b"IDAT") - 4
    whole = whole[:at] + _png_chunk(b"pHYs", b"\0") + whole[at:]
    with pytest.raises(ValueError, match="decompression bomb"):
        decode(whole)


# Folders and archives


def _save(path, seed=0, side=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(_noise(side, side, 3, seed=seed)).save(path)


def _photos(root, names=("ant/0.png", "ant/1.png", "bee/0.png"), side=8):
    """Images of which each is another; gives the folder."""
    for name in names:
        seed = int(hashlib.sha256(name.encode()).hexdigest()[:6], 16)
        _save(root / name, seed, side)
    return root


def _task(path, out, **options):
    return Task(path, out, **{"sizes": (8,), "format": "npz"} | options)


def _prepared(path, out, split="", **options):
    """What `prepare` makes: names, labels and classes, and the pixels by name."""
    task = _task(path, out, **options)
    prepare(task)
    return _content(Npz(task.out / split / "8.npz"))


def _content(source):
    names = [source.name(i) for i in range(len(source))]
    pixels = {name: source[i]["image"].tobytes() for i, name in enumerate(names)}
    labels = [source[i].get("label") for i in range(len(source))]
    return names, labels, tuple(source.classes or ()), pixels


def _of_folder(root):
    return _content(Images(Folder(root), Fit(8, 3)))


def _zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def _tar(path, members):
    """A tar of (TarInfo or name, content) pairs."""
    with tarfile.open(path, "w") as archive:
        for member, content in members:
            if isinstance(member, str):
                member = tarfile.TarInfo(member)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def _link(name, target, kind=tarfile.LNKTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


def _bytes_of(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("kind", ["tar", "zip", "zip of Windows"])
def test_members_whose_names_begin_with_a_dot_are_read(tmp_path, kind):
    photos = _photos(tmp_path / "photos")
    path = tmp_path / "x"
    files = {f"./{name}": content for name, content in _bytes_of(photos).items()}
    if kind == "tar":
        with tarfile.open(path, "w") as archive:
            archive.add(photos, ".")
            assert archive.getnames()[0] == "."
    elif kind == "zip":
        _zip(path, files)
    else:
        _zip(path, {name[2:].replace("/", "\\"): files[name] for name in files})
    assert _prepared(path, tmp_path / "out") == _of_folder(photos)


def test_links_in_an_archive_are_the_files_that_they_lead_to(tmp_path, capsys):
    photos = _photos(tmp_path / "photos")
    files = _bytes_of(photos)
    members = [
        *files.items(),
        _link("cow/0.png", "ant/0.png"),
        _link("cow/1.png", "./cow/0.png"),
        _link("cow/2.png", "../bee/0.png", tarfile.SYMTYPE),
        _link("cow/3.png", "../nowhere.png", tarfile.SYMTYPE),
        _link("cow/4.png", "/etc/passwd", tarfile.SYMTYPE),
        _link("cow/5.png", "cow/5.png"),
        _link("cow/6.png", "", tarfile.FIFOTYPE),
    ]
    _, labels, classes, pixels = _prepared(
        _tar(tmp_path / "x.tar", members), tmp_path / "out"
    )
    assert classes == ("ant", "bee", "cow")
    assert labels == [0, 0, 1, 2, 2, 2]
    assert pixels["cow/0.png"] == pixels["cow/1.png"] == pixels["ant/0.png"]
    assert pixels["cow/2.png"] == pixels["bee/0.png"]
    line = capsys.readouterr().err.splitlines()[0]
    assert "3 links to no file in the archive (such as cow/3.png)" in line
    assert "1 that are pipes, sockets or devices (cow/6.png)" in line
    # In a zip.
    link = zipfile.ZipInfo("cow/0.png")
    link.external_attr = 0o120777 << 16
    path = _zip(tmp_path / "x.zip", {**files, link: "../ant/0.png"})
    pixels = _prepared(path, tmp_path / "out2")[-1]
    assert pixels["cow/0.png"] == pixels["ant/0.png"]


def _with_odd_files(photos):
    for name in ("a.tif", "ant/b.tif", "notes", ".git/config", ".git/head"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"no image")
    return photos


LEFT_OUT = (
    "1 hidden (.git), 2 that end in .tif (such as a.tif), 1 without suffix (notes)"
)


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_what_is_left_out_is_counted_printed_and_recorded(tmp_path, capsys, kind):
    photos = _with_odd_files(_photos(tmp_path / "photos"))
    os.mkfifo(photos / "pipe.png")
    path, files = photos, _bytes_of(photos)
    if kind == "tar":
        path = _tar(tmp_path / "x.tar", files.items())
    elif kind == "zip":
        path = _zip(tmp_path / "x.zip", files)
    out = tmp_path / "out"
    assert main([str(path), f"--out={out}", "--size=8", "--workers=0"]) == 0
    pipe = ", 1 that are pipes, sockets or devices (pipe.png)" * (kind == "folder")
    hidden, others = LEFT_OUT.split(", ", 1)
    error = capsys.readouterr().err.splitlines()
    assert f"prepare: {path}: left out {hidden}{pipe}, {others}." in error
    recorded = json.loads((out / "prepared.json").read_text())["left_out"]
    assert recorded["that end in .tif"] == {"count": 2, "first": "a.tif"}
    assert recorded["hidden"] == {"count": 1, "first": ".git"}


def test_images_outside_of_the_splits_are_left_out_aloud(tmp_path, capsys):
    photos = tmp_path / "photos"
    _photos(photos, ("train/0.png", "test/0.png", "valid/0.png", "valid/1.png"))
    prepare(_task(photos, tmp_path / "out", splits=("train", "test")))
    assert "2 images outside of the splits (such as valid/0.png)" in (
        capsys.readouterr().err
    )


@pytest.fixture
def silent():
    """Lines that were printed before are printed once more."""
    catalog._print_once.cache_clear()


def _open(path, split_name="", split="train", kind="folder", **options):
    return catalog.open_source(
        kind,
        **{
            "path": path,
            "name": "",
            "split_name": split_name,
            "split": split,
            "image_shape": (8, 8, 3),
            "resize": "area",
            **options,
        },
    )


def test_a_folder_says_once_what_it_leaves_out(tmp_path, capsys, silent):
    _open(_photos(tmp_path / "clean"))
    assert capsys.readouterr().err == ""
    photos = _with_odd_files(_photos(tmp_path / "photos"))
    for _ in range(2):
        _open(photos)
    assert capsys.readouterr().err == f"{photos}: left out {LEFT_OUT}.\n"


def test_a_folder_that_cannot_be_listed_and_a_file_are_refused(tmp_path, monkeypatch):
    photos = _photos(tmp_path / "photos")
    with pytest.raises(ValueError, match=r"0\.png is a file and not a folder"):
        Folder(photos / "ant" / "0.png")

    scandir = os.scandir

    def closed(folder):
        if os.fsencode(folder).endswith(b"bee"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(ValueError, match=r"bee cannot be listed \(Permission denied\)"):
        _open(photos)


def test_an_image_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "gone.png").symlink_to("gone.png")  # to itself
    _photos(tmp_path, ("a.png",))
    source = _open(tmp_path)
    with pytest.raises(ValueError, match=r"gone\.png: .*Too many levels"):
        source[1]
    about = prepare(_task(tmp_path, tmp_path.with_name("out")))
    assert list(about["splits"][""]["unreadable"]) == ["gone.png"]


@pytest.mark.parametrize("kind", ["cifar10", "lmdb", "npz"])
def test_data_that_may_not_be_read_are_one_line(tmp_path, monkeypatch, kind):
    def closed(self, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(pathlib.Path, "is_file", closed)
    with pytest.raises(ValueError, match=r"data\.path=.*x.*\(Permission denied\)"):
        _open(tmp_path / "x", kind=kind)


# Labels beside images

EDM = ("00000/img00000000.png", "00000/img00000001.png", "00001/img00000002.png")


def _edm(root, labels, name="dataset.json"):
    _photos(root, EDM)
    (root / name).write_text(json.dumps({"labels": labels}))
    return root


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "one folder"])
def test_the_labels_of_an_edm_data_set_are_read(tmp_path, kind, capsys):
    photos = tmp_path / "photos"
    names = EDM[:2] if kind == "one folder" else EDM
    _edm(photos, [[name, 3 - i] for i, name in enumerate(EDM)])
    if kind == "one folder":  # which is not taken for one of the archive's own name
        shutil.rmtree(photos / "00001")
    path = photos
    if kind in ("zip", "one folder"):
        path = _zip(tmp_path / "x.zip", _bytes_of(photos))
    elif kind == "tar":
        path = _tar(tmp_path / "x.tar", _bytes_of(photos).items())
    found = _prepared(path, tmp_path / "out")
    assert found[:3] == (list(names), [3, 2, 1][: len(names)], ("0", "1", "2", "3"))
    assert capsys.readouterr().err.count("\n") == 1  # the bar
    assert found == _of_folder(photos)


def test_an_edm_data_set_without_labels_has_no_classes(tmp_path):
    photos = _edm(tmp_path / "photos", None)
    names, labels, classes, _ = _of_folder(photos)
    assert (names, labels, classes) == (list(EDM), [None] * 3, ())
    path = _zip(tmp_path / "x.zip", _bytes_of(photos))
    assert _prepared(path, tmp_path / "out")[:3] == (names, labels, classes)


def test_an_image_without_a_label_is_refused_by_name(tmp_path):
    photos = _edm(tmp_path / "photos", [[EDM[0], 0], [EDM[2], 1]])
    with pytest.raises(ValueError, match=r"no label for 1 of 3 .*img00000001\.png"):
        Folder(photos)


@pytest.mark.parametrize(
    ("name", "content", "classes"),
    [
        ("dataset.json", {"labels": [[name, [0.0, 1.0]] for name in EDM]}, ()),
        ("dataset.json", {"labels": [[name, 0.5] for name in EDM]}, ()),
        ("dataset.json", {"labels": {EDM[0]: 1}}, ("00000", "00001")),
        ("dataset.json", "no JSON of labels", ("00000", "00001")),
        ("train_info.json", {"Label": 1}, ("00000", "00001")),
        ("labels.txt", "", ("00000", "00001")),
        ("metadata.csv", "", ("00000", "00001")),
        ("00000/metadata.jsonl", "", ("00000", "00001")),
        ("list_attr_celeba.txt", "", ("00000", "00001")),
    ],
)
def test_labels_that_are_not_read_are_said_to_be_there(
    tmp_path, capsys, silent, name, content, classes
):
    photos = _photos(tmp_path / "photos", EDM)
    (photos / name).write_text(json.dumps(content))
    assert _open(photos).classes == classes
    line = f"{name} in {photos} may hold labels, which are not read: classes are"
    assert line in capsys.readouterr().err
    path = _zip(tmp_path / "x.zip", _bytes_of(photos))
    prepare(_task(path, tmp_path / "out"))
    assert line.replace(str(photos), str(path)) in capsys.readouterr().err


def test_files_that_hold_no_labels_are_not_said_to(tmp_path):
    photos = _photos(tmp_path / "photos", EDM)
    (photos / "info.json").write_text('{"author": "me"}')
    (photos / "notes.txt").write_text("label")
    assert len(Folder(photos).unread) == 1  # that they are left out


# One number for one class


def _array_file(path, classes, labels):
    np.savez(path, images=_noise(len(labels), 8, 8, 3), labels=labels, classes=classes)


def _two_splits(root, kind, train, test):
    """Both splits in a form that a source of this kind reads, an image to a class."""
    for split, classes in (("train", train), ("test", test)):
        if kind == "folder":
            _photos(root / split, [f"{name}/0.png" for name in classes])
        elif kind == "npz":
            root.mkdir(exist_ok=True)
            names = np.array([name.encode() for name in classes])
            _array_file(root / f"{split}.npz", names, np.arange(len(classes)))
        else:
            photos = _photos(root / "in" / split, [f"{c}/0.png" for c in classes])
            prepare(_task(photos, root / split, format="lmdb"))


KINDS = ("folder", "lmdb", "npz")


@pytest.mark.parametrize("kind", KINDS)
def test_a_split_of_other_classes_is_refused_whichever_is_opened(tmp_path, kind):
    _two_splits(tmp_path / "x", kind, ["ant", "bee"], ["ant", "cow"])
    for split, other in (("train", "test"), ("test", "train")):
        with pytest.raises(ValueError, match="different classes: cow of the test"):
            _open(tmp_path / "x", split, split, kind, other_name=other)
        assert len(_open(tmp_path / "x", split, split, kind, other_name=None)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_has_the_number_that_it_has_in_training(tmp_path, kind):
    _two_splits(tmp_path / "x", kind, ["ant", "bee", "cow"], ["bee", "cow"])
    test = _open(tmp_path / "x", "test", "test", kind, other_name="train")
    assert test.classes == ("ant", "bee", "cow")
    np.testing.assert_array_equal(test.labels, [1, 2])
    checked = Checked(test, num_classes=3, uint8_shape=(8, 8, 3))
    assert [checked[i]["label"] for i in (0, 1)] == [1, 2]
    np.testing.assert_array_equal(checked.__getitems__([1, 0])["label"], [2, 1])
    if kind != "npz":
        assert test.name(0) == "bee/0.png"


def test_prepare_numbers_the_classes_by_the_training_split(tmp_path):
    photos = tmp_path / "photos"
    _two_splits(photos, "folder", ["ant", "bee", "cow"], ["bee", "cow"])
    splits = ("test", "train")
    _, labels, classes, _ = _prepared(photos, tmp_path / "out", "test", splits=splits)
    assert (labels, classes) == ([1, 2], ("ant", "bee", "cow"))


def test_a_flat_split_and_a_missing_one_are_no_other_classes(tmp_path):
    _photos(tmp_path / "train")
    assert len(_open(tmp_path, "train", other_name="test")) == 3
    _photos(tmp_path / "test", ["0.png"])
    assert len(_open(tmp_path, "train", other_name="test")) == 3
    assert set(_open(tmp_path, "test", "test", other_name="train")[0]) == {"image"}


def test_a_config_compares_the_classes_of_its_splits(tmp_path):
    _two_splits(tmp_path / "x", "folder", ["ant", "bee"], ["ant", "cow"])
    config = digits.get_config("train")
    data = {"source": "folder", "path": str(tmp_path / "x"), "channels": 3}
    config.update({"data": data, "model": {"num_classes": 2}})
    with pytest.raises(ValueError, match="different classes: cow"):
        make_source(config, "train")


def test_a_path_of_a_config_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _photos(tmp_path / "x")
    config = digits.get_config("train")
    data = {"source": "folder", "path": "~/x", "train_split": "", "channels": 3}
    config.update({"data": data, "model": {"num_classes": 2}})
    assert len(make_source(config, "train")) == 3


# Names are bytes

_ODD = [b"caf\xe9.png", "café.png".encode(), "日.png".encode(), b"z.png", b"\x80.png"]


def _odd_names(root):
    root.mkdir()
    for i, name in enumerate(_ODD * 4):
        path = os.fsencode(root) + b"/" + str(i).encode() + name
        PIL.Image.fromarray(_noise(8, 8, 3, seed=i)).save(os.fsdecode(path), "PNG")
    return root


_BYTES = """
import pathlib, sys
from vdiff_jax.datasets.folder import Folder
from vdiff_jax.datasets.names import to_bytes
from vdiff_jax.datasets.source import held_out_part
from vdiff_jax.datasets.images import Images, Fit
whole = Images(Folder(pathlib.Path(sys.argv[1])), Fit(8, 3))
for source in (whole, held_out_part(whole, 0.3, "test")):
    print([to_bytes(source.name(i)) for i in range(len(source))])
print(ascii([whole.name(i) for i in range(len(whole))]))
"""
LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "UTF-8": {"LC_ALL": "C.UTF-8"},
}


def _python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        errors="replace",
    )


def test_order_and_held_out_split_are_the_same_under_every_locale(tmp_path):
    root = _odd_names(tmp_path / "x")
    runs = [_python("-c", _BYTES, str(root), **each) for each in LOCALES.values()]
    assert runs[0].stdout == runs[1].stdout, runs[0].stderr
    names, held_out, texts = map(eval, runs[0].stdout.splitlines())
    assert "1café.png" in texts
    assert names == sorted(names)
    assert len(names) == 20
    # Today's rule for a name in UTF-8: its hash decides.
    uniform = {
        name: int.from_bytes(hashlib.sha256(name).digest()[:6], "big") / 2**48
        for name in names
    }
    assert held_out == [name for name in names if uniform[name] < 0.3]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_prepare_prints_and_keeps_names_that_are_not_utf8(tmp_path, kind):
    root = _odd_names(tmp_path / "x")
    with open(os.fsencode(root) + b"/broken\xe9.png", "wb") as file:
        file.write(b"no image")
    path, names = root, sorted(os.listdir(os.fsencode(root)))
    names.remove(b"broken\xe9.png")
    if kind == "tar":
        path = tmp_path / "x.tar"
        with tarfile.open(path, "w") as archive:
            archive.add(root, ".")
    elif kind == "zip":  # which holds UTF-8 only
        path = tmp_path / "x.zip"
        names = ["é.png".encode(), "日.png".encode()]
        _zip(path, {name.decode(): _file(PIXELS) for name in names})
    for locale, environment in LOCALES.items():
        out = tmp_path / f"out_{locale}"
        line = [str(path), f"--out={out}", "--size=8", "--format=npz", "--workers=0"]
        run = _python("-m", "vdiff_jax.datasets.prepare", *line, **environment)
        assert run.returncode == 0, run.stderr
        if kind != "zip":
            assert r"broken\xe9.png" in run.stdout.replace("udce9", "xe9")
        with np.load(out / "8.npz") as arrays:
            assert arrays["names"].tolist() == names


# LSUN's own LMDB


def _lsun(path, count=5):
    """Hash -> WebP, as LSUN's; gives the images by their keys."""
    images = {}
    with lmdb.open(str(path), map_size=2**24) as env, env.begin(write=True) as txn:
        for i in range(count):
            key = hashlib.sha1(str(i).encode()).hexdigest().encode()
            webp = _file(_noise(16, 12, 3, seed=i), "WEBP", lossless=True)
            txn.put(key, webp)
            images[key.decode()] = np.asarray(PIL.Image.open(io.BytesIO(webp)))
    return images


def test_the_lmdb_of_lsun_is_read_in_the_order_of_its_keys(tmp_path):
    images = _lsun(tmp_path / "bedroom_train_lmdb")
    _lsun(tmp_path / "bedroom_val_lmdb", 2)
    source = _open(
        tmp_path,
        "bedroom_train_lmdb",
        kind="lmdb",
        other_name="bedroom_val_lmdb",
        image_shape=(4, 4, 3),
    )
    assert len(source) == 5
    assert source.labels is None
    assert [source.name(i) for i in range(5)] == sorted(images)
    for i, key in enumerate(sorted(images)):
        centre = PIL.Image.fromarray(images[key][2:14])
        np.testing.assert_array_equal(source[i]["image"], Fit(4, 3)(centre))
    assert open_lmdb(tmp_path / "bedroom_train_lmdb", 4)._keys.dtype == "S40"


def test_keys_of_any_width_are_listed_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("vdiff_jax.datasets.keyed_lmdb._BLOCK", 2)
    keys = [b"1", b"22", b"4444", b"55555", b"333"]
    with lmdb.open(str(tmp_path / "x")) as env, env.begin(write=True) as txn:
        for key in keys:
            txn.put(key, _file(PIXELS))
    images = KeyedLmdb.open(tmp_path / "x")
    assert images._keys.tolist() == sorted(keys)


@pytest.mark.parametrize("format", ["lmdb", "npz"])
def test_the_lmdb_of_lsun_is_prepared(tmp_path, format):
    images = _lsun(tmp_path / "x")
    out = tmp_path / "out"
    prepare(_task(tmp_path / "x", out, format=format))
    source = Npz(out / "8.npz") if format == "npz" else Images(Lmdb(out, 8), Fit(8, 3))
    names, labels, classes, _ = _content(source)
    assert (names, labels, classes) == (sorted(images), [None] * 5, ())
    if format == "lmdb":  # what prepare wrote is not to be prepared
        with pytest.raises(ValueError, match=r'data\.source = "lmdb"'):
            prepare(_task(out, tmp_path / "again"))


def test_an_lmdb_whose_meta_are_no_json_is_refused_by_name(tmp_path):
    with lmdb.open(str(tmp_path / "x")) as env, env.begin(write=True) as txn:
        for key, value in ((b"length", b"1"), (b"meta", b"{"), (b"8-00000", b"")):
            txn.put(key, value)
    with pytest.raises(ValueError, match=r"x: its key 'meta' is no JSON"):
        open_lmdb(tmp_path / "x", 8)


def test_a_file_in_an_npz_that_is_no_array_is_passed_over(tmp_path):
    np.savez(tmp_path / "a.npz", images=_noise(2, 8, 8, 3))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("readme.txt", "Arrays.")
    assert len(Npz(tmp_path / "a.npz")) == 2
    _zip(tmp_path / "b.npz", {"readme.txt": "No arrays."})
    with pytest.raises(ValueError, match=r"b\.npz needs an array .* it has \{\}"):
        Npz(tmp_path / "b.npz")


# prepare knows its input by its content


class _Killed(BaseException):
    pass


def _interrupted(monkeypatch, task, moment):
    """Runs `prepare` as far as its write number `moment`, two images to a chunk."""
    write_json, calls = command.write_json, []

    def interrupted(path, value):
        calls.append(path)
        if len(calls) == moment:
            raise _Killed
        write_json(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(command, "CHUNK", 1)
        patch.setattr(command, "write_json", interrupted)
        with pytest.raises(_Killed):
            prepare(task)


def _as_archive(photos, kind):
    if kind == "folder":
        return photos
    files = _bytes_of(photos)
    if kind == "zip":
        return _zip(photos.with_suffix(".zip"), files)
    path = _tar(photos.with_suffix(".tar"), files.items())
    if kind == "tar.gz":
        path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes()))
        return path.with_suffix(".tar.gz")
    return path


INPUTS = ["folder", "zip", "tar", "tar.gz"]


@pytest.mark.parametrize("kind", INPUTS)
def test_images_that_were_edited_under_their_names_are_not_taken_for_the_old(
    tmp_path, monkeypatch, kind
):
    photos = _photos(tmp_path / "photos")
    path = _as_archive(photos, kind)
    task, begun = _task(path, tmp_path / "out"), _task(path, tmp_path / "begun")
    prepare(task)
    _interrupted(monkeypatch, begun, 4)  # after two images
    _save(photos / "ant" / "0.png", seed=99)  # as large as before
    os.utime(photos / "ant" / "0.png", (2**31, 2**31))
    _as_archive(photos, kind)
    for each, name in ((task, "out"), (begun, r"begun\.partial")):
        with pytest.raises(
            ValueError, match=rf"{name} was made from .*changed since.*Remove {name}"
        ) as error:
            prepare(each)
        if kind == "folder":
            assert "ant/0.png last" in str(error.value)
    prepare(_task(path, tmp_path / "other"))


@pytest.mark.parametrize("kind", INPUTS)
def test_images_that_were_merely_copied_are_the_same(tmp_path, monkeypatch, kind):
    path = _as_archive(_photos(tmp_path / "photos"), kind)
    task, begun = _task(path, tmp_path / "out"), _task(path, tmp_path / "begun")
    expected = _prepared(path, tmp_path / "out")
    _interrupted(monkeypatch, begun, 4)
    copy = tmp_path / f"copy{''.join(path.suffixes)}"
    if kind == "folder":
        shutil.copytree(path, copy, copy_function=shutil.copyfile)
    else:
        shutil.copyfile(path, copy)
    before = (tmp_path / "out" / "prepared.json").stat().st_mtime_ns
    prepare(dataclasses.replace(task, path=copy))
    assert (tmp_path / "out" / "prepared.json").stat().st_mtime_ns == before
    convert, files = pool.convert, []
    monkeypatch.setattr(
        pool, "convert", lambda data, *rest: files.extend(data) or convert(data, *rest)
    )
    assert _prepared(copy, tmp_path / "begun") == expected
    assert len(files) == 1  # a chunk of one image or more, of those that were left


def test_an_input_that_nobody_touched_is_not_read_again(tmp_path, monkeypatch):
    photos = _photos(tmp_path / "photos")
    about = prepare(_task(photos, tmp_path / "out"))
    monkeypatch.setattr("vdiff_jax.datasets.prepare.archives.sample_of_file", None)
    assert prepare(_task(photos, tmp_path / "out")) == about


def test_labels_that_were_changed_are_noticed(tmp_path):
    photos = _edm(tmp_path / "photos", [[name, 0] for name in EDM])
    prepare(_task(photos, tmp_path / "out"))
    _edm(photos, [[name, 1] for name in EDM])
    with pytest.raises(ValueError, match="was not made from these files in this way"):
        prepare(_task(photos, tmp_path / "out"))


def test_an_output_of_version_0_2_is_taken_as_it_was(tmp_path):
    photos, out = _photos(tmp_path / "photos"), tmp_path / "out"
    about = prepare(_task(photos, out))
    for key in ("stamp", "labels_sha256", "left_out"):
        del about[key]
    del about["splits"][""]["content"]
    (out / "prepared.json").write_text(json.dumps(about))
    assert prepare(_task(photos, out)) == about
    shutil.copytree(photos, tmp_path / "copy")
    with pytest.raises(ValueError, match="was not made from these files"):
        prepare(_task(tmp_path / "copy", out))


def test_work_that_version_0_2_began_is_gone_on_with(tmp_path, monkeypatch):
    photos, task = (
        _photos(tmp_path / "photos"),
        _task(tmp_path / "photos", tmp_path / "x"),
    )
    expected = _prepared(photos, tmp_path / "out")
    _interrupted(monkeypatch, task, 4)
    for name, key in (
        ("task", "stamp"),
        ("task", "labels_sha256"),
        ("progress", "content"),
    ):
        path = tmp_path / "x.partial" / f"{name}.json"
        content = json.loads(path.read_text())
        del content[key]
        path.write_text(json.dumps(content))
    assert _prepared(photos, tmp_path / "x") == expected
    whole, mended = (
        json.loads((tmp_path / name / "prepared.json").read_text())["splits"]
        for name in ("out", "x")
    )
    assert mended == whole


def test_a_decompressed_tar_is_of_its_own_archive_only(tmp_path, monkeypatch):
    first = _as_archive(_photos(tmp_path / "a"), "tar.gz")
    second = _as_archive(_photos(tmp_path / "b", ["ant/0.png", "cow/7.png"]), "tar.gz")
    _interrupted(monkeypatch, _task(first, tmp_path / "out"), 2)
    partial = tmp_path / "out.partial"
    before = _bytes_of(partial)
    assert len([name for name in before if name.startswith("decompressed-")]) == 1
    with pytest.raises(ValueError, match=r"out\.partial was begun from other files"):
        prepare(_task(second, tmp_path / "out"))
    assert _bytes_of(partial) == before
    # And where nothing tells of the first task, the second is not of its images.
    (partial / "task.json").unlink()
    (partial / "progress.json").unlink(missing_ok=True)
    assert _prepared(second, tmp_path / "out")[0] == ["ant/0.png", "cow/7.png"]
    assert sorted(_bytes_of(tmp_path / "out")) == ["8.npz", "prepared.json"]


def test_a_record_that_is_damaged_is_named(tmp_path):
    photos, out = _photos(tmp_path / "photos"), tmp_path / "out"
    prepare(_task(photos, out))
    (out / "prepared.json").write_text("{")
    with pytest.raises(ValueError, match=r"prepared\.json is damaged"):
        prepare(_task(photos, out))
    (out / "prepared.json").write_text("3")
    with pytest.raises(ValueError, match="out is there already"):
        prepare(_task(photos, out))


# Two at once, and Ctrl-C


def test_a_second_prepare_names_the_first(tmp_path, monkeypatch, capsys):
    photos, out = _photos(tmp_path / "photos"), tmp_path / "out"
    arguments = [str(photos), f"--out={out}", "--size=8", "--workers=0"]
    statuses = []
    prepare_split = command._prepare_split

    def meanwhile(*task):
        statuses.append(main(arguments))
        return prepare_split(*task)

    monkeypatch.setattr(command, "_prepare_split", meanwhile)
    assert main(arguments) == 0
    assert statuses == [2]
    line = capsys.readouterr().err.splitlines()[0]
    assert line.startswith(f"prepare: Another `prepare` is at work on {out} (host ")
    assert f"{socket.gethostname()}, pid {os.getpid()})" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


def test_a_lock_names_its_holder_and_knows_when_it_keeps_nobody_out(tmp_path):
    path = tmp_path / "deep" / "lock"
    with lock(path) as held:
        assert held.keeps_others_out()
        with pytest.raises(HeldError, match=f"pid {os.getpid()}") as error, lock(path):
            pass
        assert error.value.holder.startswith("host ")
        path.unlink()
        assert not held.keeps_others_out()
        with lock(path, remove=True) as other:  # as if it were never there
            assert other.keeps_others_out()
            assert not held.keeps_others_out()
        assert not path.exists()
    with lock(path):  # let go
        pass


def test_a_lock_that_was_removed_as_it_was_taken_is_taken_anew(tmp_path, monkeypatch):
    import fcntl

    path, flock, calls = tmp_path / "lock", fcntl.flock, []

    def slow(file, operation):
        calls.append(operation)
        flock(file, operation)
        if len(calls) == 1:
            path.unlink()  # by the holder before

    monkeypatch.setattr(fcntl, "flock", slow)
    with lock(path) as held:
        assert held.keeps_others_out()
    assert len(calls) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupt_is_one_line_and_status_130(tmp_path, workers):
    photos, out = tmp_path / "photos", tmp_path / "out"
    _photos(photos, [f"{i}.png" for i in range(8)], side=256)
    for i in range(8, 1500):
        os.link(photos / f"{i % 8}.png", photos / f"{i}.png")
    line = [sys.executable, "-m", "vdiff_jax.datasets.prepare", str(photos)]
    line += [f"--out={out}", "--size=64", f"--workers={workers}"]
    child = subprocess.Popen(line, stderr=subprocess.PIPE, start_new_session=True)
    with contextlib.closing(child.stderr):
        while not (tmp_path / "out.partial" / "progress.json").exists():
            assert child.poll() is None
            time.sleep(0.01)
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does
        error = child.stderr.read().decode()
    assert child.wait() == 130
    assert "Traceback" not in error
    assert error.splitlines()[-1] == "prepare: interrupted; the same command goes on."
    assert not (tmp_path / "out.lock").exists()
    assert not out.exists()


def test_workers_never_see_an_interrupt(tmp_path):
    code = (
        "import multiprocessing, signal, vdiff_jax.datasets.prepare.pool as pool\n"
        "def blocked(): print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('forkserver')\n"
        "    with pool._interrupts_held():\n"
        "        multiprocessing.forkserver.ensure_running()\n"
        "    blocked()\n"
        "    child = context.Process(target=blocked)\n"
        "    child.start(); child.join()\n"
    )
    (tmp_path / "x.py").write_text(code)
    run = _python(str(tmp_path / "x.py"), PYTHONPATH=os.getcwd())
    blocked = run.stdout.splitlines()
    assert len(blocked) == 2, run.stderr
    assert "SIGINT" not in blocked[0]
    assert "SIGINT" in blocked[1]


# prepare's command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--out=out", "--size=0"], "must be at least 1, got 0"),
        (["x", "--out=out", "--size=big"], "--size: invalid int value: 'big'; see"),
        (["x", "--out=out", "--size=8", "--colour"], "arguments: --colour; see --help"),
        (["x", "--size=8"], "required: --out; see --help"),
        (["x", "--out=", "--size=8"], "--out: an empty path names nothing"),
        (["nowhere", "--out=a/b", "--size=8"], "nowhere is not a folder"),
        (["x", "--out=x", "--size=8"], "--out and PATH are both "),
        (["x", "--out=x/out", "--size=8"], "--out=x/out lies in PATH, x"),
        (["x", "--out=.", "--size=8"], "to be a folder of a name of its own"),
        (["x", "--out=out", "--size=8", "--workers=-1"], "at least 0, got -1"),
        (["x", "--out=out", "--size=8", "--splits", "../x"], "which '../x' is not"),
        (["x", "--out=out", "--size=8", "--splits", "a", "--splits=b"], "folder 'a'"),
        (["x/ant/0.png", "--out=out", "--size=8"], "is not a folder, a zip or a tar"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line_and_change_nothing(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    before = _bytes_of(_photos(tmp_path / "x"))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert _bytes_of(tmp_path / "x") == before
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


def test_prepare_takes_paths_and_splits_as_people_write_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    _two_splits(tmp_path / "home" / "x", "folder", ["ant"], ["ant"])
    arguments = ["~/x", "--out=~/out", "--size=8", "--size=16", "--workers=0"]
    # As the shell completes them, and given twice.
    assert main([*arguments, "--splits", "train/", "--splits=./test"]) == 0
    out = tmp_path / "home" / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "prepared.json", "test", "train"
    ]  # fmt: skip
    assert len(Lmdb(out / "test", 16)) == 1
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("kind", ["folder", "lmdb", "npz"])
def test_a_path_may_hold_what_a_shell_or_a_pattern_would_read(tmp_path, kind):
    root = tmp_path / "run[1] *{a,b} ä?"
    photos = _photos(tmp_path / "photos")
    if kind == "folder":
        _photos(root)
        prepare(_task(root, root.with_name(f"{root.name} out")))
    else:
        prepare(_task(photos, root, format=kind))
    assert len(_open(root, kind=kind)) == 3
    assert not list(tmp_path.rglob("*.raw"))


# What a data set is known by


def test_the_hash_of_a_sample_is_that_of_the_content():
    labels = np.arange(300, dtype=np.int32) % 7
    images = _noise(300, 8, 8, 3)
    source = Arrays(images, labels)
    assert sha256_of_sample(source) == "be558cdbd630a849"
    images[0, 0, 0, 0] ^= 1
    assert sha256_of_sample(source) != "be558cdbd630a849"
