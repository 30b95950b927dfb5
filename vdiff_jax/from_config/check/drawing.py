"""Checks of the stages that draw from a finished model: sample, evaluate, export.

Each raises a ValueError of one line, as `check` does.
"""

from vdiff_jax.evaluation.inception.weights import WEIGHTS
from vdiff_jax.from_config.check.terms import (
    check_num_steps,
    is_conditional,
    no_classes,
    runs,
)
from vdiff_jax.from_config.choices import Config, user_function
from vdiff_jax.from_config.data import decoded_shape
from vdiff_jax.from_config.fields import words_of
from vdiff_jax.from_config.model import context_shape_of, has_guide, make_codec
from vdiff_jax.from_config.ranges import LARGEST


def check_sample(config: Config) -> None:
    """Refuses a `sample` that does not fit the model; part of `check`.

    Raises:
      ValueError: In one line, as of `check`.
    """
    sample, num_classes = config.sample, config.model.num_classes
    if sample.w and not is_conditional(config):
        raise no_classes("sample.w", sample.w)
    for field in ("labels", "image_labels"):
        _check_labels(f"sample.{field}", sample[field], num_classes)
    first, last = sample.guidance_interval
    if not first < last:
        raise ValueError(
            f"sample.guidance_interval={sample.guidance_interval} must be two times t,"
            " rising, from 0 to 1."
        )
    check_num_steps(config, "sample.steps", sample.steps)
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
    for field in ("trajectory", "interpolate"):
        if sample.image and sample[field]:
            raise ValueError(
                f"sample.{field}={sample[field]} starts from noise, and"
                f" sample.image={sample.image!r} from images: leave one of them out."
            )
    if sample.image and sample.from_t == 1.0:
        check_num_steps(config, "sample.encode_steps", sample.encode_steps)
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


def check_evaluate(config: Config) -> None:
    """Refuses what cannot be measured of such a model."""
    evaluate, data = config.evaluate, config.data
    for field in ("w", "judge"):
        if evaluate[field] and not is_conditional(config):
            raise no_classes(f"evaluate.{field}", evaluate[field])
    _check_features(evaluate.features)
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
    if not runs(config, "evaluate"):
        return
    if not make_codec(config).decodes:
        raise ValueError(
            "The evaluate stage compares images, and these data are latents"
            f" (data.latent_scale={data.latent_scale}): set data.autoencoder to the"
            " folder of the autoencoder that made them."
        )
    if evaluate.judge and config.sample.context:
        raise ValueError(
            f"evaluate.judge=True: the contexts of sample.context="
            f"{config.sample.context!r} are of no class that images could be judged by:"
            " leave sample.context out, for the contexts of the data, or set"
            " evaluate.judge=False."
        )
    _check_likelihood(config)
    check_num_steps(config, "evaluate.reference_steps", evaluate.reference_steps)
    for num_steps in evaluate.steps:
        check_num_steps(config, "evaluate.steps", num_steps)


def _check_features(paths: tuple[str, ...]) -> None:
    """Refuses functions that are not there, and two sets of one name."""
    names = [path.rpartition(":")[2] for path in paths]
    own = [name for path, name in zip(paths, names, strict=True) if path != name]
    taken = {"inception", "classifier", "pixels", "judge"}.intersection(own)
    if taken or len({*names}) < len(names):
        raise ValueError(
            f"evaluate.features={paths}: every set has a name of its own in the table,"
            " that of its function behind the colon; give functions other names."
        )
    for path, name in zip(paths, names, strict=True):
        if path != name:
            user_function("evaluate.features", path)


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


def check_export(config: Config) -> None:
    """Refuses formats that do not hold such a model or its sampler."""
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
    check_num_steps(config, "export.steps", export.steps)
