"""The study's report: its tables, figures, verdicts and method, as report.md and report.html."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study import claims, comparisons, figures
from benchmarks.study.blocks import Block, Heading, Paragraph, Picture, Table, markdown, page
from benchmarks.study.cells import BACKBONES, EPOCHS, Cell
from benchmarks.study.results import Group
from fer_jax.files import replacing

TOLD_EPOCHS = (1, 5, 10, 15, 20)  # where the paper reads its metrics, and after the first epoch
_NAMES = {"openface": "OpenFace", "vggface": "VGG-Face", "resnet50": "ResNet-50", "mobilenet": "MobileNet"}
_COLUMNS = {
    "train_accuracy": "train accuracy",
    "val_accuracy": "validation accuracy",
    "train_loss": "train loss",
    "val_loss": "validation loss",
}


def write(home: Path, groups: Sequence[Group], absent: Mapping[Cell, str], faces: bool) -> None:
    """Writes report.html, report.md and figures/ in `home`.

    Args:
      absent: cells without a result, and why.
      faces: whether figures of single faces, where the runs have left them, are shown.
    """
    (home / "figures").mkdir(parents=True, exist_ok=True)
    blocks: list[Block] = [Heading("Facial emotion recognition by transfer: the study", 1)]
    blocks += [Paragraph(text) for text in _lead(groups)]
    verdicts = claims.judge(groups)
    blocks += _summary(groups, absent)
    blocks += _claims(verdicts)
    blocks += _class_counts(groups)
    for number, backbone in enumerate(BACKBONES, start=2):
        blocks += _backbone(home, number, backbone, groups, absent)
    blocks += _across(home, groups)
    blocks += _data(groups)
    blocks += _classifiers(groups)
    blocks += _faces(home, groups) if faces else [Paragraph(
        "Single faces with their probabilities (the paper's figures 9-15) are left out: FER2013's images may "
        "not be passed on. Without --no_faces the report of your own runs shows them."
    )]  # fmt: skip
    blocks += _method(groups)
    with replacing(home / "report.md") as temporary:
        temporary.write_text(markdown(blocks), encoding="utf-8")
    with replacing(home / "report.html") as temporary:
        temporary.write_text(page(blocks, home), encoding="utf-8")


def spread(values: np.ndarray, digits: int = 3) -> str:
    """Mean ± sample standard deviation; the mean alone of one value."""
    mean = f"{values.mean():.{digits}f}"
    return f"{mean} ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else mean


def _lead(groups: Sequence[Group]) -> list[str]:
    if not groups:
        return ["No cell has finished yet."]
    runs = [run for group in groups for run in group.runs]
    kinds = {run["data"]["kind"] for run in runs}
    lines = [
        f"{len(runs)} finished trainings in {len(groups)} settings. Means are over seeds, which drive the "
        "head, the order of the images and a randomly initialised backbone; ± is the sample standard "
        "deviation, n the number of seeds, and without ± there was one."
    ]
    if "drawn" in kinds:
        lines.append(
            "WARNING: some of these runs are on faces DRAWN by this program; they say nothing about FER2013."
        )
    if "own" in kinds:
        lines.append("Some of these runs are on data of one's own: no claim of the paper is judged on them.")
    degenerate = [group.words for group in groups if group.degenerate]
    if degenerate:
        lines.append(
            "Degenerate, since one class is predicted for every test image, and in no verdict: "
            + "; ".join(degenerate)
            + "."
        )
    return lines


def _missing(absent: Mapping[Cell, str], backbone: str = "") -> dict[str, str]:
    """Settings without a result, and why; the seeds of one are one."""
    found: dict[str, str] = {}
    for cell, reason in absent.items():
        if backbone in ("", cell.setting.backbone):
            found.setdefault(f"{cell.setting.words}, {cell.init}", reason)
    return found


def _summary(groups: Sequence[Group], absent: Mapping[Cell, str]) -> list[Block]:
    columns = ["setting", "n", "parameters", "that learn", "train acc.", "val. acc.", "test acc.", "macro F1",
               "MCR", "MOFR", "fit, s", "images/s"]  # fmt: skip
    rows = []
    for group in groups:
        parameters = group.runs[0]["model"]["backbone_parameters"]
        rows.append([
            group.words + (" (degenerate)" if group.degenerate else ""),
            str(len(group.runs)),
            f"{parameters:,}",
            f"{group.runs[0]['model']['backbone_parameters_that_learn']:,}",
            spread(group.values("final", "train_accuracy")),
            spread(group.values("final", "val_accuracy")),
            spread(group.values("test", "accuracy")),
            spread(group.values("test", "macro_f1")),
            spread(group.values("mcr", "accuracy", "from_epoch_0"), 4),
            spread(group.values("mofr", "accuracy", "from_epoch_0"), 4),
            f"{group.values('fit_seconds').mean():.0f}",
            f"{group.values('predict_images_per_s').mean():.1f}",
        ])  # fmt: skip
        for run in group.runs:
            for name, found in run.get("classifiers", {}).items():
                numbers = [f"{found[k]:.3f}" for k in ("val_accuracy", "test_accuracy", "test_macro_f1")]
                rows.append([f"{group.words}: {name} on its embeddings", "1", f"{parameters:,}", "0", "–",
                             *numbers, "–", "–", "–", "–"])  # fmt: skip
    empty = ["–"] * (len(columns) - 1)
    rows += [[f"{words}: {reason}", *empty] for words, reason in _missing(absent).items()]
    return [
        Heading("Summary"),
        Table(columns, rows),
        Paragraph(
            "Parameters are the backbone's, moving statistics included, and of them those that learn (the "
            "head adds 1,000 to 20,000). Accuracies are of the last epoch, on test after it. MCR and MOFR "
            "are of accuracy, an epoch, from epoch 0. Fit: seconds of the epochs, the features of the frozen "
            "part computed before. Images/s: of the whole network in inference, batch 32."
        ),
    ]


def _claims(verdicts: Sequence[claims.Verdict]) -> list[Block]:
    rows = [[f"{v.number}. {v.claim}", v.verdict, f"{v.rule}", "\n".join(v.numbers)] for v in verdicts]
    return [
        Heading("The paper's claims"),
        Table(["claim", "verdict", "rule", "numbers (effect [95 % interval], n)"], rows, left=4),
        Paragraph(
            "Judged is the paper's experiment alone: its split, 20 epochs, all faces, its networks at their "
            "own size, complete weights; degenerate runs are left out. What stands beside decides nothing. "
            "Within a backbone runs are paired by seed (Student's interval), between backbones not "
            "(Welch's); fewer than two seeds on either side leave a comparison open. "
            "benchmarks/study/claims.py has the rules."
        ),
    ]


def _class_counts(groups: Sequence[Group]) -> list[Block]:
    tables: dict[str, dict[str, dict[str, int]]] = {}
    for group in groups:
        setting = group.setting
        variant = setting.variant if setting.variant in ("deduplicated", "ferplus") else ""
        limit = f"limited to {setting.limit:,}" if setting.limit else ""
        name = ", ".join(word for word in (setting.data, f"split {setting.split}", variant, limit) if word)
        tables.setdefault(name, group.runs[0]["class_counts"])
    blocks: list[Block] = [Heading("Table 1: faces of each class")]
    for name, counts in tables.items():
        classes = list(next(iter(counts.values())))
        rows = [
            [part, *(f"{by_class[c]:,}" for c in classes), f"{sum(by_class.values()):,}"]
            for part, by_class in counts.items()
        ]
        blocks.append(Table([name, *classes, "all"], rows))
    return blocks


def _backbone(
    home: Path, number: int, backbone: str, groups: Sequence[Group], absent: Mapping[Cell, str]
) -> list[Block]:
    mine = [group for group in groups if group.setting.backbone == backbone]
    blocks: list[Block] = [Heading(f"Table {number}: {_NAMES[backbone]}")]
    missing = _missing(absent, backbone)
    if not mine and not missing:
        return [*blocks, Paragraph("No run of this backbone was asked for.")]
    last = max((group.setting.epochs for group in mine), default=EPOCHS)
    told = sorted({epoch for epoch in TOLD_EPOCHS if epoch < last} | {last})
    rows = []
    for group in mine:
        for column, name in _COLUMNS.items():
            values = group.history(column)
            cells = [spread(values[:, epoch]) if epoch < values.shape[1] else "" for epoch in told]
            rows.append([f"{group.words}, n = {len(group.runs)}", name, *cells])
    rows += [[words, reason, *["–"] * len(told)] for words, reason in missing.items()]
    blocks.append(Table(["setting", "metric", *(f"epoch {epoch}" for epoch in told)], rows, left=2))
    if mine:
        blocks += [_rates(mine, missing)]
        path = f"figures/history_{backbone}.png"
        title = f"{_NAMES[backbone]}: accuracy and loss, mean and one standard deviation over seeds"
        for part, few in enumerate(_portions(mine)):
            here = path if not part else path.replace(".png", f"_{part + 1}.png")
            figures.plot_histories(few, title, home / here)
            suffix = f" ({part + 1})" if part else ""
            blocks.append(Picture(here, f"Figure {number + 3}{suffix}: {title}."))
    return blocks


def _portions(groups: Sequence[Group]) -> list[Sequence[Group]]:
    """At most as many groups a figure as there are colours."""
    size = len(figures.COLOURS)
    return [groups[i : i + size] for i in range(0, len(groups), size)]


def _rates(groups: Sequence[Group], missing: Mapping[str, str]) -> Table:
    spans = list(dict.fromkeys(span for group in groups for span in group.runs[0]["mcr"]["accuracy"]))
    rows = []
    for group in groups:
        for kind in ("mcr", "mofr"):
            for metric in ("accuracy", "loss"):
                cells = [
                    spread(group.values(kind, metric, span), 4) if span in group.runs[0][kind][metric] else ""
                    for span in spans
                ]
                rows.append([group.words, f"{kind.upper()} of {metric}", *cells])
    rows += [[words, reason, *["–"] * len(spans)] for words, reason in missing.items()]
    return Table(["setting", "rate an epoch", *(span.replace("_", " ") for span in spans)], rows, left=2)


def _across(home: Path, groups: Sequence[Group]) -> list[Block]:
    plain = [g for g in groups if (g.setting.split, g.setting.variant) == ("paper", "plain")]
    shown = plain or list(groups)
    if not shown:
        return []
    by_classes: dict[tuple[str, ...], list[Group]] = {}
    for group in shown:
        by_classes.setdefault(tuple(group.runs[0]["test"]["class_names"]), []).append(group)
    blocks: list[Block] = [Heading("Classes")]
    for names, alike in by_classes.items():
        rows = [
            [
                group.words + (" (degenerate)" if group.degenerate else ""),
                *(spread(group.values("test", "per_class", name, "recall")) for name in names),
            ]
            for group in alike
        ]
        blocks.append(Table(["recall on test", *names], rows))
    for part, few in enumerate(few for alike in by_classes.values() for few in _portions(alike)):
        suffix = "" if not part else f"_{part + 1}"
        title = "Recall of each class on test, mean and one standard deviation over seeds"
        figures.plot_recall(few, title, home / f"figures/recall{suffix}.png")
        blocks.append(Picture(f"figures/recall{suffix}.png", f"{title}."))
    sound = [group for group in shown if not group.degenerate]
    if sound:
        title = "Confusion on test, summed over seeds, as shares of the true class"
        figures.plot_confusions(sound, title, home / "figures/confusion.png")
        blocks.append(Picture("figures/confusion.png", f"{title}."))
    return blocks


def _data(groups: Sequence[Group]) -> list[Block]:
    """What split, duplicates, labels, augmentation and balance are worth, in points of test accuracy."""
    plain = {(_base(group), group.init): group for group in groups if group.setting.variant == "plain"}
    rows = []
    for group in groups:
        setting = group.setting
        if setting.variant == "plain":
            if setting.split == "paper":
                continue
            rows.append([group.words, str(len(group.runs)), spread(group.values("test", "accuracy")), "", ""])
            continue
        base = plain.get((_base(group), group.init))
        cells = ["no plain run", ""]
        if base:
            effects = [
                comparisons.paired(group, base, lambda g, path=path: 100 * g.values("test", *path))  # type: ignore[misc]
                for path in (("accuracy",), ("macro_f1",))
            ]
            cells = [_points(effect) for effect in effects]
        rows.append([group.words, str(len(group.runs)), spread(group.values("test", "accuracy")), *cells])
    if not rows:
        return []
    columns = ["setting", "n", "test accuracy", "points of accuracy over plain", "of macro F1"]
    return [
        Heading("Data, labels, augmentation, balance"),
        Table(columns, rows),
        Paragraph(
            "Points are percent, with their 95 % interval, paired over seeds with the plain runs of the same "
            "split. Without duplicates and with FER+'s labels the test set is another one too. On FER2013's "
            "official split test is PrivateTest, as in the literature, where single models without extra "
            "data reach about 0.73; validation is PublicTest."
        ),
    ]


def _points(effect: comparisons.Effect | str) -> str:
    if isinstance(effect, str):
        return effect
    low, high = effect.interval()
    return f"{effect.mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _base(group: Group) -> tuple[Any, ...]:
    s = group.setting
    return s.backbone, s.alpha, s.image_size, s.split, s.epochs, s.limit, s.data


def _classifiers(groups: Sequence[Group]) -> list[Block]:
    rows = []
    for group in groups:
        for run in group.runs:
            if "classifiers" not in run:
                continue
            rows.append([group.words, "fine-tuned, dense head (all seeds)", "",
                         spread(group.values("final", "val_accuracy")),
                         spread(group.values("test", "accuracy")),
                         spread(group.values("test", "macro_f1"))])  # fmt: skip
            for name, found in run["classifiers"].items():
                chosen = ", ".join(f"{k} {v}" for k, v in found.items() if not k.endswith(("accuracy", "f1")))
                numbers = [f"{found[k]:.3f}" for k in ("val_accuracy", "test_accuracy", "test_macro_f1")]
                rows.append([group.words, name, chosen, *numbers])
    if not rows:
        return []
    return [
        Heading("Classifiers that are no neural networks"),
        Table(
            ["setting", "classifier", "chosen on validation", "val. acc.", "test acc.", "macro F1"],
            rows,
            left=3,
        ),
        Paragraph(
            "By scikit-learn, on the pooled embeddings of the backbone before any training on faces, "
            "standardised; the dense head of the same table had four layers of the backbone trained with it."
        ),
    ]


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


def _method(groups: Sequence[Group]) -> list[Block]:
    if not groups:
        return []
    blocks: list[Block] = [Heading("Method")]
    shared = _values(groups, lambda run: run["readings"])
    blocks.append(
        Paragraph("What the paper leaves open, and how these runs read it; none of it is the paper's word.")
    )
    blocks.append(Table(["reading", "value"], [[key, value] for key, value in shared.items()], left=2))
    rows = []
    for group in groups:
        run = group.runs[0]
        weights = (run["init"].get("weights") or {}).get("weights_sha256", "")
        devices = {f"{r['device']['kind']}, {r['device']['cpu_cores']} cores" for r in group.runs}
        rows.append([
            group.words,
            " ".join(map(str, group.seeds)),
            "\n".join(sorted({r["git_revision"][:12] + ("+" if "dirty" in r["git_revision"] else "")
                              if r["git_revision"] else "none" for r in group.runs})),
            "\n".join(sorted(devices)),
            weights[:12],
            run["data"]["sha256"][:12],
            run["split"]["sha256_of_int64_indices"]["test"][:12],
        ])  # fmt: skip
    columns = [
        "setting",
        "seeds",
        "revision (+: changed)",
        "machine",
        "weights sha256",
        "data sha256",
        "test rows sha256",
    ]
    blocks.append(Table(columns, rows, left=7))
    versions = _values(groups, lambda run: run["versions"])
    blocks.append(
        Paragraph("Versions: " + ", ".join(f"{name} {value}" for name, value in versions.items()) + ".")
    )
    blocks.append(Paragraph(
        "What would change it: the membership of the split (another reading of the paper's counts), another "
        "optimizer or learning rate, the head, the scaling of the input, complete weights for the backbones "
        "that lack them, more seeds. Train metrics are running means over an epoch while the weights change; "
        "epoch 0 is measured before the first step, in inference mode."
    ))  # fmt: skip
    return blocks


def _values(groups: Sequence[Group], of: Callable[[Any], Mapping[str, Any]]) -> dict[str, str]:
    """The value of each key; where runs differ each value with the settings it is of."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for group in groups:
        for run in group.runs:
            for key, value in of(run).items():
                found.setdefault(key, {}).setdefault(str(value), {})[group.words] = None
    return {
        key: next(iter(values))
        if len(values) == 1
        else "\n".join(f"{value} — {'; '.join(words)}" for value, words in values.items())
        for key, values in found.items()
    }
