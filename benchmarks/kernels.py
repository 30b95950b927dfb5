r"""Where the time of an update goes on a GPU, by kind of kernel.

    python -m benchmarks.kernels --size cifar10 --batch 256 --dtype bfloat16
    python -m benchmarks.kernels --trace runs/cifar10/train/profile

The first traces a call of our training step after one that compiles it; the second
reads a trace of `launch.py --profile`. Printed is each kind's share of the time that
the GPU is at work, and the kernels that took longest. Kinds are told apart by the names
that XLA, cuDNN, cuBLAS and Triton give to kernels.
"""

import argparse
import collections
import pathlib
import re
import tempfile

import jax
from jax.profiler import ProfileData

from benchmarks import ours

# The first that fits counts; names are those of the kernels, in lower case.
KINDS = {
    "copies": r"memcpy|memset|copy|transpose",
    "attention": r"flash|fmha|sdpa",
    "convolutions": r"conv|cudnn|fprop|dgrad|wgrad|implicit|xmma",
    "products of matrices": r"gemm|cutlass|nvjet|dot|cublas|splitk",
    "random numbers": r"rng|threefry|random",
    "sums": r"reduc",
}
REST = "element by element"
SHOWN = 25


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", type=pathlib.Path, help="a folder of --profile")
    parser.add_argument("--size", default="cifar10")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch", type=int, default=256)
    options = parser.parse_args()
    if options.trace:
        show(options.trace)
        return
    update = ours.train(options.size, options.dtype, options.batch)
    update(2 * update.per_call)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            update(update.per_call)
        show(pathlib.Path(folder))


def show(folder: pathlib.Path) -> None:
    """Prints the kinds and the longest kernels of a trace.

    Args:
      folder: What the profiler wrote, in which one .xplane.pb is.
    """
    (path,) = folder.rglob("*.xplane.pb")
    seconds = kernels(path)
    total = sum(seconds.values())
    if not total:
        raise SystemExit(f"{path} has no kernel of a GPU.")
    kinds: collections.Counter[str] = collections.Counter()
    for name, each in seconds.items():
        kinds[kind_of(name)] += each
    print(f"The GPU is at work for {1e3 * total:.1f} ms.\n\n| kind | share |")
    print("| --- | --- |")
    for kind, each in kinds.most_common():
        print(f"| {kind} | {each / total:.1%} |")
    print("\n| kernel | ms | share |\n| --- | --- | --- |")
    for name, each in seconds.most_common(SHOWN):
        print(f"| {name[:90]} | {1e3 * each:.2f} | {each / total:.1%} |")


def kernels(path: pathlib.Path) -> "collections.Counter[str]":
    """Seconds of each kernel, by name, over all streams of all GPUs.

    Args:
      path: An .xplane.pb.
    """
    seconds: collections.Counter[str] = collections.Counter()
    for plane in ProfileData.from_file(str(path)).planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        for line in plane.lines:
            if line.name.startswith("Stream"):
                for event in line.events:
                    seconds[event.name] += event.duration_ns / 1e9
    return seconds


def kind_of(name: str) -> str:
    """The kind of a kernel, by its name."""
    name = name.lower()
    return next((k for k, pattern in KINDS.items() if re.search(pattern, name)), REST)


if __name__ == "__main__":
    main()
