"""The finished cells of a directory: a small JSON file each, which `run_cell.run` writes."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.study import cells, shape
from fer_jax import metrics
from fer_jax.data import splits
from fer_jax.errors import InputError

ABSENT = "absent.json"  # beside them, the cells without a result
_RATES = {"accuracy": {shape.ANY: shape.NUMBER}, "loss": {shape.ANY: shape.NUMBER_OR_NULL}}
_CLASSIFIER = {
    **dict.fromkeys(("val_accuracy", "test_accuracy", "test_macro_f1"), shape.SHARE),
    "tried": shape.Maybe([shape.NUMBER]),
}
# What the report, the claims and the identification read.
_RESULT = {
    "readings": {shape.ANY: shape.TEXT},
    "init": {"weights": shape.FIELDS_OR_NULL},
    "data": {
        "kind": shape.one_of(("csv", "icml", "folders", "own", "drawn")),
        "sha256": shape.WORDS,
        "notes": shape.Maybe([shape.TEXT]),
    },
    "split": {"sha256_of_int64_indices": dict.fromkeys(splits.PARTS, shape.TEXT)},
    "git_revision": shape.TEXT_OR_NULL,
    "earlier_revisions": shape.Maybe([shape.TEXT_OR_NULL]),
    "versions": shape.FIELDS,
    "device": {"kind": shape.TEXT, "cpu_cores": shape.whole(1)},
    "model": {
        "backbone_parameters": shape.whole(0),
        "backbone_parameters_that_learn": shape.whole(0),
        "initial_feature_rms": shape.Maybe(shape.NUMBER_OR_NULL),
    },
    "mcr": _RATES,
    "mofr": _RATES,
    "final": {"train_accuracy": shape.SHARE, "val_accuracy": shape.SHARE},
    "test": {
        "accuracy": shape.SHARE,
        "macro_f1": shape.SHARE,
        "class_names": [shape.TEXT],
        "per_class": {shape.ANY: {"recall": shape.SHARE}},
        "confusion": [[shape.whole(0)]],
        "degenerate": shape.TRUTH,
    },
    "test_without_duplicates": shape.Maybe({"accuracy": shape.SHARE, "macro_f1": shape.SHARE}),
    "history": [
        {
            "epoch": shape.NUMBER,
            **dict.fromkeys(("train_accuracy", "val_accuracy"), shape.SHARE),
            **dict.fromkeys(("train_loss", "val_loss"), shape.NUMBER_OR_NULL),
            "seconds": shape.FROM_ZERO,
        }
    ],
    "class_counts": {part: {shape.ANY: shape.whole(0)} for part in splits.PARTS},
    "predict_images_per_s": shape.POSITIVE,
    "classifiers": shape.Maybe({shape.ANY: _CLASSIFIER}),
    "classifiers_git_revision": shape.Maybe(shape.TEXT_OR_NULL),
}
_WEIGHTS = {"weights_sha256": shape.TEXT, "initialised": [{"tensor": shape.TEXT}]}


class Finished(NamedTuple):
    """A cell's file and what it holds."""

    path: Path
    run: dict[str, Any]


def finished(folder: Path) -> dict[cells.Cell, Finished]:
    """The finished cells of a directory, by what their files say that they are, whatever their names.

    Raises:
      InputError: as `read`, or two files are of one cell.
    """
    found: dict[cells.Cell, Finished] = {}
    for path in files(folder):
        if path.name == ABSENT:
            continue
        cell, run = read(path)
        if cell in found:
            raise InputError(
                f"{path}: another file of this folder is of the same cell, {found[cell].path.name}"
            )
        found[cell] = Finished(path, run)
    return found


def files(folder: Path) -> list[Path]:
    """The files of a directory, `ABSENT` among them. A hidden one is being written, or was when its cell
    died."""
    return sorted(folder.glob("[!.]*.json"))


def read(path: Path) -> tuple[cells.Cell, dict[str, Any]]:
    """A finished cell, and what its file holds.

    Raises:
      InputError: the file is damaged or no cell's. Nothing is computed in its place: it may be all that is
        left of hours of work, and what is wrong with it small.
    """
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        shape.check(run, {"spec": shape.FIELDS})
        cell = cells.from_spec(run["spec"])
        shape.check(run, _RESULT)
        if run["init"]["weights"] is not None:
            shape.check(run["init"]["weights"], _WEIGHTS, "init.weights")
        _check_agreement(run, cell.setting.epochs)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: is no result of a cell, or damaged ({error}); without this file its cell runs again"
        ) from error
    return cell, run


def _check_agreement(run: dict[str, Any], epochs: int) -> None:
    """Raises ValueError where the parts of a result do not agree on epochs or classes."""
    if [row["epoch"] for row in run["history"]] != list(range(epochs + 1)):
        raise ValueError(f"history: expected epochs 0 to {epochs}, got {len(run['history'])} rows")
    spans = metrics.spans(epochs).keys()
    for kind in ("mcr", "mofr"):
        for metric in ("accuracy", "loss"):
            if run[kind][metric].keys() != spans:
                raise ValueError(f"{kind}.{metric}: expected {', '.join(spans)}")
    test = run["test"]
    names = test["class_names"]
    by_class = {"test.per_class": test["per_class"]}
    by_class |= {f"class_counts.{part}": run["class_counts"][part] for part in splits.PARTS}
    for where, fields in by_class.items():
        if fields.keys() != set(names):
            raise ValueError(f"{where}: expected {', '.join(names)}")
    if [len(row) for row in test["confusion"]] != [len(names)] * len(names):
        raise ValueError(f"test.confusion: expected {len(names)} rows of as many numbers")
