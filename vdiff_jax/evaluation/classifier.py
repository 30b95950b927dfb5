"""Features of a small classifier that is trained on the data themselves.

They need no download and suit data that look nothing like ImageNet. What it is and how
long it is trained follow the data; `classifier_nets` has the networks. The distance on
them is called `frechet_classifier`; it is not FID, and compares only with itself.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from vdiff_jax.datasets.reader import Reader
from vdiff_jax.evaluation.classifier_nets import (
    Classifier,
    FoldingJudge,
    Judge,
    ResidualClassifier,
    apply,
    judge,
    moved,
)
from vdiff_jax.files.fingerprints import params_sha256
from vdiff_jax.types import Params

Kind: TypeAlias = Literal["classifier", "judge"]
LOGITS: dict[Kind, Callable[[Params, Array], Array]] = {
    "classifier": lambda params, images: apply(params, images)[2],
    "judge": judge,
}

BATCH_SIZE = 128
NUM_UPDATES = 600  # for images of at most SMALL_PIXELS a side, and at least for others
SMALL_PIXELS = 16
PASSES = 12  # over photographs
MOST_UPDATES = 20_000
WIDE_FROM = 20_000  # images that are enough for the wider network
MOST_PIXELS = 2**22  # of a batch of held-out images


class Trained(NamedTuple):
    """A classifier after training.

    Attributes:
      params: Parameters of the network.
      accuracy: Share of the held-out data that it classifies rightly, in [0, 1].
      sha256: Fingerprint of the parameters.
    """

    params: Params
    accuracy: float
    sha256: str

    @property
    def facts(self) -> dict[str, Any]:
        """Accuracy and fingerprint, for a report."""
        return {
            "held_out_accuracy": round(self.accuracy, 4),
            "params_sha256": self.sha256[:16],
        }


class Plan(NamedTuple):
    """How a classifier is trained, as it suits the data.

    Attributes:
      num_updates: Updates, each of 128 images.
      width: Channels of `ResidualClassifier`; 0 for the small `Classifier`.
      flip: Whether half of the images are mirrored.
    """

    num_updates: int
    width: int
    flip: bool

    @classmethod
    def of(cls, examples: Reader, *, flip: bool) -> "Plan":
        """The plan for these data; what is small or scarce takes less.

        Args:
          examples: Training images and their classes.
          flip: Whether a mirrored photograph is one of its class.
        """
        if np.shape(examples.source[0]["image"])[0] <= SMALL_PIXELS:
            return cls(NUM_UPDATES, width=0, flip=False)
        num = len(examples)
        updates = max(NUM_UPDATES, min(PASSES * num // BATCH_SIZE, MOST_UPDATES))
        return cls(updates, width=32 if num >= WIDE_FROM else 16, flip=flip)

    def optimizer(self) -> optax.GradientTransformation:
        """Adam, with decay and a warm-up for photographs."""
        if not self.width:
            return optax.adam(optax.cosine_decay_schedule(2e-3, self.num_updates))
        rate = optax.cosine_onecycle_schedule(self.num_updates, 3e-3, 0.2)
        return optax.adamw(rate, weight_decay=0.02)


def train(
    examples: Reader,
    held_out: Reader,
    *,
    kind: Kind = "classifier",
    seed: int = 0,
    flip: bool = False,
    advance: Callable[[int], None] = lambda updates: None,
) -> Trained:
    """Trains with a fixed seed: the same data give the same features.

    Args:
      examples: Training images and their classes, read batch after batch.
      held_out: Those on which the accuracy is measured.
      kind: The network that gives features, or the judge.
      seed: Seed of the initialisation and the order.
      flip: Whether a mirrored photograph is one of its class.
      advance: Called with the number of updates that were made since the last call.

    Raises:
      ValueError: If the images are all of one class.
    """
    labels = examples.labels
    if labels.max() == labels.min():
        raise ValueError(
            "Classifier features need labelled data of at least two classes; these have"
            " one. Leave the evaluate stage out."
        )
    plan = Plan.of(examples, flip=flip)
    net = _network(kind, int(labels.max()) + 1, plan.width)
    logits_of = LOGITS[kind]
    # On one device: the sums of a small network are not worth their communication.
    shape = np.shape(examples.source[0]["image"])
    params = jax.jit(net.init)(jax.random.key(seed), jnp.zeros((1, *shape)))
    optimizer = plan.optimizer()

    def loss(params: Params, image: Array, label: Array) -> Array:
        logits = logits_of(params, image)
        if not plan.width:
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
        target = optax.smooth_labels(jax.nn.one_hot(label, logits.shape[1]), 0.05)
        return optax.softmax_cross_entropy(logits, target).mean()

    @jax.jit
    def update(
        params: Params,
        opt_state: optax.OptState,
        key: jax.Array,
        image: Array,
        label: Array,
    ) -> tuple[Params, optax.OptState]:
        if plan.width:
            image = moved(key, image, flip=plan.flip)
        grads = jax.grad(loss)(params, image, label)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state = optimizer.init(params)
    order = _order(plan, len(examples), seed)
    for step, batch in enumerate(examples.batches(order)):
        key = jax.random.fold_in(jax.random.key(seed), step)
        params, opt_state = update(
            params, opt_state, key, batch["image"], batch["label"]
        )
        jax.block_until_ready(params)  # what is only queued is not made
        advance(1)
    predict = jax.jit(lambda image: logits_of(params, image).argmax(axis=1))
    return Trained(
        params=jax.tree.map(np.asarray, params),
        accuracy=_accuracy(predict, held_out),
        sha256=params_sha256(params),
    )


def _network(kind: Kind, num_classes: int, width: int) -> nn.Module:
    if kind == "judge":
        judge = FoldingJudge if width else Judge
        return judge(num_classes=num_classes)
    if not width:
        return Classifier(num_classes=num_classes)
    return ResidualClassifier(num_classes=num_classes, width=width)


def _order(plan: Plan, num: int, seed: int) -> np.ndarray:
    """The images of each update, [num_updates, batch]."""
    rng = np.random.default_rng(seed)
    if not plan.width:
        return rng.integers(num, size=(plan.num_updates, BATCH_SIZE))
    passes = -(-plan.num_updates * BATCH_SIZE // num)
    order = np.concatenate([rng.permutation(num) for _ in range(passes)])
    return order[: plan.num_updates * BATCH_SIZE].reshape(-1, BATCH_SIZE)


def _accuracy(predict: Callable[[Any], Array], held_out: Reader) -> float:
    """The share of images whose class is predicted."""
    height, width, _ = np.shape(held_out.source[0]["image"])
    most = max(1, min(1024, MOST_PIXELS // (height * width)))
    parts = np.array_split(np.arange(len(held_out)), -(-len(held_out) // most))
    right = [
        np.asarray(predict(batch["image"])) == batch["label"]
        for batch in held_out.batches(parts)
    ]
    return float(np.concatenate(right).mean())
