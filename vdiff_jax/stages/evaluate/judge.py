"""The judge of an evaluation: whether images are of the class that was asked for."""

import pathlib
from collections.abc import Callable

import numpy as np

from vdiff_jax.datasets.catalog import Split
from vdiff_jax.evaluation import features
from vdiff_jax.evaluation.features import Features
from vdiff_jax.evaluation.metrics import Measured
from vdiff_jax.from_config.choices import Config
from vdiff_jax.stages.evaluate.feature_sets import NotToBeHadError, trained_classifier
from vdiff_jax.stages.evaluate.references import Real


class Judge:
    """Measures how many images are of the class that was asked for.

    Attributes:
      features: Its logits of images, as a set of features.
      facts: The classifier, which is not the one of the features.
    """

    def __init__(
        self, config: Config, real: Callable[[Split], Real], folder: pathlib.Path
    ):
        """Reads the classifier from `folder`, or trains it.

        Raises:
          ValueError: If the data have no classes.
        """
        try:
            trained = trained_classifier(config, real, folder, "judge")
        except NotToBeHadError as error:
            raise ValueError(f"evaluate.judge=True: {error}") from error
        self.features = features.of_judge(trained)
        self.facts = {"features": "judge", **self.features.facts}

    def measure(self, features: Features, asked: np.ndarray) -> dict[str, Measured]:
        """The share of images that it takes for the class they should be of.

        Args:
          features: Its logits of the images.
          asked: The class of each.
        """
        guess = features.logits.argmax(axis=1)
        return {"accuracy_judge": Measured(float((guess == asked).mean()), None)}
