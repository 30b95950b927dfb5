"""What users ran into with their data, each with its right answer."""

import io
import struct
import warnings
import zlib

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

from vdiff_jax.datasets.images import decode


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
