"""Captions made of the names of classes, as contexts that a network can attend to.

Each word has a fixed random vector, in the place of an encoder of texts; captions are
of different lengths, and padded. The order of words is not in them.
"""

import zlib
from collections.abc import Sequence

import numpy as np

TOKENS, WIDTH = 8, 32
TEMPLATES = (
    "a photograph of a {}",
    "{}",
    "a {}",
    "one small picture of a {} in colour",
    "this is a {}",
    "look there is a {}",
)

Arrays = dict[str, np.ndarray]


def table(names: Sequence[str]) -> Arrays:
    """The contexts of every caption of every class, as `prepare --context` takes them.

    Args:
      names: Names of the classes.

    Returns:
      "contexts", float32 [classes * templates, tokens, width], caption k of class c in
      row `row_of(c, k)`; "masks"; and the empty caption as "null_context", "null_mask".
    """
    captions = [template.format(name) for name in names for template in TEMPLATES]
    contexts, masks = zip(*map(embedded, captions), strict=True)
    null, null_mask = embedded("")
    return {
        "contexts": np.stack(contexts),
        "masks": np.stack(masks),
        "null_context": null,
        "null_mask": null_mask,
    }


def row_of(label: np.ndarray, template: np.ndarray) -> np.ndarray:
    """The row of a caption in `table`."""
    return label * len(TEMPLATES) + template


def embedded(caption: str) -> tuple[np.ndarray, np.ndarray]:
    """The context of a caption, [tokens, width], and its mask.

    The empty caption is one vector of zeros, for attention needs something to attend
    to.
    """
    words = caption.split()
    context = np.zeros((TOKENS, WIDTH), np.float32)
    for place, word in enumerate(words):
        context[place] = _vector(word)
    return context, np.arange(TOKENS) < max(len(words), 1)


def prompts(names: Sequence[str], num: int, shift: int = 0) -> Arrays:
    """Contexts for images in turn, as `sample.context` takes them.

    Args:
      names: Names of the classes.
      num: The number of images.
      shift: Added to the class; image i is asked for as class i + shift.

    Returns:
      "context", float32 [num, tokens, width], and "mask".
    """
    captions = table(names)
    image = np.arange(num)
    template = image // len(names) % len(TEMPLATES)
    row = row_of((image + shift) % len(names), template)
    return {"context": captions["contexts"][row], "mask": captions["masks"][row]}


def _vector(word: str) -> np.ndarray:
    draw = np.random.default_rng(zlib.crc32(word.encode()))
    return draw.normal(size=WIDTH).astype(np.float32)
