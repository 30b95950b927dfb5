r"""The speed of the paper's networks on a GPU, and the share of it that they use.

    python -m benchmarks.gpu                     # in under 9 minutes
    python -m benchmarks.gpu --sizes imagenet64 --minutes 30 --json out.json
    python -m benchmarks.gpu --tiny              # the same path on a CPU, for a try

In bfloat16, and as far as the minutes go:

1. What the device can do: products of matrices of 8192 x 8192, and copying.
2. Training, in ever larger batches until it gets slower or memory ends: images/s, the
   work of the network in a second, which is two FLOPs for each multiply-add of
   `benchmarks.flops`, and its share of what was measured in 1 and of the data sheet.
3. At the best batch, training and distillation beside PyTorch, eager and by
   `torch.compile`, in turn, if PyTorch can use this GPU; moment matching; and samples
   in 1, 8 and 128 steps.
"""

import argparse
import dataclasses
import pathlib
import tempfile
import time
from typing import Any

import jax
import torch

from benchmarks import contest, flops, steps
from vdiff_jax.training import throughput

BATCHES = {
    "tiny": (8, 16),
    "cifar10": (64, 128, 256, 512),
    "imagenet64": (32, 64, 128),
}
# Guesses at what a first measurement takes; later ones are taken to be like it.
GUESS_SECONDS = {"tiny": 5.0, "cifar10": 60.0, "imagenet64": 150.0}
NUM_STEPS = (1, 8, 128)
SPARE_SECONDS = 15.0


@dataclasses.dataclass(frozen=True)
class Device:
    """The speed of a device.

    Attributes:
      name: Its name in JAX.
      gflops: The speed of products of matrices.
      gb_per_second: The speed of copying.
      peak_gflops: The speed of the data sheet, or None if it is not known.
    """

    name: str
    gflops: float
    gb_per_second: float
    peak_gflops: float | None


def main() -> None:
    """Prints tables; the JSON is written again after each of them."""
    options = _parse()
    with tempfile.TemporaryDirectory() as cache:
        session = Session(options, cache)
        for size in options.sizes:
            session.measure(size)
    seconds = 60 * options.minutes - session.left()
    print(f"{seconds:.0f} s in all")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes", nargs="+", choices=BATCHES, default=["cifar10", "imagenet64"]
    )
    parser.add_argument("--batches", type=int, nargs="+", help="to try, in order")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--matrix", type=int, default=flops.MATRIX["gpu"])
    parser.add_argument("--copy_mib", type=int, default=4096)
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=(steps.EAGER, steps.COMPILED),
        default=(steps.EAGER, steps.COMPILED),
    )
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--tiny", action="store_true", help="on a CPU, for a try")
    options = parser.parse_args()
    if options.tiny:
        tiny = {"sizes": ["tiny"], "matrix": 256, "copy_mib": 64, "seconds": 0.2}
        vars(options).update(tiny, peers=[steps.EAGER])
    return options


class Session:
    """The measurements that fit into some minutes."""

    def __init__(self, options: argparse.Namespace, cache: str):
        """Measures the device."""
        self._until = time.monotonic() + 60 * options.minutes
        self._options, self._cache = options, cache
        self._facts = contest.machine()
        self._rows: list[dict[str, Any]] = []
        arguments = (options.dtype, options.matrix, options.copy_mib)
        self._device = contest.alone(look, *arguments, **steps.ours_env())
        self._torch = "cpu" if options.tiny else contest.alone(torch_device)
        print(contest.introduction(self._facts))
        print(self._device, end="\n\n", flush=True)
        if self._torch is None:
            print("PyTorch is without CUDA here and is left out.\n")

    def left(self) -> float:
        """Seconds that are left."""
        return self._until - time.monotonic()

    def measure(self, size: str) -> None:
        """All about one size."""
        forward = contest.alone(flops.forward_flops, size, **steps.CPU)
        batch_size, needs = self._best_batch(size, forward)
        if batch_size is None:
            return
        if self._torch is not None:
            for job in ("train", "distill"):
                self._measure(job, size, batch_size, forward, 2 * needs, peer=True)
        else:
            self._measure("distill", size, batch_size, forward, 1.3 * needs)
        self._measure("match", size, batch_size, forward, 1.5 * needs)
        for num_steps in NUM_STEPS:
            self._measure("sample", size, batch_size, forward, needs, num_steps)

    def _best_batch(self, size: str, forward: float) -> tuple[int | None, float]:
        """The batch with the most images/s, and the seconds a measurement took."""
        best, most, needs = None, 0.0, GUESS_SECONDS[size]
        for batch_size in self._options.batches or BATCHES[size]:
            began = time.monotonic()
            row = self._measure("train", size, batch_size, forward, needs)[0]
            speed = row.get("images_per_second", 0.0)
            if speed <= most:
                break
            best, most, needs = batch_size, speed, time.monotonic() - began
        return best, needs

    def _measure(
        self,
        job: str,
        size: str,
        batch_size: int,
        forward: float,
        needs: float,
        num_steps: int | None = None,
        *,
        peer: bool = False,
    ) -> list[dict[str, Any]]:
        """Measures ours, beside the peer or alone; or prints that there is no time."""
        options = self._options
        labels = {"size": size, "job": job, "batch": batch_size}
        given: dict[str, Any] = {
            "size": size,
            "dtype": options.dtype,
            "batch_size": batch_size,
        }
        if num_steps is not None:
            labels["job"] = f"{job} N={num_steps}"
            given["num_steps"] = num_steps
        left = self.left() - SPARE_SECONDS
        if left < needs:
            failed = f"no time: it takes about {needs:.0f} s, and {left:.0f} s are left"
            return self._show([{**labels, "what": steps.OURS, "failed": failed}])
        env = {"JAX_COMPILATION_CACHE_DIR": self._cache}
        if peer:
            env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        contenders = steps.lineup(
            job,
            options.peers if peer else [],
            self._cache,
            device=self._torch or "cpu",
            env=env,
            **given,
        )
        results = contest.measure(
            contenders, rounds=options.rounds, seconds=options.seconds, limit=left
        )
        rows = contest.rows(results, steps.OURS, **labels)
        passes = flops.PASSES.get(job) or num_steps or 0
        steps.add_work(rows, passes * forward, self._device.gflops)
        for row in rows:
            if "gflops" in row and self._device.peak_gflops:
                row["of_peak"] = row["gflops"] / self._device.peak_gflops
        return self._show(rows)

    def _show(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        print(contest.table(rows), end="\n\n", flush=True)
        self._rows += rows
        if self._options.json:
            device = {"what": "device", **dataclasses.asdict(self._device)}
            contest.write(self._options.json, self._facts, [device, *self._rows])
        return rows


def look(dtype: str, matrix: int, copy_mib: int) -> Device:
    """Measures the first device of JAX.

    Args:
      dtype: The type of the matrices.
      matrix: Their rows and columns.
      copy_mib: MiB to copy.
    """
    device = jax.local_devices()[0]
    peak = throughput.peak_flops(device)
    return Device(
        name=device.device_kind,
        gflops=flops.matmul_ceiling(dtype, matrix),
        gb_per_second=flops.copy_bandwidth(copy_mib),
        peak_gflops=None if peak is None else peak / 1e9,
    )


def torch_device() -> str | None:
    """The GPU as PyTorch calls it, or None if it cannot use it."""
    return "cuda" if torch.cuda.is_available() else None


if __name__ == "__main__":
    main()
