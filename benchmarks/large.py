r"""Start-up and memory with a million images, and with tens of thousands of samples.

    python -m benchmarks.large --files 1300000        # ten minutes; 3 GB of disk
    python -m benchmarks.large --ways folder lmdb     # a minute, of 130,000 files

Each is measured for a tenth of so many files and for all, in processes of their own,
whose peak of resident memory is given, with and without that of mapped files, which the
system takes back when it needs it; and the growth of these by the image.

1. `folder`, `lmdb`, `npz`: class folders of links to some small JPEG files, and stores
   of as many images as `prepare` writes them. Seconds until the source is open, in a
   first and in a second process, and then 2,000 random images through the real loader
   with two workers, of which the larger is given.
2. `prepare`: the listing of that folder, its splits and the description of the task.
   `encode`: all of `prepare --encode`, by a small autoencoder.
3. `sample`: the stage, with a network of two convolutions and one step, for so many
   images of 256 x 256 (`--samples`).
4. `evaluate`: 2,048 features of each image of as many real images as generated ones
   (`--features`), every metric of them, and the statistics written and read. Pairs are
   of 2,000 images: their memory is of 10,000 at most, and their time long.
"""

import argparse
import contextlib
import functools
import itertools
import multiprocessing
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import numpy as np
import PIL.Image

from benchmarks import contest
from benchmarks.startup import Table

SIDE, IN_A_CLASS, LINKS = 32, 1300, 50_000
READ, BATCH, WORKERS = 2000, 100, 2
LARGE_SIDE, DIM, PAIRS = 256, 2048, 2000


