"""The measuring of candidates: their images of the same noise, and the references.

Images are drawn part after part, and let go when their features are taken: they are
never held all at once.
"""

import functools
import hashlib
import json
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vdiff_jax import parallel
from vdiff_jax.datasets.catalog import Split
from vdiff_jax.distillation.role import BASE
from vdiff_jax.evaluation.features import Extraction, Features
from vdiff_jax.evaluation.measurement import Measurement, former_method
from vdiff_jax.evaluation.metrics import Measured
from vdiff_jax.from_config.sampler import clip_of
from vdiff_jax.from_config.starts import make_condition_of
from vdiff_jax.generation.batches import Drawn, seconds_per_image
from vdiff_jax.generation.conditions import ConditionOf
from vdiff_jax.progress import Bar
from vdiff_jax.stages.evaluate import parts
from vdiff_jax.stages.evaluate.candidates import Candidate
from vdiff_jax.stages.evaluate.counts import check_counts
from vdiff_jax.stages.evaluate.drawing import Drawing
from vdiff_jax.stages.evaluate.feature_sets import feature_sets
from vdiff_jax.stages.evaluate.judge import Judge
from vdiff_jax.stages.evaluate.models import Models
from vdiff_jax.stages.evaluate.parts import Part
from vdiff_jax.stages.evaluate.published import published
from vdiff_jax.stages.evaluate.records import Records
from vdiff_jax.stages.evaluate.references import (
    Real,
    make_references,
    reconstruction,
)
from vdiff_jax.workdir.layout import Project

# Fields of `sample` that change images.
SAMPLING = ("clip", "guidance_interval", "guidance_rescale")
KEPT_IMAGES = 64
LABELS_AT_ONCE = 256


class _OfSeed(NamedTuple):
    """What is left of the images of one seed.

    Attributes:
      measured: Every metric.
      seconds: The time that each batch took to draw.
      first_images: The first of the images, as many as are kept.
    """

    measured: dict[str, Measured]
    seconds: list[float]
    first_images: np.ndarray


