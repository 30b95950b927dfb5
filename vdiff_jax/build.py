"""The composition root: the only module that turns a config into objects.

Everything a user can get wrong in a config is refused here, at construction.
"""

import importlib
import math
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from vdiff_jax import diffusion, losses, parallel, samplers, schedules, training
from vdiff_jax.datasets import catalog, feeds
from vdiff_jax.datasets.checked import Checked
from vdiff_jax.datasets.feeds import Feeder
from vdiff_jax.datasets.source import Source, held_out_part
from vdiff_jax.distillation import (
    Plan,
    decoding,
    decoding_stochastically,
    distillation_loss,
    encoding,
    imitation_loss,
)
from vdiff_jax.guidance import NO_CLASS, Guidance
from vdiff_jax.model import Model, Sampler
from vdiff_jax.nets.converted import Converted
from vdiff_jax.nets.layers import LogsnrInput
from vdiff_jax.nets.unet import Level, UNet
from vdiff_jax.types import Params, PerExample, Schedule

# An `ml_collections.ConfigDict`, whose fields a type checker cannot know.
Config: TypeAlias = Any


def model(config: Config, *, guided: bool = False) -> Model:
    """The network, its output kind and its schedule.

    Args:
      config: The whole config.
      guided: Whether it is a student that takes the strength of guidance.
    """
    size, channels = config.data.image_size, config.data.channels
    output = _choice("model.output", config.model.output, diffusion.Output)
    said = config.model.computed_from or output
    _choice("model.computed_from", said, diffusion.Output)
    if said != output and output == "both":
        raise ValueError(
            f"model.output='both' cannot be computed from {said!r}: choose x, eps or v."
        )
    out_channels = channels * (2 if said == "both" else 1)
    latent_scale = config.data.latent_scale
    if latent_scale < 0:
        raise ValueError(f"data.latent_scale must not be negative, got {latent_scale}.")
    if latent_scale and config.sample.clip:
        raise ValueError(
            f"sample.clip=True keeps x in [-1, 1], but latents (data.latent_scale="
            f"{latent_scale}) have no bounds: set sample.clip=False."
        )
    if guided and not config.model.num_classes:
        raise ValueError(
            "The guide stage needs a model that is told a class: set"
            " model.num_classes, and train with train.label_dropout > 0."
        )
    net = _net(config, out_channels, guided)
    made = Model(
        net=net if said == output else Converted(net, said, output),
        output=output,
        schedule=schedule(config),
        image_shape=(size, size, channels),
        num_classes=config.model.num_classes,
        latent_scale=latent_scale,
        w_range=w_range(config) if guided else None,
    )
    made.abstract_params()  # refuses sizes that do not fit together
    return made


def has_finetune(config: Config) -> bool:
    """Whether the base model goes on from the weights of another."""
    return bool(config.finetune.source)


def has_guide(config: Config) -> bool:
    """Whether there is a guide stage, so that students take the strength w."""
    return config.guide.steps > 0


def student(config: Config) -> Model:
    """The network of the ladder's students."""
    return model(config, guided=has_guide(config))


def w_range(config: Config) -> tuple[float, float]:
    """The strengths of guidance that the guide stage trains for."""
    low, high = config.guide.w_min, config.guide.w_max
    if not 0.0 <= low <= high:
        raise ValueError(
            f"guide.w_min={low} and guide.w_max={high} must be a range of strengths,"
            " from 0 up."
        )
    return low, high


def _net(config: Config, out_channels: int, guided: bool) -> nn.Module:
    if config.model.net != "unet":
        make_net = _import("model.net", config.model.net)
        options = {"w_features": config.guide.w_features} if guided else {}
        return make_net(
            out_channels=out_channels, num_classes=config.model.num_classes, **options
        )
    return _unet(config, out_channels, guided)


