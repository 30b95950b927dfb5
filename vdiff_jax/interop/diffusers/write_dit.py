"""A diffusion transformer as the stock `DiTPipeline` of diffusers takes it.

The network there is conditioned on the number of a step of the scheduler's chain, so
only one of ours can be written that is, too. With trailing steps, DDIM there visits our
times i / N exactly where N divides the length of the chain.
"""

import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vdiff_jax.codec import Autoencoder, Codec, Latents
from vdiff_jax.files.copies import on_this_machine
from vdiff_jax.interop.diffusers import dit_names
from vdiff_jax.interop.diffusers.folder import VERSION, write_part
from vdiff_jax.interop.diffusers.writable import check_unshifted, refuse
from vdiff_jax.model import Model
from vdiff_jax.nets.conditioning import sinusoid
from vdiff_jax.nets.dit import DiT
from vdiff_jax.types import Params

PREDICTIONS = {"v": "v_prediction", "x": "sample", "eps": "epsilon"}
# The width of a block's perceptron there, in multiples of the features.
MLP_RATIO = 4
# Chains that a scheduler knows by name, and the power of a beta that is linear.
POWERS = {"linear": 1.0, "scaled_linear": 0.5}


def write_folder(
    folder: pathlib.Path,
    model: Model,
    params: Params,
    *,
    w: float | None,
    class_names: Sequence[str],
    vae: pathlib.Path | None,
) -> None:
    """Writes the folder of a `DiTPipeline`.

    Args:
      folder: The folder to write; made if it is not there.
      model: The model to export, for which `check_writable` has passed.
      params: Its parameters.
      w: The guidance weight to fold in; None if the network is not conditioned on it.
      class_names: Name of each class, or nothing.
      vae: The folder of the autoencoder, to be copied; or None.

    Raises:
      ValueError: If the folder is of another kind of autoencoder than the pipeline's.
    """
    net = _net_of(model)
    if vae is not None:
        check_vae(vae, model.codec)
        with on_this_machine(vae) as place:
            shutil.copytree(place, folder / "vae")
    files = files_of(net, model, class_names, has_vae=vae is not None)
    tensors = {"transformer": tensors_of(net, params, w)}
    for path, content in files.items():
        part, _, name = path.rpartition("/")
        content = {**content, "_diffusers_version": VERSION}
        stem = name.removesuffix(".json")
        write_part(folder, part, stem, content, tensors.get(part))


def check_writable(
    model: Model, *, num_steps: int, clip: bool, w: float | None
) -> None:
    """Refuses a model of which diffusers would not give the samples.

    Args:
      model: The model to export.
      num_steps: Steps of the sampler.
      clip: Keep x_hat in [-1, 1].
      w: The guidance weight to fold in; None if the network is not conditioned on it.

    Raises:
      ValueError: With the reason.
    """
    net = _net_of(model)
    check_unshifted(model.codec)
    steps = len(net.timesteps)
    if model.output not in PREDICTIONS:
        refuse(f"it predicts {model.output!r}, which no scheduler there samples")
    if not net.num_classes:
        refuse("model.num_classes=0, and DiTTransformer2DModel always has classes")
    if net.mlp_ratio != MLP_RATIO:
        refuse(f"its perceptrons have a ratio of {net.mlp_ratio}, not {MLP_RATIO}")
    if (model.w_range is None) != (w is None):
        refuse("a student for all guidance weights needs one to fold in: set export.w")
    if net.dtype != jnp.float32:
        refuse(f"model.dtype={net.dtype}; with float32 it can, and is more exact")
    if not steps:
        refuse(
            "it is conditioned on the log-SNR (model.timesteps=''), and"
            " DiTTransformer2DModel on the number of a step of a chain"
        )
    if not _is_schedule_of(model, net):
        refuse(
            "its noise schedule (diffusion.schedule) is not the chain whose steps it"
            " counts (model.timesteps)"
        )
    if steps % num_steps:
        refuse(
            f"{num_steps} steps do not divide the {steps} of its chain, and the"
            " scheduler would take uneven ones"
        )
    if clip:
        refuse(
            "sample.clip='x', and DDIMScheduler clips x without making eps agree: set"
            " sample.clip='none'"
        )


def tensors_of(net: DiT, params: Params, w: float | None) -> dit_names.Tensors:
    """The weights by diffusers' names, with the guidance weight folded in.

    Args:
      net: The network.
      params: Its parameters.
      w: The guidance weight; None if the network is not conditioned on it.
    """
    if w is not None:
        params = _with_weight(net, params, w)
    return dit_names.to_torch(params, net.patch, net.depth)


