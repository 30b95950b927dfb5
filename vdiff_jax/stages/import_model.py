"""A model of another project, imported as the base model of a workdir."""

import pathlib
import re
import shutil
from typing import Any, Literal

import jax

from vdiff_jax import parallel
from vdiff_jax.distillation.role import BASE
from vdiff_jax.files.atomic import replacing, write_json
from vdiff_jax.files.copies import kept_on_this_machine
from vdiff_jax.files.fingerprints import params_sha256
from vdiff_jax.files.place import path_of
from vdiff_jax.from_config.choices import Config, as_json, section_of
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.moved import current
from vdiff_jax.from_config.step import optimizer_of
from vdiff_jax.interop import model_file, paper_checkpoints
from vdiff_jax.interop.diffusers.autoencoder import describe_autoencoder
from vdiff_jax.interop.diffusers.conditional_unet import NULL_CONTEXT
from vdiff_jax.interop.diffusers.folder import weight_files
from vdiff_jax.interop.diffusers.read import of_latents, read_folder
from vdiff_jax.interop.imported_model import Imported
from vdiff_jax.stages import Stage
from vdiff_jax.training import checkpoints
from vdiff_jax.training.step import init_state
from vdiff_jax.workdir import claim, layout
from vdiff_jax.workdir.imported import AUTOENCODER, FILE, Fields, with_fields
from vdiff_jax.workdir.layout import Project
from vdiff_jax.workdir.parameters import placed

Kind = Literal["diffusers", "released", "safetensors", "function"]
# A model of the hub of Hugging Face: organisation/name, or its address.
_HUB = re.compile(r"(?:https?://huggingface\.co/)?([\w-]+/([\w.-]+))/?(?:tree/main/?)?")
_OF_TORCH = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
# The fields of a config that describe a network of the user's own.
OWN = ("net", "convention", "output", "timesteps", "num_classes")


def plan(project: Project) -> list[dict[str, Any]]:
    """The one entry of the stage, for --dry_run."""
    source, folder = project.config.source, project.folder(BASE)
    return [
        {
            "stage": "import",
            "kind": _kind(project.config),
            "path": source.path,
            "folder": str(folder),
            "status": layout.status(folder),
        }
    ]


def check(project: Project) -> None:
    """Refuses what is no place of a model, and says what is.

    Raises:
      ValueError: In one line.
    """
    text = project.config.source.path
    if not text:  # a network of the user's own
        return
    path, field = path_of(text), f"source.path={text!r}"
    of_hub = _HUB.fullmatch(text)
    if not path.exists() and of_hub:
        raise ValueError(
            f"{field} is no folder here. A model of the hub is fetched first: hf"
            f" download {of_hub[1]} --local-dir {of_hub[2]}, then source.path="
            f"{of_hub[2]}"
        )
    if not path.exists():
        raise ValueError(f"{field}: there is no such file or folder.")
    if path.suffix in _OF_TORCH:
        raise ValueError(
            f"{field} is a file of torch, which does not show its network: name the"
            " folder that save_pretrained() of diffusers writes. Where that is: python"
            ' -c "from diffusers import StableDiffusionPipeline as P;'
            f" P.from_single_file('{path.name}').save_pretrained('{path.stem}')\""
        )


def run(project: Project) -> None:
    """Writes the train folder of the imported model, unless it is complete."""
    source = _read(project.config)
    config = with_fields(project.config, source.fields)
    project = Project(config, project.workdir)
    model, folder = make_model(config), project.folder(BASE)
    if source.params is None:
        params = model.init(jax.random.key(config.seed))
    else:
        path = path_of(config.source.path)
        params = placed(source.params, model.abstract_params(), path)
    facts = {
        "params_sha256": params_sha256(params),
        "parameters": model.num_parameters(),
        "source": {"kind": _kind(config), **as_json(config)["source"]},
        "num_steps": source.num_steps,
    }
    result = layout.result(folder)
    if result is not None and result["params_sha256"] != facts["params_sha256"]:
        raise ValueError(
            f"{folder} holds another model than {config.source.path}: use another"
            " --workdir."
        )
    claim.claim(project, "source")
    if result is None:
        state = init_state(params, optimizer_of(section_of(config, "train")))
        with checkpoints.open_folder(layout.checkpoint_folder(folder)) as saved:
            checkpoints.save(saved, state, {"run": "import", **facts})
        if parallel.is_main():
            fields = _with_autoencoder(source.fields, project.workdir)
            write_json(project.workdir / FILE, fields)
            write_json(folder / "result.json", {"step": 0, **facts})
    if model.context_shape is not None and not source.can_be_guided:
        print(
            "import: without a null context it cannot be guided: put the embedding of"
            f" an empty text, {list(model.context_shape)}, as the tensor context of"
            f" {NULL_CONTEXT} into {config.source.path}, and import it again."
        )
    print(
        f"import: a network of {facts['parameters']:,} parameters that predicts"
        f" {model.output}, see {folder}/result.json"
    )


