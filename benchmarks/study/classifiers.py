"""Classifiers that are no neural networks, on the embeddings of a backbone before any further training."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from fer_jax import compilation, initialisation, metrics
from fer_jax.data.splits import Split
from fer_jax.forward import hoist_frozen_part
from fer_jax.models.classifier import POOLINGS, Classifier

# What is tried on validation, by classifier: the grid of one hyperparameter each.
GRIDS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "logistic regression": ("C", (0.001, 0.01, 0.1, 1.0)),
    "linear SVM": ("C", (0.0001, 0.001, 0.01)),
    "k nearest neighbours": ("n_neighbors", (1, 5, 20, 80)),
    "random forest": ("max_depth", (10, 20, 40, 80)),
}


class Pool(nn.Module):
    """In place of a head: the features pooled or flattened, [N, features]."""

    pooling: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return POOLINGS[self.pooling]("pool")(x)


def embeddings(config: Any, faces: np.ndarray, classes: int) -> np.ndarray:
    """The pooled output of the backbone as it is before training, float32 [N, features].

    It starts from the features that the run with this configuration has left in the cache.

    Args:
      config: of a run whose frozen part is computed once an image.
      faces: uint8 [N, H, W] or [N, H, W, 3], the whole data set of that run.
    """
    init = initialisation.choose(config)
    model, learning = initialisation.build_classifier(config, init, classes)
    variables = initialisation.initial_variables(config, init, model)
    bare: Any = Classifier(model.backbone, Pool(model.head.pooling))  # type: ignore[arg-type]
    params = {"backbone": variables["params"]["backbone"], "head": {}}
    stats = {"backbone": variables["batch_stats"]["backbone"], "head": {}}
    hoisted = hoist_frozen_part(config, bare, params, stats, learning, faces)
    pool = functools.partial(compilation.jit(hoisted.forward), *hoisted.tail(params, stats))
    size = config.eval_batch_size
    blocks = []
    for start in range(0, len(faces), size):
        rows = np.arange(start, start + size) % len(faces)  # the last batch is filled up from the front
        blocks.append(np.asarray(pool(tuple(array[rows] for array in hoisted.inputs))[0]))
    return np.concatenate(blocks)[: len(faces)]


def evaluate(
    features: np.ndarray,
    labels: np.ndarray,
    split: Split,
    names: tuple[str, ...],
    seed: int,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, dict[str, Any]]:
    """Fits every classifier of `GRIDS` on train, chooses its hyperparameter on validation, tests it.

    Features are standardised by the mean and deviation of train.

    Args:
      features: float32 [N, features], of all rows.
      labels: int [N].
      names: of the classes.
      seed: `random_state` where there is one.
      tell: gets a line before each fit.

    Returns:
      by classifier: the hyperparameter chosen and those tried, validation accuracy, test accuracy and macro
      F1.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features[split.train])
    x = {part: scaler.transform(features[rows]) for part, rows in split.parts.items()}
    y = {part: labels[rows] for part, rows in split.parts.items()}
    results: dict[str, dict[str, Any]] = {}
    for name, (parameter, grid) in GRIDS.items():
        if parameter == "n_neighbors":
            grid = tuple(value for value in grid if value <= len(x["train"]))
        fitted = []
        for value in grid:
            tell(f"{name}, {parameter} {value}")
            model = _make(name, seed).set_params(**{parameter: value}).fit(x["train"], y["train"])
            fitted.append((float(model.score(x["validation"], y["validation"])), value, model))
        accuracy, value, model = max(fitted, key=lambda entry: entry[0])
        test = metrics.classification(y["test"], model.predict(x["test"]), names)
        results[name] = {
            parameter: value,
            "tried": list(grid),
            "val_accuracy": accuracy,
            "test_accuracy": test["accuracy"],
            "test_macro_f1": test["macro_f1"],
        }
    return results


def _make(name: str, seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import LinearSVC

    return {
        "logistic regression": LogisticRegression(max_iter=200),
        "linear SVM": LinearSVC(dual=False, max_iter=200),
        "k nearest neighbours": KNeighborsClassifier(n_jobs=-1),
        "random forest": RandomForestClassifier(100, random_state=seed, n_jobs=-1),
    }[name]
