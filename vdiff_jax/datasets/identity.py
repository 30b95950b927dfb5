"""By what the content of a data set is known."""

import hashlib

import numpy as np

from vdiff_jax.datasets.source import Source

# Examples that stand for a whole split.
SAMPLE = 256


def sha256_of_sample(source: Source) -> str:
    """Hash of the pixels and labels of 256 examples, evenly spaced, or of all.

    And of their contexts, where they have some. It is written in files, and so stays as
    it is: latents are hashed as float32.

    Returns:
      The first 16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for index in evenly(len(source), SAMPLE):
        example = source[int(index)]
        digest.update(_bytes(example["image"]))
        digest.update(str(example.get("label")).encode())
        for part in ("context", "mask"):
            if part in example:
                digest.update(_bytes(example[part]))
    return digest.hexdigest()[:16]


def _bytes(values: np.ndarray) -> bytes:
    floats = np.float32 if values.dtype.kind == "f" else None
    return np.ascontiguousarray(values, floats).tobytes()


def evenly(length: int, most: int) -> np.ndarray:
    """At most `most` indices, evenly spaced over 0 .. length - 1."""
    return np.linspace(0, length - 1, min(length, most)).round().astype(np.int64)
