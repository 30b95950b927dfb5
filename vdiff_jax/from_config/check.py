"""The checks of a config, before anything is done with it.

First every field for itself, by the table in `fields`; then what ties fields to each
other, section by section. Every stage is checked whichever is to run, save where a
field of one is tied to what another project's model brings with it (its noise schedule,
its number of steps): that is asked of the stages that will run.

Checks that need the devices, the data or a workdir are those of the stages.
"""

import pathlib
from typing import Any, get_args

from vdiff_jax import schedules
from vdiff_jax.codec import Autoencoder, Latents
from vdiff_jax.distillation.methods import METHODS
from vdiff_jax.evaluation.inception.weights import WEIGHTS
from vdiff_jax.from_config import packages
from vdiff_jax.from_config.choices import Config, user_function
from vdiff_jax.from_config.data import decoded_shape
from vdiff_jax.from_config.fields import TRAINING, field_at, words_of
from vdiff_jax.from_config.losses import phases_of
from vdiff_jax.from_config.model import (
    NetName,
    attending,
    context_shape_of,
    has_guide,
    make_codec,
    make_model,
    make_schedule,
    make_student,
)
from vdiff_jax.from_config.moved import flat
from vdiff_jax.from_config.ranges import LARGEST
from vdiff_jax.types import Params

BUILT_IN = get_args(NetName)


def check(config: Config) -> None:
    """Refuses a config that no stage should begin with.

    Nothing is written or allocated, and nothing is read but what an autoencoder is; a
    network is traced once in a process.

    Raises:
      ValueError: In one line: the field, its value, and what would be right.
    """
    check_fields(config)
    _check_model(config)
    if _has_network(config):
        _check_unet(config)
        _check_dit(config)
    _check_diffusion(config)
    _check_data(config)
    _check_train(config)
    _check_guide(config)
    _check_distill(config)
    _check_source(config)
    _check_export(config)
    if not config.sample.from_file:  # else it is of the model in that file
        check_sample(config)
    _check_evaluate(config)
    if _has_network(config):
        traced(config)


def check_fields(config: Config) -> None:
    """Refuses a value that is out of its field's range, whatever the others are.

    Raises:
      ValueError: In one line, as of `check`.
    """
    for path, value in flat(config.to_dict()):
        allowed = field_at(path).allowed
        if not allowed.contains(value):
            raise ValueError(allowed.refusal(path, value))


def check_files(config: Config) -> None:
    """Refuses files and packages that a later stage needs and that are not there.

    Raises:
      ValueError: In one line, as of `check`.
    """
    if config.wandb_project and _runs(config, *TRAINING):
        packages.require_wandb(config.wandb_project)
    if config.data.source == "tfds" and _runs(config, *TRAINING, "evaluate"):
        field = "data.source='tfds'"
        package = "tensorflow_datasets"
        packages.require(field, package, "pip install tensorflow-datasets")
    if "stablehlo" in config.export.formats and "export" in words_of(config.stage):
        field = f"export.formats={config.export.formats}"
        packages.require(field, "flatbuffers", "pip install 'vdiff_jax[export]'")
    if not _runs(config, "evaluate"):
        return
    for path in ("evaluate.inception_weights", "evaluate.reference_stats"):
        if config[path] and not pathlib.Path(config[path]).is_file():
            raise ValueError(f"{path}={config[path]!r} must be a file; there is none.")


def traced(config: Config) -> list[Params]:
    """Shapes of the parameters of every network that the stages train.

    Raises:
      ValueError: If sizes do not fit together.
    """
    kinds = (False, True) if has_guide(config) else (False,)
    models = [make_model(config, guided=guided) for guided in kinds]
    if config.distill.noise_input and _runs(config, "distill"):
        models.append(make_student(config))
    return [model.abstract_params() for model in models]


def _has_network(config: Config) -> bool:
    """Whether the config, and no model to import, says what the network is."""
    known = config.data.image_size and config.data.channels
    return bool(known) and not (config.stage == "import" and config.source.path)


def _check_model(config: Config) -> None:
    model = config.model
    if model.net not in BUILT_IN:
        user_function("model.net", model.net)
    if model.computed_from not in ("", model.output) and model.output == "both":
        raise ValueError(
            f"model.output='both' cannot be computed from {model.computed_from!r}:"
            " choose x, eps or v."
        )
    if not model.convention:
        return
    if model.net in BUILT_IN:
        raise ValueError(
            f"model.convention={model.convention!r} is of a network of your own"
            f" (model.net); {model.net} follows ours."
        )
    if model.output == "both":
        raise ValueError(
            f"model.output='both' is nothing that model.convention={model.convention!r}"
            " has: choose x, eps or v."
        )
    if (model.convention == "ddpm") != bool(model.timesteps):
        raise ValueError(
            f"model.convention={model.convention!r} and model.timesteps="
            f"{model.timesteps!r} do not fit: a ddpm, and nothing else, takes the"
            " number of a step of a chain."
        )


