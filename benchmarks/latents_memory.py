"""The memory that latents of 256 x 256 images take, and its growth with their number.

    python -m benchmarks.latents_memory                      # long on a CPU
    python -m benchmarks.latents_memory --widths 32 64 128 128

An autoencoder of random weights, by default of half the widths of Stable Diffusion's,
encodes JPEG files (`datasets.prepare --encode`), decodes what a small network draws in
batches (`generation.batches`), and decodes inside the code that `export` writes. Each
is a process of its own, whose peak of resident memory is given for so many images and
for twice as many. Images that were all held would add 0.75 MiB each, as floats.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
import PIL.Image
from jax import export

from benchmarks import contest
from benchmarks.startup import Table
from configs import digits
from vdiff_jax import parallel
from vdiff_jax.datasets.prepare.__main__ import main as prepare
from vdiff_jax.files import weights
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.generation.batches import draw, start_of_seed
from vdiff_jax.generation.sampler import Sampler, request
from vdiff_jax.interop import stablehlo
from vdiff_jax.interop.diffusers import names
from vdiff_jax.interop.diffusers.autoencoder import (
    abstract_params,
    describe_autoencoder,
)

SIDE, BATCH = 256, 16
WIDTHS = (64, 128, 256, 256)


def main() -> None:
    """Runs, and prints a table."""
    options, machine, table = _parse(), contest.machine(), Table()
    print(contest.introduction(machine), flush=True)
    with tempfile.TemporaryDirectory() as path:
        folder = pathlib.Path(path)
        _write_autoencoder(folder / "vae", options.widths)
        _write_photos(folder / "photos", 2 * options.num)
        for name in options.ways:
            for num in (options.num, 2 * options.num):
                peak, seconds = contest.alone(_peak, name, folder, num)
                table.add(f"{name}, {num} images", "MiB", peak)
                table.add(f"{name}, {num} images, of one", "s", seconds)
                print(f"{name}, {num}: {peak:.0f} MiB", file=sys.stderr, flush=True)
    print(table)
    if options.json:
        contest.write(options.json, machine, table.rows())


def _write_autoencoder(folder: pathlib.Path, widths: list[int]) -> None:
    """A folder of diffusers: four levels, and four channels of latents."""
    about = {
        "_class_name": "AutoencoderKL",
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": 2,
        "latent_channels": 4,
        "scaling_factor": 0.5,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(about))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(0.0, 0.02, x.shape).astype(np.float32),
        abstract_params(describe_autoencoder(folder).net),
    )
    path = folder / "diffusion_pytorch_model.safetensors"
    weights.write(path, names.to_torch(params), {})


def _write_photos(folder: pathlib.Path, num: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(num):
        small = rng.integers(0, 256, (SIDE // 8, SIDE // 8, 3), np.uint8)
        image = PIL.Image.fromarray(small).resize((SIDE, SIDE))
        image.save(folder / f"{i:05d}.jpg")


def _peak(name: str, folder: pathlib.Path, num: int) -> tuple[float, float]:
    """MiB of this process when all is done, and seconds for an image."""
    begin = time.monotonic()
    WAYS[name](folder, num)
    peak = contest.peak_mib()
    if peak is None:
        raise RuntimeError("Only Linux tells the peak of a process.")
    return peak, (time.monotonic() - begin) / num


def _encode(folder: pathlib.Path, num: int) -> None:
    """The first images of a folder, stored as moments."""
    own = folder / f"photos_{num}"
    own.mkdir()
    for path in sorted((folder / "photos").iterdir())[:num]:
        (own / path.name).hardlink_to(path)
    out, vae = folder / f"latents_{num}", folder / "vae"
    line = f"{own} --out {out} --size {SIDE} --encode {vae} --workers 1"
    if prepare(line.split()):
        raise RuntimeError("prepare has failed.")


def _draw(folder: pathlib.Path, num: int) -> None:
    """Images that are drawn and decoded, batch after batch."""
    parallel.use_cores([BATCH])
    sampler = _sampler(folder)
    images = draw(
        sampler,
        sampler.model.init(jax.random.key(0)),
        range(num),
        request=request(1),
        batch_size=BATCH,
        start_of=start_of_seed(sampler, 0),
    ).images
    assert images.shape == (num, SIDE, SIDE, 3)


def _exported(folder: pathlib.Path, num: int) -> None:
    """The same in one call of the code that `export` writes."""
    sampler, out = _sampler(folder), folder / f"exported_{num}"
    params = sampler.model.init(jax.random.key(0))
    stablehlo.write(out, sampler, params, num_steps=1, decode=True)
    code = bytearray((out / stablehlo.CODE).read_bytes())
    tensors = weights.read(out / stablehlo.WEIGHTS)
    tensors |= weights.read(out / stablehlo.DECODER)
    z_1 = np.random.default_rng(0).normal(size=(num, *sampler.model.image_shape))
    call = jax.jit(export.deserialize(code).call)
    images = np.asarray(call(tensors, z_1.astype(np.float32)))
    assert images.shape == (num, SIDE, SIDE, 3)


def _sampler(folder: pathlib.Path) -> Sampler:
    """A small network on latents."""
    config = digits.get_config("sample")
    data = {"autoencoder": str(folder / "vae"), "image_size": SIDE // 8, "channels": 4}
    config.data.update(data)
    return make_sampler(config, make_model(config), "ddim")


WAYS: dict[str, Callable[[pathlib.Path, int], None]] = {
    "encode": _encode,
    "draw": _draw,
    "exported": _exported,
}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=32, help="images, and twice it")
    parser.add_argument("--widths", type=int, nargs="+", default=[*WIDTHS])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--json", type=pathlib.Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
