"""The table of the config's fields: the default, the range and the meaning of each.

A refusal, its message (`check`) and docs/config.md all come from here.
"""

import dataclasses
import difflib
from typing import Any, NamedTuple, get_args

from vdiff_jax.datasets import catalog
from vdiff_jax.datasets.images import Resize
from vdiff_jax.diffusion import Output
from vdiff_jax.distillation.method import Source
from vdiff_jax.distillation.methods import METHODS
from vdiff_jax.from_config.choices import updates_table
from vdiff_jax.from_config.data import OnDevice
from vdiff_jax.from_config.losses import loss_weight, teacher_step_of
from vdiff_jax.from_config.model import DType, NetName, ScheduleName, StyleName
from vdiff_jax.from_config.ranges import (
    Range,
    above,
    above_up_to,
    any_text,
    at_least,
    between,
    class_number_or_name,
    file_of_export,
    finite,
    from_to_below,
    one_of,
    one_of_literal,
    own_or,
    parsed_by,
    place,
    seed,
    tuple_of,
    whole,
    yes_or_no,
)
from vdiff_jax.from_config.sampler import SamplerName, limits_of, variance_interpolation
from vdiff_jax.interop.conventions import Convention
from vdiff_jax.nets.conditioning import LogsnrInput
from vdiff_jax.nets.serialization import fields_of
from vdiff_jax.schedules import Chain
from vdiff_jax.training.step import Decay


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a config.

    Attributes:
      default: Its value where a config file does not set it.
      allowed: Its range.
      doc: Its meaning, in one line.
    """

    default: Any
    allowed: Range
    doc: str


class Section(NamedTuple):
    """Fields that belong together, and what they are of."""

    doc: str
    fields: dict[str, Field]


# The stages that may follow each other in one command, in their order.
PIPELINE = ("train", "guide", "distill", "sample", "evaluate", "export")
STAGES = ("all", *PIPELINE, "import")
# The stages that train: each may have a value of its own for a field of `loop`.
TRAINING = ("train", "guide", "distill")

_SEED = seed()
_WEIGHT = parsed_by(
    loss_weight,
    "constant, snr, snr_trunc, snr_plus_one, or min_snr:GAMMA with GAMMA above 0",
)
_GUIDANCE_WEIGHTS = tuple_of(
    at_least(0), words="a tuple of guidance weights w, each a number of at least 0"
)
_COUNTS = tuple_of(
    whole(1), words="a tuple of numbers of steps, each a whole number of at least 1"
)
_TEACHER_STEPS = tuple_of(
    whole(1), least=2, most=2, words="two whole numbers of at least 1, that do not fall"
)
_CLASSES = tuple_of(
    class_number_or_name(),
    words="a tuple of classes, each a whole number of at least 0 or its name",
)
_WHICH = one_of("auto", "base", "guided", "distilled")


def words_of(stage: str) -> list[str]:
    """The words of the field `stage`: one, or several of the pipeline."""
    return stage.split(",")


def _stages(text: str) -> None:
    words = words_of(text)
    if words != [word for word in PIPELINE if word in words] and text not in STAGES:
        raise ValueError(text)


def _layout(text: str) -> None:
    if text:
        fields_of(text)


def _optimization(**defaults: Any) -> dict[str, Field]:
    """The fields of a stage that trains on how a gradient becomes an update."""
    fields = {
        "batch_size": Field(2048, whole(1), "Images of an update, over all devices."),
        "learning_rate": Field(1e-4, above(0), "Of Adam, after the warm-up."),
        "warmup_steps": Field(
            0, whole(0), "Updates in which the learning rate rises to that."
        ),
        "decay": Field(
            "constant",
            one_of_literal(Decay),
            "How the learning rate falls to 0 at the end of the run, if it does.",
        ),
        "ema_decay": Field(
            0.9999,
            from_to_below(0, 1),
            "Of the averaged parameters in each update; 0: they are not averaged.",
        ),
    }
    return {
        name: dataclasses.replace(field, default=defaults.get(name, field.default))
        for name, field in fields.items()
    }


_TOP = {
    "stage": Field(
        "all",
        parsed_by(
            _stages,
            f"one of {', '.join(STAGES)}, or several in this order: train,distill",
        ),
        "What to run; the word behind the config's colon.",
    ),
    "seed": Field(
        0, _SEED, "Of the first parameters, the order of the data, and the noise."
    ),
    "wandb_project": Field(
        "", any_text(), "Project of Weights & Biases to log to as well; empty: none."
    ),
}

_MODEL = {
    "net": Field(
        "unet",
        own_or(*get_args(NetName)),
        "The network; dit: a diffusion transformer; yours: package.module:make_net.",
    ),
    "convention": Field(
        "",
        one_of_literal(Convention, ""),
        "Which other project's convention a network of your own follows; empty: ours.",
    ),
    "output": Field("v", one_of_literal(Output), "What the model predicts."),
    "computed_from": Field(
        "",
        one_of_literal(Output, ""),
        "What the network itself predicts, if not `model.output`; it is converted.",
    ),
    "num_classes": Field(
        0, whole(0), "Classes that it is conditioned on; 0: unconditional."
    ),
    "timesteps": Field(
        "",
        one_of_literal(Chain, ""),
        "The chain of `diffusion` whose step's number is fed in place of the log-SNR.",
    ),
    "dtype": Field(
        "float32",
        one_of_literal(DType),
        "Of the network's computation; targets and losses are float32.",
    ),
}

_UNET = {
    "channels": Field(256, whole(1), "Features of the first level."),
    "multipliers": Field(
        (1, 1, 1),
        tuple_of(whole(1), least=1),
        "Features of each level, in multiples of `channels`; a level halves the size.",
    ),
    "num_blocks": Field(3, whole(1), "Residual blocks of a level on the way down."),
    "attention_resolutions": Field(
        (8, 16), tuple_of(whole(1)), "Heights at which a level has attention."
    ),
    "head_dim": Field(64, whole(1), "Features of one head of attention."),
    "emb_channels": Field(
        1024, whole(1), "Features of the embedding of log-SNR and class."
    ),
    "groups": Field(32, whole(1), "Groups of every normalization."),
    "patch": Field(
        1, whole(1), "Side of the square of pixels that the network sees as one."
    ),
    "logsnr_input": Field(
        "inv_cos", one_of_literal(LogsnrInput), "As what the log-SNR is fed in."
    ),
    "style": Field(
        "salimans_ho", one_of_literal(StyleName), "Whose blocks it is built of."
    ),
    "resample_in_block": Field(
        True, yes_or_no(), "Residual blocks change the size, not convolutions."
    ),
    "context_features": Field(
        0,
        whole(0),
        "Width of the vectors that attention sees beside the image; 0: none.",
    ),
    "context_tokens": Field(
        0, whole(0), "Their number; 0: one, which is the class's own."
    ),
    "layout": Field(
        "",
        parsed_by(_layout, "empty, or a U-Net in full as the import stage writes it"),
        "A U-Net in full, in place of all of the above but `patch`; import writes it.",
    ),
}

_DIT = {
    "patch": Field(2, whole(1), "Side of the square of pixels that is one token."),
    "depth": Field(12, whole(1), "Blocks, each of attention and a perceptron."),
    "features": Field(
        384, whole(4), "Of a token; of its perceptron four times as many."
    ),
    "num_heads": Field(
        6, whole(1), "Heads of each attention; they share the features."
    ),
    "epsilon": Field(
        1e-6, above(0), "In the norms before the perceptrons; 1e-5 as diffusers has it."
    ),
}

_DIFFUSION = {
    "schedule": Field("cosine", one_of_literal(ScheduleName), "The noise schedule."),
    "logsnr_min": Field(
        -20.0, between(-80, 80), "Log-SNR of the cosine schedule at t = 1, in nats."
    ),
    "logsnr_max": Field(20.0, between(-80, 80), "And at t = 0."),
    "beta_first": Field(
        1e-4, above_up_to(0, 0.999), "First beta of the (scaled) linear schedules."
    ),
    "beta_last": Field(0.02, above_up_to(0, 0.999), "And their last."),
    "num_train_steps": Field(
        1000, whole(1), "Steps of the chain, for every schedule but cosine and betas."
    ),
    "betas": Field(
        (), tuple_of(from_to_below(0, 1)), "Each beta, for the schedule of that name."
    ),
}

_DATA = {
    "source": Field(
        "tfds",
        own_or(*catalog.NAMES),
        "Where examples come from (docs/data.md); yours: package.module:make_source.",
    ),
    "name": Field("", any_text(), "Of a data set of TensorFlow Datasets."),
    "path": Field("data", place("a folder or a file"), "Where the data lie."),
    "train_split": Field(
        "train", any_text(), "What the training split is called there; empty: `path`."
    ),
    "test_split": Field("test", any_text(), "And the split that is held out."),
    "held_out_fraction": Field(
        0.0,
        from_to_below(0, 1),
        "Above 0: the held-out split is this part of the training split.",
    ),
    "image_size": Field(
        32, whole(0), "Height and width of an image; 0: that of the imported model."
    ),
    "channels": Field(3, whole(0), "Of an image; 0: those of the imported model."),
    "resize": Field(
        "area",
        one_of_literal(Resize),
        "How a centre crop becomes an image; pad adds a border instead.",
    ),
    "latent_scale": Field(
        0.0,
        at_least(0),
        "Above 0: the data are latents, and x is this times them; with an autoencoder"
        " 0 is the scale that its folder names.",
    ),
    "latent_shift": Field(
        0.0, finite(), "What is taken off latents before; an autoencoder brings it."
    ),
    "autoencoder": Field(
        "",
        place("a folder of diffusers"),
        "Of latents: decodes them, and encodes images; image_size and channels are then"
        " those of the latents.",
    ),
    "flip": Field(True, yes_or_no(), "Half of the training images are mirrored."),
    "held_out": Field(
        1024, whole(0), "Images of the held-out loss; 0: it is not measured."
    ),
    "on_device": Field(
        "auto",
        one_of_literal(OnDevice),
        "Where the training split lies; auto: on the device up to 1 GiB.",
    ),
    "workers": Field(4, whole(0), "Processes that read and decode; 0: this one."),
    "worker_timeout": Field(
        300.0, above(0), "Seconds without a batch until a worker is taken for hung."
    ),
}

_PARALLEL = {
    "fsdp": Field(
        1, whole(1), "Devices that share one copy of parameters and optimizer."
    ),
    "remat": Field(
        False, yes_or_no(), "Computes blocks again in the gradient, for memory."
    ),
}

LOOP = {
    "weight": Field(
        "snr_trunc",
        _WEIGHT,
        "Weight of the squared error of x by the signal-to-noise ratio.",
    ),
    "weight_decay": Field(0.0, at_least(0), "Relative to the learning rate."),
    "grad_clip": Field(
        1.0,
        at_least(0),
        "Norm that a gradient is scaled down to if it is larger; 0: it never is.",
    ),
    "stratified_times": Field(
        False, yes_or_no(), "The times of a batch are spread evenly over [0, 1]."
    ),
    "noise_offset": Field(
        0.0, at_least(0), "Size of the noise that a whole channel shares; 0: none."
    ),
    "grad_accum_steps": Field(
        1, whole(1), "Parts of a batch that go through a device one after the other."
    ),
    "on_nonfinite": Field(
        "stop", one_of("stop", "skip"), "What a loss that is not finite does."
    ),
    "steps_per_call": Field(10, whole(1), "Updates of one compiled call."),
    "log_every_steps": Field(
        100, whole(0), "Updates between two lines of metrics; 0: none."
    ),
    "eval_every_steps": Field(
        10_000, whole(0), "Updates between two held-out losses; 0: none."
    ),
    "sample_every_steps": Field(
        10_000, whole(0), "Updates between two grids of samples; 0: none."
    ),
    "sample_steps": Field(
        256, whole(1), "Steps of the sampler of these grids; a student takes its own."
    ),
    "checkpoint_every_steps": Field(
        5000, whole(0), "Updates between two checkpoints; 0: only the last."
    ),
    "checkpoint_every_minutes": Field(
        30.0, at_least(0), "And by the clock; 0: not by the clock."
    ),
    "keep_checkpoints": Field(2, whole(1), "How many of the newest stay."),
    "keep_every_steps": Field(
        0, whole(0), "Those of multiples of this stay as well; 0: none."
    ),
    "keep_best": Field(
        0, whole(0), "And so many of the lowest held-out loss; 0: none."
    ),
}

_TRAIN = {
    "init_from": Field(
        "",
        place("a train folder"),
        "The train folder whose weights to go on from; empty: fresh ones.",
    ),
    "steps": Field(800_000, whole(1), "Updates."),
    "num_steps": Field(
        0, whole(0), "N, to train on the times i / N only; 0: on all of [0, 1]."
    ),
    "dropout": Field(0.1, from_to_below(0, 1), "Share of the features left out."),
    "label_dropout": Field(
        0.1,
        from_to_below(0, 1),
        "Share of the examples without their class, as guidance needs.",
    ),
    **_optimization(learning_rate=3e-4, warmup_steps=1000),
}

_GUIDE = {
    "steps": Field(
        0, whole(0), "Updates; 0: there is no such stage, and no w for students."
    ),
    "teacher": Field(
        "", place("a train folder"), "Empty: the base model of the same workdir."
    ),
    "w_range": Field(
        (0.0, 4.0),
        tuple_of(
            at_least(0), least=2, most=2, words="two numbers of at least 0, not falling"
        ),
        "The least and the largest guidance weight w that students take.",
    ),
    "w_features": Field(256, whole(4), "Width of the sinusoid of w; even."),
    "w_scale": Field(1000.0, above(0), "The largest angle of w = 1 in it."),
    "rescale": Field(
        0.0, between(0, 1), "Share of the teacher's contrast that is taken back."
    ),
    **_optimization(warmup_steps=1000),
}

_DISTILL = {
    "teacher": Field(
        "",
        place("a folder of a model"),
        "The first teacher; empty: of the same workdir, guided if there is one.",
    ),
    "method": Field(
        "progressive",
        one_of(*METHODS),
        "How a student learns; encode distills an encoder.",
    ),
    "start_steps": Field(1024, whole(1), "Steps of the first teacher."),
    "end_steps": Field(1, whole(1), "Steps of the last student."),
    "students": Field(
        (8, 4, 2, 1),
        _COUNTS,
        "Steps of each student, where the method does not halve those of its teacher.",
    ),
    "start": Field(
        "previous",
        one_of_literal(Source),
        "What such a student begins as: the teacher, the student before, or the"
        " progressive student of as many steps in the same workdir.",
    ),
    "teacher_steps": Field(
        (64, 1280),
        _TEACHER_STEPS,
        "Steps of a consistency student's teacher, at first and at last.",
    ),
    "teacher_step": Field(
        "ddim",
        parsed_by(teacher_step_of, "ddim, heun, or addim:SHARE with SHARE in [0, 1]"),
        "The kind of the teacher's steps; addim is ddim for students of 1 and 2 steps.",
    ),
    "noise_input": Field(
        False,
        yes_or_no(),
        "Students of moment matching take fresh noise beside z_t in each step.",
    ),
    "updates": Field(
        "50000, 2: 100000, 1: 100000",
        parsed_by(
            updates_table,
            'a number above 0, or a table like "50000, 2: 100000, 1: 100000"',
        ),
        "Updates of each student, and exceptions by its number of steps.",
    ),
    **_optimization(decay="linear", ema_decay=0.0),
}

_SOURCE = {
    "path": Field(
        "",
        place("a file or a folder"),
        "A folder of diffusers, a .safetensors of export, or a checkpoint of the"
        " paper; empty: `model.net`, a network of your own.",
    ),
    "output": Field(
        "x",
        one_of_literal(Output),
        "What a network of the paper predicts, if its output does not show it.",
    ),
}

_EXPORT = {
    "formats": Field(
        ("safetensors",),
        tuple_of(
            one_of("orbax", "safetensors", "diffusers", "stablehlo"),
            least=1,
            words="a tuple of at least one of orbax, safetensors, diffusers, stablehlo",
        ),
        "What to write.",
    ),
    "dtype": Field(
        "float32",
        one_of("float32", "bfloat16"),
        "The type of the parameters in safetensors.",
    ),
    "model": Field("auto", _WHICH, "Which model; auto: the last that is finished."),
    "steps": Field(4, whole(1), "Steps of the sampler."),
    "w": Field(
        (),
        tuple_of(
            at_least(0),
            most=1,
            words="empty, or a tuple of one guidance weight w of at least 0",
        ),
        "The guidance weight that is folded in, for diffusers.",
    ),
    "decode": Field(
        False, yes_or_no(), "Of latents: the code of stablehlo gives images."
    ),
}

_SAMPLE = {
    "from_file": Field(
        "",
        place("a file"),
        "A .safetensors of export; --config.sample.from is the same.",
    ),
    "model": Field("auto", _WHICH, "Which model; auto: the last that is finished."),
    "steps": Field(4, whole(1), "Steps of the sampler."),
    "num": Field(64, whole(1), "Images to draw."),
    "seed": Field(0, _SEED, "Of the noise."),
    "batch_size": Field(64, whole(1), "Images of one call, over all devices."),
    "labels": Field((), _CLASSES, "Classes, in turn; empty: all."),
    "context": Field(
        "",
        place("a file"),
        "An .npz of contexts, in turn: context, and mask or none; empty: those of the"
        " held-out data.",
    ),
    "w": Field(
        (),
        _GUIDANCE_WEIGHTS,
        "Guidance weights w (the scale is 1 + w): none, one or several.",
    ),
    "guidance_interval": Field(
        (0.0, 1.0),
        tuple_of(
            between(0, 1), least=2, most=2, words="two times t, rising, from 0 to 1"
        ),
        "Times t between which guidance is on.",
    ),
    "guidance_rescale": Field(
        0.0, between(0, 1), "Share of the contrast that is taken back."
    ),
    "noise": Field("", place("a file"), "An .npy of z_1 to start from."),
    "image": Field(
        "",
        place("a file or a folder"),
        "Images to start from: a file, a folder, an .npy; they are encoded.",
    ),
    "image_labels": Field((), _CLASSES, "Their classes, in turn, to encode them by."),
    "encode_steps": Field(
        256, whole(1), "Steps of encoding; by the encoding student of so many, or base."
    ),
    "from_t": Field(
        1.0,
        above_up_to(0, 1),
        "Below 1: noise is added to the images up to this t, and nothing is encoded.",
    ),
    "sampler": Field(
        "auto",
        one_of("auto", *get_args(SamplerName)),
        "Which sampler; auto: the one that a student was taught, and else ddim.",
    ),
    "eta": Field(
        0.0,
        between(0, 1),
        "Of ddim: 1 draws new noise in every step. An evaluation has it in students of"
        " moment matching alone.",
    ),
    "variance": Field(
        "large",
        parsed_by(
            variance_interpolation, "small, large, or medium:F with F from 0 to 1"
        ),
        "Of ancestral: the variance of the noise of a step.",
    ),
    "clip": Field(
        "auto",
        parsed_by(
            lambda text: text == "auto" or limits_of(text),
            "auto, x, none, both:F with F above 0, or dynamic:Q with Q above 0 and up"
            " to 1",
        ),
        "x: x_hat to [-1, 1]; both: x_hat and eps_hat to F; dynamic: by a quantile;"
        " auto: x for images, none for latents.",
    ),
    "trajectory": Field(
        False, yes_or_no(), "Also shows what samples pass through on the way."
    ),
    "interpolate": Field(
        0, whole(0), "Also draws so many images between two noises; 0: none."
    ),
}

_EVALUATE = {
    "files": Field(
        (),
        tuple_of(file_of_export()),
        "Files of export to measure in place of the workdir's models, a base among"
        " them; empty: the workdir's.",
    ),
    "images": Field(
        "",
        place("a file or a folder"),
        "Real images to compare with, where the data are latents: a folder, LMDB or"
        " .npz, with the splits of the data; empty: the data, decoded.",
    ),
    "steps": Field((1, 2, 4, 8, 16), _COUNTS, "Steps of the students, and budgets."),
    "reference_steps": Field(
        256, whole(1), "Steps of the base model that they are compared with."
    ),
    "samplers": Field(
        ("ddim", "ancestral", "dpmpp_2m", "heun"),
        tuple_of(
            one_of_literal(SamplerName),
            words="a tuple of ddim, ancestral, dpmpp_2m, heun, stochastic",
        ),
        "Samplers of the base model at the same budgets.",
    ),
    "num": Field(50_000, whole(1), "Images of each seed."),
    "seed": Field(0, _SEED, "The first seed."),
    "repeats": Field(3, whole(1), "How many seeds."),
    "w": Field((), _GUIDANCE_WEIGHTS, "Guidance weights w; empty: without guidance."),
    "judge": Field(
        False, yes_or_no(), "Also whether samples are of the class asked for."
    ),
    "features": Field(
        (),
        tuple_of(
            own_or("inception", "classifier", "pixels"),
            words="a tuple of inception, classifier, pixels, and functions of your own,"
            " package.module:function; or empty",
        ),
        "What distances are measured on; empty: all that can be had.",
    ),
    "inception_weights": Field(
        "", place("a file"), "Weights of Inception, for FID (docs/evaluation.md)."
    ),
    "reference_split": Field(
        "train", one_of("train", "test"), "Real images to compare with."
    ),
    "reference_num": Field(
        50_000, whole(0), "How many of them, evenly spaced; 0: all."
    ),
    "reference_stats": Field(
        "", place("a file"), "Published statistics: an .npz of mu and sigma."
    ),
    "likelihood_num": Field(
        0, whole(0), "Held-out images whose bits/dim are measured; 0: none."
    ),
}

SECTIONS = {
    "": Section("The run", _TOP),
    "model": Section("The model", _MODEL),
    "model.unet": Section("The U-Net", _UNET),
    "model.dit": Section("The diffusion transformer", _DIT),
    "diffusion": Section("The noise schedule", _DIFFUSION),
    "data": Section("The data", _DATA),
    "parallel": Section("The devices", _PARALLEL),
    "loop": Section("What the stages that train have in common", LOOP),
    "train": Section("The base model", _TRAIN),
    "guide": Section("The student that imitates guidance", _GUIDE),
    "distill": Section("The students of fewer steps", _DISTILL),
    "source": Section("What the import stage reads", _SOURCE),
    "export": Section("What the export stage writes", _EXPORT),
    "sample": Section("What the sample stage draws", _SAMPLE),
    "evaluate": Section("What the evaluate stage measures", _EVALUATE),
}

# Every field by its path, such as "train.batch_size".
FIELDS: dict[str, Field] = {
    f"{section}.{name}".lstrip("."): field
    for section, (_, fields) in SECTIONS.items()
    for name, field in fields.items()
}


def unknown(path: str) -> str:
    """What to say of a path that is no field; empty if it is one, or a section."""
    if path in FIELDS or path in SECTIONS or is_override(path):
        return ""
    near = difflib.get_close_matches(path, [*FIELDS, *SECTIONS], 1, 0.6)
    return f"{path}; the nearest is {near[0]}" if near else path


def is_override(path: str) -> bool:
    """True if a path is a field of `loop` for one stage, as `train.grad_clip`."""
    stage, _, name = path.partition(".")
    return stage in TRAINING and name in LOOP


def field_at(path: str) -> Field:
    """The field of a path, or that of `loop` which a stage overrides there.

    Raises:
      KeyError: If there is no such field.
    """
    return LOOP[path.partition(".")[2]] if is_override(path) else FIELDS[path]
