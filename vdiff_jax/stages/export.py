"""A trained model in files for people who do not have this package."""

import hashlib
import json
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from vdiff_jax import parallel
from vdiff_jax.files.atomic import replacing, write_json
from vdiff_jax.from_config.choices import Config, as_json
from vdiff_jax.from_config.losses import ladder_of
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.generation.sampler import Sampler
from vdiff_jax.guidance import describe
from vdiff_jax.interop import model_file, stablehlo
from vdiff_jax.interop.diffusers import model_card
from vdiff_jax.interop.diffusers.write import check_writable, write_folder
from vdiff_jax.model import Model
from vdiff_jax.types import Params
from vdiff_jax.workdir import layout as places
from vdiff_jax.workdir.trained import Found, find, kind_of, load_params


def plan(config: Config, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """What `run` would do."""
    return [
        {
            "stage": "export",
            "formats": list(config.export.formats),
            "steps": config.export.steps,
            "folder": str(workdir / "export"),
        }
    ]


def run(config: Config, workdir: pathlib.Path) -> None:
    """Writes `export.formats` of the model for `export.steps` steps."""
    spec = config.export
    ladder = ladder_of(config.sample.sampler)
    found = find(config, workdir, spec.model, spec.steps, ladder)
    sampler = make_sampler(config, found.model, "ddim")
    w = _strength(config, found.model)
    for name in spec.formats:  # refuse before anything is written
        if name == "diffusers":
            check_writable(found.model, w)
    params = load_params(found.model, found.folder)
    params = jax.tree.map(parallel.fetch, params)
    if not parallel.is_main():
        return
    name = f"{kind_of(workdir, found.folder)}-{spec.steps}step"
    out = (
        workdir / "export" / (name if ladder == "deterministic" else f"{name}-{ladder}")
    )
    about = _about(config, workdir, found, spec.steps)
    writers = {
        "orbax": lambda folder: _write_orbax(folder, params, about),
        "safetensors": lambda folder: model_file.write(
            folder / "model.safetensors", params, about
        ),
        "diffusers": lambda folder: _write_diffusers(
            folder, config, sampler, params, w, about
        ),
        "stablehlo": lambda folder: stablehlo.write(
            folder, sampler, params, num_steps=spec.steps
        ),
    }
    for name in spec.formats:
        with replacing(out / name) as half:
            half.mkdir()
            writers[name](half)
        print(f"export: see {out / name}")


def _about(
    config: Config, workdir: pathlib.Path, found: Found, num_steps: int
) -> model_file.About:
    """What a file of weights says of a model."""
    kind, result = kind_of(workdir, found.folder), places.result(found.folder) or {}
    said = as_json(config)
    guide: tuple[str, ...] = ("steps",)
    if found.model.w_range is not None:
        guide = ("steps", "w_min", "w_max", "w_features", "w_scale")
    if found.model.w_range is None:
        said["guide"]["steps"] = 0  # the base of a workdir whose students take w
    fields = {
        "model": said["model"],
        "diffusion": said["diffusion"],
        "data": {
            name: said["data"][name]
            for name in ("channels", "image_size", "latent_scale")
        },
        "guide": {name: said["guide"][name] for name in guide},
        "train": {"label_dropout": said["train"]["label_dropout"]},
    }
    made_with = json.dumps(places.made_with(found.folder), sort_keys=True)
    facts = {
        "config_sha256": hashlib.sha256(made_with.encode()).hexdigest(),
        "params_sha256": result.get("params_sha256"),
        "updates": result.get("step"),
        "ladder": result.get("ladder"),
        "measured": _measured(config, workdir, kind, num_steps),
    }
    steps = num_steps if kind == "distilled" else 0
    return model_file.About(fields, kind, steps, facts)


def _measured(
    config: Config, workdir: pathlib.Path, kind: str, num_steps: int
) -> list[dict[str, Any]]:
    """What the evaluate stage found of a model with its sampler, if it ran."""
    ladder = ladder_of(config.sample.sampler)
    sampler = "stochastic" if ladder == "stochastic" else "ddim"
    path = workdir / "evaluate" / "ladder.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    kept = ("metric", "value", "spread", "num_images", "seed", "w", "steps")
    return [
        {name: row[name] for name in kept if name in row}
        for row in rows
        if (row["model"], row["sampler"], row["steps"]) == (kind, sampler, num_steps)
    ]


def _strength(config: Config, model: Model) -> float | None:
    """The strength that is folded in where a format has no place for one."""
    found = tuple(config.export.w)
    if found and model.w_range is None:
        raise ValueError(
            f"export.w={found}, but this model does not take a strength of guidance:"
            " run the guide stage, and distill."
        )
    return found[0] if found else None


def _clips(config: Config) -> bool:
    """Whether x_hat is clipped to [-1, 1], the one limit that diffusers has, too."""
    return config.sample.clip == "x"


def _write_orbax(folder: pathlib.Path, params: Params, about: model_file.About) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / "params").resolve(), params)
    write_json(folder / "about.json", about._asdict())


def _write_diffusers(
    folder: pathlib.Path,
    config: Config,
    sampler: Sampler,
    params: Params,
    w: float | None,
    about: model_file.About,
) -> None:
    steps, model = config.export.steps, sampler.model
    write_folder(folder, model, params, num_steps=steps, clip=_clips(config), w=w)
    rows = [row for row in about.facts["measured"] if row.get("w") == w]
    strength = None if w is None else describe(w)
    text = model_card.diffusers(model, about.kind, steps, strength, rows)
    (folder / "README.md").write_text(text)
