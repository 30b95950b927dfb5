"""A trained model in files for people who do not have this package."""

import hashlib
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from vdiff_jax import parallel
from vdiff_jax.codec import Autoencoder, Codec
from vdiff_jax.distillation.methods import FIRST
from vdiff_jax.distillation.role import Role
from vdiff_jax.evaluation.measurement import from_json
from vdiff_jax.files.atomic import replacing, write_json
from vdiff_jax.files.place import path_of
from vdiff_jax.files.plain_path import plain
from vdiff_jax.from_config.choices import Config, as_json
from vdiff_jax.from_config.sampler import clip_of, eta_of, make_sampler
from vdiff_jax.generation.sampler import Sampler
from vdiff_jax.guidance import describe
from vdiff_jax.interop import model_file, stablehlo
from vdiff_jax.interop.diffusers import model_card
from vdiff_jax.interop.diffusers.autoencoder import describe_autoencoder
from vdiff_jax.interop.diffusers.write import (
    attends_to_context,
    check_writable,
    write_folder,
)
from vdiff_jax.model import Model
from vdiff_jax.stages import Stage
from vdiff_jax.training.reading import check_readable
from vdiff_jax.types import Params
from vdiff_jax.workdir import layout
from vdiff_jax.workdir.classes import class_names
from vdiff_jax.workdir.layout import Project
from vdiff_jax.workdir.trained import Trained, find, roles_named

# The formats that hold a whole sampler, which is DDIM.
DRAWING = {"diffusers", "stablehlo"}


def plan(project: Project) -> list[dict[str, Any]]:
    """The one entry of the stage, for --dry_run."""
    return [
        {
            "stage": "export",
            "formats": list(project.config.export.formats),
            "steps": project.config.export.steps,
            "folder": str(project.output / "export"),
        }
    ]


def run(project: Project) -> None:
    """Writes `export.formats` of the model for `export.steps` steps."""
    config, section = project.config, project.config.export
    trained = find(project, *roles_named(config, section.model, section.steps))
    _check_drawn_by_ddim(trained.role, section.formats)
    _warn_of_noise(eta_of(config, trained.role.method), section.formats)
    sampler = make_sampler(config, trained.model, "ddim")
    w = _guidance_weight(config, trained.model)
    if "diffusers" in section.formats:  # refuse before anything is written
        check_writable(
            trained.model,
            num_steps=section.steps,
            clip=clip_of(config) == "x",
            w=w,
        )
    if "stablehlo" in section.formats:
        stablehlo.check_writable(trained.model, decode=section.decode)
    params = jax.tree.map(parallel.fetch, trained.params())
    if not parallel.is_main():
        return
    about = _about(project, trained, section.steps)
    writers = {
        "orbax": lambda folder: _write_orbax(folder, params, about),
        "safetensors": lambda folder: model_file.write(
            folder / "model.safetensors", params, about, section.dtype
        ),
        "diffusers": lambda folder: _write_diffusers(
            folder, config, sampler, params, w, about
        ),
        "stablehlo": lambda folder: stablehlo.write(
            folder,
            sampler,
            params,
            num_steps=section.steps,
            decode=section.decode,
        ),
    }
    out = project.output / "export" / _folder_name(trained.role, section.steps)
    for name in section.formats:
        with replacing(out / name) as half:
            half.mkdir()
            writers[name](half)
        print(f"export: see {out / name}")


def _check_drawn_by_ddim(role: Role, formats: Sequence[str]) -> None:
    """Refuses formats that draw, of a student that was taught another sampler."""
    drawing = DRAWING.intersection(formats)
    if drawing and role.sampler != "ddim":
        raise ValueError(
            f"export.formats={tuple(formats)}: the {role} was taught the sampler"
            f" {role.sampler}, and {min(drawing)} samples by DDIM: leave it out, or set"
            " sample.sampler=ddim for a student that was taught that."
        )


def _warn_of_noise(eta: float, formats: Sequence[str]) -> None:
    """Says which formats leave out the fresh noise that a student is drawn with."""
    if eta and (drawing := sorted(DRAWING.intersection(formats))):
        print(
            f"export: what is written for {' and '.join(drawing)} draws without fresh"
            f" noise, not with sample.eta={eta:g}.",
            file=sys.stderr,
        )