def _check_unet(config: Config) -> None:
    unet, size = config.model.unet, config.data.image_size
    if config.model.net != "unet":
        return
    if not unet.layout:
        _check_levels(unet, size)
        _check_context(config)
    depth = len(unet.multipliers)
    smallest = unet.patch * 2 ** (depth - 1)
    if size % smallest and not unet.layout:
        raise ValueError(
            f"data.image_size={size} does not divide by {smallest}, which the {depth}"
            f" levels of model.unet.multipliers and model.unet.patch={unet.patch} need."
        )


def _check_levels(unet: Config, size: int) -> None:
    """Refuses heads, groups or waves that do not fit into the features of a level."""
    if unet.channels % 2 or unet.channels < 4:
        raise ValueError(
            f"model.unet.channels={unet.channels} must be even and at least 4."
        )
    # The middle has attention, and as many features as the last level.
    attends = [*attending(unet, size)[:-1], True]
    for depth, multiplier in enumerate(unet.multipliers):
        features = unet.channels * multiplier
        if features % unet.groups:
            raise ValueError(
                f"model.unet.groups={unet.groups} does not divide the {features}"
                f" channels of level {depth}."
            )
        if attends[depth] and features % unet.head_dim:
            raise ValueError(
                f"model.unet.head_dim={unet.head_dim} does not divide the {features}"
                f" channels of level {depth}, which has attention."
            )


def _check_context(config: Config) -> None:
    """Refuses a context without a width, or of which nobody says what it is."""
    unet = config.model.unet
    if unet.context_tokens and not unet.context_features:
        raise ValueError(
            f"model.unet.context_tokens={unet.context_tokens} vectors must have a"
            " width: set model.unet.context_features."
        )
    if unet.context_features and not (unet.context_tokens or config.model.num_classes):
        raise ValueError(
            f"model.unet.context_features={unet.context_features}, but there is nothing"
            " to attend to: set model.unet.context_tokens, or model.num_classes for a"
            " vector of the class."
        )


def _check_dit(config: Config) -> None:
    dit, size = config.model.dit, config.data.image_size
    if config.model.net != "dit":
        return
    if size % dit.patch:
        raise ValueError(
            f"data.image_size={size} does not divide by model.dit.patch={dit.patch}."
        )
    if dit.features % 4:
        raise ValueError(
            f"model.dit.features={dit.features} must divide by 4: sines and cosines of"
            " two coordinates mark the place of a token."
        )
    if dit.features % dit.num_heads:
        raise ValueError(
            f"model.dit.num_heads={dit.num_heads} does not divide"
            f" model.dit.features={dit.features}."
        )


def _check_diffusion(config: Config) -> None:
    section = config.diffusion
    if not section.logsnr_min < section.logsnr_max:
        raise ValueError(
            f"diffusion.logsnr_min={section.logsnr_min} must be below"
            f" diffusion.logsnr_max={section.logsnr_max}."
        )
    needs_betas = "betas" in (section.schedule, config.model.timesteps)
    if needs_betas and not (section.betas and section.betas[0] > 0.0):
        raise ValueError(
            f"diffusion.betas={section.betas} must be the betas of a chain, the first"
            " above 0, for diffusion.schedule or model.timesteps 'betas'."
        )
    _check_num_steps(config, "train.num_steps", config.train.num_steps)


def _check_data(config: Config) -> None:
    data = config.data
    for field in ("image_size", "channels"):
        if not data[field] and config.stage != "import":
            raise ValueError(
                f"data.{field}=0 must be at least 1: an imported model brings it, and"
                " there is none in the workdir; run the import stage first, or set it."
            )
    if _runs(config, *TRAINING, "evaluate"):
        if ":" in data.source:
            user_function("data.source", data.source)
        if data.source == "tfds" and not data.name:
            raise ValueError(
                "data.name='' must be a data set of TensorFlow Datasets, for"
                " data.source='tfds'."
            )
    codec = make_codec(config)
    if isinstance(codec, Autoencoder):
        _check_fits(data, codec.latents)
    elif data.latent_shift and not data.latent_scale:
        raise ValueError(
            f"data.latent_shift={data.latent_shift} is of latents, and these data are"
            " images: set data.latent_scale or data.autoencoder too, or leave it out."
        )
    clip = config.sample.clip
    if clip != "auto" and (clip == "x" or clip.startswith("dynamic")):
        _check_bounded(config)


