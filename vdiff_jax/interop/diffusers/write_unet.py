"""A student as a folder that stock diffusers loads and samples exactly.

Three things make that possible. The network is conditioned on the number of a row of a
*learned* table of times, which holds our embedding of the log-SNR (and of w). Each of
our steps is three of the scheduler's, whose betas multiply to ours: in float32 a single
beta could not be as near to 1 as the first must be. And DPM-Solver++ of order 1 is DDIM
written in x alone, so that its clipping is ours.
"""

import pathlib
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np

from vdiff_jax import schedules
from vdiff_jax.interop.diffusers import names
from vdiff_jax.interop.diffusers.folder import VERSION, write_part
from vdiff_jax.interop.diffusers.writable import refuse, unet_of
from vdiff_jax.model import Model
from vdiff_jax.nets.conditioning import row_of_table, sinusoid, time_features
from vdiff_jax.nets.layers import Resample
from vdiff_jax.nets.unet import Level, UNet
from vdiff_jax.types import Params

PREDICTIONS = {"v": "v_prediction", "x": "sample"}
SUBSTEPS = 3
MODEL_INDEX = {
    "_class_name": "ConsistencyModelPipeline",
    "_diffusers_version": VERSION,
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}
# The largest power of 2 whose distance to 1 float32 can hold.
MOST_HALVINGS = 24


def write_folder(
    folder: pathlib.Path,
    model: Model,
    params: Params,
    *,
    num_steps: int,
    clip: bool,
    w: float | None,
) -> None:
    """Writes the folder of a pipeline.

    Args:
      folder: The folder to write; made if it is not there.
      model: The model to export.
      params: Its parameters.
      num_steps: Steps of the sampler.
      clip: Keep x_hat in [-1, 1].
      w: The guidance weight to fold in; None if the network is not conditioned on it.

    Raises:
      ValueError: If diffusers could not give exactly the samples of our sampler.
    """
    net = check_writable(model, w)
    table = _time_table(net, params, model, num_steps, w)
    tensors = names.to_torch(_without_ours(params)) | {"time_proj.weight": table}
    if "class_embedding.weight" in tensors:
        bias = tensors.pop("class_embedding.bias", 0.0)
        tensors["class_embedding.weight"] = tensors["class_embedding.weight"] + bias
    write_part(folder, "", "model_index", MODEL_INDEX)
    scheduler = _scheduler(model, num_steps, clip)
    write_part(folder, "scheduler", "scheduler_config", scheduler)
    write_part(folder, "unet", "config", _unet_config(net, model, num_steps), tensors)


def check_writable(model: Model, w: float | None) -> UNet:
    """The network, if diffusers has the same.

    Raises:
      ValueError: If it has not, with the reason.
    """
    net = unet_of(model, "UNet2DModel")
    if model.output not in PREDICTIONS:
        refuse(
            f"its network predicts {model.output!r}, which no scheduler there samples"
            " exactly in few steps; finetune it to v first (model.computed_from='')"
        )
    if not model.codec.bounded:
        refuse("its data are latents, and the pipeline gives images")
    if (model.w_range is None) != (w is None):
        refuse("a student for all guidance weights needs one to fold in: set export.w")
    sizes, heads = _head_sizes(net), _head_counts(net)
    if len(sizes) > 1 and heads != {1}:
        refuse(
            f"its heads have {sorted(sizes)} channels on different levels, and"
            " UNet2DModel has one size for all (model.unet.head_dim)"
        )
    if len({level.num_blocks for level in net.levels}) > 1:
        refuse("its levels have different numbers of blocks")
    for how in ("down", "up"):
        if len({level.in_block(how) for level in _attending(net, how)}) > 1:
            refuse("only some of its levels with attention resample in a block")
    if not net.style.mid_norm and not net.style.film:
        refuse("its attention in the middle has no norm")
    return net


