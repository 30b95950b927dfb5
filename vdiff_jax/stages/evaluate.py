"""The ladder, measured: the base model and the students at each number of steps."""

import pathlib
from typing import Any

import numpy as np

from vdiff_jax import build, parallel, schedules
from vdiff_jax.build import Config
from vdiff_jax.datasets.catalog import Split
from vdiff_jax.datasets.loader import read_all
from vdiff_jax.evaluation import report
from vdiff_jax.evaluation.features import TrainedClassifier, train_classifier
from vdiff_jax.evaluation.frechet import Moments, frechet_distance, moments
from vdiff_jax.records import write_json
from vdiff_jax.stages import workdir as places
from vdiff_jax.stages.models import folder_of, load_params
from vdiff_jax.stages.sample import Pictures, pictures

METRIC = "frechet_classifier"
GRID_COLUMNS = 12


def plan(config: Config, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """What `run` would do."""
    return [
        {
            "stage": "evaluate",
            "folder": str(workdir / "evaluate"),
            "models": [
                {"model": kind, "steps": steps} for kind, steps in _candidates(config)
            ],
            "num": config.evaluate.num,
        }
    ]


def run(config: Config, workdir: pathlib.Path) -> None:
    """Measures every candidate from the same noise; writes table, figure and grid."""
    spec = config.evaluate
    candidates = [
        (kind, steps, folder_of(workdir, kind, steps))
        for kind, steps in _candidates(config)
    ]
    model = build.model(config)
    places.claim(workdir, config, None)
    out = workdir / "evaluate"

    reference = _Reference(config)
    write_json(out / "reference.json", reference.facts)
    print(
        "evaluate: the classifier is right on"
        f" {reference.facts['classifier_accuracy']:.1%} of the held-out pictures;"
        f" floor {reference.facts['floor']:.3f}: one half of the data to the other"
    )

    sampler = build.sampler(config, model)
    rows, drawn = [], []
    for kind, steps, folder in candidates:
        made = pictures(
            sampler,
            load_params(model, folder),
            num=spec.num,
            num_steps=steps,
            seed=spec.seed,
            batch_size=config.sample.batch_size,
            name=f"evaluate {kind}, {steps} steps",
        )
        rows.append(_row(config, kind, steps, reference.distance(made.images), made))
        drawn.append(made.images[:GRID_COLUMNS])
        write_json(out / "ladder.json", rows)

    print(report.table(rows))
    if parallel.is_main():
        report.ladder_figure(out / "ladder.png", rows, floor=reference.facts["floor"])
        labels = [f"{row['model']}, {row['steps']}" for row in rows]
        report.comparison_grid(out / "grid.png", drawn, labels)
    print(f"evaluate: see {out}/ladder.png and {out}/grid.png")


def _candidates(config: Config) -> list[tuple[str, int]]:
    """(model, steps), the reference first, then base and student side by side."""
    spec = config.evaluate
    if config.data.latent_scale:
        raise ValueError(
            "The evaluate stage compares pictures, and these data are latents"
            f" (data.latent_scale={config.data.latent_scale}): use the other stages."
        )
    for steps in (*spec.steps, spec.reference_steps):
        schedules.check_num_steps(build.schedule(config), steps)
    pairs = [(kind, n) for n in sorted(spec.steps) for kind in ("distilled", "base")]
    return [*pairs, ("base", spec.reference_steps)]


def _row(
    config: Config, kind: str, steps: int, value: float, made: Pictures
) -> dict[str, Any]:
    return {
        "model": kind,
        "steps": steps,
        "sampler": config.sample.sampler,
        "metric": METRIC,
        "value": value,
        "num_images": len(made.images),
        "seed": config.evaluate.seed,
        "seconds_per_image": made.seconds_per_image,
    }


class _Reference:
    """The training pictures as seen by a classifier trained on them."""

    def __init__(self, config: Config):
        images, labels = _everything(config, "train")
        held_out = _everything(config, "test")
        self._classifier: TrainedClassifier = train_classifier(images, labels, held_out)
        features = self._features(images)
        self._moments: Moments = moments(features)
        # The order of the data is random already, but a user's may not be.
        order = np.random.default_rng(0).permutation(len(features))
        one, other = np.array_split(features[order], 2)
        self.facts = {
            "metric": METRIC,
            "split": config.data.train_split,
            "num_images": len(images),
            "floor": frechet_distance(moments(one), moments(other)),
            "classifier_accuracy": self._classifier.accuracy,
        }

    def distance(self, images: np.ndarray) -> float:
        """From generated pictures to the training pictures."""
        return frechet_distance(moments(self._features(images)), self._moments)

    def _features(self, images: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [
                self._classifier.extract(part)
                for part in np.array_split(images, -(-len(images) // 1024))
            ]
        )


def _everything(config: Config, split: Split) -> tuple[np.ndarray, np.ndarray]:
    spec = config.data
    pictures = build.source(config, split)
    everything = read_all(pictures, spec.workers, spec.worker_timeout)
    return everything["image"], everything["label"]