def _unet(config: Config, out_channels: int, guided: bool) -> UNet:
    spec = config.model
    if (spec.num_heads > 0) == (spec.head_dim > 0):
        raise ValueError(
            f"Set one of model.num_heads={spec.num_heads} and"
            f" model.head_dim={spec.head_dim}, and the other to 0."
        )

    def heads(features: int) -> int:
        num_heads = spec.num_heads or features // spec.head_dim
        if num_heads == 0 or features % (spec.head_dim or num_heads):
            raise ValueError(
                f"{features} channels do not divide into model.num_heads="
                f"{spec.num_heads} heads of model.head_dim={spec.head_dim}."
            )
        return num_heads

    levels = []
    for depth, multiplier in enumerate(spec.multipliers):
        features = spec.channels * multiplier
        if features % spec.groups:
            raise ValueError(
                f"model.groups={spec.groups} does not divide the {features} channels"
                f" of level {depth}."
            )
        resolution = config.data.image_size // spec.patch >> depth
        attends = resolution in spec.attention_resolutions
        levels.append(
            Level(
                features=features,
                num_blocks=spec.num_blocks,
                num_heads=heads(features) if attends else 0,
                resample_in_block=spec.resample_in_block,
            )
        )
    return UNet(
        levels=tuple(levels),
        out_channels=out_channels,
        emb_features=spec.emb_channels,
        mid_heads=heads(levels[-1].features),
        num_classes=spec.num_classes,
        w_features=config.guide.w_features if guided else 0,
        w_scale=config.guide.w_scale,
        dropout=config.train.dropout,
        groups=spec.groups,
        patch=spec.patch,
        logsnr_input=_choice("model.logsnr_input", spec.logsnr_input, LogsnrInput),
        dtype=jnp.dtype(_choice("model.dtype", spec.dtype, DType)),
        remat=config.parallel.remat,
    )


DType = Literal["float32", "bfloat16"]
ScheduleName = Literal["cosine", "linear_beta", "scaled_linear_beta"]
SamplerName = Literal["ddim", "ancestral", "dpmpp_2m", "heun", "stochastic"]
OnDevice = Literal["auto", "always", "never"]


def schedule(config: Config) -> Schedule:
    """The noise schedule."""
    spec = config.diffusion
    name = _choice("diffusion.schedule", spec.schedule, ScheduleName)
    if name == "cosine":
        return schedules.cosine(spec.logsnr_min, spec.logsnr_max)
    make = {
        "linear_beta": schedules.linear_beta,
        "scaled_linear_beta": schedules.scaled_linear_beta,
    }[name]
    return make(spec.beta_first, spec.beta_last, spec.num_train_steps)


def weight(name: str) -> losses.Weight:
    """A loss weight from its name; `min_snr:5` is min-SNR with gamma 5."""
    plain = {
        "constant": losses.constant,
        "snr": losses.snr,
        "snr_trunc": losses.snr_trunc,
        "snr_plus_one": losses.snr_plus_one,
        "v_mse": losses.snr_plus_one,
    }
    if name in plain:
        return plain[name]
    kind, _, gamma = name.partition(":")
    if kind == "min_snr" and gamma:
        return losses.min_snr(_number("loss weight", gamma))
    raise ValueError(
        f"Unknown loss weight {name!r}; choose from {(*plain, 'min_snr:GAMMA')}."
    )


def sampler(config: Config, model: Model, name: str = "") -> Sampler:
    """What draws pictures, as `sample` in the config says.

    Args:
      config: The whole config.
      model: The network.
      name: A sampler to take instead of the config's, deterministic if it is ddim.
    """
    spec = config.sample
    kind = _choice("sample.sampler", name or spec.sampler, SamplerName)
    if not 0.0 <= spec.eta <= 1.0:
        raise ValueError(f"sample.eta must be in [0, 1], got {spec.eta}.")
    if spec.clip_value < 0:
        raise ValueError(
            f"sample.clip_value must not be negative, got {spec.clip_value}."
        )
    eta = 0.0 if name or kind != "ddim" else spec.eta
    return Sampler(
        model,
        predictor=PREDICTORS[kind],
        stepper=_stepper(kind, eta),
        variance=variance_interpolation(spec.variance),
        limits=_limits(spec),
        guidance=guidance(config, model.schedule),
    )


