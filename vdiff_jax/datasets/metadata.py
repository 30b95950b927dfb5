"""What image files hold beside pixels: the file without it, and the orientation in it.

Pillow refuses a whole file for a fault in its metadata. A file that it refuses is tried
once more with nothing but the parts that pixels are made of, and its orientation is
read here, as far as it can be.
"""

import re
import struct
import zlib
from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_ORIENTATION = 0x0112
# What Pillow looks for, too.
_ORIENTATION_OF_XMP = re.compile(rb'tiff:Orientation(="|>)([1-8])')


def without_metadata(data: bytes) -> bytes:
    """The file with the parts alone that say what its pixels are.

    What is cut off stays cut off: nothing is added and no pixel is touched.

    Args:
      data: A PNG, JPEG or WebP file; any other comes back as it is.
    """
    if data.startswith(_PNG):
        return _PNG + b"".join(
            whole for kind, body, whole in _chunks(data) if _is_pixels(data, kind, body)
        )
    if data.startswith(b"\xff\xd8"):
        return b"".join(
            whole for kind, body, whole in _segments(data) if _is_needed(kind, body)
        )
    if _is_webp(data):
        return _bare_webp(data)
    return data


def is_image(data: bytes) -> bool:
    """True for what begins like a PNG, JPEG or WebP file."""
    return data.startswith((_PNG, b"\xff\xd8")) or _is_webp(data)


def orientation(data: bytes) -> int:
    """The EXIF orientation, 1 to 8; 1, which is upright, where none can be read.

    Args:
      data: A PNG, JPEG or WebP file, whose metadata may be damaged.
    """
    exif, xmp = _exif_and_xmp(data)
    of_exif = _orientation_of_exif(exif.removeprefix(_EXIF))
    if of_exif is not None:
        return of_exif
    match = _ORIENTATION_OF_XMP.search(xmp)
    return int(match[2]) if match else 1


def _exif_and_xmp(data: bytes) -> tuple[bytes, bytes]:
    exif, xmp = [], []
    if data.startswith(_PNG):
        for kind, body, _ in _chunks(data):
            if kind == b"eXIf":
                exif.append(body[:-4])  # less its checksum
            elif kind == b"iTXt" and body.startswith(b"XML:com.adobe.xmp\0"):
                xmp.append(body)
    elif data.startswith(b"\xff\xd8"):
        bodies = [body for kind, body, _ in _segments(data) if kind == 0xE1]
        exif = [body for body in bodies if body.startswith(_EXIF)]
        xmp = [body for body in bodies if body.startswith(_XMP)]
    elif _is_webp(data):
        exif = [body for kind, body, _ in _riff(data) if kind == b"EXIF"]
        xmp = [body for kind, body, _ in _riff(data) if kind == b"XMP "]
    return b"".join(exif[:1]), b"".join(xmp[:1])


def _orientation_of_exif(tiff: bytes) -> int | None:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    try:
        (directory,) = struct.unpack_from(f"{order}L", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, directory)
        for i in range(count):
            entry = directory + 2 + 12 * i
            tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
            if tag == _ORIENTATION:
                letter = {1: "B", 3: "H", 4: "L"}[kind]
                (value,) = struct.unpack_from(f"{order}{letter}", tiff, entry + 8)
                return value if 1 <= value <= 8 else None
    except (KeyError, struct.error):  # cut off, or of a type that is no integer
        pass
    return None


# PNG: a length, a kind, a body and a checksum, which is counted to the body here.


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(kind, body, all of it) of each chunk, the last one perhaps cut off."""
    at = len(_PNG)
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 12 + length
        yield data[at + 4 : at + 8], data[at + 8 : end], data[at:end]
        at = end


def _is_pixels(data: bytes, kind: bytes, body: bytes) -> bool:
    if kind == b"tRNS":  # as libpng does, which leaves a damaged one out
        colour_type = data[len(_PNG) + 17 : len(_PNG) + 18]
        shortest = {b"\0": 2, b"\2": 6}.get(colour_type, 0)
        checksum = zlib.crc32(kind + body[:-4]).to_bytes(4, "big")
        return body[-4:] == checksum and len(body) - 4 >= shortest
    return kind[:1].isupper() or not kind.isalpha()


# JPEG: 0xFF, a marker and, for most, a length and a body.


def _segments(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(marker, body, all of it) up to the scan, and the scan with all that follows."""
    yield 0xD8, b"", data[:2]
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF or data[at + 1] in (0x00, 0xFF):  # padding
            at += 1
            continue
        marker = data[at + 1]
        if marker == 0xDA:
            break
        if 0xD0 <= marker <= 0xD9 or marker == 0x01:  # without a body
            end = at + 2
        else:
            end = at + 2 + max(int.from_bytes(data[at + 2 : at + 4], "big"), 2)
        yield marker, data[at + 4 : end], data[at:end]
        at = end
    yield 0xDA, data[at:], data[at:]


def _is_needed(marker: int, body: bytes) -> bool:
    """True for what libjpeg decodes by; JFIF and Adobe decide on the colours."""
    if marker == 0xE0:
        return body.startswith(b"JFIF\0") and len(body) >= 14
    if marker == 0xEE:
        return body.startswith(b"Adobe") and len(body) >= 12
    return not (0xE0 <= marker <= 0xEF or marker == 0xFE)


# WebP: chunks in a RIFF file, each a kind, a length and a body of even length.


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _riff(data: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """(kind, body, length that the file claims) of each, the last perhaps cut off."""
    at = 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], data[at + 8 : at + 8 + length], length
        at += 8 + length + length % 2


def _bare_webp(data: bytes) -> bytes:
    parts, size = [b"WEBP"], 4
    for kind, body, length in _riff(data):
        if kind in (b"ICCP", b"EXIF", b"XMP "):
            continue
        if kind == b"VP8X":  # no longer is any of them there
            body = bytes([body[0] & ~0x2C]) + body[1:] if body else body
        padding = b"\0" * (length % 2 if len(body) == length else 0)
        parts.append(kind + length.to_bytes(4, "little") + body + padding)
        size += 8 + length + length % 2
    return b"RIFF" + size.to_bytes(4, "little") + b"".join(parts)
