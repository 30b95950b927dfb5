"""Names of files, which are bytes, as text that is the same under every locale.

The bytes are taken for UTF-8, and those that are none become lone surrogates, as in
Python's own names of files under a UTF-8 locale. Order and hash are of the bytes.
"""


def from_bytes(name: bytes) -> str:
    """The text of a name."""
    return name.decode("utf-8", "surrogateescape")


def to_bytes(name: str) -> bytes:
    """The bytes of a name."""
    return name.encode("utf-8", "surrogateescape")
