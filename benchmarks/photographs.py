r"""The tables of docs/photographs.md, from the weights that come with the repository.

    python -m benchmarks.photographs --data cifar10 --out runs/photographs

`--data` is a folder of train/<class>/ and test/<class>/ of 32x32 images; `--models` are
others than those that are shipped: mine for mine-base.safetensors and so on. Four
parts, each of which can be had alone by --part:

    students    the base in 128 steps and the students, 3 seeds of 10,000 images
    guidance    the same at guidance weights 1 and 2, 2,000 images
    samplers    the base by every sampler in 1 to 128 steps, 2,000 images
    ancestral   ancestral sampling beside DDIM in 50 to 1,000 steps, 500 images

All but the last are measured by the `evaluate` stage; all with one classifier, which
the first that runs trains. Interrupted, it goes on.
"""

import argparse
import itertools
import json
import pathlib
import shutil
from typing import Any

import flax.serialization
from matplotlib.figure import Figure

import vdiff_jax
from benchmarks.commands import launch
from vdiff_jax.evaluation import classifier, features, statistics_file
from vdiff_jax.evaluation.metrics import Ruler
from vdiff_jax.files.atomic import write_json
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.generation.batches import draw, seconds_per_image, start_of_seed
from vdiff_jax.generation.sampler import request

PRETRAINED = pathlib.Path("data/pretrained/cifar10_small")
NAMES = ("base", "8step", "4step", "2step", "1step")
STUDENTS = (1, 2, 4, 8)
COLUMNS = ("frechet_classifier", "recall_classifier", "coverage_classifier")
EVALUATIONS: dict[str, dict[str, Any]] = {
    "students": {
        "w": (0.0,),
        "steps": STUDENTS,
        "samplers": (),
        "num": 10_000,
        "repeats": 3,
        "likelihood_num": 1000,
    },
    "guidance": {
        "w": (1.0, 2.0),
        "steps": STUDENTS,
        "samplers": ("dpmpp_2m",),
        "num": 2000,
        "repeats": 1,
        "likelihood_num": 0,
    },
    "samplers": {
        "w": (),
        "steps": (1, 2, 4, 8, 16, 32, 64, 128),
        "samplers": ("ddim", "ancestral", "dpmpp_2m", "heun"),
        "num": 2000,
        "repeats": 1,
        "likelihood_num": 0,
    },
}
LONG = (50, 100, 500, 1000)
LONG_NUM, LONG_BATCH = 500, 250
Way = tuple[str, float | None]  # the sampler, and the share of the larger variance
WAYS: dict[str, Way] = {
    "DDIM": ("ddim", None),
    "ancestral, small variance": ("ancestral", 0.0),
    "ancestral, large variance": ("ancestral", 1.0),
}


def main() -> None:
    """Measures the parts, and prints a table of each."""
    options = _parse()
    for part in options.part:
        workdir = options.out / part
        if part == "ancestral":
            _print_ancestral(options, workdir)
        else:
            _share_reference(options.out, workdir)
            fields = {f"evaluate.{name}": x for name, x in EVALUATIONS[part].items()}
            files = tuple(_file(options.models, name) for name in NAMES)
            fields |= {
                "evaluate.files": files,
                "evaluate.features": ("classifier",),
                "data.path": options.data,
            }
            launch("cifar10_small_moment_matching:evaluate", workdir, fields)
            _print_rows(part, workdir)


def _share_reference(out: pathlib.Path, workdir: pathlib.Path) -> None:
    """Copies the classifier and the statistics of real images from another part."""
    place = workdir / "evaluate" / "reference"
    others = sorted(out.glob("*/evaluate/reference"))
    if others and not place.exists():
        shutil.copytree(others[0], place)


def _print_rows(part: str, workdir: pathlib.Path) -> None:
    """Prints the measurements of an evaluation."""
    rows = json.loads((workdir / "evaluate" / "ladder.json").read_text())
    by_candidate: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        candidate = (row["model"], row["sampler"], row["steps"], row.get("w"))
        by_candidate.setdefault(candidate, {})[row["metric"]] = row
    print(
        f"\n{part}\n\n| model | sampler | steps | w | {' | '.join(COLUMNS)} | judge |"
    )
    print("| --- " * (5 + len(COLUMNS)) + "|")
    for candidate, metrics in by_candidate.items():
        values = [_value(metrics[name]) for name in (*COLUMNS, "accuracy_judge")]
        print(f"| {' | '.join(map(str, (*candidate, *values)))} |")
    path = workdir / "evaluate" / "likelihood.json"
    for row in json.loads(path.read_text()) if path.exists() else ():
        bits, error = row["bits_per_dim"], row["standard_error"]
        print(f"{row['estimate']}: {bits:.3f} ± {error:.3f} bits per dimension")


