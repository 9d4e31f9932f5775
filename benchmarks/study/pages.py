"""The study's report: its tables, figures, verdicts and method, as report.md and report.html."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study import claims, comparisons, figures, method, networks, spreadsheets
from benchmarks.study.blocks import Block, Heading, Paragraph, Picture, Table, markdown, page
from benchmarks.study.cells import BACKBONES, Cell, Setting
from benchmarks.study.results import Group, machine, on_own_data
from benchmarks.study.wording import (
    FIT,
    NONE,
    SPEED,
    classifiers,
    data_words,
    degenerate_runs,
    label,
    machines,
    missing,
    missing_note,
    missing_rows,
    number,
    on_embeddings,
    papers_first,
    parameters,
    seconds_and_speed,
    spread,
    told_machines,
)
from fer_jax.files import replacing


def write(home: Path, groups: Sequence[Group], absent: Mapping[Cell, str], faces: bool) -> None:
    """Writes report.html, report.md, summary.csv, history.csv and figures/ in `home`.

    Args:
      absent: cells without a result, and why.
      faces: whether figures of single faces, where the runs have left them, are shown.
    """
    (home / "figures").mkdir(parents=True, exist_ok=True)
    groups, everything = papers_first(groups), missing(absent, lambda _: True, groups)
    blocks: list[Block] = [Heading("Facial emotion recognition by transfer: the study", 1)]
    blocks += [Paragraph(text) for text in _lead(groups)]
    blocks += _summary(groups, everything)
    blocks += [] if on_own_data(groups) else _claims(claims.judge(groups))
    blocks += _class_counts(groups)
    blocks += [networks.how_to_read()]
    for table, backbone in enumerate(BACKBONES, start=2):
        blocks += networks.blocks(home, table, backbone, groups, absent)
    blocks += _across(home, groups, missing(absent, _is_plain, groups))
    blocks += _data(groups, missing(absent, lambda setting: not _is_plain(setting), groups))
    frozen = {cell: reason for cell, reason in absent.items() if cell.init != "scratch"}
    blocks += _classifiers(groups, missing(frozen, _is_plain, groups))
    blocks += _faces(home, groups) if faces else [Paragraph(
        "Single faces with their probabilities (the paper's figures 9-15) are left out: FER2013's images may "
        "not be passed on. Without --no_faces the report of your own runs shows them."
    )]  # fmt: skip
    blocks += method.blocks(groups, everything)
    spreadsheets.write(home, groups, absent)
    with replacing(home / "report.md") as temporary:
        temporary.write_text(markdown(blocks), encoding="utf-8")
    with replacing(home / "report.html") as temporary:
        temporary.write_text(page(blocks, home), encoding="utf-8")


def _lead(groups: Sequence[Group]) -> list[str]:
    if not groups:
        return ["No cell has finished yet."]
    runs = [run for group in groups for run in group.runs]
    kinds = {run["data"]["kind"] for run in runs}
    lines = [
        f"{len(runs)} finished trainings in {len(groups)} settings. Means are over seeds, which drive the "
        "head, the order of the images and a randomly initialised backbone; ± is the sample standard "
        "deviation, n the number of seeds, and without ± there was one. Tensors that weights lack were drawn "
        "once, when these were converted, so that seeds share them. " + _sampling(groups)
    ]
    if "drawn" in kinds:
        lines.append(
            "WARNING: some of these runs are on faces DRAWN by this program; they say nothing about FER2013."
        )
    if "own" in kinds:
        some = "These runs are" if on_own_data(groups) else "Some of these runs are"
        lines.append(f"{some} on data of one's own: no claim of the paper is judged on them.")
    degenerate = [_degenerate(group) for group in groups if degenerate_runs(group)]
    if degenerate:
        lines.append(
            "Degenerate, since one class is predicted for every test image, and in no verdict: "
            + "; ".join(degenerate)
            + "."
        )
    return lines


def _sampling(groups: Sequence[Group]) -> str:
    """What intervals over seeds leave out, and how much it is at most."""
    found = []
    for group in groups:
        faces = sum(group.runs[0]["class_counts"]["test"].values())
        accuracy = float(group.values("test", "accuracy").mean())
        found.append((math.sqrt(accuracy * (1 - accuracy) / faces), accuracy, faces))
    error, accuracy, faces = max(found)
    return (
        "± and intervals are of seeds alone, on one split: which faces are in test is chance too, and gives "
        f"accuracies a binomial standard error of up to {error:.4f} ({accuracy:.3f} on {faces:,} faces)."
    )


def _degenerate(group: Group) -> str:
    """The group, with the scale of its features before training where its runs have kept it."""
    scales = [
        f"{run['model']['initial_feature_rms']:.2e}"
        for run in group.runs
        if run["test"]["degenerate"] and run["model"].get("initial_feature_rms") is not None
    ]
    scale = f", root mean square of its features before training {', '.join(scales)}" if scales else ""
    return label(group) + scale


def _summary(groups: Sequence[Group], lacking: Mapping[str, str]) -> list[Block]:
    columns = ["setting", "n", "parameters", "that learn", "train acc.", "val. acc.", "test acc.", "macro F1",
               "MCR", "MOFR", "fit, s", "images/s"]  # fmt: skip
    rows = []
    for group in groups:
        rows.append([
            label(group),
            str(len(group.runs)),
            *parameters(group),
            spread(group.values("final", "train_accuracy")),
            spread(group.values("final", "val_accuracy")),
            spread(group.values("test", "accuracy")),
            spread(group.values("test", "macro_f1")),
            spread(group.values("mcr", "accuracy", "from_epoch_0"), 4),
            spread(group.values("mofr", "accuracy", "from_epoch_0"), 4),
            *seconds_and_speed(group, groups),
        ])  # fmt: skip
        for name, found in on_embeddings(group):
            rows.append([name, "1", parameters(group)[0], "0", NONE, *_scores(found), *[NONE] * 4])
    told = f", on the machine of most runs, of equally many the first ({told_machines(groups)})"
    several = told if len(machines(groups)) > 1 else ""
    return [
        Heading("Summary"),
        Table(columns, rows + missing_rows(lacking, len(columns))),
        *missing_note(lacking),
        Paragraph(
            "Parameters are the backbone's without the head's, moving statistics included, and of them those "
            "that learn. Accuracies are of the last epoch, on test after it. MCR and MOFR are of accuracy, "
            "an epoch, from epoch 0. "
            f"Images/s are of the whole network in inference, batch 32{several}. {SPEED}; {FIT}. "
            "summary.csv and history.csv beside this page have the numbers unrounded, seconds to fit as the "
            "mean of the runs on that machine."
        ),
    ]


def _claims(verdicts: Sequence[claims.Verdict]) -> list[Block]:
    rows = [[f"{v.number}. {v.claim}", v.verdict, v.rule, "\n".join(v.numbers)] for v in verdicts]
    return [
        Heading("The paper's claims"),
        Table(["claim", "verdict", "rule", "numbers (effect [95 % interval], n)"], rows, left=4),
        Paragraph(
            "Judged is the paper's experiment alone: its split, 20 epochs, all faces, its networks at their "
            "own size, complete weights; degenerate runs are left out. What stands beside decides nothing. "
            "Within a backbone runs are paired by seed (Student's interval), between backbones not "
            "(Welch's); fewer than two seeds on either side leave a comparison open. A no takes an interval "
            "widened by Bonferroni's rule for the claim's comparisons. benchmarks/study/claims.py has the "
            "rules."
        ),
    ]


def _class_counts(groups: Sequence[Group]) -> list[Block]:
    tables: dict[str, dict[str, dict[str, int]]] = {}
    for group in groups:
        tables.setdefault(data_words(group.setting), group.runs[0]["class_counts"])
    blocks: list[Block] = [Heading("Table 1: faces of each class")]
    for name, counts in tables.items():
        classes = list(next(iter(counts.values())))
        rows = [
            [part, *(f"{by_class[c]:,}" for c in classes), f"{sum(by_class.values()):,}"]
            for part, by_class in counts.items()
        ]
        blocks.append(Table([name, *classes, "all"], rows))
    return blocks


def _portions(groups: Sequence[Group]) -> list[Sequence[Group]]:
    """At most as many groups a figure as there are markers."""
    size = len(figures.MARKERS)
    return [groups[i : i + size] for i in range(0, len(groups), size)]


def _is_plain(setting: Setting) -> bool:
    return (setting.split, setting.variant) == ("paper", "plain")


def _across(home: Path, groups: Sequence[Group], lacking: Mapping[str, str]) -> list[Block]:
    shown = [group for group in groups if _is_plain(group.setting)] or list(groups)
    if not shown:
        return []
    by_classes: dict[tuple[str, ...], list[Group]] = {}
    for group in shown:
        by_classes.setdefault(tuple(group.runs[0]["test"]["class_names"]), []).append(group)
    blocks: list[Block] = [Heading("Classes")]
    for names, alike in by_classes.items():
        rows = [
            [
                label(group),
                *(spread(group.values("test", "per_class", name, "recall")) for name in names),
            ]
            for group in alike
        ]
        if alike[0].is_fer2013:
            rows += missing_rows(lacking, 1 + len(names))
        blocks.append(Table(["recall on test", *names], rows))
    blocks += missing_note(lacking)
    for part, few in enumerate(few for alike in by_classes.values() for few in _portions(alike)):
        suffix = "" if not part else f"_{part + 1}"
        title = "Recall of each class on test, mean and range over seeds"
        title += f" ({part + 1})" if part else ""
        figures.plot_recall(few, title, home / f"figures/recall{suffix}.png")
        blocks.append(Picture(f"figures/recall{suffix}.png", f"{title}."))
    sound = [group for group in shown if not group.degenerate]
    if sound:
        title = "Confusion on test, summed over seeds, as shares of the true class"
        title += ", degenerate settings left out" if len(sound) < len(shown) else ""
        figures.plot_confusions(sound, title, home / "figures/confusion.png")
        blocks.append(Picture("figures/confusion.png", f"{title}."))
    return blocks


def _data(groups: Sequence[Group], lacking: Mapping[str, str]) -> list[Block]:
    """What split, duplicates, labels, augmentation and balance are worth, in points of test accuracy."""
    plain = {(g.setting, g.init): g for g in groups if g.setting.variant == "plain"}
    rows = []
    for group in groups:
        if _is_plain(group.setting):
            continue
        base = plain.get((dataclasses.replace(group.setting, variant="plain"), group.init))
        if group.setting.variant == "plain":
            cells = ["another split", "another split"]
        elif base:
            cells = [_points(group, base, name) for name in ("accuracy", "macro_f1")]
        else:
            cells = ["no plain run", "no plain run"]
        rows.append([label(group), str(len(group.runs)), spread(group.values("test", "accuracy")), *cells])
    if not rows and not lacking:
        return []
    columns = ["setting", "n", "test accuracy", "points of accuracy over plain", "of macro F1"]
    return [
        Heading("Data, labels, augmentation, balance"),
        Table(columns, rows + missing_rows(lacking, len(columns))),
        *missing_note(lacking),
        Paragraph(
            "Points are percent, with their 95 % interval, paired over seeds with the plain runs of the "
            "same split. With duplicates and leaks dropped both are measured on the test rows left; where a "
            "plain run has not kept that, on different test rows, as is said there; what another machine and "
            "its versions change was not measured. FER+'s labels are those of test as well as of the "
            "training, faces without a majority are left out, and the split is drawn anew, stratified by "
            "these labels: other faces are in each part. On FER2013's official split test is PrivateTest, as "
            "in the literature, where single models without extra data reach about 0.73; validation is "
            "PublicTest."
        ),
    ]


def _points(group: Group, plain: Group, name: str) -> str:
    """The difference with its interval, or why there is none."""
    if unlike := _unlike(group.runs[0], plain.runs[0]):
        return unlike
    group, plain = group.only(plain.seeds), plain.only(group.seeds)
    short, drops = "test_without_duplicates", group.setting.variant == "deduplicated"
    kept = drops and all(short in run for run in plain.runs)

    def measure(g: Group) -> np.ndarray:
        return 100 * g.values(short if kept and g is plain else "test", name)

    effect = comparisons.paired(group, plain, measure)
    if isinstance(effect, str):
        return effect
    low, high = effect.interval()
    rows = [g.runs[0]["split"]["sha256_of_int64_indices"]["test"] for g in (group, plain)]
    notes = ["different test rows"] if rows[0] != rows[1] and not kept else []
    notes += ["another machine"] if [*map(machine, group.runs)] != [*map(machine, plain.runs)] else []
    note = f" ({', '.join(notes)})" if notes else ""
    return f"{effect.mean:+z.1f} [{low:+z.1f}, {high:+z.1f}]{note}"


def _unlike(run: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What beside the variant is not the same in two runs, in words."""
    weights = [(r["init"]["weights"] or {}).get("weights_sha256") for r in (run, other)]
    faces = [r["data"]["sha256"].split()[0] for r in (run, other)]  # FER+'s labels follow
    return "other weights" if weights[0] != weights[1] else "other data" if faces[0] != faces[1] else ""