def main() -> None:
    """Runs, and prints a table."""
    options, machine, table = _parse(), contest.machine(), Table()
    print(contest.introduction(machine), flush=True)
    sizes = [max(options.files // 10, 2 * READ), options.files]
    with contextlib.ExitStack() as stack:
        folder = options.folder or pathlib.Path(
            stack.enter_context(tempfile.TemporaryDirectory())
        )
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["VDIFF_JAX_CACHE"] = str(folder / "cache")
        for way in options.ways:
            counts = {"sample": options.samples, "evaluate": options.features}
            for num in counts.get(way, sizes):
                WAYS[way](table, folder, num)
                print(f"{way}, {num:,}: done", file=sys.stderr, flush=True)
    _add_growths(table)
    print(table)
    if options.json:
        contest.write(options.json, machine, table.rows())


def _add_growths(table: Table) -> None:
    """The growth of each peak, by the image, between the largest two numbers."""
    peaks: dict[str, list[tuple[int, float]]] = {}
    for row in table.rows():
        if "num" in row:
            of_what = peaks.setdefault(row["what"].partition(":")[2], [])
            of_what.append((row["num"], row["value"]))
    for what, points in peaks.items():
        if len(points) > 1:
            (few, less), (many, more) = sorted(points)[-2:]
            growth = 2**20 * (more - less) / (many - few)
            table.add(f"growth:{what}", "bytes an image", growth)


def _made(folder: pathlib.Path, num: int) -> pathlib.Path:
    """Folders of 1,300 images each, all of them links to a few files."""
    root = folder / f"images_{num}"
    if root.exists():
        return root
    half, seeds = folder / f"half_{num}", folder / f"seeds_{num}"
    for each in (half, seeds):
        each.mkdir()
    rng = np.random.default_rng(0)
    count = max(64, -(-num // LINKS))
    for i in range(count):
        _image(rng).save(seeds / f"{i}.jpg")
    for i in range(num):
        name = f"n{i // IN_A_CLASS:08d}"
        if i % IN_A_CLASS == 0:
            (half / name).mkdir()
        os.link(f"{seeds}/{i % count}.jpg", f"{half}/{name}/{name}_{i}.JPEG")
    half.rename(root)
    time.sleep(2.5)  # what has just changed is not kept
    return root


def _image(rng: np.random.Generator) -> PIL.Image.Image:
    coarse = rng.integers(0, 256, (SIDE // 4, SIDE // 4, 3), np.uint8)
    return PIL.Image.fromarray(coarse).resize((SIDE, SIDE))


def _facts(num: int) -> tuple[list[str], np.ndarray, list[str]]:
    """Names, labels and classes, as those of the folder."""
    classes = [f"n{i:08d}" for i in range(-(-num // IN_A_CLASS))]
    labels = np.arange(num, dtype=np.int32) // IN_A_CLASS
    names = [f"{classes[k]}/{classes[k]}_{i}.JPEG" for i, k in enumerate(labels)]
    return names, labels, classes


def _write_lmdb(folder: pathlib.Path, num: int) -> pathlib.Path:
    from vdiff_jax.datasets.prepare.writers import LmdbWriter

    path = folder / f"lmdb_{num}"
    if not path.exists():
        (seeds := folder / "one.jpg").parent.mkdir(exist_ok=True)
        _image(np.random.default_rng(0)).save(seeds)
        content, writer = (seeds.read_bytes(),), LmdbWriter(path, [SIDE])
        for first in range(0, num, 10_000):
            writer.write(first, [content] * min(10_000, num - first))
        writer.finish(*_facts(num))
        writer.close()
    return path


def _write_npz(folder: pathlib.Path, num: int) -> pathlib.Path:
    """Latents of 8 x 8 in shards of 16,384, as many as those of 32 x 32 would be in."""
    from vdiff_jax.datasets.prepare.shards import ShardWriter

    path, dtype = folder / f"npz_{num}", np.dtype(np.float16)
    if not path.exists():
        one = np.zeros((8, 8, 4), dtype).tobytes()
        writer = ShardWriter(
            path, [8], channels=4, dtype=dtype, shard_bytes=2**14 * len(one)
        )
        for first in range(0, num, 10_000):
            writer.write(first, [(one,)] * min(10_000, num - first))
        writer.finish(*_facts(num))
    return path


def _add_source(table: Table, folder: pathlib.Path, num: int, *, kind: str) -> None:
    make = {"folder": _made, "lmdb": _write_lmdb, "npz": _write_npz}[kind]
    # In a process of its own, which would not give back what it takes.
    path = contest.alone(make, folder, num)
    for start in ("first", "second"):
        seconds, peaks = contest.alone(_read, kind, path)
        name = f"{num:,}: {kind}, {start} start"
        table.add(f"{name}, until it is open", "s", seconds)
        for process, (peak, anonymous) in peaks.items():
            _add_peak(table, f"{name}, {process}", num, peak, anonymous)


def _add_peak(table: Table, name: str, num: int, peak: float, anonymous: float) -> None:
    table.add(name, "MiB", peak, num=num)
    table.add(f"{name}, without mapped files", "MiB", anonymous, num=num)


def _read(
    kind: str, path: pathlib.Path
) -> tuple[float, dict[str, tuple[float, float]]]:
    """Seconds until a source is open, and the peaks of this process and a worker."""
    with _watched() as anonymous:
        seconds, workers = _read_source(kind, path)
    peaks = {"main process": (_peak(), anonymous[0])}
    return seconds, peaks | ({"a worker": max(workers)} if workers else {})


def _read_source(
    kind: str, path: pathlib.Path
) -> tuple[float, list[tuple[float, float]]]:
    """Seconds until a source is open, and the peaks of the workers."""
    from vdiff_jax.datasets.catalog import open_source
    from vdiff_jax.datasets.loader import load
    from vdiff_jax.datasets.validation import Checked

    began = time.monotonic()
    source = open_source(
        kind,
        path=path,
        name="",
        split_name="",
        split="train",
        image_shape=(SIDE, SIDE, 3),
        resize="area",
        latent_size=8 if kind == "npz" else 0,
    )
    shapes: dict[str, Any] = {"uint8_shape": (SIDE, SIDE, 3)}
    if kind == "npz":
        shapes = {"float_shapes": [(8, 8, 4)]}
    checked = Checked(source, num_classes=0, **shapes)
    seconds, steps = time.monotonic() - began, READ // BATCH
    batches = load(
        checked,
        batch_size=BATCH,
        seed=(0,),
        calls=[(step, 1) for step in range(steps)],
        num_workers=WORKERS,
    )
    for _ in itertools.islice(batches, steps - 1):
        pass
    children = [child.pid for child in multiprocessing.active_children()]
    workers = [(_peak(child), _peak(child, "RssAnon")) for child in children]
    next(batches)
    return seconds, workers


def _peak(process: int | str | None = "self", field: str = "VmHWM") -> float:
    """MiB of a process: the most resident memory that it had, or another field."""
    status = pathlib.Path(f"/proc/{process}/status").read_text()
    (kib,) = (x.split()[1] for x in status.splitlines() if x.startswith(field))
    return int(kib) / 1024


@contextlib.contextmanager
def _watched() -> Iterator[list[float]]:
    """Yields a list that gets the most memory which is not that of mapped files."""
    peaks, ended = [0.0], threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            peaks[0] = max(peaks[0], _peak(field="RssAnon"))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def _add_prepare(table: Table, folder: pathlib.Path, num: int) -> None:
    path = contest.alone(_made, folder, num)
    seconds, peak = contest.alone(_begin_to_prepare, path, folder / "prepared")
    table.add(f"{num:,}: prepare, until the first image", "s", seconds)
    table.add(f"{num:,}: prepare, until the first image, peak", "MiB", peak, num=num)


def _begin_to_prepare(path: pathlib.Path, out: pathlib.Path) -> tuple[float, float]:
    from vdiff_jax.datasets.prepare.archives import open_input
    from vdiff_jax.datasets.prepare.parts import find_parts
    from vdiff_jax.datasets.prepare.record import describe
    from vdiff_jax.datasets.prepare.task import Task

    began = time.monotonic()
    files = open_input(path, out)
    parts = find_parts(files, path, [""])
    describe(Task(path, out, (SIDE,), "lmdb"), files, parts)
    return time.monotonic() - began, _peak()


def _add_encode(table: Table, folder: pathlib.Path, num: int) -> None:
    path, out = contest.alone(_made, folder, num), folder / "encoded"
    seconds, anonymous, peak = contest.alone(_encode, path, out)
    shutil.rmtree(out)
    table.add(f"{num:,}: encode, of an image", "ms", 1000 * seconds / num)
    _add_peak(table, f"{num:,}: encode", num, peak, anonymous)


def _encode(path: pathlib.Path, out: pathlib.Path) -> tuple[float, float, float]:
    """Encodes a folder; seconds, and the peaks of this process."""
    import diffusers

    from vdiff_jax.datasets.prepare import __main__ as command

    autoencoder = out.parent / "autoencoder"
    diffusers.AutoencoderKL(
        sample_size=SIDE,
        latent_channels=4,
        block_out_channels=(4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=2,
        mid_block_add_attention=False,
    ).save_pretrained(autoencoder)
    began = time.monotonic()
    arguments = [path, "--out", out, "--size", SIDE, "--encode", autoencoder]
    with _watched() as peaks:
        status = command.main([*map(str, arguments), "--workers", str(WORKERS)])
    if status:
        raise SystemExit(status)
    return time.monotonic() - began, peaks[0], _peak()


class Net(nn.Module):
    """Two convolutions."""

    out_channels: int

    @nn.compact
    def __call__(
        self, z_t: Any, logsnr_t: Any, label: Any = None, *, train: bool = False
    ) -> Any:
        """Of the input alone."""
        del logsnr_t, label, train
        h = nn.swish(nn.Conv(4, (3, 3))(z_t))
        return nn.Conv(self.out_channels, (3, 3))(h)


def make_net(out_channels: int, num_classes: int) -> Net:
    """The network of the samples, for `model.net`."""
    del num_classes
    return Net(out_channels)


class Noise:
    """A few images of random pixels."""

    needs_workers = False

    def __len__(self) -> int:
        """Number of images."""
        return 16

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One image."""
        shape = (LARGE_SIDE, LARGE_SIDE, 3)
        return {"image": np.random.default_rng(index).integers(0, 256, shape, np.uint8)}


def make_source(split: str) -> Noise:
    """The data of the samples, for `data.source`."""
    del split
    return Noise()


def _add_sample(table: Table, folder: pathlib.Path, num: int) -> None:
    workdir = folder / "workdir"
    if not workdir.exists():
        contest.alone(_run, "train", workdir, num)
    anonymous, peak, seconds = contest.alone(_run, "sample", workdir, num)
    shutil.rmtree(workdir / "sample")
    table.add(f"{num:,}: sample, of an image", "ms", 1000 * seconds / num)
    _add_peak(table, f"{num:,}: sample", num, peak, anonymous)


def _run(stage: str, workdir: pathlib.Path, num: int) -> tuple[float, float, float]:
    import launch
    from configs import digits

    config = digits.get_config(stage)
    changes = {
        "model": {"net": "benchmarks.large:make_net", "num_classes": 0},
        "data": {
            "source": "benchmarks.large:make_source",
            "image_size": LARGE_SIDE,
            "channels": 3,
            "held_out": 4,
        },
        "train": {
            "steps": 2, "batch_size": 4, "warmup_steps": 0, "sample_steps": 1,
            "steps_per_call": 1,
        },
        "sample": {"num": num, "steps": 1, "batch_size": 16, "model": "base"},
    }  # fmt: skip
    config.update(changes)
    began = time.monotonic()
    with _watched() as peaks:
        launch.launch(config, workdir)
    return peaks[0], _peak(), time.monotonic() - began


def _add_evaluate(table: Table, folder: pathlib.Path, num: int) -> None:
    anonymous, peak, seconds = contest.alone(_evaluate, folder, num)
    table.add(f"{num:,}: evaluate, all", "s", seconds)
    _add_peak(table, f"{num:,}: evaluate", num, peak, anonymous)


def _evaluate(folder: pathlib.Path, num: int) -> tuple[float, float, float]:
    import jax.numpy as jnp

    from vdiff_jax.evaluation import metrics, statistics_file
    from vdiff_jax.evaluation.features import Features, FeatureSet

    def apply(params: Any, images: Any) -> Features:
        del params
        flat = images.reshape(len(images), -1)[:, :DIM]
        return Features(flat.astype(jnp.float32), None, None)

    metrics.MOST_PAIRED = PAIRS
    began, path = time.monotonic(), folder / "statistics.npz"
    features = FeatureSet("few", {}, apply, {})
    with _watched() as peaks:
        of_sets = []
        for seed in range(2):
            rng, extraction = np.random.default_rng(seed), features.begin(num)
            image = np.zeros((512, LARGE_SIDE, LARGE_SIDE, 3), np.uint8)
            for first in range(0, num, len(image)):
                image[:, :4] = rng.integers(0, 256, image[:, :4].shape, np.uint8)
                extraction.add(image[: num - first])
            of_sets.append(extraction.features)
        real, generated = of_sets
        halves = metrics.real_vs_real(real, "few")
        statistics_file.save(path, metrics.statistics(real), halves, {})
        ruler = metrics.Ruler(statistics_file.load(path, {})[0], "few")
        ruler.measure(generated)
    return peaks[0], _peak(), time.monotonic() - began


WAYS: dict[str, Callable[[Table, pathlib.Path, int], None]] = {
    "folder": functools.partial(_add_source, kind="folder"),
    "lmdb": functools.partial(_add_source, kind="lmdb"),
    "npz": functools.partial(_add_source, kind="npz"),
    "prepare": _add_prepare,
    "encode": _add_encode,
    "sample": _add_sample,
    "evaluate": _add_evaluate,
}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=130_000)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--samples", type=int, nargs="+", default=[250, 500, 1000])
    parser.add_argument("--features", type=int, nargs="+", default=[10_000, 50_000])
    parser.add_argument("--folder", type=pathlib.Path, help="stays, with the images")
    parser.add_argument("--json", type=pathlib.Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
