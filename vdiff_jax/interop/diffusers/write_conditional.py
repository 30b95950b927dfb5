"""A student that attends to a context as a folder that stock diffusers samples exactly.

Its network is conditioned on the number of a step of a chain, and the scheduler has
that chain, so that every N that divides its length T gives our steps: DDIM on the
"trailing" grid goes from step T - 1 down by T / N, and ends in the prediction x_hat.
"""

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from vdiff_jax import schedules
from vdiff_jax.files import weights
from vdiff_jax.interop.diffusers import names
from vdiff_jax.interop.diffusers.conditional_unet import (
    CLASS_TABLE,
    DOWN,
    MID,
    NULL_CONTEXT,
    OURS,
    START,
    UP,
    as_convolutions,
)
from vdiff_jax.interop.diffusers.folder import VERSION, write_part
from vdiff_jax.interop.diffusers.scheduler import OUTPUTS
from vdiff_jax.interop.diffusers.writable import check_unshifted, refuse, unet_of
from vdiff_jax.model import Model
from vdiff_jax.nets.conditioning import sinusoid
from vdiff_jax.nets.unet import UNet
from vdiff_jax.types import Params

PREDICTIONS = {ours: theirs for theirs, ours in OUTPUTS.items()}
# That of the pipelines of diffusers, in `get_guidance_scale_embedding`.
W_SCALE = 1000.0
# The parts that a text needs, and that are the teacher's.
OF_TEACHER = (
    "vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor",
    "image_encoder",
)  # fmt: skip
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": VERSION,
    "requires_safety_checker": False,
    "scheduler": ["diffusers", "DDIMScheduler"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    **{part: [None, None] for part in OF_TEACHER},
}


def write_folder(
    folder: pathlib.Path,
    model: Model,
    params: Params,
    *,
    w: float | None,
) -> None:
    """Writes `unet/` and `scheduler/`, and beside them what is not of the network.

    For a network that attends to its class that is the table of the classes, and no
    pipeline; for another an index of a pipeline without the parts for texts.

    Args:
      folder: The folder to write; made if it is not there.
      model: The model to export, for which `check_writable` has passed.
      params: Its parameters.
      w: The guidance weight to fold in; None to leave it an input, if it is one.
    """
    net = unet_of(model, "UNet2DConditionModel")
    own = {name: np.asarray(params[name]) for name in OURS if name in params}
    tensors = names.to_torch({k: v for k, v in params.items() if k not in OURS})
    if not net.style.linear_projection:
        tensors = as_convolutions(tensors)
    if w is not None:
        _fold(tensors, net, w)
    config = _unet_config(net, model, w)
    write_part(folder, "unet", "config", config, tensors)
    write_part(folder, "scheduler", "scheduler_config", _scheduler(model, net))
    if net.class_is_context:
        table = {"weight": own["class_context"]}
        weights.write(folder / CLASS_TABLE, table, {"format": "pt"})
        return
    write_part(folder, "", "model_index", MODEL_INDEX)
    if any((own[name] != start).any() for name, start in START.items()):
        null = {name.removeprefix("null_"): x for name, x in own.items()}
        weights.write(folder / NULL_CONTEXT, null, {"format": "pt"})


def check_writable(
    model: Model, *, num_steps: int, clip: bool, w: float | None
) -> None:
    """Refuses a model of which diffusers would not give the samples.

    Args:
      model: The model to export.
      num_steps: Steps of the sampler.
      clip: Keep x_hat in [-1, 1].
      w: The guidance weight to fold in; None for none.

    Raises:
      ValueError: With the reason.
    """
    net = unet_of(model, "UNet2DConditionModel")
    if not net.class_is_context:  # of a class there is no pipeline, and no decoding
        check_unshifted(model.codec)
    if model.output not in PREDICTIONS:
        refuse(f"it predicts {model.output!r}, which no scheduler there samples")
    if clip:
        refuse(
            "DDIMScheduler clips x_hat and not eps, which is another sampler: set"
            " sample.clip='none'"
        )
    _check_chain(model, net, num_steps)
    if w is None and net.w_features and net.w_scale != W_SCALE:
        refuse(
            f"guide.w_scale={net.w_scale:g}, and pipelines there embed"
            f" {W_SCALE:g} w: set export.w to fold one w in"
        )
    if net.num_classes and not net.class_is_context:
        refuse("it has classes beside its context, which no pipeline there passes on")
    _check_levels(net)


def _check_chain(model: Model, net: UNet, num_steps: int) -> None:
    """Refuses times that are not those of a scheduler there."""
    if not net.timesteps or net.time_table:
        refuse(
            "its network is conditioned on the log-SNR, and UNet2DConditionModel on the"
            " number of a step (model.timesteps)"
        )
    chain = np.asarray(net.timesteps)
    times = jnp.arange(1, len(chain) + 1) / len(chain)
    if not np.allclose(model.schedule(times), chain, rtol=1e-4, atol=1e-4):
        refuse(
            "its noise schedule is not the chain whose steps its network is conditioned"
            " on: set diffusion.schedule to model.timesteps, and distill with that"
        )
    if len(chain) % num_steps:
        refuse(
            f"export.steps={num_steps} does not divide the {len(chain)} steps of its"
            " chain, so that DDIMScheduler would go from one step to another than it"
            " takes next"
        )