def _classifiers(groups: Sequence[Group], lacking: Mapping[str, str]) -> list[Block]:
    rows = []
    for group in groups:
        fitted = classifiers(group)
        if fitted:
            rows.append([label(group), "fine-tuned, dense head (all seeds)", NONE,
                         spread(group.values("final", "val_accuracy")),
                         spread(group.values("test", "accuracy")),
                         spread(group.values("test", "macro_f1"))])  # fmt: skip
        rows += [[label(group), name, _chosen(found), *_scores(found)] for name, found in fitted]
    if not rows:
        return []
    columns = ["setting", "classifier", "chosen on validation", "val. acc.", "test acc.", "macro F1"]
    return [
        Heading("Classifiers that are no neural networks"),
        Table(columns, rows + missing_rows(lacking, len(columns)), left=3),
        Paragraph(
            "By scikit-learn, on the pooled embeddings of the backbone before any training on faces, "
            "standardised; the dense head of the same table had four layers of the backbone trained with it. "
            "Where the lowest or highest of what was tried was chosen, one beyond it may be better."
        ),
    ]


def _chosen(found: Mapping[str, Any]) -> str:
    """The hyperparameter of a classifier, and of which."""
    names = found.keys() - {"tried", "val_accuracy", "test_accuracy", "test_macro_f1"}
    tried = f" of {', '.join(map(str, found['tried']))}" if "tried" in found else ""
    return ", ".join(f"{name} {found[name]}" for name in sorted(names)) + tried


def _scores(found: Mapping[str, float]) -> list[str]:
    """A classifier's on validation and on test."""
    return [number(found[name]) for name in ("val_accuracy", "test_accuracy", "test_macro_f1")]


def _faces(home: Path, groups: Sequence[Group]) -> list[Block]:
    blocks: list[Block] = []
    for group in groups:
        for seed in group.seeds[:1]:
            name = Cell(group.setting, group.init, seed).name
            if (home / "cells" / name / "faces.png").exists() and not group.degenerate:
                blocks.append(Picture(f"cells/{name}/faces.png", f"{group.words}, seed {seed}"))
    if not blocks:
        return []
    rule = (
        "Of each true class the test face of the most confident right and that of the most confident wrong "
        "prediction (the paper's figures 9-15). The images are the data set's: do not pass them on."
    )
    return [Heading("Single faces"), Paragraph(rule), *blocks]