def _folder_name(role: Role, num_steps: int) -> str:
    name = f"{role.name}-{num_steps}step"
    return name if role.method in (None, FIRST) else f"{name}-{role.method}"


def _about(project: Project, trained: Trained, num_steps: int) -> model_file.About:
    """The description of a model that goes into its file."""
    role, result = trained.role, layout.result(trained.folder) or {}
    config = as_json(project.config)
    guide: tuple[str, ...] = ("steps", "w_range", "w_features", "w_scale")
    if trained.model.w_range is None:
        guide = ("steps",)
        config["guide"]["steps"] = 0  # the base of a workdir whose students take w
    data = ("channels", "image_size", "latent_scale", "latent_shift", "autoencoder")
    fields = {
        "model": config["model"],
        "diffusion": config["diffusion"],
        "data": {
            **{name: config["data"][name] for name in data},
            **_latents(trained.model.codec, config["data"]["autoencoder"]),
        },
        "guide": {name: config["guide"][name] for name in guide},
        "train": {"label_dropout": config["train"]["label_dropout"]},
    }
    if trained.model.takes_noise:
        fields["distill"] = {"noise_input": True}
    made_with = json.dumps(layout.made_with(trained.folder), sort_keys=True)
    facts = {
        "config_sha256": hashlib.sha256(made_with.encode()).hexdigest(),
        "params_sha256": result.get("params_sha256"),
        "updates": result.get("step"),
        "method": role.method,
        "measured": _measured(project, role, num_steps),
    }
    if eta := eta_of(project.config, role.method):
        facts["eta"] = eta
    if names := class_names(trained):
        facts["classes"] = list(names)
    return model_file.About(fields, role.name, role.num_steps, facts)


def _latents(codec: Codec, autoencoder: str) -> dict[str, Any]:
    """What an autoencoder's folder says of its latents, for whoever has it not."""
    if not isinstance(codec, Autoencoder):
        return {}
    return {
        "latent_scale": codec.latents.scale,
        "latent_shift": codec.latents.shift,
        "autoencoder": str(path_of(autoencoder).resolve()),
    }


def _measured(project: Project, role: Role, num_steps: int) -> list[dict[str, Any]]:
    """The measurements of a model with the sampler that it was taught, if any."""
    places = (project.output, project.workdir)
    paths = [place / "evaluate" / "ladder.json" for place in places]
    path = next((path for path in paths if path.exists()), None)
    rows = [] if path is None else json.loads(path.read_text(encoding="utf-8"))
    kept = ("metric", "value", "spread", "num_images", "seed", "w", "steps", "eta")
    return [
        {name: row[name] for name in kept if name in row}
        for row in rows
        if from_json(row).candidate[:4]
        == (role.name, role.method, role.sampler, num_steps)
    ]


def _guidance_weight(config: Config, model: Model) -> float | None:
    """The guidance weight that is folded in where a format has no place for one."""
    weights = tuple(config.export.w)
    if weights and model.w_range is None:
        raise ValueError(
            f"export.w={weights}, but this model does not take a guidance weight:"
            " run the guide stage, and distill."
        )
    return weights[0] if weights else None


def _write_orbax(folder: pathlib.Path, params: Params, about: model_file.About) -> None:
    with plain(folder) as path, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "params", params)
    check_readable(folder / "params", params)
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
    vae = None
    if isinstance(model.codec, Autoencoder):
        place = path_of(config.data.autoencoder)
        vae = describe_autoencoder(place, model.codec.latents.scale).folder
    write_folder(
        folder,
        model,
        params,
        num_steps=steps,
        clip=clip_of(config) == "x",
        w=w,
        class_names=about.facts.get("classes", ()),
        vae=vae,
    )
    rows = [
        row
        for row in about.facts["measured"]
        if row.get("w") == w and not row.get("eta")  # the folder draws without noise
    ]
    weight = None if w is None else describe(w)
    method = about.facts.get("method")
    card = model_card.diffusers
    if attends_to_context(model):
        card = model_card.conditional
    text = card(model, about.kind, method, steps, weight, rows)
    (folder / "README.md").write_text(text, encoding="utf-8")


STAGE = Stage(name="export", plan=plan, run=run)
