"""The identity of a data set: a hash of some of its examples, not its path or size."""

import hashlib

import numpy as np

from vdiff_jax.datasets.source import Source

# Examples that stand for the whole.
SAMPLE = 256


def evenly(length: int, most: int) -> np.ndarray:
    """At most `most` indices, evenly spaced over 0 .. length - 1."""
    return np.linspace(0, length - 1, min(length, most)).round().astype(np.int64)


def sha256_of_sample(source: Source) -> str:
    """Hash of the pixels and labels of some examples, as 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for index in evenly(len(source), SAMPLE):
        example = source[int(index)]
        digest.update(np.ascontiguousarray(example["image"]).tobytes())
        digest.update(str(example.get("label")).encode())
    return digest.hexdigest()[:16]