def _limits(spec: Config) -> list[diffusion.Limit]:
    """What `sample` says of how far x_hat and eps_hat may go."""
    if not 0.0 <= spec.threshold <= 1.0:
        raise ValueError(f"sample.threshold must be in [0, 1], got {spec.threshold}.")
    if spec.clip_value:
        limit = spec.clip_value
        return [
            partial(diffusion.clip, limit=limit),
            partial(diffusion.clip_eps, limit=limit),
        ]
    if spec.threshold:
        return [partial(diffusion.threshold, share=spec.threshold)]
    return [partial(diffusion.clip, limit=1.0)] if spec.clip else []


def strengths(config: Config, model: Model) -> tuple[float, ...]:
    """The strengths w of guidance that `sample` asks for, however it says so.

    Raises:
      ValueError: If it says so in both ways, if a strength is negative, or if the model
        cannot be guided.
    """
    spec = config.sample
    if spec.w and spec.guidance_scale:
        raise ValueError(
            f"Set one of sample.w={spec.w} and sample.guidance_scale="
            f"{spec.guidance_scale}, which is 1 + w."
        )
    found = tuple(spec.w) or tuple(scale - 1.0 for scale in spec.guidance_scale)
    if found and not model.num_classes:
        raise ValueError(
            "Guidance (sample.w, sample.guidance_scale) needs a model that is told a"
            " class, and this one is not (model.num_classes=0)."
        )
    if any(w < 0.0 for w in found):
        raise ValueError(
            f"sample.w={found} must not be negative: 0 is no guidance, which is"
            " sample.guidance_scale=1."
        )
    return found


def guidance(config: Config, schedule: Schedule) -> Guidance:
    """What `sample` says of guidance, its strength apart."""
    spec = config.sample
    first, last = spec.guidance_interval
    if not 0.0 <= first < last <= 1.0:
        raise ValueError(
            f"sample.guidance_interval={(first, last)} must be two times t, rising, in"
            " [0, 1]."
        )
    if not 0.0 <= spec.guidance_rescale <= 1.0:
        raise ValueError(
            f"sample.guidance_rescale must be in [0, 1], got {spec.guidance_rescale}."
        )
    return Guidance(
        rescale=spec.guidance_rescale,
        logsnr_min=-math.inf if last == 1.0 else float(schedule(jnp.float32(last))),
        logsnr_max=math.inf if first == 0.0 else float(schedule(jnp.float32(first))),
    )


PREDICTORS: dict[str, samplers.Predictor] = {
    "ddim": samplers.at_start,
    "ancestral": samplers.at_start,
    "dpmpp_2m": samplers.extrapolated,
    "heun": samplers.at_both_ends,
    "stochastic": samplers.at_start,
}


def _stepper(kind: str, eta: float) -> Callable[[Float[Array, ""]], samplers.Stepper]:
    """Makes the stepper from the variance, which only ancestral sampling can choose."""
    if kind == "ancestral":
        return lambda variance: partial(samplers.ancestral_step, interpolation=variance)
    if kind == "stochastic":
        return lambda variance: samplers.stochastic_step
    return lambda variance: partial(samplers.ddim_step, eta=eta)


def variance_interpolation(name: str) -> float:
    """`small` is 0, `large` is 1, `medium:F` is F in [0, 1]."""
    kind, _, between = name.partition(":")
    if kind == "medium" and between:
        value = _number("sample.variance", between)
        if 0.0 <= value <= 1.0:
            return value
    if name in ("small", "large"):
        return float(name == "large")
    raise ValueError(
        f"Unknown sample.variance {name!r}; choose small, large or medium:F with F in"
        " [0, 1]."
    )


