"""The table of the methods of distillation, by the name that a config gives them."""

from vdiff_jax.distillation import (
    consistency,
    guided,
    moment_matching,
    progressive,
)
from vdiff_jax.distillation.method import Method

METHODS: dict[str, Method] = {
    "progressive": progressive.METHOD,
    "stochastic": guided.STOCHASTIC,
    "encode": guided.ENCODE,
    "moment_matching": moment_matching.METHOD,
    "consistency": consistency.METHOD,
}
# Its students are in `distill/`, those of another method in `distill_<method>/`.
FIRST = "progressive"
