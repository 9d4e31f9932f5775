"""The report's page on method: readings, versions, machines, hashes, and what would change it."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.study.blocks import Block, Heading, Paragraph, Table
from benchmarks.study.results import Group
from benchmarks.study.wording import (
    NONE,
    data_words,
    label,
    machines,
    missing_note,
    missing_rows,
    network,
    told_machines,
)


def blocks(groups: Sequence[Group], lacking: Mapping[str, str]) -> list[Block]:
    """The page; `lacking` are the settings without a result."""
    if not groups:
        return []
    readings = _values(groups, _readings)
    versions = _values(
        groups, lambda run: {name: v or "not installed" for name, v in run["versions"].items()}
    )
    return [
        Heading("Method"),
        Paragraph(
            "What the paper leaves open, and how these runs read it; none of it is the paper's word. Where "
            "runs differ the first value is that of most, the others name their settings. JAX's default "
            "precision of products is TF32 on a GPU that has it, bfloat16 on a TPU."
        ),
        Table(["reading", "value"], [[key, value] for key, value in readings.items()], left=2),
        *_runs(groups, lacking),
        Table(["sha256 of", ""], _hashes(groups), left=2),
        Table(["version of", ""], [list(pair) for pair in versions.items()], left=2),
        Paragraph(
            "What would change it: the membership of the split (another reading of the paper's counts), and "
            "with it which faces the test set samples; another optimizer or learning rate, the head, the "
            "scaling of the input, complete weights for the backbones that lack them, more seeds. Train "
            "metrics are running means over an epoch while the weights change; epoch 0 is measured before "
            "the first step, in inference mode: it hangs on the seed of the head, and so do the rates from "
            "it. Seconds and images/s hang on what else the machine had to do, which was not recorded."
        ),
    ]


def _readings(run: Any) -> dict[str, str]:
    """Of a run, with what its data came with, its seeds' numbers left out."""
    found = dict(run["readings"]) | {"faces left out": "; ".join(run["data"].get("notes", [])) or "none"}
    if "seeds" in found:
        found["seeds"] = re.sub(r"seed \d+", "seed N", found["seeds"]) + "; N is the run's number"
    return found


def _runs(groups: Sequence[Group], lacking: Mapping[str, str]) -> list[Block]:
    letters = machines(groups)
    columns = ["setting", "seeds", "revision (+: changed)", "machine"]
    rows = []
    for group in groups:
        here = [letters[device] for device in group.machines]
        rows.append([label(group), " ".join(map(str, group.seeds)), _revisions(group), ", ".join(here)])
    made: list[Block] = [
        Table(columns, rows + missing_rows(lacking, len(columns)), left=4),
        Paragraph(f"Machines: {told_machines(groups)}. Revisions are cut to twelve digits."),
    ]
    return made + missing_note(lacking)


def _revisions(group: Group) -> str:
    """Of all code that its runs began, went on and ended with, and that fitted classifiers."""
    names = {name for run in group.runs for name in (*run.get("earlier_revisions", []), run["git_revision"])}
    told = sorted(map(_revision, names))
    added = {run.get("classifiers_git_revision", run["git_revision"]) for run in group.runs} - names
    return ", ".join([*told, *(f"{name} (classifiers)" for name in sorted(map(_revision, added)))])


def _revision(name: str | None) -> str:
    return name[:12] + ("+" if "dirty" in name else "") if name else "none"


def _hashes(groups: Sequence[Group]) -> list[list[str]]:
    """In full, each once: the faces, the files of labels and weights, the rows of each part of a split."""
    found: dict[tuple[str, str], None] = {}
    for group in groups:
        run, setting = group.runs[0], group.setting
        faces, *labels = run["data"]["sha256"].split()
        found[f"faces, {run['data'].get('source') or run['data']['kind']}", faces] = None
        if labels:
            found["FER+'s file of labels", labels[0]] = None
        weights = run["init"].get("weights") or {}
        if weights:
            found[f"weights, {network(setting).partition(' at ')[0]}", weights["weights_sha256"]] = None
        for part, rows in run["split"]["sha256_of_int64_indices"].items():
            found[f"rows of {part}, {data_words(setting)}", rows] = None
    return [list(pair) for pair in sorted(found)]


def _values(groups: Sequence[Group], of: Callable[[Any], Mapping[str, Any]]) -> dict[str, str]:
    """The value of each key that most runs have, then the others, a line each with the settings it is of, and
    their seeds where not all have it."""
    found: dict[str, dict[str, dict[int, list[str]]]] = {}  # the seeds, by key, value and place of the group
    for place, group in enumerate(groups):
        for seed, run in zip(group.seeds, group.runs, strict=True):
            for key, value in of(run).items():
                found.setdefault(key, {}).setdefault(str(value), {}).setdefault(place, []).append(str(seed))

    def named(seeds: Mapping[int, Sequence[str]]) -> str:
        return "; ".join(
            label(groups[place]) + (f" (seeds {' '.join(own)})" if len(own) < len(groups[place].runs) else "")
            for place, own in seeds.items()
        )

    told = {}
    for key, values in found.items():
        usual, *others = sorted(values, key=lambda value: -sum(map(len, values[value].values())))
        told[key] = "\n".join([usual, *(f"{value} {NONE} {named(values[value])}" for value in others)])
    return told
