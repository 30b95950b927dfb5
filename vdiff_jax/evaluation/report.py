"""Tables, figures and picture grids of an evaluation."""

import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen is needed
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.layout_engine import ConstrainedLayoutEngine

Row = dict[str, Any]


def table(rows: Sequence[Row]) -> str:
    """The rows as text, one line each."""
    lines = [f"{'model':>10} {'steps':>6} {'value':>9} {'ms / image':>11}"]
    lines += [
        f"{row['model']:>10} {row['steps']:>6} {row['value']:>9.3f}"
        f" {1e3 * row['seconds_per_image']:>11.3f}"
        for row in rows
    ]
    return "\n".join(lines)


def ladder_figure(path: pathlib.Path, rows: Sequence[Row], *, floor: float) -> None:
    """Distance against steps, one curve for each kind of model.

    Args:
      path: The PNG to write.
      rows: Rows of ladder.json.
      floor: The distance between two halves of the data.
    """
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    looks = {
        "base": ("C7", "o--", "base, DDIM"),
        "distilled": ("C0", "o-", "distilled"),
    }
    for kind, (color, line, label) in looks.items():
        points = sorted(
            (row["steps"], row["value"]) for row in rows if row["model"] == kind
        )
        if points:
            axes.plot(*zip(*points, strict=True), line, color=color, label=label)
    axes.axhline(floor, color="C2", linestyle=":", label="half the data to the other")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    steps = sorted({row["steps"] for row in rows})
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.set_xlabel("network evaluations per image")
    axes.set_ylabel(f"{rows[0]['metric']} ({rows[0]['num_images']:,} images)")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def comparison_grid(
    path: pathlib.Path, rows: Sequence[np.ndarray], labels: Sequence[str]
) -> None:
    """One labelled row of pictures for each model; a column shares its noise.

    Args:
      path: The PNG to write.
      rows: uint8 images [columns, height, width, channels] of each model.
      labels: A name for each row.
    """
    columns = len(rows[0])
    figure, axes = plt.subplots(
        len(rows),
        columns,
        figsize=(0.6 * columns + 1.6, 0.6 * len(rows)),
        layout=ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.01, wspace=0, hspace=0),
        squeeze=False,
    )
    for row, images, label in zip(axes, rows, labels, strict=True):
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
        for ax, image in zip(row, images, strict=True):
            ax.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
