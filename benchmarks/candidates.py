r"""Networks of photographs at equal time: what configs/cifar10_small.py was chosen by.

    taskset -c 0 python -m benchmarks.candidates --data cifar10 --minutes 20

`--data` is a folder of train/<class>/ and test/<class>/. Each candidate gets as many
updates as so many minutes pay for, by the time of an update that is measured first; it
is trained and evaluated by our command. The table has `frechet_classifier` (not FID) of
2,048 images of the base model, by DDIM in 64 steps. Killed, it goes on.
"""

import argparse
import json
import pathlib
import time
from typing import Any

import jax

from benchmarks import ours, sizes
from benchmarks.commands import launch
from configs import cifar10_small

TIMED = 30  # updates


def _unet(patch: int, channels: int, *multipliers: int) -> Any:
    unet = {
        "patch": patch,
        "channels": channels,
        "multipliers": multipliers,
        "num_blocks": 1,
        "attention_resolutions": (8,),
        "head_dim": channels,
        "emb_channels": 160,
        "groups": 8,
    }
    return {"model": {"net": "unet", "unet": unet}, "train": {"learning_rate": 1e-3}}


def _dit(features: int, depth: int, learning_rate: float) -> Any:
    dit = {"patch": 4, "features": features, "depth": depth, "num_heads": 4}
    train = {"learning_rate": learning_rate}
    return {"model": {"net": "dit", "dit": dit}, "train": train}


CANDIDATES: dict[str, Any] = {
    "U-Net, patch 2, 40-80": _unet(2, 40, 1, 2),
    "U-Net, patch 4, 48-96": _unet(4, 48, 1, 2),
    "DiT, patch 4, 128 x 5": _dit(128, 5, 3e-3),
    "DiT, patch 4, 128 x 5, rate 6e-3": _dit(128, 5, 6e-3),
    "DiT, patch 4, 144 x 4": _dit(144, 4, 4e-3),
}


def main() -> None:
    """Trains and evaluates each, and prints a row of the table."""
    options = _parse()
    for number, (name, fields) in enumerate(CANDIDATES.items()):
        if number == 0:
            print("| network | parameters | ms | images | held-out loss | distance |")
            print("| --- | --- | --- | --- | --- | --- |")
        folder = options.out / str(number)
        facts = _timed(name, fields, folder)
        steps = int(options.minutes * 60 / facts["seconds"])
        distance, loss = _measured(options.data, folder, fields, steps)
        print(
            f"| {name} | {facts['parameters']:,} | {facts['seconds'] * 1e3:.0f} |"
            f" {steps * facts['batch_size']:,} | {loss:.4f} | {distance:.1f} |",
            flush=True,
        )


def _timed(name: str, fields: Any, folder: pathlib.Path) -> dict[str, Any]:
    """Seconds of an update, and parameters; measured once."""
    path = folder / "timed.json"
    if not path.exists():
        sizes.SIZES[name] = (cifar10_small, fields)
        updates = ours.train(name)
        updates(updates.per_call)
        start = time.perf_counter()
        updates(TIMED)
        made = -(-TIMED // updates.per_call) * updates.per_call
        leaves = jax.tree.leaves(updates.state.params)
        facts = {
            "seconds": (time.perf_counter() - start) / made,
            "parameters": sum(leaf.size for leaf in leaves),
            "batch_size": sizes.config(name).train.batch_size,
        }
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(facts))
    return json.loads(path.read_text())


def _measured(
    data: pathlib.Path, folder: pathlib.Path, fields: Any, steps: int
) -> tuple[float, float]:
    """The distance of the base model, and its last held-out loss."""
    own = {
        f"{section}.{name}": value
        for section, values in _flat(fields).items()
        for name, value in values.items()
    }
    evaluation = {
        "evaluate.reference_steps": 64,
        "evaluate.num": 2048,
        "evaluate.repeats": 1,
        "evaluate.likelihood_num": 0,
        "evaluate.features": "classifier",
        "evaluate.judge": False,
        "evaluate.steps": (),
        "evaluate.samplers": (),
        "evaluate.w": (),
    }
    # A tenth of the whole run's averaging and warm-up.
    short = {"train.ema_decay": 0.998, "train.warmup_steps": 200, "guide.steps": 0}
    shared = {"data.path": data, **short, **own}
    launch("cifar10_small:train", folder, {**shared, "train.steps": steps})
    launch("cifar10_small:evaluate", folder, {**shared, **evaluation})
    (row,) = [
        row
        for row in json.loads((folder / "evaluate" / "ladder.json").read_text())
        if row["metric"] == "frechet_classifier"
    ]
    lines = (folder / "train" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line).get("held_out_loss") for line in lines]
    return row["value"], [loss for loss in losses if loss is not None][-1]


def _flat(fields: Any) -> dict[str, dict[str, Any]]:
    """Fields by the section that they are in."""
    model = fields["model"]
    net = model["net"]
    return {
        "model": {"net": net},
        f"model.{net}": model[net],
        "train": fields["train"],
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, default="runs/candidates")
    parser.add_argument("--minutes", type=float, default=20.0, help="of each")
    return parser.parse_args()


if __name__ == "__main__":
    main()
