"""Fields that have moved: what an older command, config or file means today.

Every spelling here is understood for one version. `translated` serves them all: the
flags of a command (`command.parse`), the changes that a config file makes (`defaults`),
and the configs that workdirs and files of weights keep (`current`).
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from vdiff_jax.from_config.fields import (
    FIELDS,
    LOOP,
    SECTIONS,
    TRAINING,
    field_at,
)
from vdiff_jax.from_config.model import attending, shape_of
from vdiff_jax.from_config.ranges import Range, at_least
from vdiff_jax.nets.serialization import describe
from vdiff_jax.nets.unet import UNet

Nested = dict[str, Any]

# Methods by their former names.
FORMER_METHODS = {
    "deterministic": "progressive",
    "stochastic": "stochastic",
    "encode": "encode",
}
# Old fields, each with a value of its type.
_UNET = [name for name in SECTIONS["model.unet"].fields if name != "layout"]
_TRAINED = [*SECTIONS["train"].fields, *LOOP]
OLD: dict[str, Any] = {
    **{f"model.{name}": FIELDS[f"model.unet.{name}"].default for name in _UNET},
    **{f"finetune.{name}": field_at(f"train.{name}").default for name in _TRAINED},
    "finetune.source": "",
    "model.unet": "",
    "model.num_heads": 0,
    "distill.ladder": "",
    "guide.w_min": 0.0,
    "guide.w_max": 4.0,
    "source.kind": "",
    "sample.clip_value": 0.0,
    "sample.threshold": 0.0,
    "sample.guidance_scale": (),
    "profile": 0,
}
# The defaults of the stage `finetune`.
FINETUNE: Nested = {
    "steps": 50_000, "batch_size": 2048, "learning_rate": 1e-4, "warmup_steps": 1000,
    "decay": "constant", "weight_decay": 0.0, "ema_decay": 0.9999,
}  # fmt: skip


class Translation(NamedTuple):
    """A config, or a part of one, as it is written today.

    Attributes:
      fields: The fields by section.
      notes: A line on each field that has moved.
    """

    fields: Nested
    notes: list[str]


def range_of_old(path: str) -> Range:
    """The range of a field of `OLD`: that of the field that it has become."""
    section, _, name = path.partition(".")
    if section == "model" and name in _UNET:
        return field_at(f"model.unet.{name}").allowed
    if section == "finetune" and name in _TRAINED:
        return field_at(f"train.{name}").allowed
    kind = type(OLD[path])
    return Range(f"a {kind.__name__}", lambda value: True, kind, each=at_least(0))


def translated(fields: Mapping[str, Any], base: Any) -> Translation:
    """A config, or a part of one, as it is written today.

    Args:
      fields: The fields by section, old or new.
      base: The config that they change, which has all fields.
    """
    fields, notes = copy.deepcopy(dict(fields)), []
    if fields.get("stage") == "finetune":
        fields["stage"] = "train"
        notes.append("config: the stage finetune is now train with train.init_from.")
    if "profile" in fields:
        del fields["profile"]
        notes.append("config: profile is gone: use --profile.")
    _move_unet(fields, base, notes)
    _move_finetune(fields, notes)
    for name, section in fields.items():
        if isinstance(section, dict):
            _move_in_training(name, section, notes)
    _move_guide(fields, base, notes)
    _move_source(fields, notes)
    _move_sample(fields, notes)
    return Translation(fields, notes)


def current(fields: Mapping[str, Any]) -> Nested:
    """The config of an older workdir or file of weights as it is written today.

    A field that it lacks takes the value of that time, which for every field is the
    default of today: in all sections of a whole config, and in those sections of a part
    that a file writes whole.

    Args:
      fields: The fields by section, of a whole config or of the model only.
    """
    base = nested({path: field.default for path, field in FIELDS.items()})
    now = translated(fields, base).fields
    if "seed" in now:
        return _filled(base, now)
    if "channels" in now.get("model", {}).get("unet", {}):
        now["model"] = _filled(base["model"], now["model"])
    if "diffusion" in now:
        now["diffusion"] = _filled(base["diffusion"], now["diffusion"])
    return now


def nested(flat: Mapping[str, Any]) -> Nested:
    """{"a.b": 1} as {"a": {"b": 1}}."""
    tree: Nested = {}
    for path, value in flat.items():
        *sections, name = path.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return tree


def flat(fields: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    """The inverse of `nested`."""
    for name, value in fields.items():
        path = f"{section}.{name}" if section else name
        if isinstance(value, dict):
            yield from flat(value, path)
        else:
            yield path, value


def _move_unet(fields: Nested, base: Any, notes: list[str]) -> None:
    model = fields.get("model")
    if model is None:
        return
    unet: Nested = {}
    if isinstance(model.get("unet"), str):
        unet["layout"] = model.pop("unet")
        _note(notes, "model.unet", "model.unet.layout", unet["layout"])
    num_heads = model.pop("num_heads", 0)
    for name in _UNET:
        if name in model:
            value = model.pop(name)
            if name == "head_dim" and value == 0:  # num_heads had it
                continue
            unet[name] = value
            _note(notes, f"model.{name}", f"model.unet.{name}", value)
    unet |= model.get("unet", {})
    if num_heads and not unet.get("layout"):
        whole = {**base["model"]["unet"], **unet}
        size = fields.get("data", {}).get("image_size", base["data"]["image_size"])
        for name, value in _with_heads(whole, num_heads, size).items():
            unet[name] = value
            _note(notes, "model.num_heads", f"model.unet.{name}", value)
    if unet:
        model["unet"] = unet


def _with_heads(unet: Nested, num_heads: int, image_size: int) -> Nested:
    """A number of heads as today: the size of each, if it is the same everywhere."""
    features = [unet["channels"] * multiplier for multiplier in unet["multipliers"]]
    levels = zip(features, attending(unet, image_size), strict=True)
    widths = {features[-1], *(width for width, attends in levels if attends)}
    if len(widths) == 1 and not features[-1] % num_heads:
        return {"head_dim": features[-1] // num_heads}
    net = UNet(**shape_of(unet, image_size, lambda _: num_heads), out_channels=1)
    return {"layout": describe(net)}


def _move_finetune(fields: Nested, notes: list[str]) -> None:
    finetune = fields.pop("finetune", None)
    if finetune is None:
        return
    train = fields.setdefault("train", {})
    if finetune.get("source") == "":  # it was off, whatever else it had
        train.setdefault("init_from", "")
        return
    for name, value in finetune.items():
        new = "init_from" if name == "source" else name
        train[new] = value
        _note(notes, f"finetune.{name}", f"train.{new}", value)


def _move_in_training(name: str, section: Nested, notes: list[str]) -> None:
    is_distill = name.startswith("distill")
    if is_distill and "ladder" in section:
        ladder = section.pop("ladder")
        section["method"] = FORMER_METHODS.get(ladder, ladder)
        _note(notes, f"{name}.ladder", f"{name}.method", section["method"])
    if (is_distill or name in TRAINING) and section.get("weight") == "v_mse":
        section["weight"] = "snr_plus_one"
        _note(notes, f"{name}.weight='v_mse'", f"{name}.weight", "snr_plus_one")


def _move_guide(fields: Nested, base: Any, notes: list[str]) -> None:
    guide = fields.get("guide", {})
    old = {name: guide.pop(name) for name in ("w_min", "w_max") if name in guide}
    if old:
        low, high = guide.get("w_range", base["guide"]["w_range"])
        guide["w_range"] = (old.get("w_min", low), old.get("w_max", high))
        _note(
            notes,
            " and ".join(f"guide.{n}" for n in old),
            "guide.w_range",
            guide["w_range"],
        )


def _move_source(fields: Nested, notes: list[str]) -> None:
    source = fields.get("source", {})
    if "kind" in source:
        if source.pop("kind") == "function":
            source["path"] = ""
        notes.append("config: source.kind is gone: source.path shows it.")


def _move_sample(fields: Nested, notes: list[str]) -> None:
    sample = fields.get("sample", {})
    scales = sample.pop("guidance_scale", ())
    if scales:
        sample["w"] = tuple(scale - 1.0 for scale in scales)
        _note(notes, "sample.guidance_scale", "sample.w", sample["w"])
    both, share = sample.pop("clip_value", 0.0), sample.pop("threshold", 0.0)
    old, clip = "sample.clip", sample.get("clip", "")
    if both:
        old, clip = "sample.clip_value", f"both:{both}"
    elif share:
        old, clip = "sample.threshold", f"dynamic:{share}"
    elif isinstance(clip, bool):
        clip = "x" if clip else "none"
    if clip and clip != sample.get("clip"):
        _note(notes, old, "sample.clip", clip)
        sample["clip"] = clip


def _note(notes: list[str], old: str, new: str, value: Any) -> None:
    notes.append(f"config: {old} is now {new}; taken as {new}={value!r}.")


def _filled(base: Nested, fields: Nested) -> Nested:
    """The fields, and those of the base that they lack."""
    both = {
        name: _filled(value, fields[name])
        for name, value in base.items()
        if isinstance(value, dict) and name in fields
    }
    return {**base, **fields, **both}