def _check_levels(net: UNet) -> None:
    """Refuses blocks that UNet2DConditionModel does not have."""
    for level in net.levels:
        heads = {level.heads("down"), level.heads("up")} - {0}
        if (heads and not level.depth) or len(heads) > 1:
            refuse("a level has attention that sees no context, or of two kinds")
    resampled = [level.in_block("down") for level in net.levels[:-1]]
    resampled += [level.in_block("up") for level in net.levels[1:]]
    if any(resampled):
        refuse(
            "its residual blocks resample the image: model.unet.resample_in_block=False"
            " would not"
        )
    if not net.style.mid:
        return
    last = net.levels[-1]
    heads = (last.heads("down") or last.heads("up") or net.mid_heads, net.mid_heads)
    depths = (last.depth or net.mid_depth, net.mid_depth)
    if not net.mid_depth or len(set(heads)) > 1 or len(set(depths)) > 1:
        refuse("the attention of its middle is not that of its last level")


def _fold(tensors: names.Tensors, net: UNet, w: float) -> None:
    """Adds the embedding of w to a bias, which makes it a network of that w alone."""
    waves = sinusoid(jnp.full(1, net.w_scale * w), net.w_features)
    embedded = tensors.pop("time_embedding.cond_proj.weight") @ np.asarray(waves)[0]
    bias = tensors["time_embedding.linear_1.weight"] @ embedded
    tensors["time_embedding.linear_1.bias"] = (
        tensors["time_embedding.linear_1.bias"] + bias
    )


def _scheduler(model: Model, net: UNet) -> dict[str, Any]:
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": VERSION,
        **_chain(np.asarray(net.timesteps)),
        "num_train_timesteps": len(net.timesteps),
        "prediction_type": PREDICTIONS[model.output],
        "timestep_spacing": "trailing",
        # Of the grid "leading" alone; with 0 the pipeline warns, and sets 1.
        "steps_offset": 1,
        "clip_sample": False,
        "set_alpha_to_one": True,
        "rescale_betas_zero_snr": False,
        "thresholding": False,
    }


def _chain(logsnr: np.ndarray) -> dict[str, Any]:
    """A chain by its name there, so that other schedulers know it; or each beta."""
    log_alpha_squared = -np.logaddexp(0.0, -logsnr)
    betas = -np.expm1(np.diff(log_alpha_squared, prepend=0.0))
    first, last = (float(f"{beta:.9g}") for beta in (betas[0], betas[-1]))
    named = {
        "linear": schedules.linear_betas,
        "scaled_linear": schedules.scaled_linear_betas,
    }
    for name, betas_of in named.items():
        if np.allclose(betas_of(first, last, len(betas)), betas, rtol=1e-7, atol=0.0):
            return {"beta_schedule": name, "beta_start": first, "beta_end": last}
    return {"trained_betas": betas.tolist()}


def _unet_config(net: UNet, model: Model, w: float | None) -> dict[str, Any]:
    style, levels = net.style, net.levels
    heads = [l.heads("down") or l.heads("up") or net.mid_heads for l in levels]
    depths = [level.depth or net.mid_depth or 1 for level in levels]
    config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": VERSION,
        "sample_size": model.image_shape[0],
        "in_channels": model.image_shape[2],
        "out_channels": net.out_channels,
        "center_input_sample": style.center_input,
        "flip_sin_to_cos": style.cosine_first,
        "freq_shift": style.frequency_shift,
        "down_block_types": [DOWN[l.heads("down") > 0] for l in levels],
        "mid_block_type": MID if style.mid else None,
        "up_block_types": [UP[l.heads("up") > 0] for l in levels[::-1]],
        "block_out_channels": [level.features for level in levels],
        "layers_per_block": _one_or_all([level.num_blocks for level in levels]),
        "downsample_padding": int(style.pad_both_sides),
        "mid_block_scale_factor": style.mid_scale,
        "act_fn": "silu",
        "norm_num_groups": net.groups,
        "norm_eps": style.epsilon,
        "cross_attention_dim": net.context_features,
        "transformer_layers_per_block": _one_or_all(depths),
        "attention_head_dim": _one_or_all(heads),  # the number of them, there
        "use_linear_projection": style.linear_projection,
        "resnet_time_scale_shift": "scale_shift" if style.film else "default",
    }
    if net.emb_features != 4 * levels[0].features:
        config["time_embedding_dim"] = net.emb_features
    if net.w_features and w is None:
        config["time_cond_proj_dim"] = net.w_features
    return config


def _one_or_all(values: list[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else values