class Bench:
    """The models, the references and the files that measuring needs.

    Attributes:
      models: The models to measure.
      records: The rows that are known, and the files.
      real: The images to measure against.
      references: One for each set of features; the first is the one for figures.
      condition_of: The condition of images with a context; None for one of their class
        alone.
      reconstruction: Every metric of the real images, encoded and decoded; or empty.
    """

    def __init__(self, project: Project, models: Models):
        """Makes the references, or reads those of an earlier evaluation.

        Raises:
          ValueError: If they cannot be made, or have too few images.
          DamagedError: If what an earlier evaluation left cannot be read.
        """
        config = self._config = project.config
        section = config.evaluate
        self.models = models
        self.records = Records(project.output / "evaluate")
        split: Split = section.reference_split
        real = functools.cache(lambda split: Real(config, split, section.reference_num))
        self.real: Real = real(split)
        check_counts(section, len(self.real.source))
        folder = self.records.out / "reference"
        # What is refused comes before what takes long.
        sets = feature_sets(config, real, folder)
        self._published = published(config, sets)
        self._judge = Judge(config, real, folder) if section.judge else None
        self.references = make_references(sets, self.real, folder)
        for reference in self.references:
            (metric, value), *_ = reference.real_vs_real.items()
            print(
                f"evaluate: {metric} to {reference.facts['num_images']:,} real images;"
                f" one half of these is at {value:.4g} from the other"
            )
        model = self.models.trained(BASE).model
        self.condition_of = make_condition_of(config, model, split)
        image_bytes = np.asarray(self.real.source[0]["image"]).nbytes
        self._drawing = Drawing(config, models, self.condition_of, image_bytes)
        self.reconstruction = reconstruction(self.references, self.real, folder)
        for metric, value in [*self.reconstruction.items()][:1]:
            print(
                f"evaluate: the real images, encoded and decoded, are at {value:.4g} by"
                f" {metric}"
            )
        self._sets = [reference.features for reference in self.references]
        if self._judge is not None:
            self._sets.append(self._judge.features)

    def rows(self, candidate: Candidate) -> list[Measurement]:
        """The measurements of a candidate, of now or of an earlier evaluation."""
        key = self._key(candidate)
        known = self.records.rows_of(key)
        if parallel.on_all_hosts(bool(known)):
            print(f"evaluate: {candidate} was measured before")
            self._draw_first(candidate, known[0].variance, key)
            return known
        most = self._config.evaluate.num
        variance = self._drawing.best_variance(candidate, self.references[0], most)
        of_seeds = [
            self._of_seed(candidate, variance, seed, key) for seed in self._seeds()
        ]
        self.records.save_images(candidate, key, of_seeds[0].first_images)
        return [
            Measurement(
                **candidate.to_json(),
                evaluations=candidate.evaluations,
                metric=metric,
                **_summary([one.measured[metric] for one in of_seeds]),
                num_images=self._config.evaluate.num,
                seed=self._config.evaluate.seed,
                variance=variance,
                eta=self.models.eta(candidate.role),
                seconds_per_image=self._seconds_per_image(of_seeds),
                batch_size=self._config.sample.batch_size,
                device=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
                key=key,
            )
            for metric in of_seeds[0].measured
        ]

    def finish(self, rows: Sequence[Measurement]) -> None:
        """Puts the rows, and what they were measured with, in place of earlier ones."""
        # The name "floor" stays, for the files that have it.
        facts = [{**each.facts, "floor": each.real_vs_real} for each in self.references]
        if self._judge is not None:
            facts.append(self._judge.facts)
        if self.reconstruction:
            facts.append({"reconstruction": self.reconstruction})
        self.records.finish(rows, facts)

    def _draw_first(
        self, candidate: Candidate, variance: float | None, key: str
    ) -> None:
        """Draws the first images of a candidate again, if their file is not there."""
        if parallel.on_all_hosts(self.records.has_images(candidate, key)):
            return
        numbers = range(min(KEPT_IMAGES, self._config.evaluate.num))
        seed = self._config.evaluate.seed
        name = f"draw {candidate} again"
        with Bar(name, len(numbers), shown=parallel.is_main()) as bar:
            drawn = self._drawing.draw(
                candidate, numbers, seed=seed, variance=variance, bar=bar
            )
        self.records.save_images(candidate, key, drawn.images)

    def _key(self, candidate: Candidate) -> str:
        """A hash that changes with anything that changes the numbers."""
        section, sample = self._config.evaluate, self._config.sample
        fields = {**candidate.to_json(), "w": candidate.w}
        # Rows of before 0.2 have keys without it.
        if fields.get("method") == former_method(candidate.sampler):
            del fields["method"]
        eta = self.models.eta(candidate.role)
        causes = {
            "params": self.models.trained(candidate.role).sha256,
            "candidate": fields,
            "sample": {
                **{name: sample[name] for name in SAMPLING},
                "clip": clip_of(self._config),
                **({"eta": eta} if eta else {}),
            },
            "evaluate": [section.seed, section.repeats, section.num],
            "references": [reference.facts for reference in self.references],
            "published": None if self._published is None else self._published.facts,
            "judge": None if self._judge is None else self._judge.facts,
        }
        if self.condition_of is not None:
            causes["contexts"] = self._sha256_of_contexts
        return hashlib.sha256(json.dumps(causes).encode()).hexdigest()[:16]

    def _seeds(self) -> range:
        first = self._config.evaluate.seed
        return range(first, first + self._config.evaluate.repeats)

    def _of_seed(
        self, candidate: Candidate, variance: float | None, seed: int, key: str
    ) -> _OfSeed:
        """Measures the images of one seed; a part that is on disk is read."""
        num = self._config.evaluate.num
        extractions = {each.name: each.begin(num) for each in self._sets}
        seconds, first_images = [], []
        name = f"evaluate {candidate}, seed {seed}"
        with Bar(name, num, shown=parallel.is_main()) as bar:
            for numbers in self._drawing.in_parts(num):
                path = self.records.path_of_part(key, seed, numbers.start)
                draw_part = functools.partial(
                    self._drawing.draw,
                    candidate,
                    numbers,
                    seed=seed,
                    variance=variance,
                    bar=bar,
                )
                part = _part(path, numbers, extractions, draw_part, bar)
                seconds += part.seconds
                first_images.append(part.first_images)
        whole = {name: extraction.features for name, extraction in extractions.items()}
        return _OfSeed(self._measure(whole), seconds, np.concatenate(first_images))

    def _seconds_per_image(self, of_seeds: list[_OfSeed]) -> float:
        seconds = [second for one in of_seeds for second in one.seconds]
        return seconds_per_image(seconds, self._config.sample.batch_size)

    def _measure(self, features: dict[str, Features]) -> dict[str, Measured]:
        """Every metric on every set of features, which are given by its name."""
        by_metric: dict[str, Measured] = {}
        for reference in self.references:
            name = reference.features.name
            by_metric |= reference.ruler.measure(features[name])
            if name == "inception" and self._published is not None:
                by_metric |= self._published.measure(features[name])
        if self._judge is not None:
            logits = features[self._judge.features.name]
            by_metric |= self._judge.measure(logits, self._asked)
        return by_metric

    @functools.cached_property
    def _sha256_of_contexts(self) -> str:
        """The hash of the contexts of the first images; there must be some."""
        assert self.condition_of is not None
        return _sha256(self.condition_of)

    @functools.cached_property
    def _asked(self) -> np.ndarray:
        """The classes of the images: of the examples that contexts are of, or in turn.

        In turn go the model's classes, of which the judge may know more or fewer.
        """
        num = self._config.evaluate.num
        index = np.arange(num)
        if self.condition_of is None:
            return index % self.models.trained(BASE).model.num_classes
        parts = np.array_split(index, -(-num // LABELS_AT_ONCE))
        labels = [self.condition_of(part).label for part in parts]
        return np.concatenate([np.asarray(each) for each in labels])


def _part(
    path: pathlib.Path,
    numbers: range,
    extractions: dict[str, Extraction],
    draw_part: Callable[[], Drawn],
    bar: Bar,
) -> Part:
    """A part, whose features go to the extractions: from its file, or drawn."""
    kept = parts.read(path) if path.exists() else None
    num = len(numbers)
    # With another batch size a part had other numbers.
    if parallel.on_all_hosts(
        kept is not None and kept.has_features(extractions.keys(), num)
    ):
        assert kept is not None
        for name, extraction in extractions.items():
            extraction.put(kept.features[name])
        bar.update(num)
        return kept
    if parallel.on_all_hosts(kept is not None and kept.has_images(num)):
        assert kept is not None
        assert kept.images is not None
        drawn = Drawn(kept.images, kept.seconds)
        bar.update(num)
    else:
        drawn = draw_part()
    features = {
        name: _extract(drawn.images, name, each) for name, each in extractions.items()
    }
    # A view would keep all of them.
    first_images = drawn.images[: max(0, KEPT_IMAGES - numbers.start)].copy()
    part = Part(features, drawn.seconds, first_images)
    if parallel.is_main():
        parts.write(path, part)
    return part


def _extract(images: np.ndarray, name: str, extraction: Extraction) -> Features:
    shown = parallel.is_main()
    with Bar(f"{name} features", len(images), shown=shown, delay=5.0) as bar:
        return extraction.add(images, bar.update)


def _sha256(condition_of: ConditionOf) -> str:
    """The hash of the contexts of the first images."""
    condition = condition_of(np.arange(LABELS_AT_ONCE))
    digest = hashlib.sha256()
    for part in (condition.context, condition.mask):
        # The bytes of None are its address, another in every process.
        if part is not None:
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]


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
