r"""The speed of examples, and the time that the step waits for them.

    python -m benchmarks.data                        # on images that it makes itself
    python -m benchmarks.data --folder cifar/train --size 32 --workers 2 --json out.json

Three questions, all answered in one run on one machine, with the rounds of everybody in
turn (A B C A B C ...):

1. Examples per second of each source, as a ratio to the peer: a plain PyTorch
   `DataLoader` over the same JPEG files, in the same order and batches, with as many
   workers, whose data set opens, converts and stacks with Pillow as torchvision's
   `ImageFolder` and `pil_to_tensor` do (uint8; `ToTensor` would be slower).
2. The same for a data set on the device, indexed inside a compiled call.
3. The time of a training step fed by each source, as a ratio to the same step on one
   constant batch that is on the device already. The step is the project's, of a small
   U-Net, and its time is printed; below 50 ms the question has no answer here.
"""

import argparse
import itertools
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks import photos
from configs import defaults
from vdiff_jax import parallel
from vdiff_jax.datasets import device_feed
from vdiff_jax.datasets.folder import Folder
from vdiff_jax.datasets.images import Fit, Images
from vdiff_jax.datasets.lmdb import Lmdb
from vdiff_jax.datasets.loader import Order, load
from vdiff_jax.datasets.npz import Npz
from vdiff_jax.datasets.prepare.task import Task
from vdiff_jax.datasets.prepare.work import prepare
from vdiff_jax.datasets.source import Source
from vdiff_jax.datasets.tfds import TfdsFiles
from vdiff_jax.datasets.validation import Checked
from vdiff_jax.from_config.choices import section_of
from vdiff_jax.from_config.losses import train_loss
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.step import compiled_train_step, optimizer_of
from vdiff_jax.training.step import Job, TrainState, init_state
from vdiff_jax.types import Batch, Feed

SEED = (0, 0)


def main() -> None:
    """Runs, and prints a table."""
    options = _parse()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or _make_images(pathlib.Path(scratch), options.size)
        sources = _sources(folder, pathlib.Path(scratch), options)
        rows = []
        for question in (_loading, _hiding):
            answers = question(folder, sources, options)
            print("\n".join(map(_line, answers)), flush=True)
            rows += answers
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, help="JPEG files of one size")
    parser.add_argument("--size", type=int, default=32, help="of the images")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--batches", type=int, default=80, help="in a round")
    parser.add_argument(
        "--steps", type=int, default=12, help="in a round of question 3"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path)
    return parser.parse_args()


