"""Names of files, which are bytes, as text that is the same under every locale.

The bytes are taken for UTF-8, and those that are none become lone surrogates, as in
Python's own names of files under a UTF-8 locale. Order and hash are of the bytes.
"""

# Ends the name of an image's mirrored copy; no name of a file of images ends so.
_MIRRORED = "#mirrored"


def from_bytes(name: bytes) -> str:
    """The text of a name."""
    return name.decode("utf-8", "surrogateescape")


def to_bytes(name: str) -> bytes:
    """The bytes of a name."""
    return name.encode("utf-8", "surrogateescape")


def mirrored(name: str) -> str:
    """The name of the mirrored copy of an image."""
    return name + _MIRRORED


def unmirrored(name: str) -> str:
    """The name of the image that an image is, or is the mirrored copy of."""
    return name.removesuffix(_MIRRORED)
