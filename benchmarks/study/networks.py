"""Tables 2-5 of the report with their figures: a backbone each."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.study import figures
from benchmarks.study.blocks import Block, Heading, Paragraph, Picture, Table
from benchmarks.study.cells import EPOCHS, Cell, Setting
from benchmarks.study.results import Group
from benchmarks.study.wording import (
    FIT,
    NAMES,
    NONE,
    SPEED,
    data_words,
    has_weighted_loss,
    label,
    missing,
    missing_note,
    missing_rows,
    network,
    number,
    on_embeddings,
    parameters,
    seconds_and_speed,
    spread,
)

TOLD_EPOCHS = (0, 1, 5, 10, 15, 20)  # where the paper reads its metrics, before training, after one epoch
_INITIAL = {0: "epoch 0, before training", 1: "epoch 1, initial in the paper"}
_COLUMNS = {
    "train_accuracy": "train accuracy",
    "val_accuracy": "validation accuracy",
    "train_loss": "train loss",
    "val_loss": "validation loss",
}
_WEIGHTED = (
    "With balanced class weights the train loss is weighted from epoch 1 on, that of epoch 0 and every "
    "validation loss are not: rates of loss and MOFR of loss mix the two there, and are compared with no "
    "other row's."
)


def blocks(
    home: Path, table: int, backbone: str, groups: Sequence[Group], absent: Mapping[Cell, str]
) -> list[Block]:
    """Table number `table` and its figures, which are drawn below `home`."""
    mine = [group for group in groups if group.setting.backbone == backbone]
    heading = Heading(f"Table {table}: {NAMES[backbone]}")
    lacking = missing(absent, lambda setting: setting.backbone == backbone, groups)
    if not mine and not lacking:
        return [heading, Paragraph("No run of this backbone was asked for.")]
    made: list[Block] = [
        heading,
        _epochs(mine, lacking),
        _rates(mine, lacking, groups),
        _last(mine, lacking, groups),
    ]
    if any(map(has_weighted_loss, mine)):
        made.append(Paragraph(_WEIGHTED))
    return made + missing_note(lacking) + _figures(home, table + 3, backbone, mine)


def _epochs(groups: Sequence[Group], lacking: Mapping[str, str]) -> Table:
    last = max((group.setting.epochs for group in groups), default=EPOCHS)
    told = sorted({epoch for epoch in TOLD_EPOCHS if epoch < last} | {last})
    columns = ["setting", "metric", *(_INITIAL.get(epoch, f"epoch {epoch}") for epoch in told)]
    rows = []
    for group in groups:
        for column, name in _COLUMNS.items():
            values = group.history(column)
            cells = [spread(values[:, epoch]) if epoch < values.shape[1] else "" for epoch in told]
            weighted = " (weighted)" if has_weighted_loss(group) and column == "train_loss" else ""
            rows.append([label(group, n=True), name + weighted, *cells])
    return Table(columns, rows + missing_rows(lacking, len(columns)), left=2)


def _rates(groups: Sequence[Group], lacking: Mapping[str, str], everywhere: Sequence[Group]) -> Table:
    # Where no run of this backbone is there the columns are those of the other backbones.
    spans = list(dict.fromkeys(s for g in groups or everywhere for s in g.runs[0]["mcr"]["accuracy"]))
    columns = ["setting", "rate an epoch", *map(_span, spans)]
    rows = []
    for group in groups:
        for kind in ("mcr", "mofr"):
            for metric in ("accuracy", "loss"):
                has = group.runs[0][kind][metric]
                cells = [spread(group.values(kind, metric, s), 4) if s in has else "" for s in spans]
                weighted = " (train weighted)" if has_weighted_loss(group) and metric == "loss" else ""
                rows.append([label(group, n=True), f"{kind.upper()} of {metric}{weighted}", *cells])
    return Table(columns, rows + missing_rows(lacking, len(columns)), left=2)


def _span(name: str) -> str:
    """ "epochs_1_5" in words; the window starts where the epoch before it ended."""
    kind, *numbers = name.split("_")
    return f"{kind} {'-'.join(numbers)}" if kind == "epochs" else name.replace("_", " ")


def _last(groups: Sequence[Group], lacking: Mapping[str, str], everywhere: Sequence[Group]) -> Table:
    columns = ["setting", "test accuracy", "macro F1", "parameters", "that learn", "fit, s", "images/s"]
    rows = []
    for group in groups:
        rows.append([
            label(group, n=True),
            spread(group.values("test", "accuracy")),
            spread(group.values("test", "macro_f1")),
            *parameters(group),
            *seconds_and_speed(group, everywhere),
        ])  # fmt: skip
        for name, found in on_embeddings(group):
            scores = [number(found[score]) for score in ("test_accuracy", "test_macro_f1")]
            rows.append([name, *scores, parameters(group)[0], "0", NONE, NONE])
    return Table(columns, rows + missing_rows(lacking, len(columns)))


def how_to_read() -> Block:
    """What stands once before tables 2-5."""
    return Paragraph(
        "In tables 2-5 a rate's window starts from the epoch before it: epochs 1-5 is the change from epoch "
        "0 to epoch 5, over 5, epochs 6-10 that from epoch 5 to epoch 10. MCR of loss is negative while the "
        "train loss falls. MOFR is of train less validation: overfitting is positive for accuracy and "
        f"negative for loss, whose validation rises above train. {SPEED}; {FIT}."
    )


def _figures(home: Path, first: int, backbone: str, groups: Sequence[Group]) -> list[Block]:
    settings, limit = list(dict.fromkeys(group.setting for group in groups)), figures.loss_limit(groups)
    found: list[Block] = []
    for part, (file, subject, plain, others) in enumerate(_plots(backbone, groups)):
        title = f"{subject}: accuracy and loss"
        if any(len(g.runs) > 1 for g in (*plain, *others)):
            title += ", mean and one standard deviation over seeds"
        if any(map(has_weighted_loss, others)):
            title += "; with balanced class weights the train loss is weighted, the validation loss is not"
        if any(
            g.history(c)[:, 0].max() > limit for g in (*plain, *others) for c in ("train_loss", "val_loss")
        ):
            title += "; the loss axis ends below the highest of epoch 0"
        path = f"figures/{file}.png"
        figures.plot_histories(plain, others, settings, title, home / path, limit)
        found.append(Picture(path, f"Figure {first}{f'.{part}' if part else ''}: {title}."))
    return found


def _plots(backbone: str, groups: Sequence[Group]) -> list[tuple[str, str, list[Group], list[Group]]]:
    """File name, subject, plain groups and others of each figure: one of plain groups that differ in network
    and initialisation alone, on the paper's split if it can be; then, by network, what has other data and
    what has other training."""
    plain = [group for group in groups if group.setting.variant == "plain"]
    if not plain:
        return [(f"history_{backbone}", NAMES[backbone], [], list(groups))] if groups else []
    first = next((group for group in plain if group.setting.split == "paper"), plain[0]).setting

    def training(setting: Setting) -> tuple[float, ...]:
        return setting.epochs, setting.learning_rate

    def has_its_data(setting: Setting) -> bool:
        return data_words(setting) == data_words(first)

    main = [g for g in plain if has_its_data(g.setting) and training(g.setting) == training(first)]
    found = [(f"history_{backbone}", f"{NAMES[backbone]}, {data_words(first)}", main, list[Group]())]
    variants: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        if group not in main:
            subject = "other training" if has_its_data(group.setting) else "other data"
            variants.setdefault((network(group.setting), subject), []).append(group)
    for (name, subject), others in variants.items():
        base = [g for g in main if network(g.setting) == name and g.init in {o.init for o in others}]
        file = "_".join(["variants", *name.split(), subject.split()[-1]])
        found.append((file, f"Variants of {name}, {subject}", base, others))
    return found
