r"""The speed of updates and samples, beside that of PyTorch for its users.

    python -m benchmarks.steps                       # digits and cifar4m; long
    python -m benchmarks.steps --short               # the same, cut down
    python -m benchmarks.steps --sizes digits --jobs train --rounds 9 --json out.json

Everybody has all cores, the same shapes and dtypes, and turns in alternation, by
`benchmarks.contest`. Five questions:

1. The time of a training update. A ratio is the peer's time over ours of the same
   round: above 1, we are faster.
2. The time of an update of distillation, at N = 4, though it does not depend on N.
3. Ours alone: an update of distillation over one of training. It goes through the
   network 5 times, training 3 times: 1.67, and less for what both do once.
4. Ours alone: an update of moment matching over one of progressive distillation. It
   goes through a network 7 times: 1.4, at any N but 1, where it goes through one more.
5. The time until a batch of images is on the host, in N steps of DDIM.

`gflops` are two for each multiply-add of the network, by the count of
`benchmarks.flops`; `of_ceiling` compares them with products of large matrices, measured
in the same run. `first_seconds` has compiling in it; PyTorch's cache of compiled code
is empty at the start, but not at a second N.
"""

import argparse
import dataclasses
import importlib.util
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks import contest, flops, ours, sizes
from benchmarks.contest import Contender, Result
from benchmarks.peers import diffusers, pytorch
from vdiff_jax.from_config.model import make_model

OURS = "ours"
EAGER, COMPILED = "PyTorch eager", "PyTorch compile"
DDIM_PIPELINE = "diffusers DDIMPipeline"
PEERS = (EAGER, COMPILED, DDIM_PIPELINE)
JOBS = ("train", "distill", "match", "sample")
# Ours alone: a job, and the one that its time is compared with.
COMPARED = (("distill", "train"), ("match", "distill"))
DISTILL_STEPS = 4
CPU = {"JAX_PLATFORMS": "cpu"}
SHORT = {"rounds": 3, "seconds": 1.0}


def main() -> None:
    """Prints a table for all that took turns together."""
    options = _parse()
    rows: list[dict[str, Any]] = []

    def show(more: list[dict[str, Any]]) -> None:
        print(contest.table(more), end="\n\n", flush=True)
        rows.extend(more)

    machine = contest.machine()
    print(contest.introduction(machine), flush=True)
    with tempfile.TemporaryDirectory() as cache:
        for size in options.sizes:
            jobs = [job for job in options.jobs if job != "sample"]
            if options.short and size != "digits":
                jobs = [job for job in jobs if job == "train"]
                options.peers = [peer for peer in options.peers if peer == EAGER]
            if jobs:
                show(_updates(size, jobs, options, cache))
            if "sample" in options.jobs:
                for num_steps in options.num_steps or _num_steps(size, options.short):
                    show(_samples(size, num_steps, options, cache))
    if options.json:
        contest.write(options.json, machine, rows)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes", nargs="+", choices=sizes.SIZES, default=["digits", "cifar4m"]
    )
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--num_steps", type=int, nargs="+", help="N of sampling")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument(
        "--short",
        action="store_true",
        help="fewer rounds; of cifar4m training alone, beside eager PyTorch, which is"
        " the faster there; no samples by compiled PyTorch",
    )
    options = parser.parse_args()
    if options.short:
        vars(options).update(SHORT)
    if DDIM_PIPELINE in options.peers and importlib.util.find_spec("diffusers") is None:
        print("Without diffusers, which is not installed: pip install diffusers")
        options.peers = [peer for peer in options.peers if peer != DDIM_PIPELINE]
    return options


def _num_steps(size: str, short: bool) -> tuple[int, ...]:
    """128 steps of more than the digits take minutes on a CPU."""
    if size == "digits":
        return (1, 8) if short else (1, 8, 128)
    return () if short else (1, 8)


def _updates(
    size: str, jobs: Sequence[str], options: argparse.Namespace, cache: str
) -> list[dict[str, Any]]:
    """All jobs in one contest, for the ratio of distillation to training."""
    ceiling = contest.alone(
        flops.matmul_ceiling, options.dtype, flops.MATRIX["cpu"], **ours_env(**CPU)
    )
    forward = contest.alone(flops.forward_flops, size, **CPU)
    lineups = {
        job: lineup(job, options.peers, cache, size=size, dtype=options.dtype)
        for job in jobs
    }
    results = compete(lineups, rounds=options.rounds, seconds=options.seconds)
    batch_size = sizes.config(size).train.batch_size
    all_rows = []
    for job in jobs:
        rows = contest.rows(results[job], OURS, size=size, job=job, batch=batch_size)
        add_work(rows, flops.PASSES[job] * forward, ceiling)
        all_rows += rows
    for more, less in COMPARED:
        if more in jobs and less in jobs:
            row = {"size": size, "job": f"{more} / {less}", "what": OURS}
            all_rows.append({**row, **_over(results[more][OURS], results[less][OURS])})
    return all_rows


def _over(more: Result, less: Result) -> dict[str, Any]:
    """How much more an update of the one takes than one of the other."""
    if more.failed or less.failed:
        return {"failed": "one of them did"}
    return dict(contest.ratio(more, less))


def _samples(
    size: str, num_steps: int, options: argparse.Namespace, cache: str
) -> list[dict[str, Any]]:
    given = {"size": size, "dtype": options.dtype, "num_steps": num_steps}
    left_out = (COMPILED,) if options.short else ()
    peers = [peer for peer in options.peers if peer not in left_out]
    contenders = lineup("sample", peers, cache, **given)
    results = contest.measure(
        contenders, rounds=options.rounds, seconds=options.seconds
    )
    batch_size = sizes.config(size).train.batch_size
    job = f"sample N={num_steps}"
    return contest.rows(results, OURS, size=size, job=job, batch=batch_size)


