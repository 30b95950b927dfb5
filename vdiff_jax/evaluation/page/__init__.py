"""report.html, the page of a run: one file that needs nothing else.

`render(Content(...))` gives the text of the page. It is read by double-click, without
a network; without scripts it still shows every table and every image.
"""

from vdiff_jax.evaluation.page.content import (
    Content,
    Frame,
    Loss,
    Neighbours,
    Series,
    Strip,
    Trajectory,
)
from vdiff_jax.evaluation.page.render import render

__all__ = [
    "Content",
    "Frame",
    "Loss",
    "Neighbours",
    "Series",
    "Strip",
    "Trajectory",
    "render",
]
