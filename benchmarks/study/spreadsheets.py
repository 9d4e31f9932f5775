"""The report's numbers as they are, for other programs: summary.csv and history.csv."""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study.cells import Cell, Setting
from benchmarks.study.results import Group, images_per_s
from benchmarks.study.wording import degenerate_runs
from fer_jax.files import replacing

_HISTORY = ("train_accuracy", "val_accuracy", "train_loss", "val_loss")


def write(home: Path, groups: Sequence[Group], absent: Mapping[Cell, str]) -> None:
    """summary.csv, a row a group, then one a cell without a result; history.csv, a row a run and epoch."""
    unfinished = [
        {**_setting(cell.setting, cell.init), "n": 0, "seeds": cell.seed, "reason": reason}
        for cell, reason in absent.items()
    ]
    _write(home / "summary.csv", [_summary(group, groups) for group in groups] + unfinished)
    _write(home / "history.csv", [
        {**_setting(group.setting, group.init), "seed": seed, **row}
        for group in groups
        for seed, run in zip(group.seeds, group.runs, strict=True)
        for row in run["history"]
    ])  # fmt: skip


def _setting(setting: Setting, init: str) -> dict[str, Any]:
    return {**dataclasses.asdict(setting), "init": init}


def _summary(group: Group, groups: Sequence[Group]) -> dict[str, Any]:
    """Numbers of several seeds are mean and sample standard deviation, empty of one seed."""
    row = _setting(group.setting, group.init) | {
        "n": len(group.runs),
        "seeds": " ".join(map(str, group.seeds)),
        "degenerate_runs": degenerate_runs(group),
        "backbone_parameters": group.parameters,
        "backbone_parameters_that_learn": group.learning_parameters,
        "images_per_s": images_per_s(group, groups),
    }
    measured = {
        "test_accuracy": group.values("test", "accuracy"),
        "test_macro_f1": group.values("test", "macro_f1"),
        "fit_seconds": group.timed.fit_seconds,
    }
    for column in _HISTORY:
        values = group.history(column)
        measured |= {f"{column}_epoch_0": values[:, 0], f"{column}_epoch_1": values[:, 1]}
        measured |= {f"final_{column}": values[:, -1]}
    for kind in ("mcr", "mofr"):
        for metric in ("accuracy", "loss"):
            for span in group.runs[0][kind][metric]:
                measured[f"{kind}_{metric}_{span}"] = group.values(kind, metric, span)
    for name, values in measured.items():
        row |= {f"{name}_mean": values.mean(), f"{name}_sd": _deviation(values)}
    return row


def _deviation(values: np.ndarray) -> float | str:
    return float(values.std(ddof=1)) if len(values) > 1 else ""


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = dict.fromkeys(column for row in rows for column in row)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
