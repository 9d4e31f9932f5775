"""The finished cells of a directory in groups, and the cells that have no result."""

import dataclasses
import itertools
import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import weights_conversion
from benchmarks.study import cells, result_files, shape
from fer_jax import report
from fer_jax.errors import InputError
from fer_jax.files import locked, writing_to
from weights_conversion import sources


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
    def parameters(self) -> int:
        """Weights of the backbone, moving statistics included."""
        return int(self.runs[0]["model"]["backbone_parameters"])

    @property
    def learning_parameters(self) -> int:
        """Of the backbone's weights those that learn."""
        return int(self.runs[0]["model"]["backbone_parameters_that_learn"])

    @property
    def fit_seconds(self) -> np.ndarray:
        """float [seeds]: seconds of all epochs, as many times the median one: epochs that other work or a
        pause held up count as the others."""
        seconds = self.history("seconds")[:, 1:]
        return seconds.shape[1] * np.median(seconds, 1)

    @property
    def machines(self) -> Counter[str]:
        """What its runs were measured on and how many of them, in their order."""
        return Counter(map(machine, self.runs))

    @property
    def machine(self) -> str:
        """What its seconds and images/s are of: what most of its runs were measured on, of equally many the
        first."""
        return self.machines.most_common(1)[0][0]

    @property
    def timed(self) -> "Group":
        """The group with its runs on `machine` alone."""
        most = self.machine
        return self._with([machine(run) == most for run in self.runs])

    @property
    def sound(self) -> "Group | None":
        """The group without its degenerate runs; None where no run is left."""
        sound = [not run["test"]["degenerate"] for run in self.runs]
        return self._with(sound) if any(sound) else None

    def only(self, seeds: Collection[int]) -> "Group":
        """The group with the runs of these seeds alone, none of them perhaps."""
        return self._with([seed in seeds for seed in self.seeds])

    def _with(self, kept: Sequence[bool]) -> "Group":
        """The group with the runs that are kept."""
        seeds, runs = tuple(itertools.compress(self.seeds, kept)), tuple(itertools.compress(self.runs, kept))
        return dataclasses.replace(self, seeds=seeds, runs=runs)


def machine(run: Mapping[str, Any]) -> str:
    """What a run was measured on, with how it multiplied float32 where it says so: as an accelerator does."""
    _, said, products = run["readings"].get("compute", "").partition("products at ")
    return json.dumps({**run["device"], **({"products_at": products} if said else {})}, sort_keys=True)


def load(folder: Path) -> list[Group]:
    """The finished cells, grouped, in the order of backbones and initialisations.

    Raises:
      InputError: as `result_files.finished`, or as `grouped`.
    """
    return grouped(result_files.finished(folder))


def grouped(finished: Mapping[cells.Cell, result_files.Finished]) -> list[Group]:
    """Finished cells, grouped, in the order of backbones and initialisations.

    Raises:
      InputError: one is of other data, rows or weights than the other seeds of its group.
    """
    runs: dict[tuple[cells.Setting, str], dict[int, Any]] = {}
    hashes: dict[tuple[cells.Setting, str], dict[str, Any]] = {}
    for cell, (path, run) in finished.items():
        key = (cell.setting, cell.init)
        mine = {
            "data": run["data"]["sha256"],
            "split": run["split"]["sha256_of_int64_indices"],
            "weights": (run["init"]["weights"] or {}).get("weights_sha256"),
        }
        known = hashes.setdefault(key, mine)
        if other := [name for name in mine if mine[name] != known[name]]:
            raise InputError(
                f"{path}: its {' and '.join(other)} are not those of the cells it would go with, by their "
                "sha256; that of data is of the file, so that the same faces as csv, zip and folders differ"
            )
        runs.setdefault(key, {})[cell.seed] = run

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


def images_per_s(group: Group, groups: Sequence[Group], on: str = "") -> float:
    """Of its network in inference, by the fastest run of the same network on one machine among `groups`:
    other work beside a run can only slow it.

    Args:
      on: the machine; empty: the group's own.

    Returns:
      NaN where the network did not run there.
    """

    def network(g: Group) -> tuple[Any, ...]:
        return g.setting.backbone, g.setting.alpha, g.setting.image_size

    alike = [run for g in (group, *groups) if network(g) == network(group) for run in g.runs]
    rates = [run["predict_images_per_s"] for run in alike if machine(run) == (on or group.machine)]
    return float(max(rates, default=math.nan))


