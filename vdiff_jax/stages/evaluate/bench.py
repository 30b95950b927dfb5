"""The measuring of candidates: their images of the same noise, and the references."""

import functools
import hashlib
import json
import pathlib
import statistics
import zipfile
from typing import Any

import jax
import numpy as np

from vdiff_jax import parallel
from vdiff_jax.datasets.catalog import Split
from vdiff_jax.evaluation.measurement import Measurement, from_json
from vdiff_jax.evaluation.metrics import Measured
from vdiff_jax.files.atomic import replacing, write_json
from vdiff_jax.files.fingerprints import DamagedError
from vdiff_jax.generation.batches import (
    Drawn,
    draw,
    seconds_per_image,
    start_of_seed,
)
from vdiff_jax.generation.sampler import request
from vdiff_jax.progress import Bar
from vdiff_jax.stages.evaluate.candidates import Candidate
from vdiff_jax.stages.evaluate.models import Models
from vdiff_jax.stages.evaluate.references import (
    Judge,
    Real,
    Reference,
    feature_sets,
    published,
)
from vdiff_jax.workdir.layout import Project

# The variance of the ancestral sampler is chosen among these, for each number of steps,
# as in Salimans & Ho (2022), Sec. 5; on images that are not among those measured.
VARIANCES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
TUNING_IMAGES = 1024
TUNING_SEED = 1_000_000
BATCHES_IN_A_PART = 16
# Fields of `sample` that change images.
SAMPLING = ("clip", "guidance_interval", "guidance_rescale")
KEPT_IMAGES = 64


