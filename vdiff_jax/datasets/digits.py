"""1,797 scans of handwritten digits, 8x8, that come with scikit-learn.

Alpaydin & Kaynak (1998), "Optical Recognition of Handwritten Digits", UCI Machine
Learning Repository, CC BY 4.0: the test part of that collection.
"""

from typing import Literal

import numpy as np
import sklearn.datasets

from vdiff_jax.datasets.source import Arrays

NUM_HELD_OUT = 180


def digits(split: Literal["train", "test"]) -> Arrays:
    """The digits, every class in both splits: 1,617 to train on and 180 held out."""
    levels, labels = sklearn.datasets.load_digits(return_X_y=True)  # 0 .. 16
    images = np.round(levels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    order = np.random.default_rng(0).permutation(len(images))
    part = order[NUM_HELD_OUT:] if split == "train" else order[:NUM_HELD_OUT]
    return Arrays(images[part], labels[part].astype(np.int32))
