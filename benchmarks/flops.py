r"""The multiply-adds that the networks need, and those that this machine can do.

    python -m benchmarks.flops
    python -m benchmarks.flops --sizes digits --json flops.json

1. The multiply-adds of one pass over one image, counted layer by layer from the
   description of the U-Net, and by XLA (half of the FLOPs that `Model.forward_flops`
   reports), beside the numbers that are usually quoted for such networks.
2. The rate of products of large matrices, which is the most to be hoped for here, and
   that of copies: together the floor of each job, on paper (docs/performance.md).

To three digits our count is what is quoted, although the networks that were counted
have 0.6 to 2 % fewer parameters: those must be where a parameter is used once for
an image, as in the embedding, and not at every pixel. XLA's count is lower, by 4 to 5 %
for the two large networks. It leaves out the products with the zeros around an image,
which is column `without_padding`, and adds what is done number by number: norms,
activations and sums, 0.3 % there.
"""

import argparse
import collections
import pathlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks import contest, ours, sizes
from vdiff_jax.from_config.model import make_model
from vdiff_jax.nets.unet import Level, UNet

# Passes of the network over each image of an update, a gradient counting as two: of
# the network alone, of the student and, twice, its teacher, and of the student, the
# auxiliary network and the teacher.
PASSES = {"train": 3, "distill": 5, "match": 7}


class Quoted(NamedTuple):
    """The count of others for a network that is nearly ours."""

    multiply_adds: float
    parameters: float


QUOTED = {
    "cifar10": Quoted(17.9e9, 58.6e6),
    "imagenet64": Quoted(109.7e9, 294e6),
}
# Products in a chain; rows of the matrices, by the kind of device.
LINKS = 8
MATRIX = {"cpu": 1024, "gpu": 8192}


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=sizes.SIZES, default=MEASURED)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", ours.cpu_devices())
    print(f"Millions of multiply-adds.\n{'':11s}" + "".join(f"{c:>16s}" for c in HEAD))
    rows = []
    for size in options.sizes:
        rows.append(of_size(size))
        print(_line(rows[-1]), flush=True)
    for dtype in options.dtypes:
        matrix = MATRIX.get(jax.default_backend(), 8192)
        gflops = matmul_ceiling(dtype, matrix)
        rows.append({"dtype": dtype, "matrix": matrix, "gflops": gflops})
        print(f"Products of {matrix} x {matrix}, {dtype}: {gflops:,.0f} GFLOP/s")
    gb_per_second = copy_bandwidth(256)
    print(f"Copies: {gb_per_second:.1f} GB/s")
    rate = rows[-len(options.dtypes)]["gflops"]
    for size in options.sizes:
        for job in ("train", "distill", "sample"):
            rows.append(
                {"size": size, "job": job}
                | least_seconds(size, job, rate, gb_per_second)
            )
            print(
                "{size:11s}{job:8s} floor: arithmetic {arithmetic_ms:,.1f} ms, bytes"
                " {bytes_ms:,.1f} ms".format(**rows[-1])
            )
    if options.json:
        contest.write(options.json, contest.machine(), rows)


MEASURED = ("digits", "cifar4m", "cifar10", "imagenet64")
HEAD = (
    "parameters",
    "multiply_adds",
    "convolutions",
    "attention",
    "without_padding",
    "by_xla",
    "quoted",
)


def _line(row: dict[str, Any]) -> str:
    millions = {**row, **row["parts"]}
    cells = [f"{row['parameters']:16,d}"]
    cells += [f"{millions[name] / 1e6:16,.1f}" for name in HEAD[1:-1]]
    quoted = QUOTED.get(row["size"])
    if quoted is not None:
        cells.append(f"{quoted.multiply_adds / 1e6:16,.1f}")
        cells.append(f" of {quoted.parameters / 1e6:.1f} M parameters")
    return f"{row['size']:11s}" + "".join(cells)


def multiply_adds(
    net: UNet, image_shape: tuple[int, int, int], *, padding: bool = True
) -> dict[str, int]:
    """Multiply-adds of one pass over one square image, by kind of layer.

    Norms, activations and all else that is done number by number is left out.

    Args:
      net: The network.
      image_shape: [height, width, channels].
      padding: True to count products with the zeros around an image, as one does who
        multiplies output numbers by the numbers in a kernel.
    """
    total: collections.Counter[str] = collections.Counter()
    for layer in _layers(net, image_shape, padding):
        total[layer.kind] += layer.multiply_adds
    return dict(total)


def numbers_read(net: UNet, image_shape: tuple[int, int, int]) -> int:
    """The count of activations that the layers of one pass over one image read."""
    return sum(layer.reads for layer in _layers(net, image_shape, padding=True))


def least_seconds(
    size: str, job: str, gflops: float, gb_per_second: float, number: int = 4
) -> dict[str, float]:
    """The floor of one update, or of a batch of one-step samples.

    Everything that a layer reads is written once and read once; a gradient reads it
    again, and writes and reads one number for it. An update reads the parameters for
    each pass, writes their gradient, and reads and writes parameters, two moments and
    the average.

    Args:
      size: One of `sizes`.
      job: train, distill or sample.
      gflops: The speed of the largest products of matrices.
      gb_per_second: The speed of a copy, bytes read and written.
      number: Bytes of an activation; parameters have four.
    """
    config = sizes.config(size)
    model = make_model(config)
    assert isinstance(model.net, UNet)
    batch = config.distill.batch_size if job == "distill" else config.train.batch_size
    passes = PASSES.get(job, 1)
    teacher = passes - 3 if job == "distill" else 0
    touched = {"train": 5, "distill": 5 + 2 * teacher, "sample": 2}[job]
    whole = {"train": 12, "distill": 12 + teacher, "sample": 1}[job]
    needed = sum(multiply_adds(model.net, model.image_shape, padding=False).values())
    activations = touched * number * numbers_read(model.net, model.image_shape)
    bytes_moved = batch * activations + whole * 4 * model.num_parameters()
    return {
        "arithmetic_ms": 2e3 * passes * batch * needed / (gflops * 1e9),
        "bytes_ms": 1e3 * bytes_moved / (gb_per_second * 1e9),
    }


