"""The content of a page, part by part; an empty part is left out of the page."""

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
    """The loss of one run, or another metric that its loss gives.

    Attributes:
      name: The run, like "base" or "64 steps".
      metric: The metric, "loss" or another, like "gap".
      training: (update, value), by update.
      held_out: The same on held-out data.
    """

    name: str
    metric: str = "loss"
    training: Sequence[Point] = ()
    held_out: Sequence[Point] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """The images of one model, from the noises that all frames share.

    Attributes:
      label: The model and its number of steps, like "distilled, 4 steps".
      steps: Number of steps.
      images: One for each noise.
      w: The guidance weight; in a series no two frames have the same w and steps.
    """

    label: str
    steps: int
    images: UInt8[np.ndarray, " k h w c"]
    w: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """Frames from many steps to few.

    Attributes:
      name: The model and its sampler, like "base, DDIM".
      frames: The frames, from most steps to fewest.
    """

    name: str
    frames: Sequence[Frame]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The trajectories from a few noises to images.

    Attributes:
      label: The model and its number of steps.
      columns: A name for each step, like "t = 0.75".
      x_hat: At each step the image that the model predicts.
      z: At each step the latent, brought to 0 .. 255.
    """

    label: str
    columns: Sequence[str]
    x_hat: UInt8[np.ndarray, " noises steps h w c"]
    z: UInt8[np.ndarray, " noises steps h w c"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strip:
    """A row of images, like those between two noises.

    Attributes:
      label: The name of the row.
      images: The images, from left to right.
    """

    label: str
    images: UInt8[np.ndarray, " n h w c"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Samples, and the training images nearest to each.

    Attributes:
      distance: The kind of distance, like "Euclidean, of pixels in [0, 1]".
      samples: Images drawn from the model.
      nearest: Training images, the nearest first.
      distances: Their distances from the sample.
    """

    distance: str
    samples: UInt8[np.ndarray, " n h w c"]
    nearest: UInt8[np.ndarray, " n k h w c"]
    distances: Float[np.ndarray, " n k"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """The whole content of a page; only the title is required.

    Rows are shown as they are: a key is the name of a column, with spaces for
    underscores.

    Attributes:
      title: The title of the page.
      command: The command that made the run.
      date: The date, as text.
      summary: (name, value) of what matters most.
      series: The first is the ladder that the slider moves along, from the base model
        to one step; where its frames differ in w, another slider moves along that. Any
        other can be shown beside it at the same number of steps and the same w.
      ladder: Measurements, at most one for each metric, model, sampler, w and number
        of evaluations.
      real_vs_real: The real-vs-real distance of each metric, which is its value for one
        half of the reference against the other.
      provenance: (name, value) of what was measured against what.
      timing: Rows: model, sampler, steps, evaluations, seconds per image, ...
      trajectories: Trajectories from noise to image, for some models.
      interpolations: Rows of images, from one noise to another.
      neighbours: Samples beside training images, to see if the model remembers those.
      likelihood: Rows: model, bits per dimension, ...
      losses: The losses of all runs, in their order, each with its other metrics.
      costs: Rows: run, updates, images, seconds, images/s, parameters.
      config: The config of the run, nested.
    """

    title: str
    command: str = ""
    date: str = ""
    summary: Sequence[Fact] = ()
    series: Sequence[Series] = ()
    ladder: Sequence[Measurement] = ()
    real_vs_real: Mapping[str, float] = dataclasses.field(default_factory=dict)
    provenance: Sequence[Fact] = ()
    timing: Sequence[Row] = ()
    trajectories: Sequence[Trajectory] = ()
    interpolations: Sequence[Strip] = ()
    neighbours: Neighbours | None = None
    likelihood: Sequence[Row] = ()
    losses: Sequence[Loss] = ()
    costs: Sequence[Row] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