def optimizer(section: Config) -> Any:
    """The optimizer of a `train` or `distill` section, up to the learning rate."""
    return training.make_optimizer(
        grad_clip=section.grad_clip, weight_decay=section.weight_decay
    )


def train_loss(config: Config, model: Model, *, train: bool) -> training.Loss:
    """The loss of the base model; dropout is on where `train` is."""
    weigh = weight(config.train.weight)
    if not 0.0 <= config.train.label_dropout < 1.0:
        raise ValueError(
            f"train.label_dropout must be in [0, 1), got {config.train.label_dropout}."
        )
    num_steps = config.train.num_steps or None
    if num_steps is not None:
        schedules.check_num_steps(model.schedule, num_steps)

    def loss(params: Params, batch: training.Batch, draws: losses.Draws) -> PerExample:
        x = losses.mirror(model.to_x(jnp.asarray(batch.image)), draws.flip)
        dropout = draws.dropout if train and config.train.dropout > 0 else None
        label = batch.label
        if train and label is not None:
            left_out = draws.u_label < config.train.label_dropout
            label = jnp.where(left_out, NO_CLASS, label)
        return losses.denoising_loss(
            model.denoiser(params, label, dropout=dropout),
            x,
            draws,
            schedule=model.schedule,
            weight=weigh,
            num_steps=num_steps,
        )

    return loss


def guide_loss(config: Config, teacher: Model, student: Model) -> training.Loss:
    """The loss of the student that imitates guidance; its teacher is an argument."""
    weigh, spec = weight(config.guide.weight), config.guide
    if not 0.0 <= spec.rescale <= 1.0:
        raise ValueError(f"guide.rescale must be in [0, 1], got {spec.rescale}.")
    how = Guidance(rescale=spec.rescale)

    def loss(
        params: Params,
        batch: training.Batch,
        draws: losses.Draws,
        teacher_params: Params,
    ) -> PerExample:
        w = _strength(config, draws)
        return imitation_loss(
            student.denoiser(params, batch.label, w),
            teacher.denoiser(teacher_params, batch.label, w, guidance=how),
            losses.mirror(student.to_x(jnp.asarray(batch.image)), draws.flip),
            draws,
            schedule=student.schedule,
            weight=weigh,
        )

    return loss


def distill_loss(config: Config, model: Model) -> training.Loss:
    """The loss of a student; its teacher and its N are arguments of the step."""
    weigh, plan = weight(config.distill.weight), PLANS[ladder_name(config)]

    def loss(
        params: Params,
        batch: training.Batch,
        draws: losses.Draws,
        teacher_params: Params,
        num_steps: Int[Array, ""],
    ) -> PerExample:
        w = None if model.w_range is None else _strength(config, draws)
        return distillation_loss(
            model.denoiser(params, batch.label, w),
            model.denoiser(teacher_params, batch.label, w),
            losses.mirror(model.to_x(jnp.asarray(batch.image)), draws.flip),
            draws,
            schedule=model.schedule,
            weight=weigh,
            num_steps=num_steps,
            plan=plan,
        )

    return loss


def _strength(config: Config, draws: losses.Draws) -> PerExample:
    """Of each example, uniform over the range."""
    low, high = w_range(config)
    return low + (high - low) * draws.u_w


Ladder = Literal["deterministic", "stochastic", "encode"]
PLANS: dict[str, Plan] = {
    "deterministic": decoding,
    "stochastic": decoding_stochastically,
    "encode": encoding,
}


def ladder_name(config: Config) -> Ladder:
    """Which of the three ladders `distill` is about."""
    return _choice("distill.ladder", config.distill.ladder, Ladder)


