"""The files in a folder of diffusers: one network's settings, and its weights.

Whatever is not expected is refused by its name. Nothing in a file is executed.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vdiff_jax.files import weights
from vdiff_jax.interop.diffusers import names

WEIGHTS = "diffusion_pytorch_model.safetensors"
# The same network as people publish it, the most exact first.
VARIANTS = ("", ".fp16", ".bf16")
# The version that written folders were loaded with.
VERSION = "0.42.1"
PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a dictionary.

    Raises:
      ValueError: If there is no such file, or it is no dictionary in JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"There is no {path}: name the folder of a pipeline of diffusers, or of the"
            " part of it that is to be read."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a dictionary.")
    return content


def check_class(
    content: dict[str, Any],
    path: pathlib.Path,
    classes: Sequence[str],
    default: str | None = None,
) -> str:
    """Returns the class that a config is of.

    Args:
      content: The config.
      path: Its file, for messages.
      classes: Those that can be read.
      default: The class of a config that does not name one; None to refuse it.

    Raises:
      ValueError: If it is of another class.
    """
    name = content.get("_class_name", default)
    if name not in classes:
        raise ValueError(
            f"_class_name={name!r} in {path}: only {' and '.join(classes)} can be"
            " imported here."
        )
    return name


def fields_of(
    content: dict[str, Any],
    path: pathlib.Path,
    *,
    defaults: Mapping[str, Any],
    only: Mapping[str, tuple[Any, ...]],
    kinds: Mapping[str, tuple[str, ...]],
) -> dict[str, Any]:
    """Returns all fields of a config.

    Args:
      content: The config.
      path: Its file, for messages.
      defaults: Every known field, with its value where the config lacks it.
      only: The values that are supported, of the fields where these are few.
      kinds: The same for the parts of fields that are lists.

    Raises:
      ValueError: If a field is not known, or has another value.
    """
    fields = {name: x for name, x in content.items() if not name.startswith("_")}
    if unknown := sorted(fields.keys() - defaults.keys()):
        raise ValueError(f"{path} has fields that are not supported: {unknown}.")
    config = {**defaults, **fields}
    for name, choices in only.items():
        if config[name] not in choices:
            raise ValueError(
                f"{name}={config[name]!r} in {path} is not supported; only"
                f" {', '.join(map(repr, choices))} can be imported."
            )
    for name, choices in kinds.items():
        if other := [kind for kind in config[name] if kind not in choices]:
            raise ValueError(
                f"{name} in {path} has {other[0]!r}, which is not supported; only"
                f" {', '.join(choices)} can be imported."
            )
    return config


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files with the weights: one, or the parts that an index names.

    Raises:
      ValueError: If there are none, or none that are read.
    """
    stem, suffix = WEIGHTS.split(".")
    for variant in VARIANTS:
        if (path := folder / f"{stem}{variant}.{suffix}").is_file():
            return [path]
        index = folder / f"{stem}.{suffix}.index{variant}.json"
        if index.is_file():
            return _parts(index)
    for path in sorted(folder.glob("*")):
        check_is_no_pickle(path, f"There is no {WEIGHTS} in {folder}. ")
    others = sorted(path.name for path in folder.glob(f"{stem}*"))
    beside = f", but {', '.join(others)}" if others else ""
    raise ValueError(
        f"There is no {WEIGHTS} in {folder}{beside}: fetch it, or save the model with"
        " save_pretrained() of diffusers."
    )


def check_is_no_pickle(path: pathlib.Path, why: str = "") -> None:
    """Refuses a file that only a reader that runs code could open.

    Raises:
      ValueError: If it is one, with the line that converts it.
    """
    if path.suffix in PICKLES:
        raise ValueError(
            f"{why}Files of pickles ({path.name}) are not read: convert it once, where"
            ' torch is: python -c "import torch, safetensors.torch as s;'
            f" s.save_file(torch.load('{path.name}', weights_only=True), '{WEIGHTS}')\""
        )


def read_tensors(files: Sequence[pathlib.Path]) -> names.Tensors:
    """All tensors of the files in float32, under the names of diffusers of today."""
    tensors: names.Tensors = {}
    for path in files:
        tensors |= weights.read(path)
    return names.with_new_names(
        {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    )


def is_network(folder: pathlib.Path) -> bool:
    """True for a folder of diffusers whose config.json is that of a network.

    A workdir has a file of that name too.
    """
    if (folder / "scheduler_config.json").exists():
        return True
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "_class_name" in content


def _parts(index: pathlib.Path) -> list[pathlib.Path]:
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ValueError(f"{index} has no weight_map, the file of each tensor.")
    for name in (files := sorted(set(map(str, listed.values())))):
        if pathlib.PurePath(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(
                f"{index} names {name!r}, which is no .safetensors file beside it."
            )
    return [index.parent / name for name in files]


def write_part(
    folder: pathlib.Path,
    part: str,
    name: str,
    content: dict[str, Any],
    tensors: names.Tensors | None = None,
) -> None:
    """Writes one part of a pipeline: its settings, and its weights if it has any.

    Args:
      folder: The folder of the pipeline.
      part: The folder of the part in it, which is made; empty for the folder itself.
      name: The name of the settings' file, without `.json`.
      content: The settings.
      tensors: The weights, by the names of diffusers.
    """
    (folder / part).mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    (folder / part / f"{name}.json").write_text(text, encoding="utf-8")
    if tensors is not None:
        weights.write(folder / part / WEIGHTS, tensors, {"format": "pt"})
