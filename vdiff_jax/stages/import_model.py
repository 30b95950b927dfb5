"""A model of another project as the base model of a workdir; see `stages.imported`."""

import pathlib
from typing import Any, Literal

import jax

from vdiff_jax import parallel
from vdiff_jax.files.atomic import write_json
from vdiff_jax.files.fingerprints import params_sha256
from vdiff_jax.from_config.choices import Config, as_json, section_of
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.moved import current
from vdiff_jax.from_config.step import optimizer_of
from vdiff_jax.interop import model_file, paper_checkpoints
from vdiff_jax.interop.diffusers.read import read_folder
from vdiff_jax.interop.imported_model import Imported
from vdiff_jax.training import checkpoints
from vdiff_jax.training.step import init_state
from vdiff_jax.workdir import layout as places
from vdiff_jax.workdir.imported import FILE, with_fields
from vdiff_jax.workdir.trained import placed

Kind = Literal["diffusers", "released", "safetensors", "function"]
# What a config says of a network of the user's own.
OWN = ("net", "convention", "output", "timesteps", "num_classes")


def plan(config: Config, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """What `run` would do."""
    folder = places.train_folder(workdir)
    return [
        {
            "stage": "import",
            "kind": _kind(config),
            "path": config.source.path,
            "folder": str(folder),
            "status": places.status(folder),
        }
    ]


def run(config: Config, workdir: pathlib.Path) -> None:
    """Writes the train folder of the imported model, or finds that it is there."""
    found = _read(config)
    config = with_fields(config, found.fields)
    model, folder = make_model(config), places.train_folder(workdir)
    if found.params is None:
        params = model.init(jax.random.key(config.seed))
    else:
        path = pathlib.Path(config.source.path)
        params = placed(found.params, model.abstract_params(), path)
    facts = {
        "params_sha256": params_sha256(params),
        "parameters": model.num_parameters(),
        "source": {"kind": _kind(config), **as_json(config)["source"]},
        "num_steps": found.num_steps,
    }
    there = places.result(folder)
    if there is not None and there["params_sha256"] != facts["params_sha256"]:
        raise ValueError(
            f"{folder} holds another model than {config.source.path}: use another"
            " --workdir."
        )
    places.claim(workdir, config, "source")
    if there is None:
        state = init_state(params, optimizer_of(section_of(config, "train")))
        with checkpoints.open_folder(places.checkpoint_folder(folder)) as manager:
            checkpoints.save(manager, state, {"run": "import", **facts})
        if parallel.is_main():
            write_json(workdir / FILE, found.fields)
            write_json(folder / "result.json", {"step": 0, **facts})
    print(
        f"import: a network of {facts['parameters']:,} parameters that says"
        f" {model.output}, see {folder}/result.json"
    )


def described(config: Config) -> Config:
    """The config with what the model to import is; nothing is written."""
    return with_fields(config, _read(config).fields)


def _kind(config: Config) -> Kind:
    """What is imported, as `source.path` tells it."""
    path = pathlib.Path(config.source.path)
    if not config.source.path:
        return "function"
    if path.suffix == ".safetensors":
        return "safetensors"
    return "diffusers" if path.is_dir() else "released"


def _read(config: Config) -> Imported:
    """The model, and the steps that its students are to halve."""
    found = _model(config)
    if not found.num_steps:
        return found
    steps = {"start_steps": found.num_steps}
    return found._replace(fields={**found.fields, "distill": steps})


def _model(config: Config) -> Imported:
    kind, path = _kind(config), pathlib.Path(config.source.path)
    if kind == "diffusers":
        return _never_without_class(read_folder(path))
    if kind == "released":
        size = config.data.image_size
        found = paper_checkpoints.read(path, config.source.output, size)
        return _never_without_class(found)
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
            f"The model in {path} takes a strength of guidance: it can be sampled from"
            " (sample.from), but is no base model."
        )
    return Imported(current(about.fields), model_file.read(path), about.num_steps)


def _never_without_class(found: Imported) -> Imported:
    """So that it is refused for guidance: nobody knows that it ever went without."""
    return found._replace(fields={**found.fields, "train": {"label_dropout": 0.0}})