def files_of(
    net: DiT, model: Model, class_names: Sequence[str], *, has_vae: bool
) -> dict[str, dict[str, Any]]:
    """The contents of the json files, by name.

    Args:
      net: The network.
      model: The model to export.
      class_names: Name of each class, or nothing.
      has_vae: True if the folder of an autoencoder will lie beside.
    """
    labels = class_names or [str(i) for i in range(model.num_classes)]
    vae = {"vae": ["diffusers", "AutoencoderKL"]} if has_vae else {}
    return {
        "model_index.json": {
            "_class_name": "DiTPipeline",
            "id2label": {str(i): name for i, name in enumerate(labels)},
            "scheduler": ["diffusers", "DDIMScheduler"],
            "transformer": ["diffusers", "DiTTransformer2DModel"],
            **vae,
        },
        "scheduler/scheduler_config.json": {
            "_class_name": "DDIMScheduler",
            **_chain(net),
            "num_train_timesteps": len(net.timesteps),
            "prediction_type": PREDICTIONS[model.output],
            "timestep_spacing": "trailing",
            "steps_offset": 0,
            "set_alpha_to_one": True,
            "clip_sample": False,
            "thresholding": False,
            "rescale_betas_zero_snr": False,
        },
        "transformer/config.json": _transformer(net, model),
    }


def _net_of(model: Model) -> DiT:
    net = model.net
    assert isinstance(net, DiT)
    return net


def check_vae(vae: pathlib.Path, codec: Codec) -> None:
    """Refuses an autoencoder that the pipeline does not take, or of other latents.

    Raises:
      ValueError: If the folder is of another kind, or scales latents in another way.
    """
    try:
        config = json.loads((vae / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{vae} must be the folder of an AutoencoderKL.") from error
    if config.get("_class_name") != "AutoencoderKL":
        raise ValueError(
            f"{vae} is of a {config.get('_class_name')}; DiTPipeline takes an"
            " AutoencoderKL."
        )
    latents = codec.latents if isinstance(codec, Autoencoder) else codec
    scale = config.get("scaling_factor", 0.18215)  # which the pipeline takes
    if isinstance(latents, Latents) and not np.isclose(scale, latents.scale):
        raise ValueError(
            f"The autoencoder in {vae} has scaling_factor={scale}, and the model"
            f" data.latent_scale={latents.scale}: they must be the same."
        )


def _transformer(net: DiT, model: Model) -> dict[str, Any]:
    return {
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": net.num_heads,
        "attention_head_dim": net.features // net.num_heads,
        "in_channels": model.image_shape[2],
        "out_channels": net.out_channels,
        "num_layers": net.depth,
        "sample_size": model.image_shape[0],
        "patch_size": net.patch,
        "num_embeds_ada_norm": net.num_classes,
        "norm_eps": net.epsilon,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "dropout": 0.0,
    }


def _is_schedule_of(model: Model, net: DiT) -> bool:
    """True if the model's times i / T are the steps that its network counts."""
    steps = len(net.timesteps)
    schedule = model.schedule(jnp.arange(1, steps + 1, dtype=jnp.float32) / steps)
    # In float32, at the steep end of a chain, a time is off by 1e-4 of a step.
    return bool(np.allclose(schedule, net.timesteps, rtol=1e-3, atol=1e-3))


def _chain(net: DiT) -> dict[str, Any]:
    """The betas of the chain: by name where they have one, else one by one."""
    log_alpha_squared = -np.log1p(np.exp(-np.asarray(net.timesteps)))
    betas = -np.expm1(np.diff(log_alpha_squared, prepend=0.0))
    first, last = float(f"{betas[0]:.9g}"), float(f"{betas[-1]:.9g}")
    for name, power in POWERS.items():
        line = np.linspace(first**power, last**power, len(betas)) ** (1.0 / power)
        if np.allclose(line, betas, rtol=1e-6, atol=0.0):
            return {"beta_schedule": name, "beta_start": first, "beta_end": last}
    return {"trained_betas": betas.tolist()}


def _with_weight(net: DiT, params: Params, w: float) -> Params:
    """Parameters of the network without w, whose first bias is as w makes it."""
    waves = np.asarray(sinusoid(jnp.full(1, net.w_scale * w), net.w_features)[0])
    of_w, dense = params["w_proj"]["kernel"], params["dense0"]
    added = waves.astype(np.float64) @ np.asarray(of_w) @ np.asarray(dense["kernel"])
    bias = (np.asarray(dense["bias"]) + added).astype(np.float32)
    kept = {name: module for name, module in params.items() if name != "w_proj"}
    return {**kept, "dense0": {**dense, "bias": bias}}
