"""Numbers that sum up a run: rates of convergence and overfitting, and the quality of the predictions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

METRICS = ("accuracy", "loss")
WINDOW = 5  # epochs; the paper reads its metrics every five


def convergence_rate(train: Sequence[float], first: int, last: int) -> float:
    """The paper's mean convergence rate (MCR): how fast the training metric moves, a step of one epoch.

    (1/n) sum over epochs i = first+1..last of (train[i] - train[i-1]), with n = last - first. The sum
    telescopes, so this is (train[last] - train[first]) / n.

    Args:
      train: the metric on the training set, indexed by epoch from epoch 0.
      first: the epoch that the first difference starts from.
      last: the last epoch.

    Raises:
      ValueError: not 0 <= first < last < len(train).
    """
    if not 0 <= first < last < len(train):
        raise ValueError(
            f"epochs {first} to {last} are no span of a history with epochs 0 to {len(train) - 1}"
        )
    return (float(train[last]) - float(train[first])) / (last - first)


def overfitting_rate(train: Sequence[float], val: Sequence[float], first: int, last: int) -> float:
    """The paper's mean overfitting rate (MOFR): how fast the gap between train and validation opens.

    (1/n) sum over epochs i = first+1..last of ((train[i] - val[i]) - (train[i-1] - val[i-1])).

    Args:
      train: the metric on the training set, indexed by epoch from epoch 0.
      val: the metric on the validation set, as long.
      first: the epoch that the first difference starts from.
      last: the last epoch.

    Raises:
      ValueError: not 0 <= first < last < len(train), or the lengths differ.
    """
    gap = [float(t) - float(v) for t, v in zip(train, val, strict=True)]
    return convergence_rate(gap, first, last)


def rates(history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Initial values, MCR and MOFR of a run, for accuracy and for loss.

    Args:
      history: a row an epoch, from epoch 0 without gaps, with the keys epoch, train_loss, train_accuracy,
        val_loss and val_accuracy (others are ignored).

    Returns:
      `{"initial": {"train_accuracy": …, "val_accuracy": …, "train_loss": …, "val_loss": …},
      "mcr": {"accuracy": spans, "loss": spans}, "mofr": {"accuracy": spans, "loss": spans}}`.
      Initial means after epoch 1. `spans` gives the rate by name: `from_epoch_0` and `from_epoch_1`, both to
      the last epoch, and a window for every five epochs, `epochs_1_5`, `epochs_6_10`, … as far as the run
      goes (a last, shorter one is named by the epochs it has). A window starts from the epoch before it: 1-5
      is the change from epoch 0 to epoch 5, over 5. What a run is too short for is left out.

    Raises:
      ValueError: the epochs are not 0, 1, 2, …
    """
    epochs = [int(row["epoch"]) for row in history]
    if not epochs or epochs != list(range(len(epochs))):
        raise ValueError(f"a history has the epochs 0, 1, 2, … without gaps, not {epochs}")
    final = epochs[-1]
    over = spans(final)
    result: dict[str, Any] = {"initial": {}, "mcr": {}, "mofr": {}}
    for metric in METRICS:
        train = [float(row[f"train_{metric}"]) for row in history]
        val = [float(row[f"val_{metric}"]) for row in history]
        if final >= 1:
            result["initial"] |= {f"train_{metric}": train[1], f"val_{metric}": val[1]}
        result["mcr"][metric] = {name: convergence_rate(train, *span) for name, span in over.items()}
        result["mofr"][metric] = {name: overfitting_rate(train, val, *span) for name, span in over.items()}
    return result


def spans(final: int) -> dict[str, tuple[int, int]]:
    """First and last epoch of the spans that `rates` names, of a run that ends with epoch `final`."""
    found = {f"from_epoch_{first}": (first, final) for first in (0, 1) if first < final}
    for first in range(0, final, WINDOW):
        last = min(first + WINDOW, final)
        found[f"epochs_{first + 1}_{last}"] = (first, last)
    return found


def mean_and_std(runs: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Mean and sample standard deviation of every number in nested dicts of the same keys.

    What is no number (a list, a name, a truth value) is left out. The deviation of a single run is NaN.
    """
    mean: dict[str, Any] = {}
    std: dict[str, Any] = {}
    for key, first in runs[0].items():
        values = [run[key] for run in runs]
        if isinstance(first, Mapping):
            mean[key], std[key] = mean_and_std(values)
        elif isinstance(first, int | float) and not isinstance(first, bool):
            mean[key] = float(np.mean(values))
            std[key] = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return mean, std


def classification(labels: ArrayLike, predictions: ArrayLike, class_names: Sequence[str]) -> dict[str, Any]:
    """Quality of predicted classes, by scikit-learn, in plain Python types.

    Args:
      labels: true classes, integers [N] in 0..C-1.
      predictions: predicted classes, integers [N].
      class_names: the C names.

    Returns:
      `accuracy`, `macro_f1`, `per_class` (name → precision, recall, f1, support), `class_names`, `confusion`
      (C lists of C counts; rows are true classes, columns predicted ones) and `degenerate`: whether a single
      class is predicted for everything. A ratio with nothing below the line (a class that is never
      predicted, or never there) is 0, and macro F1 is the mean over all C classes, those included.

    Raises:
      ValueError: no labels, lengths that differ, or a class outside 0..C-1.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    true, predicted = np.asarray(labels), np.asarray(predictions)
    classes = range(len(class_names))
    if true.ndim != 1 or true.shape != predicted.shape or not len(true):
        raise ValueError(f"labels {true.shape} and predictions {predicted.shape} must be lists of one length")
    if not np.isin([true, predicted], classes).all():
        raise ValueError(f"classes must be integers from 0 to {len(class_names) - 1}")
    columns = precision_recall_fscore_support(true, predicted, labels=classes, zero_division=0)
    names = ("precision", "recall", "f1", "support")
    table = {name: column.tolist() for name, column in zip(names, columns, strict=True)}
    table["support"] = [int(count) for count in table["support"]]  # floats where no prediction is right
    return {
        "accuracy": float(np.mean(true == predicted)),
        "macro_f1": float(np.mean(table["f1"])),
        "per_class": {label: {name: table[name][i] for name in names} for i, label in enumerate(class_names)},
        "class_names": list(class_names),
        "confusion": confusion_matrix(true, predicted, labels=classes).tolist(),
        "degenerate": len(np.unique(predicted)) == 1,
    }
