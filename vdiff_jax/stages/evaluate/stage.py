"""The ladder, measured: base and students, and what one would take instead of them."""

import functools
import hashlib
import json
import pathlib
import shutil
import statistics
import zipfile
from typing import Any

import jax
import numpy as np
import tqdm

from vdiff_jax import parallel
from vdiff_jax.datasets.catalog import Split
from vdiff_jax.evaluation import figures
from vdiff_jax.evaluation.metrics import Measured
from vdiff_jax.files.atomic import replacing, write_json, write_text
from vdiff_jax.files.fingerprints import DamagedError
from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.generation.batches import Drawn, draw, seconds_per_image, start_of_seed
from vdiff_jax.stages.evaluate import page
from vdiff_jax.stages.evaluate.candidates import Candidate, candidates, finished, of_row
from vdiff_jax.stages.evaluate.likelihood import measure_likelihood
from vdiff_jax.stages.evaluate.references import (
    Judge,
    Real,
    Reference,
    feature_sets,
    published,
)
from vdiff_jax.stages.guide import check_can_be_guided
from vdiff_jax.types import Params
from vdiff_jax.workdir import layout as places
from vdiff_jax.workdir.trained import find, load_params

# The variance of the ancestral sampler is chosen among these, for each number of steps,
# as in Salimans & Ho (2022), Sec. 5; on pictures that are not among those measured.
VARIANCES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
TUNING_IMAGES = 1024
TUNING_SEED = 1_000_000
BATCHES_IN_A_PART = 16
# Fields of `sample` that change pictures.
SAMPLING = (
    "clip",
    "guidance_interval",
    "guidance_rescale",
)
KEPT_PICTURES = 64
GRID_COLUMNS = 12

Row = dict[str, Any]


