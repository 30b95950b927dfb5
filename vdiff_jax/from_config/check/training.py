"""Checks of the stages that train, and of the model that is imported to begin with.

Each raises a ValueError of one line, as `check` does.
"""

from vdiff_jax.distillation.methods import METHODS
from vdiff_jax.from_config.check.network import BUILT_IN
from vdiff_jax.from_config.check.terms import (
    check_num_steps,
    is_conditional,
    runs,
)
from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.fields import words_of
from vdiff_jax.from_config.losses import phases_of
from vdiff_jax.from_config.model import chain_length, has_guide


def check_source(config: Config) -> None:
    """Refuses an import of nothing."""
    if (
        config.stage != "import"
        or config.source.path
        or config.model.net not in BUILT_IN
    ):
        return
    raise ValueError(
        "source.path='' is empty: name a folder of diffusers, a .safetensors of export"
        " or a checkpoint of the paper; or set model.net, package.module:function,"
        " which makes a network, or a pair of a function and its parameters."
    )


def check_train(config: Config) -> None:
    """Refuses to train without label dropout what is to be guided later."""
    if not runs(config, "train") or config.train.label_dropout:
        return
    for stage, field, guided in (
        ("guide", "guide.steps", has_guide(config) and not config.guide.teacher),
        ("evaluate", "evaluate.w", any(config.evaluate.w)),
    ):
        if guided and runs(config, stage):
            raise ValueError(
                "train.label_dropout=0.0 leaves out no class, so that the base model"
                f" cannot be guided as {field} asks: set train.label_dropout=0.1."
            )


def check_guide(config: Config) -> None:
    """Refuses weights w, or a guide stage, that the model cannot have."""
    guide = config.guide
    low, high = guide.w_range
    if not low <= high:
        raise ValueError(
            f"guide.w_range={(low, high)} must be two numbers of at least 0, the first"
            " not above the second."
        )
    if guide.w_features % 2:
        raise ValueError(f"guide.w_features={guide.w_features} must be even.")
    if has_guide(config) and not is_conditional(config):
        raise ValueError(
            f"guide.steps={guide.steps} needs a model that is conditioned on a class:"
            " set model.num_classes, and train with train.label_dropout above 0."
        )
    if "guide" in words_of(config.stage) and not has_guide(config):
        raise ValueError(
            "guide.steps=0 turns the guide stage off: set the number of its updates."
        )


def check_distill(config: Config) -> None:
    """Refuses phases or inputs that the method does not have."""
    distill = config.distill
    # An imported student of one step has no students, but can be sampled from.
    if distill.start_steps > 1 or runs(config, "distill"):
        phases_of(config)
    if not runs(config, "distill"):
        return
    method = METHODS[distill.method]
    if distill.noise_input and not method.takes_noise:
        raise ValueError(
            f"distill.noise_input=True is not for distill.method={distill.method!r}:"
            " set distill.noise_input=False."
        )
    if method.halves:
        check_num_steps(config, "distill.start_steps", distill.start_steps)
    if distill.method == "consistency":
        _check_teacher_steps(config)


def _check_teacher_steps(config: Config) -> None:
    """Refuses steps of a consistency teacher that fall, or that a chain has not."""
    first, last = config.distill.teacher_steps
    if first > last:
        raise ValueError(
            f"distill.teacher_steps={(first, last)} must not fall: set {(last, first)}."
        )
    length = chain_length(config)
    # A chain is flat below t = 1 / T, and a step there goes nowhere.
    if length and last >= length:
        raise ValueError(
            f"distill.teacher_steps={(first, last)} must end at most at {length - 1},"
            f" as the chain of diffusion.schedule={config.diffusion.schedule!r} has"
            f" {length} steps: set fewer."
        )