def _check_fits(data: Config, latents: Latents) -> None:
    """Refuses data of other latents than those of the autoencoder."""
    if data.channels not in (0, latents.channels):
        raise ValueError(
            f"data.channels={data.channels}, but the latents of data.autoencoder="
            f"{data.autoencoder!r} have {latents.channels}: set data.channels="
            f"{latents.channels}."
        )
    if data.latent_shift not in (0.0, latents.shift):
        raise ValueError(
            f"data.latent_shift={data.latent_shift}, but that of data.autoencoder="
            f"{data.autoencoder!r} is {latents.shift}: set it to 0."
        )


def _check_bounded(config: Config) -> None:
    if not make_codec(config).bounded:
        raise ValueError(
            f"sample.clip={config.sample.clip!r} keeps x in [-1, 1], but latents"
            " (data.latent_scale, data.autoencoder) have no bounds: set"
            " sample.clip='auto'."
        )


def _check_train(config: Config) -> None:
    if not _runs(config, "train") or config.train.label_dropout:
        return
    for stage, field, guided in (
        ("guide", "guide.steps", has_guide(config) and not config.guide.teacher),
        ("evaluate", "evaluate.w", any(config.evaluate.w)),
    ):
        if guided and _runs(config, stage):
            raise ValueError(
                "train.label_dropout=0.0 leaves out no class, so that the base model"
                f" cannot be guided as {field} asks: set train.label_dropout=0.1."
            )


def _check_guide(config: Config) -> None:
    guide = config.guide
    low, high = guide.w_range
    if not low <= high:
        raise ValueError(
            f"guide.w_range={(low, high)} must be two numbers of at least 0, the first"
            " not above the second."
        )
    if guide.w_features % 2:
        raise ValueError(f"guide.w_features={guide.w_features} must be even.")
    if has_guide(config) and not _is_conditional(config):
        raise ValueError(
            f"guide.steps={guide.steps} needs a model that is conditioned on a class:"
            " set model.num_classes, and train with train.label_dropout above 0."
        )
    if "guide" in words_of(config.stage) and not has_guide(config):
        raise ValueError(
            "guide.steps=0 turns the guide stage off: set the number of its updates."
        )


def _check_distill(config: Config) -> None:
    distill = config.distill
    # An imported student of one step has no students, but can be sampled from.
    if distill.start_steps > 1 or _runs(config, "distill"):
        phases_of(config)
    if not _runs(config, "distill"):
        return
    method = METHODS[distill.method]
    if distill.noise_input and not method.takes_noise:
        raise ValueError(
            f"distill.noise_input=True is not for distill.method={distill.method!r}:"
            " set distill.noise_input=False."
        )
    if method.halves:
        _check_num_steps(config, "distill.start_steps", distill.start_steps)


def _check_source(config: Config) -> None:
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


def _check_export(config: Config) -> None:
    export, sample = config.export, config.sample
    drawing = {"diffusers", "stablehlo"}.intersection(export.formats)
    if drawing and sample.sampler == "stochastic":
        raise ValueError(
            f"export.formats={export.formats}: students of the method stochastic cannot"
            f" be exported as {min(drawing)}, which samples by DDIM: leave it out, or"
            " set sample.sampler='ddim' for those of another method."
        )
    if "diffusers" in export.formats and sample.clip not in ("auto", "x", "none"):
        raise ValueError(
            f"sample.clip={sample.clip!r} cannot be exported to diffusers: set x or"
            " none."
        )
    if export.w and not has_guide(config):
        raise ValueError(
            f"export.w={export.w}, but without guide.steps no model takes a guidance"
            " weight: run the guide stage, and distill."
        )
    imports = "import" in words_of(config.stage)  # which may bring an autoencoder
    if export.decode and not (config.data.autoencoder or imports):
        raise ValueError(
            "export.decode=True needs a model of latents with an autoencoder: set"
            " data.autoencoder to its folder, or leave export.decode out."
        )
    if export.decode and "stablehlo" not in export.formats:
        raise ValueError(
            f"export.decode=True is for stablehlo, and export.formats={export.formats}"
            " has it not: add it, or leave export.decode out."
        )
    _check_num_steps(config, "export.steps", export.steps)