def plan(config: Config, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """What `run` would do."""
    return [
        {
            "stage": "evaluate",
            "folder": str(workdir / "evaluate"),
            "models": [
                {k: v for k, v in found._asdict().items() if v is not None}
                for found in candidates(config)
            ],
            "num": config.evaluate.num,
            "repeats": config.evaluate.repeats,
        }
    ]


def run(config: Config, workdir: pathlib.Path) -> None:
    """Measures all candidates from the same noise; writes tables, figures, the page."""
    base = find(config, workdir, "base", 1)  # which must be there
    if any(config.evaluate.w):
        check_can_be_guided(base.folder)
    chosen = finished(config, workdir)
    places.claim(workdir, config, None)
    bench = _Bench(config, workdir)
    rows: list[Row] = []
    for found in chosen:
        rows += bench.rows(found)
        if parallel.is_main():
            write_json(bench.out / "ladder.json", rows)
    shutil.rmtree(bench.out / "parts", ignore_errors=True)
    likelihood = measure_likelihood(config, workdir)
    _report(bench, rows)
    page.write(config, workdir, rows, bench.references, bench.real, likelihood)
    print(f"evaluate: see {bench.out}/report.html")


def _report(bench: "_Bench", rows: list[Row]) -> None:
    """Tables and figures."""
    out, main = bench.out, bench.references[0]
    print(figures.table(rows))
    if not parallel.is_main():
        return
    write_text(out / "ladder.csv", figures.csv(rows))
    metric = next(row["metric"] for row in rows)
    shown = [row for row in rows if row["metric"] == metric]
    first = [row for row in shown if row.get("w") == shown[0].get("w")]
    figures.ladder_figure(out / "ladder.png", first, floor=main.floor.get(metric))
    by_kind = [row for row in first if row["sampler"] in ("ddim", "stochastic")]
    by_kind.sort(key=lambda row: (row["steps"], row["model"] == "base"))
    _grid(bench, out / "grid.png", by_kind)
    if len(first) < len(shown):
        _report_guidance(bench, rows)


def _report_guidance(bench: "_Bench", rows: list[Row]) -> None:
    """Figures over the strengths: what it costs, and what it looks like."""
    metric = rows[0]["metric"]
    distances = [row for row in rows if row["metric"] == metric]
    scores = [row for row in rows if row["metric"].startswith(("score", "inception_"))]
    if scores:
        figures.trade_off_figure(bench.out / "trade_off.png", distances, scores)
    models = [r for r in distances if r["sampler"] == "ddim" and r["model"] != "guided"]
    reference = models[0]["steps"]
    models = [r for r in models if r["model"] != "base" or r["steps"] == reference]
    models.sort(key=lambda row: (row["w"], -row["steps"]))
    _grid(bench, bench.out / "guidance.png", models)


def _grid(bench: "_Bench", path: pathlib.Path, rows: list[Row]) -> None:
    """A row of pictures for each candidate, all from the same noise."""

    def label(row: Row) -> str:
        name = f"{row['model']}, {row['steps']}"
        name += ", stochastic" if row["sampler"] == "stochastic" else ""
        return name if "w" not in row else f"{name}, w = {row['w']:g}"

    figures.comparison_grid(
        path,
        [np.load(bench.pictures_of(of_row(row)))[:GRID_COLUMNS] for row in rows],
        [label(row) for row in rows],
    )


class _Bench:
    """All that measuring needs, made once.

    Attributes:
      out: The folder.
      real: The pictures to measure against.
      references: One for each set of features; the first is the one for figures.
    """

    def __init__(self, config: Config, workdir: pathlib.Path):
        spec = config.evaluate
        self._config, self._workdir = config, workdir
        self.out = workdir / "evaluate"
        path = self.out / "ladder.json"
        self._before = json.loads(path.read_text()) if path.exists() else []
        split: Split = spec.reference_split
        real = functools.cache(lambda split: Real(config, split, spec.reference_num))
        self.real: Real = real(split)
        folder = self.out / "reference"
        self.references = [
            Reference(made, self.real, folder)
            for made in feature_sets(config, real, folder)
        ]
        self._published = published(config, self.references)
        facts = [{**made.facts, "floor": made.floor} for made in self.references]
        self._sampler = functools.cache(
            lambda name, guided: make_sampler(
                config, make_model(config, guided=guided), name
            )
        )
        self._params = functools.lru_cache(maxsize=1)(
            lambda folder, guided: load_params(
                make_model(config, guided=guided), folder
            )
        )
        self._judge = None
        if config.evaluate.judge:
            self._judge = Judge(real, folder)
            facts.append(self._judge.facts)
        if parallel.is_main():
            write_json(self.out / "reference.json", facts)
        for made in self.references:
            (metric, value), *_ = made.floor.items()
            print(
                f"evaluate: {metric} to {made.facts['num_images']:,} real pictures; one"
                f" half of these is at {value:.4g} from the other"
            )

    def rows(self, found: Candidate) -> list[Row]:
        """The candidate's rows of the table, measured now or before."""
        key = self._key(found)
        known = [row for row in self._before if row.get("key") == key]
        if parallel.on_all_hosts(bool(known) and self.pictures_of(found).exists()):
            print(f"evaluate: {found} was measured before")
            return known
        folder, takes_w = self._found(found)
        params = self._params(folder, takes_w)
        variance = self._variance(found, params)
        drawn = [
            self._drawn(found, params, variance, seed, key) for seed in self._seeds()
        ]
        if parallel.is_main():
            self.pictures_of(found).parent.mkdir(parents=True, exist_ok=True)
            np.save(self.pictures_of(found), drawn[0].images[:KEPT_PICTURES])
        measured = [self._measure(images) for images, _ in drawn]
        seconds = self._seconds_per_image(drawn)
        return [
            {
                **{k: v for k, v in found._asdict().items() if v is not None},
                "evaluations": found.evaluations,
                "metric": metric,
                **_summary([one[metric] for one in measured]),
                "num_images": self._config.evaluate.num,
                "seed": self._config.evaluate.seed,
                "variance": variance,
                "seconds_per_image": seconds,
                "batch_size": self._config.sample.batch_size,
                "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
                "key": key,
            }
            for metric in measured[0]
        ]

    def pictures_of(self, found: Candidate) -> pathlib.Path:
        """Where the first pictures of a candidate are kept."""
        return self.out / "pictures" / f"{found}.npy"

    def _key(self, found: Candidate) -> str:
        """Changes with anything that changes the numbers."""
        sample = {name: self._config.sample[name] for name in SAMPLING}
        spec = self._config.evaluate
        folder, _ = self._found(found)
        said = {
            "params": (places.result(folder) or {})["params_sha256"],
            "candidate": found._asdict(),
            "sample": sample,
            "evaluate": [spec.seed, spec.repeats, spec.num],
            "references": [made.facts for made in self.references],
            "published": None if self._published is None else self._published.facts,
            "judge": None if self._judge is None else self._judge.facts,
        }
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]

    def _found(self, found: Candidate) -> tuple[pathlib.Path, bool]:
        """The folder of a candidate, and whether its network takes w."""
        made = find(self._config, self._workdir, found.model, found.steps, found.ladder)
        return made.folder, made.model.w_range is not None

    def _seeds(self) -> range:
        first = self._config.evaluate.seed
        return range(first, first + self._config.evaluate.repeats)

    def _drawn(
        self,
        found: Candidate,
        params: Params,
        variance: float | None,
        seed: int,
        key: str,
    ) -> Drawn:
        """The pictures of one seed, part by part; a part that is on disk is read."""
        num, batch_size = self._config.evaluate.num, self._config.sample.batch_size
        sampler = self._sampler(found.sampler, self._found(found)[1])
        folder, size = self.out / "parts" / key, batch_size * BATCHES_IN_A_PART
        images, seconds = [], []
        with _bar(f"evaluate {found}, seed {seed}", num) as bar:
            for first in range(0, num, size):
                path = folder / f"{seed}-{first:08d}.npz"
                if parallel.on_all_hosts(path.exists()):
                    part = _read(path)
                    bar.update(len(part.images))
                else:
                    part = draw(
                        sampler,
                        params,
                        range(first, min(first + size, num)),
                        num_steps=found.steps,
                        batch_size=batch_size,
                        start_of=start_of_seed(sampler, seed),
                        variance=variance,
                        w=found.asked_w,
                        advance=bar.update,
                    )
                    _keep(path, part)
                images.append(part.images)
                seconds += part.seconds
        return Drawn(np.concatenate(images), seconds)

    def _seconds_per_image(self, drawn: list[Drawn]) -> float:
        seconds = [second for one in drawn for second in one.seconds]
        return seconds_per_image(seconds, self._config.sample.batch_size)

    def _variance(self, found: Candidate, params: Params) -> float | None:
        """The best of `VARIANCES` for the ancestral sampler, by the first reference."""
        if found.sampler != "ancestral":
            return None
        sampler = self._sampler(found.sampler, self._found(found)[1])
        reference = self.references[0]
        distances, num = {}, min(TUNING_IMAGES, self._config.evaluate.num)
        for variance in VARIANCES:
            with _bar(f"tune {found}, variance medium:{variance}", num) as bar:
                images = draw(
                    sampler,
                    params,
                    range(num),
                    num_steps=found.steps,
                    batch_size=self._config.sample.batch_size,
                    start_of=start_of_seed(sampler, TUNING_SEED),
                    variance=variance,
                    w=found.asked_w,
                    advance=bar.update,
                ).images
            distances[variance] = reference.ruler.distance(
                reference.features.extract(images)
            )
        return min(distances, key=distances.__getitem__)

    def _measure(self, images: np.ndarray) -> dict[str, Measured]:
        """Every metric on every set of features."""
        found: dict[str, Measured] = {}
        for made in self.references:
            features = made.features.extract(images)
            found |= made.ruler.measure(features)
            if made.features.name == "inception" and self._published is not None:
                found |= self._published.measure(features)
        if self._judge is not None:
            found |= self._judge.measure(images)
        return found


def _summary(measured: list[Measured]) -> Row:
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


def _bar(name: str, total: int) -> tqdm.tqdm:
    return tqdm.tqdm(
        desc=name,
        total=total,
        unit=" images",
        dynamic_ncols=True,
        disable=not parallel.is_main(),
    )


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