def compete(
    lineups: Mapping[str, Sequence[Contender]], **options: Any
) -> dict[str, dict[str, Result]]:
    """Lets several jobs' contenders take turns together; results by job and name."""
    contenders = [
        dataclasses.replace(contender, name=f"{job}: {contender.name}")
        for job, contenders in lineups.items()
        for contender in contenders
    ]
    results = contest.measure(contenders, **options)
    return {
        job: {each.name: results[f"{job}: {each.name}"] for each in contenders}
        for job, contenders in lineups.items()
    }


def add_work(
    rows: Sequence[dict[str, Any]], flops_per_image: float, ceiling: float
) -> None:
    """Adds the network's work in a second, and its share of the ceiling.

    Args:
      rows: The rows to add to.
      flops_per_image: FLOPs of the network for one image.
      ceiling: The speed of products of large matrices, in GFLOP/s.
    """
    for row in rows:
        if "ms" in row:
            images_per_second = row["batch"] / row["ms"] * 1000
            row["images_per_second"] = images_per_second
            row["gflops"] = images_per_second * flops_per_image / 1e9
            row["of_ceiling"] = row["gflops"] / ceiling


def ours_env(**more: str) -> dict[str, str]:
    """The environment of our processes."""
    return {"JAX_NUM_CPU_DEVICES": str(ours.cpu_devices()), **more}


def lineup(
    job: str,
    peers: Sequence[str],
    cache: str,
    *,
    device: str = "cpu",
    env: Mapping[str, str] = CPU,
    **given: Any,
) -> list[Contender]:
    """The contenders of a job: ours, and the peers that can do it.

    Args:
      job: One of `JOBS`.
      peers: Some of `PEERS`.
      cache: The folder of PyTorch's compiled code.
      device: The device of PyTorch.
      env: The environment of ours.
      given: Arguments of all: size and dtype, and those of `ours` for the job.
    """
    # Peers are built from our config and model; that must not take a GPU's memory.
    peer_env = {**CPU, "TORCHINDUCTOR_CACHE_DIR": cache}
    make: Callable[..., Callable[[int], None]] = {
        "train": ours.train,
        "distill": ours.distill,
        "match": partial(ours.distill, method="moment_matching"),
        "sample": ours.sample,
    }[job]
    contenders = [Contender(OURS, make, given, ours_env(**env))]
    for peer in () if job == "match" else peers:
        if peer != DDIM_PIPELINE:
            compiles = {"compile": peer == COMPILED, "device": device}
            options = {"job": job, **given, **compiles}
            contenders.append(Contender(peer, pytorch_job, options, peer_env))
        elif job == "sample" and _has_pipeline(**given):
            options = {"size": given["size"], "num_steps": given["num_steps"]}
            contenders.append(Contender(peer, diffusers_samples, options, peer_env))
    return contenders


def _has_pipeline(size: str, dtype: str = "float32", **_: Any) -> bool:
    return size in diffusers.SETTINGS and dtype == "float32"


@dataclasses.dataclass(frozen=True)
class OfTorch:
    """A job of PyTorch.

    Attributes:
      work: Does it once, and need not wait.
      device: A device of PyTorch.
    """

    work: Callable[[], object]
    device: str

    def __call__(self, repetitions: int) -> None:
        """Does it so often, and waits."""
        for _ in range(repetitions):
            self.work()
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak_memory(self) -> float | None:
        """Most MiB of tensors on the GPU."""
        on_gpu = self.device == "cuda"
        return torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None


def pytorch_job(
    job: str,
    size: str,
    dtype: str = "float32",
    batch_size: int | None = None,
    num_steps: int = DISTILL_STEPS,
    *,
    compile: bool,
    device: str = "cpu",
) -> OfTorch:
    """A job of `JOBS` in PyTorch.

    Args:
      job: One of `JOBS`.
      size: A name of `sizes`.
      dtype: The type that the network computes in.
      batch_size: Images of an update or a batch; None for the config's.
      num_steps: N, of distillation and sampling.
      compile: True for `torch.compile`.
      device: A device of PyTorch.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    config = sizes.config(size, dtype)
    model = make_model(config)
    batch_size = int(batch_size or config.train.batch_size)
    options: dict[str, Any] = {"compile": compile, "device": device}
    if job == "sample":
        draw = pytorch.sampler(
            config, model, num_steps=num_steps, batch_size=batch_size, **options
        )
        return OfTorch(lambda: draw().cpu().numpy(), device)
    make: Callable[..., pytorch.Step] = {
        "train": pytorch.train_step,
        "distill": partial(pytorch.distill_step, num_steps=num_steps),
    }[job]
    step = make(config, model, **options)
    images, labels = (
        torch.from_numpy(array).to(device)
        for array in ours.images(model.image_shape, batch_size, model.num_classes)
    )
    label = labels.long() if model.num_classes else None
    return OfTorch(lambda: step(images, label), device)


def diffusers_samples(size: str, num_steps: int) -> OfTorch:
    """Batches of images by the pipeline of diffusers."""
    torch.set_num_threads(os.cpu_count() or 1)
    batch_size = sizes.config(size).train.batch_size
    draw = diffusers.pipeline(
        size, compile=False, num_steps=num_steps, batch_size=batch_size
    )
    return OfTorch(draw, "cpu")


if __name__ == "__main__":
    main()
