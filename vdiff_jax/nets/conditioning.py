"""The embedding of log-SNR, class and guidance weight that modulates a network.

Names of parameters are those of released checkpoints: `dense0`, `dense1`, `class_emb`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdiff_jax.types import Condition, Labels, PerExample

Embedding: TypeAlias = Float[Array, " batch features"]
LogsnrInput: TypeAlias = Literal["inv_cos", "linear", "sigmoid"]
Table: TypeAlias = Sequence[float] | np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditioning:
    """The parts of the embedding; each is described at the networks that have it.

    Attributes:
      features: Width of the sinusoid of the log-SNR.
      emb_features: Width of the embedding.
      num_classes: 0 for no classes.
      null_class: If true, a row of its own, the last, is added for an example whose
        class is left out; else nothing is.
      class_bias: If true, the embedding of the class adds a bias.
      w_features: Width of the sinusoid of the guidance weight; 0 for none.
      w_scale: Factor of w in that sinusoid.
      logsnr_input: The map from log-SNR to the sinusoid's time.
      timesteps: The log-SNR of each step of a discrete chain, whose number then is the
        sinusoid's time; or empty.
      time_table: If true, a learned vector for each of those steps replaces the
        sinusoid.
      cosine_first: Argument of `sinusoid`.
      frequency_shift: Argument `shift` of `sinusoid`.
    """

    features: int
    emb_features: int
    num_classes: int = 0
    null_class: bool = False
    class_bias: bool = True
    w_features: int = 0
    w_scale: float = 1000.0
    logsnr_input: LogsnrInput = "inv_cos"
    timesteps: tuple[float, ...] = ()
    time_table: bool = False
    cosine_first: bool = False
    frequency_shift: int = 1


def embed(parts: Conditioning, logsnr_t: PerExample, condition: Condition) -> Embedding:
    """The embedding; to be called in a compact method, whose module gets its weights.

    Args:
      parts: The parts of the embedding.
      logsnr_t: The log-SNR of each example, in nats.
      condition: The label and w of each example; absent where the parts have none.
    """
    label, _, _, w = condition
    emb = _embed_time(parts, logsnr_t)
    if w is not None:
        # Nothing at first: a student begins as the network whose weights it takes.
        emb += nn.Dense(
            parts.features,
            use_bias=False,
            kernel_init=nn.initializers.zeros,
            name="w_proj",
        )(sinusoid(parts.w_scale * w, parts.w_features))
    emb = nn.Dense(parts.emb_features, name="dense0")(emb)
    emb = nn.Dense(parts.emb_features, name="dense1")(nn.swish(emb))
    if label is None:
        return emb
    rows = parts.num_classes
    if parts.null_class:
        label, rows = jnp.where(label < 0, rows, label), rows + 1
    one_hot = nn.one_hot(label, rows, dtype=emb.dtype)  # zero for -1
    of_class = nn.Dense(parts.emb_features, use_bias=parts.class_bias, name="class_emb")
    return emb + of_class(one_hot)


def _embed_time(parts: Conditioning, logsnr_t: PerExample) -> Embedding:
    if parts.time_table:
        table = nn.Embed(len(parts.timesteps), parts.features, name="time_table")
        return table(row_of_table(parts, logsnr_t))
    return time_features(parts, logsnr_t)


def row_of_table(parts: Conditioning, logsnr_t: PerExample) -> Labels:
    """Index of the vector that a network with `time_table` takes at a log-SNR."""
    return jnp.round(timestep(logsnr_t, parts.timesteps)).astype(jnp.int32)


def time_features(parts: Conditioning, logsnr_t: PerExample) -> Embedding:
    """The embedding of the log-SNR, for a network without a table of times."""
    if parts.timesteps:
        time = timestep(logsnr_t, parts.timesteps)
    else:
        time = 1000.0 * logsnr_input(logsnr_t, parts.logsnr_input)
    return sinusoid(
        time,
        parts.features,
        cosine_first=parts.cosine_first,
        shift=parts.frequency_shift,
    )


def logsnr_input(
    logsnr: PerExample,
    mode: LogsnrInput,
    linear_range: tuple[float, float] = (-20.0, 20.0),
) -> PerExample:
    """Maps a log-SNR to the number in about [0, 1] that the network is conditioned on.

    `inv_cos` is arctan(exp(-logsnr / 2)) / (pi / 2), which for the cosine schedule is
    t; `linear` rises with the log-SNR over `linear_range`; `sigmoid` is alpha^2.

    Args:
      logsnr: The log-SNR of each example, in nats.
      mode: One of the three maps.
      linear_range: log-SNRs at which `linear` is 0 and 1.

    Raises:
      ValueError: If `mode` is unknown.
    """
    if mode == "inv_cos":
        return jnp.arctan(jnp.exp(-0.5 * jnp.clip(logsnr, -20.0, 20.0))) / (0.5 * np.pi)
    if mode == "linear":
        low, high = linear_range
        return (logsnr - low) / (high - low)
    if mode == "sigmoid":
        return jax.nn.sigmoid(logsnr)
    raise ValueError(
        f"Unknown logsnr_input {mode!r}; choose from {get_args(LogsnrInput)}."
    )


def timestep(logsnr: PerExample, table: Table) -> PerExample:
    """The number, from 0 up, of the step of a discrete chain that has a log-SNR.

    Between two steps it is linear in the log-SNR, and beyond the ends it is that of the
    end.

    Args:
      logsnr: The log-SNR of each example, in nats.
      table: The log-SNR of each step, falling.
    """
    rising = np.asarray(table[::-1], logsnr.dtype)
    numbers = np.arange(len(table), dtype=logsnr.dtype)[::-1]
    return jnp.interp(logsnr, rising, numbers)


def sinusoid(
    time: PerExample, features: int, *, cosine_first: bool = False, shift: int = 1
) -> Embedding:
    """Sines, then cosines, of `time` at `features // 2` frequencies from 1 to 1e-4.

    Ho et al. (2020), arXiv:2006.11239, with `time` about 0 to 1000.

    Args:
      time: Angles at the highest frequency.
      features: Number of sines and cosines together.
      cosine_first: Put the cosines before the sines.
      shift: 1; or 0, so that the frequencies stop one short of 1e-4, as in diffusers.

    Raises:
      ValueError: If `features` is odd or below 4.
    """
    if features % 2 or features < 4:
        raise ValueError(f"features must be even and at least 4, got {features}.")
    half = features // 2
    frequencies = np.exp(-np.log(1e4) * np.arange(half) / (half - shift))
    angles = time[:, None] * frequencies.astype(time.dtype)[None, :]
    waves = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(waves[::-1] if cosine_first else waves, axis=1)