class Bench:
    """The models, the references and the files that measuring needs.

    Attributes:
      out: The folder.
      models: The models to measure.
      real: The images to measure against.
      references: One for each set of features; the first is the one for figures.
    """

    def __init__(self, project: Project):
        """Makes the references, or reads those of an earlier evaluation."""
        config = self._config = project.config
        section = config.evaluate
        self.models = Models(project)
        self.out = project.workdir / "evaluate"
        path = self.out / "ladder.json"
        before = json.loads(path.read_text()) if path.exists() else []
        self._before = [from_json(row) for row in before]
        split: Split = section.reference_split
        real = functools.cache(lambda split: Real(config, split, section.reference_num))
        self.real: Real = real(split)
        folder = self.out / "reference"
        self.references = [
            Reference(features, self.real, folder)
            for features in feature_sets(config, real, folder)
        ]
        self._published = published(config, self.references)
        # The name "floor" stays, for the files that have it.
        facts = [{**each.facts, "floor": each.real_vs_real} for each in self.references]
        self._judge = None
        if section.judge:
            self._judge = Judge(real, folder)
            facts.append(self._judge.facts)
        if parallel.is_main():
            write_json(self.out / "reference.json", facts)
        for reference in self.references:
            (metric, value), *_ = reference.real_vs_real.items()
            print(
                f"evaluate: {metric} to {reference.facts['num_images']:,} real images;"
                f" one half of these is at {value:.4g} from the other"
            )

    def rows(self, candidate: Candidate) -> list[Measurement]:
        """The measurements of a candidate, of now or of an earlier evaluation."""
        key = self._key(candidate)
        known = [row for row in self._before if row.key == key]
        images = self.images_of(candidate)
        if parallel.on_all_hosts(bool(known) and images.exists()):
            print(f"evaluate: {candidate} was measured before")
            return known
        variance = self._variance(candidate)
        drawn = [self._drawn(candidate, variance, seed, key) for seed in self._seeds()]
        if parallel.is_main():
            images.parent.mkdir(parents=True, exist_ok=True)
            np.save(images, drawn[0].images[:KEPT_IMAGES])
        measured = [self._measure(images) for images, _ in drawn]
        return [
            Measurement(
                **candidate.to_json(),
                evaluations=candidate.evaluations,
                metric=metric,
                **_summary([of_seed[metric] for of_seed in measured]),
                num_images=self._config.evaluate.num,
                seed=self._config.evaluate.seed,
                variance=variance,
                seconds_per_image=self._seconds_per_image(drawn),
                batch_size=self._config.sample.batch_size,
                device=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
                key=key,
            )
            for metric in measured[0]
        ]

    def images_of(self, candidate: Candidate) -> pathlib.Path:
        """The file of the first images of a candidate."""
        return self.out / "pictures" / f"{candidate}.npy"

    def _key(self, candidate: Candidate) -> str:
        """A hash that changes with anything that changes the numbers."""
        section, sample = self._config.evaluate, self._config.sample
        causes = {
            "params": self.models.trained(candidate.role).sha256,
            "candidate": {**candidate.to_json(), "w": candidate.w},
            "sample": {name: sample[name] for name in SAMPLING},
            "evaluate": [section.seed, section.repeats, section.num],
            "references": [reference.facts for reference in self.references],
            "published": None if self._published is None else self._published.facts,
            "judge": None if self._judge is None else self._judge.facts,
        }
        return hashlib.sha256(json.dumps(causes).encode()).hexdigest()[:16]

    def _seeds(self) -> range:
        first = self._config.evaluate.seed
        return range(first, first + self._config.evaluate.repeats)

    def _drawn(
        self, candidate: Candidate, variance: float | None, seed: int, key: str
    ) -> Drawn:
        """The images of one seed, part by part; a part that is on disk is read."""
        num = self._config.evaluate.num
        size = self._config.sample.batch_size * BATCHES_IN_A_PART
        folder = self.out / "parts" / key
        images, seconds = [], []
        with _bar(f"evaluate {candidate}, seed {seed}", num) as bar:
            for first in range(0, num, size):
                path = folder / f"{seed}-{first:08d}.npz"
                if parallel.on_all_hosts(path.exists()):
                    part = _read(path)
                    bar.update(len(part.images))
                else:
                    numbers = range(first, min(first + size, num))
                    part = self._draw(candidate, variance, seed, numbers, bar)
                    _keep(path, part)
                images.append(part.images)
                seconds += part.seconds
        return Drawn(np.concatenate(images), seconds)

    def _draw(
        self,
        candidate: Candidate,
        variance: float | None,
        seed: int,
        numbers: range,
        bar: Bar,
    ) -> Drawn:
        sampler = self.models.sampler(candidate.role, candidate.sampler)
        return draw(
            sampler,
            self.models.params(candidate.role),
            numbers,
            request=request(candidate.steps, w=candidate.asked_w, variance=variance),
            batch_size=self._config.sample.batch_size,
            start_of=start_of_seed(sampler, seed),
            advance=bar.update,
        )

    def _seconds_per_image(self, drawn: list[Drawn]) -> float:
        seconds = [second for one in drawn for second in one.seconds]
        return seconds_per_image(seconds, self._config.sample.batch_size)

    def _variance(self, candidate: Candidate) -> float | None:
        """The best of `VARIANCES` for the ancestral sampler, by the first reference."""
        if candidate.sampler != "ancestral":
            return None
        reference, num = self.references[0], self._config.evaluate.num
        numbers, distances = range(min(TUNING_IMAGES, num)), {}
        for variance in VARIANCES:
            name = f"tune {candidate}, variance medium:{variance}"
            with _bar(name, len(numbers)) as bar:
                images = self._draw(
                    candidate, variance, TUNING_SEED, numbers, bar
                ).images
            distances[variance] = reference.ruler.distance(
                reference.features.extract(images)
            )
        return min(distances, key=distances.__getitem__)

    def _measure(self, images: np.ndarray) -> dict[str, Measured]:
        """Every metric on every set of features."""
        by_metric: dict[str, Measured] = {}
        for reference in self.references:
            features = reference.features.extract(images)
            by_metric |= reference.ruler.measure(features)
            if reference.features.name == "inception" and self._published is not None:
                by_metric |= self._published.measure(features)
        if self._judge is not None:
            by_metric |= self._judge.measure(images)
        return by_metric


def _summary(measured: list[Measured]) -> dict[str, Any]:
    """Mean and spread over the seeds."""
    values = [one.value for one in measured]
    residuals = [one.residual for one in measured if one.residual is not None]
    return {
        "value": statistics.fmean(values),
        "spread": statistics.stdev(values) if len(values) > 1 else None,
        "values": values,
        "warning": measured[0].warning,
        "residual": max(residuals, default=None),
    }


def _bar(name: str, total: int) -> Bar:
    return Bar(name, total, shown=parallel.is_main())


def _keep(path: pathlib.Path, part: Drawn) -> None:
    if not parallel.is_main():
        return
    with replacing(path) as half, half.open("wb") as file:
        np.savez(file, images=part.images, seconds=np.array(part.seconds))


def _read(path: pathlib.Path) -> Drawn:
    try:
        with path.open("rb") as file:
            part = np.load(file, allow_pickle=False)
            return Drawn(part["images"], part["seconds"].tolist())
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DamagedError(
            f"{path} cannot be read ({error}): remove it, and it is drawn again."
        ) from error
