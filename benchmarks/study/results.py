"""The finished cells of a directory: a small JSON file each."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study import cells
from fer_jax import report
from fer_jax.errors import InputError

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
        """Whether every run predicts one class for every test image."""
        return self.sound is None

    @property
    def drawn(self) -> bool:
        """Whether the faces were drawn by this program."""
        return any(run["data"]["kind"] == "drawn" for run in self.runs)

    @property
    def is_fer2013(self) -> bool:
        """Whether the faces are FER2013's, neither drawn nor the user's own."""
        return all(run["data"]["kind"] in ("csv", "icml", "folders") for run in self.runs)

    @property
    def partly_pretrained(self) -> bool:
        """Whether weights that the publisher's file lacks were initialised at random."""
        return bool((self.runs[0]["init"].get("weights") or {}).get("initialised"))

    def history(self, column: str) -> np.ndarray:
        """float [seeds, epochs + 1], from epoch 0."""
        return np.array([[row[column] for row in run["history"]] for run in self.runs], float)  # null: NaN

    def values(self, *path: str) -> np.ndarray:
        """float [seeds]: the number at this path of every run's file."""

        def at(run: Any) -> float:
            for key in path:
                run = run[key]
            return math.nan if run is None else float(run)

        return np.array([at(run) for run in self.runs])

    @property
    def fit_seconds(self) -> np.ndarray:
        """float [seeds]: seconds of all epochs, as many times the median one: epochs that other work or a
        pause held up count as the others."""
        seconds = self.history("seconds")[:, 1:]
        return seconds.shape[1] * np.median(seconds, 1)

    @property
    def machine(self) -> str:
        """What its seconds and images/s are of; empty where its runs are of different machines."""
        machines = {json.dumps(run["device"], sort_keys=True) for run in self.runs}
        return machines.pop() if len(machines) == 1 else ""

    @property
    def sound(self) -> "Group | None":
        """The group without its degenerate runs; None where no run is left."""
        kept = [i for i, run in enumerate(self.runs) if not run["test"]["degenerate"]]
        seeds, runs = tuple(self.seeds[i] for i in kept), tuple(self.runs[i] for i in kept)
        return dataclasses.replace(self, seeds=seeds, runs=runs) if kept else None


def load(folder: Path) -> list[Group]:
    """The finished cells, grouped, in the order of backbones and initialisations.

    Raises:
      InputError: a file that is no cell's result, is of a cell that another file is of, or is of other data,
        rows or weights than the other seeds of its group.
    """
    runs: dict[tuple[cells.Setting, str], dict[int, Any]] = {}
    hashes: dict[tuple[cells.Setting, str], Any] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name == ABSENT:
            continue
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            cell = cells.from_spec(run["spec"])
            same = [run["data"]["sha256"], run["split"]["sha256_of_int64_indices"]]
            same += [(run["init"]["weights"] or {}).get("weights_sha256")]
            known = cell.setting.variant in cells.VARIANTS and cell.setting.backbone in cells.BACKBONES
            if not (known and run["history"] and run["test"]):
                raise ValueError("an unknown variant or backbone, or nothing measured")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: is no result of a cell ({error})") from error
        group = runs.setdefault((cell.setting, cell.init), {})
        if cell.seed in group:
            raise InputError(f"{path}: another file of this folder is of the same cell, {cell.name}")
        if same != hashes.setdefault((cell.setting, cell.init), same):
            raise InputError(
                f"{path}: its data, split or weights are not those of the cells it would go with"
            )
        group[cell.seed] = run

    def order(key: tuple[cells.Setting, str]) -> Any:
        setting, init = key
        variant = list(cells.VARIANTS).index(setting.variant)
        return (cells.BACKBONES.index(setting.backbone), not setting.is_papers, setting.split, variant,
                -setting.image_size, -setting.alpha, cells.INITS.index(init), setting.epochs,
                setting.limit, setting.data)  # fmt: skip

    groups = []
    for key in sorted(runs, key=order):
        seeds = tuple(sorted(runs[key]))
        groups.append(Group(*key, seeds, tuple(runs[key][seed] for seed in seeds)))
    return groups


def images_per_s(group: Group, groups: Sequence[Group]) -> float:
    """Of its network in inference, by the fastest run of the same network on the same machine among `groups`:
    other work beside a run can only slow it. NaN where the group's runs are of different machines."""

    def network(g: Group) -> tuple[Any, ...]:
        return g.setting.backbone, g.setting.alpha, g.setting.image_size, g.machine

    alike = [g for g in (group, *groups) if network(g) == network(group)]
    return max(float(g.values("predict_images_per_s").max()) for g in alike) if group.machine else math.nan


def remember_absent(folder: Path, reasons: Mapping[cells.Cell, str]) -> None:
    """Adds cells that have no result to those the report names, and takes off those that have run.

    Args:
      reasons: by cell: that its weights are not there, with the command that would supply them, or how it
        failed.
    """
    known = absent(folder) | dict(reasons)
    left = [
        {"spec": cell.spec(), "reason": reason}
        for cell, reason in known.items()
        if not (folder / f"{cell.name}.json").exists()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    report.write_json(folder / ABSENT, left)


def absent(folder: Path) -> dict[cells.Cell, str]:
    """The cells without a result, and why."""
    path = folder / ABSENT
    if not path.exists():
        return {}
    return {cells.from_spec(entry["spec"]): entry["reason"] for entry in json.loads(path.read_text())}


def find(groups: Sequence[Group], init: str, backbone: str, papers: bool = True) -> list[Group]:
    """The groups of this backbone and initialisation that the claims are judged on, or others beside them.

    Judged is the paper's experiment (`Setting.is_papers`) on FER2013, with complete weights; degenerate runs
    are left out.

    Args:
      papers: False for the groups on the paper's data that are not its network: another width or size.
    """
    return [
        sound
        for group in groups
        if (sound := group.sound)
        and group.init == init
        and group.setting.backbone == backbone
        and (group.setting.is_papers if papers else group.setting.has_papers_data)
        and group.setting.is_papers == papers
        and not group.partly_pretrained
        and group.is_fer2013
    ]
