"""What a page shows. A part that is empty is left out of the page."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vdiff_jax.evaluation.measurement import Measurement

Row = Mapping[str, Any]
Fact = tuple[str, Any]
Point = tuple[int, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss of one run.

    Attributes:
      name: The run, like "base" or "64 steps".
      training: (update, loss), by update.
      held_out: The same on held-out data.
    """

    name: str
    training: Sequence[Point] = ()
    held_out: Sequence[Point] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """What one model makes of the noises that all frames share.

    Attributes:
      label: Which model and how many steps, like "distilled, 4 steps".
      steps: Number of steps.
      pictures: One for each noise.
      w: Strength of guidance; in a series no two frames have the same w and steps.
    """

    label: str
    steps: int
    pictures: UInt8[np.ndarray, " k h w c"]
    w: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """Frames from many steps to few.

    Attributes:
      name: Like "base, DDIM".
      frames: From most steps to fewest.
    """

    name: str
    frames: Sequence[Frame]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The way of a few noises to pictures.

    Attributes:
      label: Which model and how many steps.
      columns: A name for each step, like "t = 0.75".
      x_hat: At each step the picture that the model predicts.
      z: At each step the latent, brought to 0 .. 255.
    """

    label: str
    columns: Sequence[str]
    x_hat: UInt8[np.ndarray, " noises steps h w c"]
    z: UInt8[np.ndarray, " noises steps h w c"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strip:
    """A row of pictures, like those between two noises.

    Attributes:
      label: What the row is.
      pictures: From left to right.
    """

    label: str
    pictures: UInt8[np.ndarray, " n h w c"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Samples and what is nearest to each in the training data.

    Attributes:
      distance: What `distances` measures, like "Euclidean, of pixels in [0, 1]".
      samples: Made by the model.
      nearest: Training pictures, the nearest first.
      distances: From the sample to each of them.
    """

    distance: str
    samples: UInt8[np.ndarray, " n h w c"]
    nearest: UInt8[np.ndarray, " n k h w c"]
    distances: Float[np.ndarray, " n k"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """All that is on a page; only the title must be there.

    Rows are shown as they are: a key is the name of a column, with spaces for
    underscores.

    Attributes:
      title: Of the page.
      command: What made the run.
      date: When, as text.
      summary: (name, value) of what matters most.
      series: The first is the ladder that the slider moves along, from the base model
        to one step; where its frames differ in w, another slider moves along that. Any
        other can be shown beside it at the same number of steps and the same w.
      ladder: Measurements, at most one for each metric, model, sampler, w and number
        of evaluations.
      floors: For a metric, its value for one half of the data against the other.
      provenance: (name, value) of what was measured against what.
      timing: Rows: model, sampler, steps, evaluations, seconds per image, ...
      trajectories: From noise to picture, for some models.
      interpolations: Rows of pictures, from one noise to another.
      neighbours: Whether the model remembers its training data.
      likelihood: Rows: model, bits per dimension, ...
      losses: Of all runs, in their order.
      costs: Rows: run, updates, images, seconds, images/s, parameters.
      config: Of the run, nested.
    """

    title: str
    command: str = ""
    date: str = ""
    summary: Sequence[Fact] = ()
    series: Sequence[Series] = ()
    ladder: Sequence[Measurement] = ()
    floors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    provenance: Sequence[Fact] = ()
    timing: Sequence[Row] = ()
    trajectories: Sequence[Trajectory] = ()
    interpolations: Sequence[Strip] = ()
    neighbours: Neighbours | None = None
    likelihood: Sequence[Row] = ()
    losses: Sequence[Loss] = ()
    costs: Sequence[Row] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