def train_step(
    config: Config,
    section: Config,
    loss: training.Loss,
    feeder: Feeder,
    mesh: Mesh,
    shardings: training.TrainState,
    *,
    plain: bool = False,
) -> Callable[..., tuple[training.TrainState, training.Metrics]]:
    """The compiled step of a `train` or `distill` section: many updates in a call.

    Args:
      config: The whole config.
      section: Its `train` or `distill`.
      loss: Of the section.
      feeder: Its `read` becomes part of the step.
      mesh: The devices.
      shardings: Where each array of the state lies, before and after.
      plain: Whether the gradient is that of the whole batch at once, as `replay` needs,
        and not shared out by `parallel.spread`.
    """

    def loss_of_whole(params: Params, batch: Any, draws: Any, *teacher: Any) -> Any:
        params, teacher = parallel.whole((params, teacher), mesh)
        return loss(params, batch, draws, *teacher)

    step = training.make_train_step(
        loss_of_whole,
        optimizer(section),
        learning_rate(section),
        ema_decay=section.ema_decay,
        stratified=section.stratified_times,
        flip=config.data.flip,
        noise_offset=section.noise_offset,
        grad_accum_steps=section.grad_accum_steps,
        spread=(lambda gradient: gradient) if plain else parallel.spread(mesh),
    )
    return jax.jit(
        training.many_updates(step, feeder.read),
        donate_argnums=0,
        out_shardings=(shardings, parallel.replicated(mesh)),
    )


def eval_step(loss: training.Loss, mesh: Mesh) -> Callable[..., Any]:
    """The compiled loss of each example of a held-out batch, whole on every host."""
    step = training.make_eval_step(
        lambda params, batch, draws, *teacher: loss(
            params, batch, draws, *parallel.whole(teacher, mesh)
        )
    )
    return jax.jit(step, out_shardings=parallel.replicated(mesh))


def learning_rate(section: Config) -> training.LearningRate:
    """The learning rate of a `train` or `distill` section."""
    return training.make_learning_rate(
        section.learning_rate, warmup_steps=section.warmup_steps, decay=section.decay
    )


def source(config: Config, split: catalog.Split) -> Source:
    """The examples of a split, each checked against the config as it is read."""
    spec = config.data
    found = _source(config, split)
    if spec.held_out_fraction:
        found = held_out_part(found, spec.held_out_fraction, split)
    return Checked(
        found,
        image_shape=(spec.image_size, spec.image_size, spec.channels),
        num_classes=config.model.num_classes,
        latents=spec.latent_scale > 0,
    )


def _source(config: Config, split: catalog.Split) -> Source:
    spec = config.data
    if spec.held_out_fraction:  # both splits are parts of one
        split = "train"
    if spec.source not in catalog.NAMES:
        return _import("data.source", spec.source)(split)
    return catalog.open_source(
        spec.source,
        path=pathlib.Path(spec.path),
        name=spec.name,
        split_name=spec.train_split if split == "train" else spec.test_split,
        split=split,
        image_shape=(spec.image_size, spec.image_size, spec.channels),
        resize=spec.resize,
    )


def feeder(config: Config, section: Config, mesh: Mesh) -> Feeder:
    """Brings the training split to the step: from the host, or held on devices."""
    spec = config.data
    choice = _choice("data.on_device", spec.on_device, OnDevice)
    pictures = source(config, "train")
    size = feeds.size_in_bytes(pictures)
    if choice == "always" or (choice == "auto" and size <= feeds.LIMIT_BYTES):
        return feeds.resident(
            pictures,
            batch_size=section.batch_size,
            mesh=mesh,
            num_workers=spec.workers,
            timeout=spec.worker_timeout,
        )
    return feeds.Streamed(
        pictures, section.batch_size, mesh, spec.workers, spec.worker_timeout
    )


def _import(field: str, path: str) -> Any:
    """The user's own function, named "package.module:function"."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{field}={path!r} is neither built in nor a function of yours, written"
            f" package.module:function ({error})."
        ) from error


def _choice(field: str, value: str, choices: Any) -> Any:
    if value not in get_args(choices):
        raise ValueError(
            f"{field}={value!r} is unknown; choose from {get_args(choices)}."
        )
    return value


def _number(field: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{field}: {text!r} is not a number.") from None
