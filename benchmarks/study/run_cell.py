"""Runs one cell in a process of its own: python -m benchmarks.study.run_cell < REQUEST.json

The request has `spec` (see `cells.Cell.spec`), `ferplus`, `weights`, `data`, `workdir`, `result` (the small
file to write) and `classifiers` (whether to fit classifiers that are no neural networks too). Interrupted, it
goes on where it stopped.
"""

import functools
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from fer_jax import process

if __name__ == "__main__":
    process.restart_with_huge_pages("benchmarks.study.run_cell")  # before the imports that take time

import jax
import numpy as np

from benchmarks.study import cells, classifiers, result_files
from fer_jax import cache, compilation, forward, initialisation, report, train
from fer_jax.data import loading
from fer_jax.data.dataset import FaceDataset
from fer_jax.data.splits import Split
from fer_jax.errors import InputError, exit_on_input_error
from fer_jax.process import git_revision

PREDICT_BATCH, PREDICT_SECONDS = 32, 3.0
# Of results.json, what the report reads.
_KEPT = (
    "readings", "init", "data", "split", "git_revision", "earlier_revisions", "versions", "device", "model",
    "mcr", "mofr", "final", "test", "test_without_duplicates",
)  # fmt: skip


def run(request: dict[str, Any]) -> None:
    """Trains and measures where there is no result yet, fits classifiers where they are asked for, and writes
    the result."""
    cell, path = cells.from_spec(request["spec"]), Path(request["result"])
    config = cells.configuration(cell, request["ferplus"], request["weights"], request["data"])
    results = {} if path.exists() else train.train_and_evaluate(config, Path(request["workdir"]))
    dataset, split, _ = loading.load(config.data, cell.setting.image_size)
    if results:
        found = _measured(cell, config, Path(request["workdir"]), results, dataset, split)
        report.write_json(path, found)  # kept, whatever becomes of the classifiers
    else:
        _, found = result_files.read(path)
        if found["data"]["sha256"] != dataset.sha256:
            raise InputError(f"{path}: was measured on other faces or labels")
    if request["classifiers"]:
        features = classifiers.embeddings(config, dataset.images, len(dataset.class_names))
        tell = functools.partial(logging.getLogger("fer_jax").info, "classifiers: %s")
        found["classifiers"] = classifiers.evaluate(
            features, dataset.labels, split, dataset.class_names, cell.seed, tell
        )
        found["classifiers_git_revision"] = git_revision()
        report.write_json(path, found)


def _measured(
    cell: cells.Cell, config: Any, workdir: Path, results: dict[str, Any], dataset: FaceDataset, split: Split
) -> dict[str, Any]:
    """The result of a training that left `results` in `workdir`."""
    classes = len(dataset.class_names)
    result = {"spec": cell.spec(), **{name: results[name] for name in _KEPT if name in results}}
    result["history"] = _history(workdir / "history.csv")
    result["class_counts"] = {
        part: dict(
            zip(
                dataset.class_names,
                np.bincount(dataset.labels[rows], minlength=classes).tolist(),
                strict=True,
            )
        )
        for part, rows in split.parts.items()
    }
    result["predict_images_per_s"] = predict_images_per_s(config, classes, dataset.images)
    return result


def predict_images_per_s(config: Any, classes: int, faces: np.ndarray) -> float:
    """Images/s from faces on the device to logits, batches of `PREDICT_BATCH`, compilation left out."""
    init = initialisation.choose(config)
    model, _ = initialisation.build_classifier(config, init, classes)
    variables = initialisation.initial_variables(config, init, model)
    # Weights are arguments: bound before jit they would be constants of the program.
    predict = functools.partial(compilation.jit(forward.make_forward(config, model)), **variables)
    batch = jax.device_put(np.resize(faces[:PREDICT_BATCH], (PREDICT_BATCH, *faces.shape[1:])))
    jax.block_until_ready(predict(faces=batch))
    start, batches = time.perf_counter(), 0
    while not batches or time.perf_counter() - start < PREDICT_SECONDS:
        jax.block_until_ready(predict(faces=batch))
        batches += 1
    return batches * PREDICT_BATCH / (time.perf_counter() - start)


def _history(path: Path) -> list[dict[str, float]]:
    lines = path.read_text().splitlines()
    names = lines[0].split(",")
    rows = [dict(zip(names, map(float, line.split(",")), strict=True)) for line in lines[1:]]
    return [{name: round(value, 6) for name, value in row.items()} for row in rows]


def main() -> None:
    """Reads the request."""
    process.end_with_parent()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("fer_jax").setLevel(logging.INFO)
    with exit_on_input_error():
        cache.keep_compiled_programs()
        run(json.load(sys.stdin))


if __name__ == "__main__":
    main()