def check_sample(config: Config) -> None:
    """Refuses a `sample` that does not fit the model; part of `check`.

    Raises:
      ValueError: In one line, as of `check`.
    """
    sample, num_classes = config.sample, config.model.num_classes
    if sample.w and not _is_conditional(config):
        raise _no_classes("sample.w", sample.w)
    for field in ("labels", "image_labels"):
        _check_labels(f"sample.{field}", sample[field], num_classes)
    first, last = sample.guidance_interval
    if not first < last:
        raise ValueError(
            f"sample.guidance_interval={sample.guidance_interval} must be two times t,"
            " rising, from 0 to 1."
        )
    _check_num_steps(config, "sample.steps", sample.steps)
    taken = sample.from_t * sample.steps
    if abs(taken - round(taken)) > 1e-6:
        raise ValueError(
            f"sample.from_t={sample.from_t} must be one of the times i / sample.steps ="
            f" i / {sample.steps}, above 0."
        )
    if sample.from_t < 1.0 and not sample.image:
        raise ValueError(
            f"sample.from_t={sample.from_t} starts from images: set sample.image."
        )
    if sample.image and sample.from_t == 1.0:
        _check_num_steps(config, "sample.encode_steps", sample.encode_steps)
        if num_classes and not sample.image_labels:
            raise ValueError(
                "sample.image_labels=() must be the classes of sample.image, to encode"
                f" it by a model of {num_classes} classes."
            )


def _check_labels(path: str, labels: tuple[int | str, ...], num_classes: int) -> None:
    """Refuses numbers beyond the last class; names are known to a workdir only."""
    if labels and not num_classes:
        raise ValueError(
            f"{path}={labels} does not fit: this model knows no classes"
            f" (model.num_classes=0); leave {path} out."
        )
    if any(isinstance(label, int) and label >= num_classes for label in labels):
        raise ValueError(
            f"{path}={labels} must be from 0 to {num_classes - 1}, the last of"
            f" model.num_classes={num_classes}."
        )


def _check_evaluate(config: Config) -> None:
    evaluate, data = config.evaluate, config.data
    for field in ("w", "judge"):
        if evaluate[field] and not _is_conditional(config):
            raise _no_classes(f"evaluate.{field}", evaluate[field])
    if "inception" in evaluate.features:
        if not evaluate.inception_weights:
            raise ValueError(
                f"evaluate.features={evaluate.features}, but no FID: fetch {WEIGHTS}"
                " and set evaluate.inception_weights to where it lies."
            )
        if (channels := decoded_shape(config)[2]) not in (1, 3):
            raise ValueError(
                f"evaluate.features={evaluate.features}: Inception sees grey or RGB"
                f" images, and these have {channels} channels."
            )
    if evaluate.reference_stats and not evaluate.inception_weights:
        raise ValueError(
            f"evaluate.reference_stats={evaluate.reference_stats!r} are of Inception"
            " features: set evaluate.inception_weights too."
        )
    last = evaluate.seed + evaluate.repeats - 1
    if last > LARGEST:
        raise ValueError(
            f"evaluate.seed={evaluate.seed} and evaluate.repeats={evaluate.repeats} end"
            f" at seed {last}: the last must be at most {LARGEST}."
        )
    if not _runs(config, "evaluate"):
        return
    if not make_codec(config).decodes:
        raise ValueError(
            "The evaluate stage compares images, and these data are latents"
            f" (data.latent_scale={data.latent_scale}): set data.autoencoder to the"
            " folder of the autoencoder that made them."
        )
    _check_likelihood(config)
    _check_num_steps(config, "evaluate.reference_steps", evaluate.reference_steps)
    for num_steps in evaluate.steps:
        _check_num_steps(config, "evaluate.steps", num_steps)


def _check_likelihood(config: Config) -> None:
    """Refuses bits per dimension of latents, and of a model of contexts."""
    num = config.evaluate.likelihood_num
    if not num:
        return
    has_context = context_shape_of(config) is not None
    if has_context or not make_codec(config).bounded:
        raise ValueError(
            f"evaluate.likelihood_num={num}: bits per dimension are those of pixels,"
            f" and this model is one of {'contexts' if has_context else 'latents'}: set"
            " it to 0."
        )


def _is_conditional(config: Config) -> bool:
    """True if the model is conditioned on a class or a context."""
    return bool(config.model.num_classes) or context_shape_of(config) is not None


def _no_classes(path: str, value: Any) -> ValueError:
    return ValueError(
        f"{path}={value} needs a model that is conditioned on a class or a context, and"
        " this one is not (model.num_classes=0, and no model.unet.context_tokens)."
    )


def _check_num_steps(config: Config, path: str, num_steps: int) -> None:
    if not num_steps:
        return
    try:
        schedules.check_num_steps(make_schedule(config), num_steps)
    except ValueError as error:
        raise ValueError(f"{path}={num_steps}: {error}") from error


def _runs(config: Config, *stages: str) -> bool:
    """True if one of these stages is to run."""
    return config.stage == "all" or not set(stages).isdisjoint(words_of(config.stage))