def _make_images(root: pathlib.Path, size: int, count: int = 4000) -> pathlib.Path:
    """Smooth random images in ten classes, whose files are like those of photos."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = rng.integers(0, 256, (size // 4, size // 4, 3), np.uint8)
        path = root / "photos" / str(i % 10) / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(coarse).resize((size, size)).save(path)
    return root / "photos"


def _sources(
    folder: pathlib.Path, scratch: pathlib.Path, options: argparse.Namespace
) -> dict[str, Source]:
    for kind in ("lmdb", "npz"):
        prepare(Task(folder, scratch / kind, (options.size,), kind))
    photos.prepare(folder, options.size, scratch / "tfds")
    fit = Fit(options.size, 3)
    sources = {
        "folder": Images(Folder(folder), fit),
        "lmdb": Images(Lmdb(scratch / "lmdb", options.size), fit),
        "tfds": Images(TfdsFiles("photos", "train", scratch / "tfds"), fit),
        "npz": Npz(scratch / "npz" / f"{options.size}.npz"),
    }
    return {
        name: Checked(
            source, num_classes=0, uint8_shape=(options.size, options.size, 3)
        )
        for name, source in sources.items()
    }


class _PlainFolder(Dataset):
    """The data set that a user of PyTorch writes."""

    def __init__(self, root: pathlib.Path):
        self._files = sorted(root.rglob("*.jpg"))
        classes = sorted({path.parent.name for path in self._files})
        self._label = {name: i for i, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path = self._files[index]
        with path.open("rb") as file:
            pixels = np.array(PIL.Image.open(file).convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1), self._label[path.parent.name]


def _loading(
    folder: pathlib.Path, sources: dict[str, Source], options: argparse.Namespace
) -> list[dict[str, Any]]:
    def peer() -> Iterator[Any]:
        data = _PlainFolder(folder)
        order = Order(
            len(data),
            batch_size=options.batch_size,
            seed=SEED,
            steps=range(options.batches + 1),
            rows=np.arange(options.batch_size),
        )
        return iter(DataLoader(data, batch_sampler=order, num_workers=options.workers))

    def ours(source: Source) -> Iterator[Any]:
        return load(
            source,
            batch_size=options.batch_size,
            seed=SEED,
            calls=[(step, 1) for step in range(options.batches + 1)],
            num_workers=options.workers,
        )

    mesh = parallel.make_mesh()
    on_device = device_feed.Resident(
        sources["npz"], batch_size=options.batch_size, mesh=mesh, num_workers=0
    )
    calls = [(step, 10) for step in range(0, 10 * (options.batches + 1), 10)]

    @jax.jit
    def read(feed: Feed) -> Batch:
        return jax.lax.map(lambda item: on_device.read(feed.data, item), feed.items)

    def resident() -> Iterator[Any]:
        for feed in on_device.feeds(calls, SEED):
            yield jax.block_until_ready(read(feed))

    contenders: dict[str, Callable[[], Iterator[Any]]] = {"PyTorch, folder": peer}
    for name, source in sources.items():
        contenders[name] = lambda source=source: ours(source)
    contenders["on the device"] = resident
    per_batch = {name: options.batch_size for name in contenders}
    per_batch["on the device"] *= 10

    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, make in contenders.items():
            batches = make()
            next(batches)  # starts the workers
            began = time.monotonic()
            count = sum(1 for _ in batches)
            seconds = time.monotonic() - began
            speeds[name].append(count * per_batch[name] / seconds)
    return [
        _row(
            f"load: {name}",
            "examples/s",
            speeds[name],
            speeds["PyTorch, folder"],
            best=max,
        )
        for name in contenders
    ]


def _hiding(
    folder: pathlib.Path, sources: dict[str, Source], options: argparse.Namespace
) -> list[dict[str, Any]]:
    del folder
    config = _config(options)
    model, mesh = make_model(config), parallel.make_mesh()
    loss = train_loss(config, model, train=True)
    section = section_of(config, "train")
    batch_size = section.batch_size
    calls = [(step, 1) for step in range(options.steps + 2)]
    job = Job(jax.random.key(0), jnp.int32(1000))

    streamed = {
        name: device_feed.Streamed(source, batch_size, mesh, options.workers)
        for name, source in sources.items()
    }

    def new_state() -> TrainState:
        params = model.init(jax.random.key(0))
        return init_state(params, optimizer_of(section))

    places = parallel.state_shardings(jax.eval_shape(new_state), mesh)
    step = compiled_train_step(config, section, loss, streamed["npz"], mesh, places)
    on_device = device_feed.Resident(
        sources["npz"], batch_size=batch_size, mesh=mesh, num_workers=0
    )
    resident_step = compiled_train_step(config, section, loss, on_device, mesh, places)
    (constant,) = streamed["npz"].feeds([(0, 1)], SEED)

    def timed(step: Any, items: Iterator[Feed]) -> float:
        """Seconds of a step, once the loader and the compiler have begun."""
        state = parallel.put(new_state(), places)
        for _ in range(2):
            state, _ = step(state, next(items), job)
        jax.block_until_ready(state)
        began = time.monotonic()
        for feed in items:
            state, _ = step(state, feed, job)
        jax.block_until_ready(state)
        return (time.monotonic() - began) / options.steps

    def on_constant_batch() -> float:
        return timed(step, itertools.repeat(constant, options.steps + 2))

    contenders: dict[str, Callable[[], float]] = {
        name: lambda feeder=feeder: timed(step, feeder.feeds(calls, SEED))
        for name, feeder in streamed.items()
    }
    contenders["on the device"] = lambda: timed(
        resident_step, on_device.feeds(calls, SEED)
    )
    for make in contenders.values():
        make()  # compiles
    # Machines drift: each is compared with what comes right before and after it.
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    beside: dict[str, list[float]] = {name: [] for name in contenders}
    before = on_constant_batch()
    constants = [before]
    for _ in range(options.rounds):
        for name, make in contenders.items():
            seconds[name].append(1000 * make())
            after = on_constant_batch()
            beside[name].append(1000 * (before + after) / 2)
            constants.append(before := after)
    milliseconds = [1000 * each for each in constants]
    return [
        _row("step: constant batch", "ms", milliseconds, milliseconds, best=min),
        *(
            _row(f"step: {name}", "ms", seconds[name], beside[name], best=min)
            for name in contenders
        ),
    ]


def _config(options: argparse.Namespace) -> Any:
    config = defaults.get_config()
    config.update(
        {
            "data": {"image_size": options.size},
            "model": {
                "unet": {
                    "channels": 32,
                    "multipliers": (1, 1, 1),
                    "num_blocks": 1,
                    "attention_resolutions": (8,),
                    "head_dim": 32,
                    "emb_channels": 64,
                },
            },
            "train": {"batch_size": 32},
        }
    )
    return config


def _row(
    what: str,
    unit: str,
    values: list[float],
    beside: list[float],
    *,
    best: Callable[[list[float]], float],
) -> dict[str, Any]:
    """Ratios of values to what was measured beside them; and of the best to the best.

    Whatever else a machine does can only make a round slower.
    """
    ratios = np.divide(values, beside)
    return {
        "what": what,
        "unit": unit,
        "value": float(np.median(values)),
        "ratio": float(np.median(ratios)),
        "ratio_min": float(ratios.min()),
        "ratio_max": float(ratios.max()),
        "ratio_of_best": best(values) / best(beside),
    }


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['what']:22s} {row['value']:11,.1f} {row['unit']:10s} ratio"
        f" {row['ratio']:7.3f} ({row['ratio_min']:.3f} to {row['ratio_max']:.3f}),"
        f" of the best rounds {row['ratio_of_best']:.3f}"
    )


if __name__ == "__main__":
    main()
