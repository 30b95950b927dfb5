"""The memory and the time that encoding and decoding images of 256 x 256 takes.

    python -m benchmarks.autoencoder_memory               # minutes on 2 cores
    python -m benchmarks.autoencoder_memory --num 2

By the codec of a model, as training, sampling and evaluating use it, with autoencoders
of the sizes of Stable Diffusion and of latent diffusion on ImageNet, of random weights.
Each number is of a process of its own: the most of its resident memory, and for `idle`
that with the parameters alone.
"""

import argparse
import sys
import time

import jax
import numpy as np

from benchmarks import contest
from benchmarks.startup import Table
from vdiff_jax.codec import AT_ONCE, Autoencoder, Latents
from vdiff_jax.interop.diffusers.autoencoder import abstract_params
from vdiff_jax.nets import autoencoder
from vdiff_jax.nets.autoencoder import Codebook
from vdiff_jax.types import Params

SIDE = 256
NETS = {
    "Stable Diffusion": autoencoder.Autoencoder(channels=(128, 256, 512, 512)),
    "ImageNet": autoencoder.Autoencoder(
        channels=(128, 256, 512), z_channels=3, codebook=Codebook(8192, 3)
    ),
}
WAYS = ("idle", "encode", "decode")


def main() -> None:
    """Runs, and prints a table."""
    options, machine, table = _parse(), contest.machine(), Table()
    print(contest.introduction(machine), flush=True)
    for name in options.nets:
        for way in options.ways:
            mib, seconds = contest.alone(_measure, name, way, options.num)
            what = f"{name}, {way}, {options.num} images"
            table.add(what, "MiB", mib)
            if way != "idle":
                table.add(what, "s", seconds)
            print(f"{what}: {mib:.0f} MiB, {seconds:.1f} s", file=sys.stderr)
    print(table)


def _measure(name: str, way: str, num: int) -> tuple[float, float]:
    """MiB of this process, and the seconds of all images with compiling."""
    net = NETS[name]
    latents = Latents(net.latent_channels, 1.0)
    params = _params(net)
    codec = Autoencoder(latents, net, read=lambda: params)
    draw = np.random.default_rng(0)
    start = time.perf_counter()
    if way == "encode":
        codec.of_images(draw.integers(0, 256, (num, SIDE, SIDE, 3), np.uint8))
    elif way == "decode":
        side = SIDE // net.factor
        codec.to_images(draw.normal(size=(num, side, side, net.latent_channels)))
    else:
        jax.block_until_ready(codec.params)
    peak = contest.peak_mib()
    if peak is None:
        raise RuntimeError("Only Linux tells the peak of a process.")
    return peak, time.perf_counter() - start


def _params(net: autoencoder.Autoencoder) -> Params:
    """Random parameters, made on the host so that nothing is run for them."""
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: draw.normal(scale=0.02, size=leaf.shape).astype(np.float32),
        abstract_params(net),
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=AT_ONCE)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=[*NETS])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
