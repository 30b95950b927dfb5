"""Array aliases and the two contracts that the rest of the library is built on.

A *schedule* maps time t in [0, 1] (0 is data, 1 is noise) to the log-SNR in nats.
A *denoiser* maps a noisy example and its log-SNR to a `Prediction`. Samplers,
distillation targets and evaluation know nothing else about a network.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Num, PyTree

Examples: TypeAlias = Float[Array, " batch *event"]
PerExample: TypeAlias = Float[Array, " batch"]
Labels: TypeAlias = Int[Array, " batch"]
Keys: TypeAlias = Key[Array, " batch"]
Scalar: TypeAlias = Float[Array, ""]
Params: TypeAlias = PyTree  # of arrays, or of their shapes


class Prediction(NamedTuple):
    """One estimate of the clean example, in three equivalent forms.

    With z_t = alpha_t x + sigma_t eps and v = alpha_t eps - sigma_t x, each form
    determines the others. All three are kept because forming one from another
    divides by sigma_t or alpha_t, which costs digits near t = 0 or t = 1.
    """

    x: Examples
    eps: Examples
    v: Examples


class Condition(NamedTuple):
    """Everything that a network is given beside z_t and its log-SNR; batch first.

    Absent parts are None. Whoever does not read it only passes it on.

    Attributes:
      label: Classes, 0 .. num_classes - 1; -1 for an example whose class is left out.
      context: A sequence of vectors, such as the embedding of a text.
      mask: True where a vector of the context counts; an example without any has its
        context left out. None if all count.
      w: The guidance weight of each example; None is no guidance.
    """

    label: Labels | None = None
    context: Float[Array, " batch tokens width"] | None = None
    mask: Bool[Array, " batch tokens"] | None = None
    w: PerExample | None = None


NOTHING = Condition()

Schedule: TypeAlias = Callable[[Float[Array, " ..."]], Float[Array, " ..."]]
RawOutput: TypeAlias = Float[Array, " batch *output"]  # may have twice the channels
Network: TypeAlias = Callable[[Examples, PerExample], RawOutput]
Denoiser: TypeAlias = Callable[[Examples, PerExample], Prediction]


class Batch(NamedTuple):
    """Images as uint8 pixels or as floats in model units, and their conditions."""

    image: Num[Array | np.ndarray, " *batch height width channels"]
    condition: Condition = NOTHING


class Feed(NamedTuple):
    """The batches of one call of `many_updates`.

    Attributes:
      items: One for each update, along the first axis: batches, or indices into `data`.
      data: Arrays that all updates share: the whole data set, or None.
    """

    items: PyTree
    data: PyTree = None
