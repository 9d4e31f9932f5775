import json

import numpy as np
import pytest
from sklearn.metrics import classification_report, confusion_matrix

from fer_jax import metrics, report

NAMES = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]


def history(epochs: int, seed: int = 0) -> list[dict[str, float]]:
    rng = np.random.default_rng(seed)
    keys = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")
    return [{"epoch": e, **{key: float(rng.random()) for key in keys}} for e in range(epochs + 1)]


def test_convergence_rate_of_an_example_by_hand():
    # differences 0.2, 0.1, -0.06: sum 0.24 over 3 epochs
    assert metrics.convergence_rate([0.1, 0.3, 0.4, 0.34], 0, 3) == pytest.approx(0.08)
    assert metrics.convergence_rate([0.1, 0.3, 0.4, 0.34], 1, 3) == pytest.approx(0.02)


def test_overfitting_rate_of_an_example_by_hand():
    # gaps -0.1, 0.0, 0.1, 0.2: they open by 0.1 an epoch
    assert metrics.overfitting_rate([0.1, 0.3, 0.5, 0.7], [0.2, 0.3, 0.4, 0.5], 0, 3) == pytest.approx(0.1)


def test_rates_equal_the_papers_sums():
    rows = history(20)
    train, val = [r["train_loss"] for r in rows], [r["val_loss"] for r in rows]
    for first, last in [(0, 20), (1, 20), (0, 5), (15, 20)]:
        steps = range(first + 1, last + 1)
        mcr = sum(train[i] - train[i - 1] for i in steps) / len(steps)
        mofr = sum((train[i] - val[i]) - (train[i - 1] - val[i - 1]) for i in steps) / len(steps)
        assert metrics.convergence_rate(train, first, last) == pytest.approx(mcr, abs=1e-12)
        assert metrics.overfitting_rate(train, val, first, last) == pytest.approx(mofr, abs=1e-12)


@pytest.mark.parametrize(("first", "last"), [(0, 4), (2, 2), (3, 1), (-1, 2)])
def test_a_span_outside_the_history_is_refused(first, last):
    with pytest.raises(ValueError, match="no span"):
        metrics.convergence_rate([0.0, 1.0, 2.0, 3.0], first, last)


def test_train_and_validation_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        metrics.overfitting_rate([0.0, 1.0, 2.0], [0.0, 1.0], 0, 1)


def test_rates_name_every_span_of_a_run_of_twenty_epochs():
    rows = history(20)
    result = metrics.rates(rows)
    spans = {
        "from_epoch_0": (0, 20),
        "from_epoch_1": (1, 20),
        "epochs_1_5": (0, 5),
        "epochs_6_10": (5, 10),
        "epochs_11_15": (10, 15),
        "epochs_16_20": (15, 20),
    }
    for metric in ("accuracy", "loss"):
        train, val = [r[f"train_{metric}"] for r in rows], [r[f"val_{metric}"] for r in rows]
        assert result["mcr"][metric] == {k: metrics.convergence_rate(train, *s) for k, s in spans.items()}
        assert result["mofr"][metric] == {
            k: metrics.overfitting_rate(train, val, *s) for k, s in spans.items()
        }
    assert result["initial"] == {key: rows[1][key] for key in result["initial"]}
    assert set(result["initial"]) == {"train_accuracy", "val_accuracy", "train_loss", "val_loss"}


@pytest.mark.parametrize(
    ("epochs", "names"),
    [
        (0, []),
        (1, ["from_epoch_0", "epochs_1_1"]),
        (7, ["from_epoch_0", "from_epoch_1", "epochs_1_5", "epochs_6_7"]),
    ],
)
def test_rates_go_as_far_as_the_run(epochs, names):
    result = metrics.rates(history(epochs))
    assert list(result["mcr"]["loss"]) == names
    assert list(result["mofr"]["accuracy"]) == names
    assert bool(result["initial"]) == (epochs > 0)


@pytest.mark.parametrize("rows", [[], history(3)[1:], history(3)[::2], history(3)[::-1]])
def test_a_history_with_gaps_is_refused(rows):
    with pytest.raises(ValueError, match="without gaps"):
        metrics.rates(rows)


def test_classification_equals_scikit_learn_and_survives_json():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 500)
    predictions = np.where(rng.random(500) < 0.6, labels, rng.integers(0, 7, 500))
    result = metrics.classification(labels, predictions, NAMES)
    expected = classification_report(labels, predictions, target_names=NAMES, output_dict=True)
    assert result["accuracy"] == pytest.approx(expected["accuracy"])
    assert result["macro_f1"] == pytest.approx(expected["macro avg"]["f1-score"])
    for name in NAMES:
        row = result["per_class"][name]
        assert row["precision"] == pytest.approx(expected[name]["precision"])
        assert row["recall"] == pytest.approx(expected[name]["recall"])
        assert row["f1"] == pytest.approx(expected[name]["f1-score"])
        assert row["support"] == expected[name]["support"]
    assert result["confusion"] == confusion_matrix(labels, predictions).tolist()
    assert not result["degenerate"]
    assert json.loads(json.dumps(result)) == result


def test_rows_of_the_confusion_matrix_are_the_true_classes():
    result = metrics.classification([0, 0, 1], [1, 1, 1], ["a", "b"])
    assert result["confusion"] == [[0, 2], [0, 1]]


def test_where_no_prediction_is_right_images_are_still_counted_in_integers():
    result = metrics.classification([0, 0, 1], [1, 2, 0], ["a", "b", "c"])
    supports = [row["support"] for row in result["per_class"].values()]
    assert supports == [2, 1, 0]
    assert all(type(support) is int for support in supports)
    assert result["accuracy"] == result["macro_f1"] == 0.0
    assert "     2" in report.class_table(result)


def test_one_predicted_class_is_degenerate_and_missing_classes_count_as_zero():
    result = metrics.classification([0, 1, 1, 3], [3, 3, 3, 3], NAMES)
    assert result["degenerate"] is True
    assert result["accuracy"] == 0.25
    assert result["per_class"]["neutral"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert result["macro_f1"] == pytest.approx(0.4 / 7)  # happy: precision 1/4, recall 1


@pytest.mark.parametrize(
    ("labels", "predictions", "named"),
    [
        ([], [], "one length"),
        ([0, 1], [0], "one length"),
        ([0, 2], [0, 1], "from 0 to 1"),
        ([0], [-1], "from 0"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, predictions, named):
    with pytest.raises(ValueError, match=named):
        metrics.classification(labels, predictions, ["a", "b"])
