"""The finished cells of a directory: a small JSON file each."""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study import cells
from fer_jax import report
from fer_jax.errors import InputError

log = logging.getLogger(__name__)

ABSENT = "absent.json"


@dataclasses.dataclass(frozen=True)
class Group:
    """The cells that differ in the seed alone, in the order of their seeds; at least one.

    Attributes:
      runs: what their files hold (`run_cell.run`).
    """

    setting: cells.Setting
    init: str
    seeds: tuple[int, ...]
    runs: tuple[Mapping[str, Any], ...]

    @property
    def words(self) -> str:
        """What people call it."""
        weights = self.runs[0]["init"].get("weights") or {}
        missing = ", ".join(entry["tensor"] for entry in weights.get("initialised") or [])
        note = f" ({missing} not pretrained)" if missing else ""
        return f"{self.setting.words}, {self.init}{note}"

    @property
    def degenerate(self) -> bool:
        """Whether any of the runs predicts one class for every test image."""
        return any(run["test"]["degenerate"] for run in self.runs)

    @property
    def partly_pretrained(self) -> bool:
        """Whether weights that the publisher's file lacks were initialised at random."""
        return bool((self.runs[0]["init"].get("weights") or {}).get("initialised"))

    def history(self, column: str) -> np.ndarray:
        """float [seeds, epochs + 1], from epoch 0."""
        return np.array([[row[column] for row in run["history"]] for run in self.runs])

    def values(self, *path: str) -> np.ndarray:
        """float [seeds]: the number at this path of every run's file."""

        def at(run: Any) -> float:
            for key in path:
                run = run[key]
            return float(run)

        return np.array([at(run) for run in self.runs])


def load(folder: Path) -> list[Group]:
    """The finished cells, grouped, in the order of backbones and initialisations.

    Raises:
      InputError: a file that is no cell's result, or none at all.
    """
    runs: dict[tuple[cells.Setting, str], dict[int, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name == ABSENT:
            continue
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            cell = cells.from_spec(run["spec"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: is no result of a cell ({error})") from error
        runs.setdefault((cell.setting, cell.init), {})[cell.seed] = run

    def order(key: tuple[cells.Setting, str]) -> Any:
        setting, init = key
        variant = list(cells.VARIANTS).index(setting.variant)
        return (cells.BACKBONES.index(setting.backbone), not setting.is_papers, setting.split, variant,
                -setting.image_size, -setting.alpha, cells.INITS.index(init), setting.epochs,
                setting.limit)  # fmt: skip

    groups = []
    for key in sorted(runs, key=order):
        seeds = tuple(sorted(runs[key]))
        groups.append(Group(*key, seeds, tuple(runs[key][seed] for seed in seeds)))
    return groups


def remember_absent(folder: Path, commands: Mapping[cells.Cell, str]) -> None:
    """Adds cells whose weights are not there to those the report names, and takes off those that have run.

    Args:
      commands: the command that would supply the weights, by cell.
    """
    known = absent(folder) | dict(commands)
    left = [
        {"spec": cell.spec(), "command": command}
        for cell, command in known.items()
        if not (folder / f"{cell.name}.json").exists()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    report.write_json(folder / ABSENT, left)


def absent(folder: Path) -> dict[cells.Cell, str]:
    """The cells whose weights were not supplied, with the command that would supply them."""
    path = folder / ABSENT
    if not path.exists():
        return {}
    return {cells.from_spec(entry["spec"]): entry["command"] for entry in json.loads(path.read_text())}


def find(groups: Sequence[Group], init: str, backbone: str | None = None) -> list[Group]:
    """The groups with this initialisation (and backbone) that the claims are judged on.

    Those are of the paper's split, epochs and data, complete weights, and not degenerate.
    """
    return [
        group
        for group in groups
        if group.init == init
        and (backbone is None or group.setting.backbone == backbone)
        and group.setting.is_papers
        and not group.degenerate
        and not group.partly_pretrained
    ]