def sub_betas(logsnr: np.ndarray) -> np.ndarray:
    """Three betas for each step of a grid, in float32 as good as exact.

    Args:
      logsnr: log-SNR at the times 1/N, ..., 1: falling.

    Returns:
      Shape [3 N], float32.
    """
    alpha_squared = 1.0 / (1.0 + np.exp(-np.asarray(logsnr, np.float64)))
    ratio = alpha_squared / np.concatenate([[1.0], alpha_squared[:-1]])
    fraction, exponent = np.frexp(ratio)
    halvings = -exponent
    first = np.minimum(-(-halvings // 2), MOST_HALVINGS)
    second = np.minimum(halvings - first, MOST_HALVINGS)
    rest = fraction * 2.0 ** (first + second - halvings)
    # The rest comes first: a first beta of 0 would be a logarithm of 0 there.
    parts = np.stack([rest, 2.0**-first, 2.0**-second], axis=1)
    return (1.0 - parts).astype(np.float32).reshape(-1)


def _grid(model: Model, num_steps: int) -> np.ndarray:
    """The log-SNR at 1/N, ..., 1, as the sampler computes it."""
    times = jnp.arange(1, num_steps + 1, dtype=jnp.float32) / num_steps
    return np.asarray(schedules.ending_in_data(model.schedule)(times))


def _time_table(
    net: UNet, params: Params, model: Model, num_steps: int, w: float | None
) -> np.ndarray:
    """The input of the embedding's first layer at each step, three times over."""
    logsnr = jnp.asarray(_grid(model, num_steps))
    if net.time_table:
        rows = jnp.asarray(params["time_table"]["embedding"])[
            row_of_table(net.conditioning, logsnr)
        ]
    else:
        rows = time_features(net.conditioning, logsnr)
    if w is not None:
        waves = sinusoid(jnp.full(1, net.w_scale * w), net.w_features)
        rows += waves @ jnp.asarray(params["w_proj"]["kernel"])
    return np.repeat(np.asarray(rows, np.float32), SUBSTEPS, axis=0)


def _without_ours(params: Params) -> Params:
    return {k: v for k, v in params.items() if k not in ("w_proj", "time_table")}


def _scheduler(model: Model, num_steps: int, clip: bool) -> dict[str, Any]:
    return {
        "_class_name": "DPMSolverMultistepScheduler",
        "_diffusers_version": VERSION,
        "algorithm_type": "dpmsolver++",
        "solver_order": 1,
        "num_train_timesteps": SUBSTEPS * num_steps,
        "trained_betas": [float(x) for x in sub_betas(_grid(model, num_steps))],
        "prediction_type": PREDICTIONS[model.output],
        "timestep_spacing": "trailing",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
        "thresholding": clip,
        "sample_max_value": 1.0,
        "final_sigmas_type": "zero",
    }


def _unet_config(net: UNet, model: Model, num_steps: int) -> dict[str, Any]:
    style, first, sizes = net.style, net.levels[0].features, _head_sizes(net)
    config: dict[str, Any] = {
        "_class_name": "UNet2DModel",
        "_diffusers_version": VERSION,
        "sample_size": model.image_shape[0],
        "in_channels": model.image_shape[2],
        "out_channels": net.out_channels,
        "center_input_sample": style.center_input,
        "time_embedding_type": "learned",
        "num_train_timesteps": SUBSTEPS * num_steps,
        "down_block_types": [_kind(l, "down", "Down") for l in net.levels],
        "mid_block_type": "UNetMidBlock2D" if style.mid else None,
        "up_block_types": [_kind(l, "up", "Up") for l in net.levels[::-1]],
        "block_out_channels": [level.features for level in net.levels],
        "layers_per_block": net.levels[0].num_blocks,
        "mid_block_scale_factor": style.mid_scale,
        "downsample_padding": int(style.pad_both_sides),
        "downsample_type": _resampling(net, "down"),
        "upsample_type": _resampling(net, "up"),
        # None is one head for all channels of any level.
        "attention_head_dim": sizes.pop() if len(sizes) == 1 else None,
        "norm_num_groups": net.groups,
        "attn_norm_num_groups": net.groups if style.film and style.mid_norm else None,
        "norm_eps": style.epsilon,
        "resnet_time_scale_shift": "scale_shift" if style.film else "default",
        "add_attention": net.mid_heads > 0,
        "num_class_embeds": net.num_classes or None,
        "act_fn": "silu",
    }
    if net.emb_features != 4 * first:  # diffusers below 0.32 does not know the field
        config["time_embedding_dim"] = net.emb_features
    return config


def _kind(level: Level, how: Resample, word: str) -> str:
    if level.heads(how):
        return f"Attn{word}Block2D"
    return f"Resnet{word}sampleBlock2D" if level.in_block(how) else f"{word}Block2D"


def _attending(net: UNet, how: Resample) -> list[Level]:
    """The levels with attention that are resampled on the way."""
    levels = net.levels[:-1] if how == "down" else net.levels[1:]
    return [level for level in levels if level.heads(how)]


def _resampling(net: UNet, how: Resample) -> str:
    in_block = any(level.in_block(how) for level in _attending(net, how))
    return "resnet" if in_block else "conv"


def _attentions(net: UNet) -> list[tuple[int, int]]:
    """Channels and heads wherever there is attention."""
    attentions = [
        (level.features, level.heads(how))
        for level in net.levels
        for how in get_args(Resample)
    ]
    if net.style.mid:
        attentions.append((net.levels[-1].features, net.mid_heads))
    return [(features, heads) for features, heads in attentions if heads]


def _head_sizes(net: UNet) -> set[int]:
    return {features // heads for features, heads in _attentions(net)}


def _head_counts(net: UNet) -> set[int]:
    return {heads for _, heads in _attentions(net)}
