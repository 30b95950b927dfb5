"""Sampling with Hugging Face diffusers: `UNet2DModel` in a `DDIMPipeline`.

Its networks have the parameters and the multiply-adds of ours, to the last one. At
32x32 blocks and attention are where ours are. For the digits, whose network works on
2x2 patches, which diffusers has not, the images are folded before the pipeline, 8x8x1
to 4x4x4, and unfolded after it; the network between them is ours.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {
        "sample_size": 4,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "layers_per_block": 2,
        "attention_head_dim": 16,
        "norm_num_groups": 8,
        "attn_norm_num_groups": 8,
    },
    "cifar4m": {
        "sample_size": 32,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (64, 64, 64),
        "down_block_types": (
            "ResnetDownsampleBlock2D",
            "AttnDownBlock2D",
            "AttnDownBlock2D",
        ),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "layers_per_block": 3,
        "attention_head_dim": 64,
        "norm_num_groups": 32,
        "attn_norm_num_groups": 32,
    },
}
PATCH = {"digits": 2, "cifar4m": 1}


def network(size: str) -> nn.Module:
    """The `UNet2DModel` of a size, with fresh parameters.

    Raises:
      ValueError: If the size is unknown, or diffusers is not installed.
    """
    if size not in SETTINGS:
        raise ValueError(f"Unknown size {size!r}; choose from {tuple(SETTINGS)}.")
    net = _diffusers().UNet2DModel(
        **SETTINGS[size], norm_eps=1e-6, resnet_time_scale_shift="scale_shift"
    )
    return net.eval()


def pipeline(
    size: str, *, compile: bool, device: str = "cpu", num_steps: int, batch_size: int
) -> Callable[[], np.ndarray]:
    """A function that draws a batch: float NHWC images in [0, 1].

    Args:
      size: A name of `SETTINGS`.
      compile: True to compile the network.
      device: A device of PyTorch.
      num_steps: N.
      batch_size: Images of a batch.
    """
    net = network(size).to(device, memory_format=torch.channels_last)
    if compile:
        net.compile(fullgraph=True)
    library = _diffusers()
    scheduler = library.DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
    pipe = library.DDIMPipeline(net, scheduler)
    pipe.set_progress_bar_config(disable=True)

    @torch.inference_mode()
    def run() -> np.ndarray:
        drawn = pipe(
            batch_size,
            num_inference_steps=num_steps,
            use_clipped_model_output=True,  # as our sampler does
            output_type="np",
        )
        return _unfolded(drawn.images, PATCH[size])

    return run


def _unfolded(x: np.ndarray, patch: int) -> np.ndarray:
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, patch, patch, channels // patch**2)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * patch, width * patch, -1)


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ValueError(
            "This comparison needs diffusers: pip install -e '.[bench]'"
        ) from error
    return diffusers