def _value(row: dict[str, Any]) -> str:
    digits = 2 if row["metric"].startswith("frechet") else 3
    value = f"{row['value']:.{digits}f}"
    return value if row["spread"] is None else f"{value} ± {row['spread']:.{digits}f}"


def _file(models: pathlib.Path, name: str) -> str:
    """The path of a model: one of `NAMES`."""
    return f"{models}-{name}.safetensors"


def _print_ancestral(options: argparse.Namespace, workdir: pathlib.Path) -> None:
    """Prints and draws distance and seconds per image of long chains of the base."""
    rows = _ancestral(options, workdir / "ancestral.json")
    of_way = {
        label: [rows[_key(way, steps)] for steps in LONG] for label, way in WAYS.items()
    }
    print(f"\nancestral, {LONG_NUM} images\n\n| steps | {' | '.join(WAYS)} |")
    print("| --- " * (1 + len(WAYS)) + "|")
    for steps, of_steps in zip(LONG, zip(*of_way.values(), strict=True), strict=True):
        cells = [f"{distance:.2f} ({1e3 * each:.0f} ms)" for distance, each in of_steps]
        print(f"| {steps} | {' | '.join(cells)} |")
    _draw(of_way, workdir / "ancestral.png")


def _ancestral(options: argparse.Namespace, path: pathlib.Path) -> dict[str, Any]:
    """Distance and seconds of each way and number of steps; measured once."""
    ruler, of_classifier = _ruler(options.out)
    rows = json.loads(path.read_text()) if path.exists() else {}
    base = vdiff_jax.load(_file(options.models, "base"))
    for steps, way in itertools.product(LONG, WAYS.values()):
        if _key(way, steps) in rows:
            continue
        name, variance = way
        sampler = make_sampler(base.config, base.trained.model, name)
        drawn = draw(
            sampler,
            base.params,
            range(LONG_NUM),
            request=request(steps, variance=variance),
            batch_size=LONG_BATCH,
            start_of=start_of_seed(sampler, 0, None),
        )
        distance = ruler.distance(of_classifier.extract(drawn.images))
        seconds = seconds_per_image(drawn.seconds, LONG_BATCH)
        rows[_key(way, steps)] = [distance, seconds]
        write_json(path, rows)
    return rows


def _key(way: Way, steps: int) -> str:
    name, variance = way
    return f"{name} {variance} {steps}"


def _draw(of_way: dict[str, list[list[float]]], path: pathlib.Path) -> None:
    """Draws distance against seconds per image, a curve for each way."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for label, points in of_way.items():
        distances, seconds = zip(*points, strict=True)
        axes.plot(seconds, distances, "o-", label=label)
    axes.set_xscale("log")
    ticks = {
        each: f"{1e3 * each:.0f} ms\n{steps:,} steps"
        for steps, (_, each) in zip(LONG, of_way["DDIM"], strict=True)
    }
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.set_xlabel("time per image, with that of DDIM at the ticks")
    axes.set_ylabel(f"frechet_classifier ({LONG_NUM:,} images)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def _ruler(out: pathlib.Path) -> tuple[Ruler, features.FeatureSet]:
    """The classifier that another part has trained, and what it measures against."""
    paths = sorted(out.glob("*/evaluate/reference/classifier-*.msgpack"))
    if not paths:
        raise SystemExit("--part ancestral needs the classifier of another part.")
    trained = classifier.Trained(
        **flax.serialization.msgpack_restore(paths[0].read_bytes())
    )
    of_classifier = features.of_classifier(trained)
    place = paths[0].parent
    facts = json.loads((place.parent / "reference.json").read_text())[0]
    facts.pop("floor")
    statistics, _ = statistics_file.load(place / "classifier-train.npz", facts)
    return Ruler(statistics, "classifier"), of_classifier


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, default="runs/photographs")
    parser.add_argument("--models", type=pathlib.Path, default=PRETRAINED)
    parts = (*EVALUATIONS, "ancestral")
    parser.add_argument("--part", nargs="+", choices=parts, default=parts)
    return parser.parse_args()


if __name__ == "__main__":
    main()
