"""The images of candidates, drawn part after part from the same noise."""

from collections.abc import Iterator

from vdiff_jax import parallel
from vdiff_jax.from_config.choices import Config
from vdiff_jax.generation.batches import (
    BATCHES_IN_A_PART,
    MOST_BYTES_IN_A_PART,
    Drawn,
    draw,
    in_parts,
    start_of_seed,
)
from vdiff_jax.generation.conditions import ConditionOf
from vdiff_jax.generation.sampler import request
from vdiff_jax.progress import Bar
from vdiff_jax.stages.evaluate.candidates import Candidate
from vdiff_jax.stages.evaluate.models import Models
from vdiff_jax.stages.evaluate.references import Reference

# The variance of the ancestral sampler is chosen among these, for each number of steps,
# as in Salimans & Ho (2022), Sec. 5; on images that are not among those measured.
VARIANCES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
TUNING_IMAGES = 1024
TUNING_SEED = 1_000_000


class Drawing:
    """Draws images of candidates."""

    def __init__(
        self,
        config: Config,
        models: Models,
        condition_of: ConditionOf | None,
        image_bytes: int,
    ):
        """Draws nothing yet.

        Args:
          config: Of which `sample` has the batch size.
          models: The models of the candidates.
          condition_of: The condition of images with a context; None for one of their
            class alone.
          image_bytes: The size of an image.
        """
        self._models, self._condition_of = models, condition_of
        self._batch_size: int = config.sample.batch_size
        self._image_bytes = image_bytes

    def in_parts(self, num: int) -> list[range]:
        """The numbers of so many images, in parts of whole batches."""
        return in_parts(
            num,
            self._batch_size,
            self._image_bytes,
            most_batches=BATCHES_IN_A_PART,
            most_bytes=MOST_BYTES_IN_A_PART,
        )

    def draw(
        self,
        candidate: Candidate,
        numbers: range,
        *,
        seed: int,
        variance: float | None,
        bar: Bar,
    ) -> Drawn:
        """Draws the images of these numbers.

        Args:
          candidate: What draws them.
          numbers: Of the images.
          seed: Of their noise.
          variance: Of the ancestral sampler, in [0, 1]; None for others.
          bar: Shows how far it is.
        """
        sampler = self._models.sampler(candidate.role, candidate.sampler)
        return draw(
            sampler,
            self._models.params(candidate.role),
            numbers,
            request=request(candidate.steps, w=candidate.asked_w, variance=variance),
            batch_size=self._batch_size,
            start_of=start_of_seed(sampler, seed, self._condition_of),
            advance=bar.update,
        )

    def best_variance(
        self, candidate: Candidate, reference: Reference, most: int
    ) -> float | None:
        """The best of `VARIANCES` for the ancestral sampler; None for others.

        Args:
          candidate: What draws.
          reference: By which the images are measured.
          most: At most so many images are drawn for each.
        """
        if candidate.sampler != "ancestral":
            return None
        num, distances = min(TUNING_IMAGES, most), {}
        for variance in VARIANCES:
            extraction = reference.features.begin(num)
            for drawn in self._drawn_to_tune(candidate, variance, num):
                extraction.add(drawn.images)
            distances[variance] = reference.ruler.distance(extraction.features)
        return min(distances, key=distances.__getitem__)

    def _drawn_to_tune(
        self, candidate: Candidate, variance: float, num: int
    ) -> Iterator[Drawn]:
        name = f"tune {candidate}, variance medium:{variance}"
        with Bar(name, num, shown=parallel.is_main()) as bar:
            for numbers in self.in_parts(num):
                yield self.draw(
                    candidate, numbers, seed=TUNING_SEED, variance=variance, bar=bar
                )