class _Layer(NamedTuple):
    kind: str
    multiply_adds: int
    reads: int  # numbers of its input, but for the embedding's few


def _layers(
    net: UNet, image_shape: tuple[int, int, int], padding: bool
) -> Iterator[_Layer]:
    """One layer after another, as the image meets them."""
    size, channels = image_shape[0] // net.patch, net.patch**2 * image_shape[2]
    features, last = net.levels[0].features, len(net.levels) - 1
    emb = net.emb_features

    def conv(ins: int, outs: int, stride: int = 1) -> _Layer:
        """`size` is that of the output."""
        side = 3 * size if padding else 3 * size - (2 if stride == 1 else 1)
        return _Layer("convolutions", side**2 * ins * outs, (size * stride) ** 2 * ins)

    def block(ins: int, outs: int) -> Iterator[_Layer]:
        yield conv(ins, outs)
        yield conv(outs, outs)
        yield _Layer("modulation", emb * 2 * outs, 0)
        if ins != outs:
            yield _Layer("shortcuts", size**2 * ins * outs, size**2 * ins)

    def attend(width: int, heads: int) -> Iterator[_Layer]:
        if heads:
            numbers = size**2 * width
            yield _Layer("projections of attention", 4 * numbers * width, 2 * numbers)
            yield _Layer("attention", 2 * size**2 * numbers, 3 * numbers)

    def resample(level: Level, stride: int) -> Iterator[_Layer]:
        if level.resample_in_block:
            yield from block(level.features, level.features)
        else:
            yield conv(level.features, level.features, stride)

    yield _Layer("embedding", (features + emb + net.num_classes) * emb, 0)
    yield conv(channels, features)
    skips = [features]
    for l, level in enumerate(net.levels):
        for _ in range(level.num_blocks):
            yield from block(features, level.features)
            yield from attend(level.features, level.num_heads)
            features = level.features
            skips.append(features)
        if l != last:
            size //= 2
            yield from resample(level, stride=2)
            skips.append(features)
    yield from block(features, features)
    yield from attend(features, net.mid_heads)
    yield from block(features, features)
    for l, level in reversed(list(enumerate(net.levels))):
        for _ in range(level.num_blocks + 1):
            yield from block(features + skips.pop(), level.features)
            yield from attend(level.features, level.num_heads)
            features = level.features
        if l != 0:
            size *= 2
            yield from resample(level, stride=1)
    yield conv(features, net.patch**2 * net.out_channels)


def forward_flops(size: str) -> float:
    """FLOPs of one pass over one image: two for each of our `multiply_adds`."""
    model = make_model(sizes.config(size))
    assert isinstance(model.net, UNet)
    return 2.0 * sum(multiply_adds(model.net, model.image_shape).values())


def of_size(size: str) -> dict[str, Any]:
    """The cost of one pass over one image, by key."""
    model = make_model(sizes.config(size))
    assert isinstance(model.net, UNet)
    parts = multiply_adds(model.net, model.image_shape)
    inside = multiply_adds(model.net, model.image_shape, padding=False)
    return {
        "size": size,
        "parameters": model.num_parameters(),
        "multiply_adds": sum(parts.values()),
        "parts": parts,
        "without_padding": sum(inside.values()),
        "by_xla": model.forward_flops() / 2,
    }


def matmul_ceiling(dtype: str, size: int) -> float:
    """GFLOP/s of products of square matrices, the best that any way gave.

    Measured on one device alone and on all together, each with its own product: on a
    CPU one device may use all cores, or they may have to share them out.

    Args:
      dtype: The type of the matrices.
      size: Their rows and columns.
    """
    ways = {1, jax.device_count()}
    return max(_matmul_rate(dtype, size, devices) for devices in ways)


def _matmul_rate(dtype: str, size: int, devices: int) -> float:
    """GFLOP/s of a chain of products on each of some devices, the best of five runs."""
    mesh = jax.make_mesh(
        (devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices]
    )
    rows = NamedSharding(mesh, PartitionSpec("data"))

    # Factors of this spread keep the spread of what they are multiplied by.
    @jax.jit
    def start(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, (devices, size, size), dtype) / size**0.5

    @jax.jit
    def chain(x: jax.Array, factor: jax.Array) -> jax.Array:
        for _ in range(LINKS):
            x = x @ factor
        return x

    x, factor = (jax.device_put(start(jax.random.key(i)), rows) for i in range(2))
    return devices * LINKS * 2 * size**3 / best_seconds(chain, x, factor) / 1e9


def copy_bandwidth(mib: int) -> float:
    """GB/s that one device reads and writes when it copies so many MiB."""
    numbers = jnp.zeros(mib * 2**18, jnp.float32)
    copy = jax.jit(lambda x: x + 1.0)
    return 2 * numbers.nbytes / best_seconds(copy, numbers) / 1e9


def best_seconds(function: Any, *arguments: Any, runs: int = 5) -> float:
    """The shortest of some runs, after one that is not counted."""
    seconds = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


if __name__ == "__main__":
    main()