def remember_absent(
    folder: Path, reasons: Mapping[cells.Cell, str], known: Collection[cells.Cell] = ()
) -> None:
    """Writes which cells have no result, in place of what the file said of them and of those that are known.

    Of other cells it stays: a study is run in pieces, perhaps several at once.

    Args:
      reasons: by cell, without paths of this machine: that its weights are not there, with the command that
        would supply them, or how it failed.

    Raises:
      InputError: the file cannot be written, or is damaged.
    """
    with writing_to(folder), locked(folder / ".lock"):
        others = {cell: why for cell, why in absent(folder).items() if cell not in known}
        entries = [{"spec": cell.spec(), "reason": reason} for cell, reason in {**others, **reasons}.items()]
        report.write_json(folder / result_files.ABSENT, entries)


def absent(folder: Path) -> dict[cells.Cell, str]:
    """The cells that `remember_absent` wrote, and why; none where there is no file.

    Raises:
      InputError: the file is damaged.
    """
    path = folder / result_files.ABSENT
    if not path.exists():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        shape.check(entries, [{"spec": shape.FIELDS, "reason": shape.TEXT}], "the whole")
        return {cells.from_spec(entry["spec"]): entry["reason"] for entry in entries}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: is no list of cells without a result, or damaged ({error}); delete it"
        ) from error


def lacking(groups: Sequence[Group], known: Mapping[cells.Cell, str], weights: Path) -> dict[cells.Cell, str]:
    """The cells that a report names as without a result, and why.

    They are those that are known and have not run since, and always the paper's, with complete pretrained
    weights, random and from scratch, but in a study of one's own data alone.

    Args:
      known: of `absent`.
      weights: has openface/, mobilenet/, ...
    """

    def supplied(setting: cells.Setting) -> bool:
        return (weights / weights_name(setting)).exists()

    there = {cells.Cell(group.setting, group.init, seed) for group in groups for seed in group.seeds}
    # Whether FER2013's faces were in a csv, or in folders, after which a setting is called.
    groups = [
        dataclasses.replace(group, setting=dataclasses.replace(group.setting, data=""))
        if group.is_fer2013
        else group
        for group in groups
    ]
    ran = {cells.Cell(group.setting, group.init, seed) for group in groups for seed in group.seeds}
    found = {
        cell: "has not run" if reason == unsupplied(cell.setting) and supplied(cell.setting) else reason
        for cell, reason in known.items()
        if cell not in ran | there
    }
    told = {(cell.setting, cell.init) for cell in (*ran, *found)}
    for setting in map(cells.papers, () if on_own_data(groups) else cells.BACKBONES):
        first = cells.Cell(setting, "pretrained", 0)
        pretrained = [g for g in groups if (g.setting, g.init) == (setting, "pretrained")]
        if pretrained and all(group.partly_pretrained for group in pretrained):
            found.setdefault(first, f"complete {unsupplied(setting)}")
        elif (setting, "pretrained") not in told:
            found[first] = "has not run" if supplied(setting) else unsupplied(setting)
        for init in ("random", "scratch"):
            if (setting, init) not in told:
                found[cells.Cell(setting, init, 0)] = "has not run"
    return found


def on_own_data(groups: Sequence[Group]) -> bool:
    """Whether they are of one's own data alone, of which the paper says nothing."""
    return bool(groups) and not any(group.is_fer2013 or group.drawn for group in groups)


def weights_name(setting: cells.Setting) -> str:
    """Of the directory that its converted weights are to be in."""
    return weights_conversion.directory_name(setting.backbone, setting.alpha)


def unsupplied(setting: cells.Setting, weights: str = "weights") -> str:
    """That its weights are not in the directory `weights`, and the command that would supply them."""
    try:
        sources.published(setting.backbone, setting.alpha)
    except InputError as error:
        return f"weights not supplied: {error}"
    directory = f"{weights}/{weights_name(setting)}"
    command = weights_conversion.download_command(setting.backbone, setting.alpha, directory)
    return f"weights not supplied: {command}"


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
        and group.setting.has_papers_data
        and group.setting.is_papers == papers
        and not group.partly_pretrained
        and group.is_fer2013
    ]
