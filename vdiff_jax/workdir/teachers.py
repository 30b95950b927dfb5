"""Refuses models as teachers: of guidance, or of a run that began with another."""

import pathlib
from collections.abc import Mapping
from typing import Any

from vdiff_jax.from_config.model import context_shape_in
from vdiff_jax.interop import model_file
from vdiff_jax.interop.diffusers.conditional_unet import NULL_CONTEXT
from vdiff_jax.workdir import layout


def check_can_be_guided(folder: pathlib.Path) -> None:
    """Refuses a base model that has never seen an example without its class.

    Args:
      folder: The folder of its run, or a file that export wrote.

    Raises:
      ValueError: If its classes were never left out in training.
    """
    if folder.suffix == ".safetensors":
        refuse_guidance(folder, model_file.read_about(folder).fields)
    else:
        refuse_guidance(folder, layout.made_with(folder))


def refuse_guidance(folder: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Refuses guidance of a base model with this config, as `check_can_be_guided`.

    Args:
      folder: The folder of its run or of diffusers, or its file, for messages.
      config: The sections `train` and `model` that it was made with.

    Raises:
      ValueError: If its condition was never left out in training.
    """
    if config["train"].get("label_dropout", 0.0):
        return
    cannot = f"The model in {folder} cannot be guided: "
    if (shape := context_shape_in(config["model"])) is None:
        raise ValueError(
            f"{cannot}its classes were never left out in training. Train one with"
            " train.label_dropout=0.1."
        )
    raise ValueError(
        f"{cannot}its contexts were never left out in training, or it was imported"
        f" without what then takes their place. Put {NULL_CONTEXT}, with the embedding"
        f" of an empty text as the tensor context, {list(shape)}, into the folder that"
        " it is imported from, and import it into another --workdir; or train one with"
        " train.label_dropout=0.1."
    )


def check_same_teacher(folder: pathlib.Path, teacher: pathlib.Path) -> None:
    """Refuses another teacher than the one that a run began with, wherever it lies.

    Args:
      folder: The folder of the run, finished or under way; a new one passes.
      teacher: The folder that its teacher is in now.

    Raises:
      ValueError: If the parameters of that folder have another fingerprint.
    """
    began_with = (layout.result(folder) or {}).get("teacher_sha256")
    now = (layout.result(teacher) or {}).get("params_sha256")
    if None not in (began_with, now) and began_with != now:
        raise ValueError(
            f"The run in {folder} began with another teacher than {teacher} is now:"
            f" params_sha256 {began_with} there, {now} now. Name the one it had, or use"
            " another --workdir."
        )