def _check_autoencoder(fields: Fields) -> None:
    """Refuses an autoencoder that is not of the network's latents, or has no weights.

    Raises:
      ValueError: With what does not fit.
    """
    data = fields["data"]
    if not data.get("autoencoder"):
        return
    place, scale = path_of(data["autoencoder"]), data.get("latent_scale", 0.0)
    net, _, _, folder = describe_autoencoder(place, scale)
    if net.latent_channels != data["channels"]:
        raise ValueError(
            f"The autoencoder in {folder} has latents of {net.latent_channels}"
            f" channels, and the network takes {data['channels']}: they are not of one"
            " model. Put the right one there, or take it away and set"
            " data.latent_scale."
        )
    weight_files(folder)


def _with_autoencoder(fields: Fields, workdir: pathlib.Path) -> Fields:
    """The fields after the autoencoder of a model of latents was copied."""
    place = fields["data"].get("autoencoder", "")
    if not place:
        return fields
    folder = describe_autoencoder(
        path_of(place), fields["data"].get("latent_scale", 0.0)
    ).folder
    with replacing(workdir / AUTOENCODER) as half:
        half.mkdir()
        indices = folder.glob("*.index*.json")
        for path in (folder / "config.json", *weight_files(folder), *indices):
            shutil.copy(kept_on_this_machine(path), half / path.name)
    return {**fields, "data": {**fields["data"], "autoencoder": AUTOENCODER}}


def described(config: Config) -> Config:
    """The config with the fields of the model to import; nothing is written."""
    return with_fields(config, _read(config).fields)


def _kind(config: Config) -> Kind:
    """The kind of source that `source.path` names."""
    path = path_of(config.source.path)
    if not config.source.path:
        return "function"
    if path.suffix == ".safetensors":
        return "safetensors"
    return "diffusers" if path.is_dir() else "released"


def _read(config: Config) -> Imported:
    """The model, and the steps that its students are to halve."""
    source = _model(config)
    _check_autoencoder(source.fields)
    if not source.num_steps:
        return source
    steps = {"start_steps": source.num_steps}
    return source._replace(fields={**source.fields, "distill": steps})


def _model(config: Config) -> Imported:
    kind, path = _kind(config), path_of(config.source.path)
    if kind == "diffusers":
        return of_latents(_of_diffusers(path), path, config.data.latent_scale)
    if kind == "released":
        return _never_without_class(
            paper_checkpoints.read(path, config.source.output, config.data.image_size)
        )
    if kind == "function":
        fields = {
            "model": {
                **{name: config.model[name] for name in OWN},
                "unet": {"patch": config.model.unet.patch},
            },
            "diffusion": as_json(config.diffusion),
            "data": {name: config.data[name] for name in ("channels", "image_size")},
        }
        return Imported(fields, None)
    about = model_file.read_about(path)
    if about.fields["guide"]["steps"]:
        raise ValueError(
            f"The model in {path} takes a guidance weight: it can be sampled from"
            " (sample.from), but is no base model."
        )
    fields = current(about.fields)
    if fields.get("distill", {}).get("noise_input"):
        raise ValueError(
            f"The model in {path} takes noise beside z_t: it can be sampled from"
            " (sample.from), but is no base model."
        )
    # Whether guidance is folded in later is the config's, as with any base model.
    fields = {name: values for name, values in fields.items() if name != "guide"}
    return Imported(fields, model_file.read(path), about.num_steps)


def _of_diffusers(path: pathlib.Path) -> Imported:
    source = read_folder(path)
    if "guide" in source.fields:
        raise ValueError(
            f"The model in {path} takes a guidance weight: it can be sampled from"
            " (vdiff_jax.load), but is no base model."
        )
    if not source.can_be_guided:
        return _never_without_class(source)
    return source._replace(fields={**source.fields, "train": {"label_dropout": 0.1}})


def _never_without_class(source: Imported) -> Imported:
    """Marks a model that perhaps never went without its class: it cannot be guided."""
    return source._replace(fields={**source.fields, "train": {"label_dropout": 0.0}})


STAGE = Stage(name="import", plan=plan, run=run, check=check)
